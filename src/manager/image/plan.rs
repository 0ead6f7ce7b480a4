//! Decides what to report of an Image. Pure.

use k8s_openapi::jiff::Timestamp;

use kube::ResourceExt;

use crate::list_some;
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::image::{DiskFormat, ImageStatus, Source};
use pileus_api::names::{host_namespace, instance_name};
use pileus_api::{Image, Instance, Reason, Server, validation};
use pileus_kube_ext::finalize;

/// Everything that a decision is made from.
pub struct Observed<'a> {
    /// Instances made from it, of which [`is_made_from`] holds.
    pub instances: Vec<&'a Instance>,
    /// Servers of its namespace that name it.
    pub users: Vec<String>,
    /// It is being deleted only because its CustomResourceDefinition is.
    pub crd_deleting: bool,
}

/// What to do and report.
pub struct Plan {
    /// Release the Image.
    pub release: bool,
    /// What to report.
    pub status: ImageStatus,
}

/// Whether an Instance is the one that the manager has made for `server`, from this very Image: a
/// host may change its Instances, and must not speak for Images that nobody uses on it.
#[must_use]
pub fn is_made_from(instance: &Instance, image: &Image, server: &Server) -> bool {
    let spec = &instance.spec;
    let status = server.status.as_ref();
    let is_placed = status.and_then(|s| s.placement.as_ref()).is_some_and(|p| {
        p.host == spec.host
            && p.epoch == spec.epoch
            && instance.namespace().as_ref() == Some(&host_namespace(&p.host))
            && instance.name_any() == instance_name(&spec.server.uid, p.epoch)
    });
    let (named, own) = (&server.spec.image, image.namespace().unwrap_or_default());
    let namespace = server.namespace().unwrap_or_default();
    let sharing = image.spec.shared_with.as_ref();
    let may_use = own == namespace || sharing.is_some_and(|s| s.allows(&namespace));
    let (source, disk) = (&image.spec.source, &spec.image.disk);
    let checksum = source.checksum.as_ref().map(|c| c.to_ascii_lowercase());
    is_placed
        && may_use
        && server.uid().as_ref() == Some(&spec.server.uid)
        && named.name == image.name_any()
        && named.namespace.as_ref().unwrap_or(&namespace) == &own
        && (&disk.url, &disk.checksum) == (&source.url, &checksum)
        && spec.image.disk_format == image.spec.disk_format
}

/// Decides for one Image.
#[must_use]
pub fn plan(image: &Image, observed: &Observed<'_>, now: Timestamp) -> Plan {
    let old = image.status.clone().unwrap_or_default();
    let by_checksum = image
        .spec
        .source
        .checksum
        .as_ref()
        .map(|c| c.to_ascii_lowercase())
        .filter(|c| c.starts_with("sha256:"));
    let imported = observed
        .instances
        .iter()
        .filter_map(|i| i.status.as_ref()?.image.as_ref());
    // Of several hosts that fetched at once the first to be observed counts, for ever.
    let digest = old
        .digest
        .clone()
        .or_else(|| by_checksum.clone())
        .or_else(|| imported.clone().next().map(|i| i.digest.clone()));
    let fixed = || digest.is_some().then(|| image.spec.source.clone());
    let source = old.source.clone().or_else(fixed);
    let sizes = imported
        .clone()
        .find(|i| Some(&i.digest) == digest.as_ref());
    let size = old.size.or_else(|| sizes.map(|i| i.size));
    let virtual_size = old.virtual_size.or_else(|| sizes.map(|i| i.virtual_size));

    let failed = failure(observed, digest.as_ref())
        .or_else(|| last_failure(&old).filter(|_| size.is_none()));
    let is_verified = size.is_some();
    let verified = fetched(ConditionType::Verified, is_verified, failed.clone());
    let ready = unusable(image, source.as_ref(), &observed.users)
        .unwrap_or_else(|| fetched(ConditionType::Ready, is_verified, failed));
    let deleting = finalize::is_deleting(image);
    Plan {
        release: deleting && (observed.users.is_empty() || observed.crd_deleting),
        status: ImageStatus {
            observed_generation: image.metadata.generation,
            digest,
            source,
            size,
            virtual_size,
            conditions: conditions::merge(
                &old.conditions,
                [ready, verified],
                image.metadata.generation,
                now,
            ),
        },
    }
}

/// What hosts have found out about the bytes. Other bytes on another host count always, a server
/// that cannot be reached now only against an Image that is to be fetched.
fn fetched(
    type_: ConditionType,
    is_verified: bool,
    failed: Option<(Reason, String)>,
) -> Observation {
    let is_ready = type_ == ConditionType::Ready;
    match failed {
        Some((reason, message)) if is_ready || !is_verified || reason == Reason::DigestMismatch => {
            Observation::no(type_, reason, message)
        }
        _ if is_verified && is_ready => {
            Observation::yes(type_, Reason::Ready, "Servers can be made from it")
        }
        _ if is_verified => Observation::yes(type_, Reason::Verified, "fetched and checked"),
        _ => Observation::unknown(
            type_,
            Reason::NotFetched,
            "no host has needed it yet; it is fetched and checked for the first Server made from it",
        ),
    }
}

