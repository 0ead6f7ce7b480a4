//! Decides what to report of an Image. Pure.

use k8s_openapi::jiff::Timestamp;

use crate::list_some;
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::image::{DiskFormat, ImageStatus, Source};
use pileus_api::{Image, Instance, Reason, validation};
use pileus_kube_ext::finalize;

/// Everything that a decision is made from.
pub struct Observed<'a> {
    /// Instances made from it.
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

    let ready = ready(image, source.as_ref(), &observed.users);
    let verified = if size.is_some() {
        Observation::yes(
            ConditionType::Verified,
            Reason::Verified,
            "fetched and checked",
        )
    } else {
        failure(observed).unwrap_or_else(|| {
            Observation::unknown(
                ConditionType::Verified,
                Reason::NotFetched,
                "no host has needed it yet",
            )
        })
    };
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

fn ready(image: &Image, fixed: Option<&Source>, users: &[String]) -> Observation {
    let no = |reason, message| Observation::no(ConditionType::Ready, reason, message);
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
    match validation::image(&image.spec) {
        Err(message) => no(Reason::InvalidSpec, message),
        Ok(()) => Observation::yes(
            ConditionType::Ready,
            Reason::Ready,
            "Servers can be made from it",
        ),
    }
}

fn source_text(source: &Source) -> String {
    let checksum = source.checksum.as_ref();
    let checksum = checksum.map_or_else(String::new, |c| format!(" with checksum {c}"));
    format!("{}{checksum}", source.url)
}

/// What a host reports about bytes that it could not get or use.
fn failure(observed: &Observed<'_>) -> Option<Observation> {
    const ABOUT_THE_IMAGE: [Reason; 10] = [
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
    ];
    observed.instances.iter().find_map(|instance| {
        let status = instance.status.as_ref()?;
        let ready = conditions::find(&status.conditions, ConditionType::Ready)?;
        let reason = Reason::parse(&ready.reason).filter(|r| ABOUT_THE_IMAGE.contains(r))?;
        let message = format!("host {}: {}", instance.spec.host, ready.message);
        Some(Observation::no(ConditionType::Verified, reason, message))
    })
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

    #[test]
    fn a_source_that_changes_after_the_digest_was_fixed_is_reported_and_changes_nothing() {
        let observed = Observed {
            instances: vec![],
            users: vec![],
            crd_deleting: false,
        };
        let first = plan(&image("https://a/tiny"), &observed, Timestamp::UNIX_EPOCH);
        assert_eq!(first.status.conditions[0].status, "True");
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