/// What was reported last, while nothing newer is known: the Server that has found it out may be
/// gone.
fn last_failure(old: &ImageStatus) -> Option<(Reason, String)> {
    let last = conditions::find(&old.conditions, ConditionType::Verified)?;
    let reason = Reason::parse(&last.reason).filter(|r| ABOUT_THE_IMAGE.contains(r))?;
    (last.status == "False").then(|| (reason, last.message.clone()))
}

/// Why no Server can be made from it, whatever its bytes are.
fn unusable(image: &Image, fixed: Option<&Source>, users: &[String]) -> Option<Observation> {
    let no = |reason, message| Some(Observation::no(ConditionType::Ready, reason, message));
    if finalize::is_deleting(image) {
        let users = list_some(users.to_vec());
        return no(
            Reason::InUse,
            format!("cannot be deleted while Servers use it: {users}; delete them first"),
        );
    }
    if !matches!(image.spec.disk_format, DiskFormat::Qcow2 | DiskFormat::Raw) {
        let format = image.spec.disk_format.as_str();
        return no(
            Reason::UnsupportedFormat,
            format!(
                "diskFormat {format} cannot be used yet; convert it with `qemu-img convert -O qcow2` and make a new Image"
            ),
        );
    }
    // The definition refuses a change, but not an Image that was deleted and restored together
    // with the status of another one.
    if let Some(fixed) = fixed.filter(|fixed| **fixed != image.spec.source) {
        return no(
            Reason::InvalidSpec,
            format!(
                "spec.source: {} is not what the digest was fixed by, which was {}; set it back, or make a new Image for other bytes. Servers that have the old bytes keep them",
                source_text(&image.spec.source),
                source_text(fixed)
            ),
        );
    }
    let invalid = validation::image(&image.spec).err()?;
    no(Reason::InvalidSpec, invalid)
}

fn source_text(source: &Source) -> String {
    let checksum = source.checksum.as_ref();
    let checksum = checksum.map_or_else(String::new, |c| format!(" with checksum {c}"));
    format!("{}{checksum}", source.url)
}

/// Reasons of hosts that speak of the Image, and not of one Server.
const ABOUT_THE_IMAGE: [Reason; 11] = [
    Reason::ChecksumMismatch,
    Reason::DigestMismatch,
    Reason::NotFound,
    Reason::ForbiddenAddress,
    Reason::ForbiddenUrl,
    Reason::Truncated,
    Reason::DownloadFailed,
    Reason::NotAnImage,
    Reason::HasBackingFile,
    Reason::UnsupportedFormat,
    Reason::ImageOverLimit,
];

/// What a host reports about bytes that it could not get or use, or that are not those of
/// `digest`, which the first host has found.
fn failure(observed: &Observed<'_>, digest: Option<&String>) -> Option<(Reason, String)> {
    let found = observed.instances.iter().filter_map(|instance| {
        let host = &instance.spec.host;
        let status = instance.status.as_ref()?;
        if let (Some(imported), Some(digest)) = (&status.image, digest)
            && imported.digest != *digest
        {
            let message = format!(
                "host {host} was given {}, and the first import fixed {digest}: the bytes at the \
                 source have changed. Make a new Image for the new ones",
                imported.digest
            );
            return Some((Reason::DigestMismatch, message));
        }
        let ready = conditions::find(&status.conditions, ConditionType::Ready)?;
        let reason = Reason::parse(&ready.reason).filter(|r| ABOUT_THE_IMAGE.contains(r))?;
        Some((reason, format!("host {host}: {}", ready.message)))
    });
    // Of several the same one each time, and first the one that says most.
    found.min_by_key(|(reason, message)| (*reason != Reason::DigestMismatch, message.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn image(url: &str) -> Image {
        let source = json!({"url": url, "checksum": format!("sha256:{}", "a".repeat(64))});
        let object = json!({"apiVersion": "pileus.dev/v1alpha1", "kind": "Image",
            "metadata": {"name": "tiny", "generation": 1}, "spec": {"source": source}});
        serde_json::from_value(object).unwrap()
    }

    fn instance(status: &serde_json::Value) -> Instance {
        let source = image("https://a/tiny").spec.source;
        let object = json!({"apiVersion": "pileus.dev/v1alpha1", "kind": "Instance",
            "metadata": {"name": "uid-3", "namespace": "pileus-host-h1"},
            "spec": {"server": {"namespace": "team", "name": "web", "uid": "uid"},
                "host": "h1", "epoch": 3, "instanceID": "i",
                "claim": {"vcpus": 1, "memoryMiB": 64, "diskGiB": 1},
                "image": {"name": "team/tiny", "uid": "u", "diskFormat": "qcow2", "disk": source}},
            "status": status});
        serde_json::from_value(object).unwrap()
    }

    fn found(digest: &str) -> Instance {
        instance(&json!({"image": {"digest": digest, "size": 10, "virtualSize": 20}}))
    }

    fn failed(reason: &str) -> Instance {
        let ready = json!({"type": "Ready", "status": "False", "reason": reason,
            "message": "as the host reports it", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        instance(&json!({"conditions": [ready]}))
    }

    /// The status after `instances` have been seen, and (status, reason) of Ready and Verified.
    fn seen(image: &Image, instances: &[Instance]) -> (Image, [(String, String); 2]) {
        let observed = Observed {
            instances: instances.iter().collect(),
            users: vec![],
            crd_deleting: false,
        };
        let status = plan(image, &observed, Timestamp::UNIX_EPOCH).status;
        let mut image = image.clone();
        let says = [ConditionType::Ready, ConditionType::Verified].map(|type_| {
            let condition = conditions::find(&status.conditions, type_).unwrap();
            (condition.status.clone(), condition.reason.clone())
        });
        image.status = Some(status);
        (image, says)
    }

    fn both(status: &str, reason: &str) -> [(String, String); 2] {
        [(); 2].map(|()| (status.to_owned(), reason.to_owned()))
    }

    #[test]
    fn an_image_is_ready_once_it_was_fetched_and_says_why_it_cannot_be() {
        let fine = format!("sha256:{}", "a".repeat(64));
        let (image, says) = seen(&image("https://a/tiny"), &[]);
        assert_eq!(says, both("Unknown", "NotFetched"));
        let (image, says) = seen(&image, &[failed("HasBackingFile")]);
        assert_eq!(says, both("False", "HasBackingFile"));
        // The Server that has found it out is gone.
        let (image, says) = seen(&image, &[]);
        assert_eq!(says, both("False", "HasBackingFile"));
        // What is wrong with one Server is not the Image's fault.
        let (_, says) = seen(&image, &[failed("ImageTooLarge")]);
        assert_eq!(says, both("False", "HasBackingFile"));
        let (image, says) = seen(&image, &[found(&fine)]);
        assert_eq!((says[0].0.as_str(), says[1].0.as_str()), ("True", "True"));
        assert_eq!(image.status.as_ref().unwrap().virtual_size, Some(20));
        let (image, says) = seen(&image, &[failed("DownloadFailed")]);
        assert_eq!(says[0], ("False".into(), "DownloadFailed".into()));
        assert_eq!(says[1].0, "True", "it was verified all the same");
        // Other bytes on a second host.
        let other = format!("sha256:{}", "b".repeat(64));
        let (image, says) = seen(&image, &[found(&fine), found(&other)]);
        assert_eq!(says, both("False", "DigestMismatch"));
        let status = image.status.as_ref().unwrap();
        assert_eq!(status.digest, Some(fine.clone()), "never pinned");
        let message = &status.conditions[0].message;
        for part in ["h1", &fine, &other, "new Image"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn only_an_instance_that_the_manager_has_made_from_it_speaks_for_an_image() {
        let mut own = image("https://a/tiny");
        own.metadata.namespace = Some("team".into());
        let server = json!({"apiVersion": "pileus.dev/v1alpha1", "kind": "Server",
            "metadata": {"name": "web", "namespace": "team", "uid": "uid"},
            "spec": {"flavor": "f", "image": {"name": "tiny"}},
            "status": {"placement": {"host": "h1", "epoch": 3,
                "claim": {"vcpus": 1, "memoryMiB": 64, "diskGiB": 1}}}});
        let server: Server = serde_json::from_value(server).unwrap();
        let right = instance(&json!({}));
        assert!(is_made_from(&right, &own, &server));
        let wrong: [fn(&mut Instance); 6] = [
            |i| i.spec.epoch = 4,
            |i| i.spec.host = "h2".into(),
            |i| i.metadata.namespace = Some("pileus-host-h2".into()),
            |i| i.metadata.name = Some("made-up".into()),
            |i| i.spec.server.uid = "another".into(),
            |i| i.spec.image.disk.url = "https://b/tiny".into(),
        ];
        for change in wrong {
            let mut instance = right.clone();
            change(&mut instance);
            assert!(!is_made_from(&instance, &own, &server), "{instance:?}");
        }
        // Somebody else's Image, of which the host says that its Instance is made from it.
        let mut foreign = own.clone();
        foreign.metadata.namespace = Some("others".into());
        assert!(!is_made_from(&right, &foreign, &server));
    }

    #[test]
    fn a_source_that_changes_after_the_digest_was_fixed_is_reported_and_changes_nothing() {
        let observed = Observed {
            instances: vec![],
            users: vec![],
            crd_deleting: false,
        };
        let first = plan(&image("https://a/tiny"), &observed, Timestamp::UNIX_EPOCH);
        assert_eq!(first.status.conditions[0].status, "Unknown");
        let mut changed = image("https://b/tiny");
        changed.status = Some(first.status.clone());
        let then = plan(&changed, &observed, Timestamp::UNIX_EPOCH).status;
        assert_eq!(then.conditions[0].reason, Reason::InvalidSpec.as_str());
        for part in ["https://a/tiny", "https://b/tiny", "set it back"] {
            assert!(then.conditions[0].message.contains(part), "{then:?}");
        }
        assert_eq!(
            (then.digest, then.source),
            (first.status.digest, first.status.source)
        );
    }
}
