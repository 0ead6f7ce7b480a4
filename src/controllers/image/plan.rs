//! Decides what to say of an Image. Pure.

use k8s_openapi::jiff::Timestamp;

use crate::api::conditions::{self, ConditionType, Observation};
use crate::api::image::{DiskFormat, ImageStatus};
use crate::api::{Image, Instance, Reason, validation};
use crate::controllers::name_some;
use crate::kube_ext::finalize;

/// What was seen.
pub struct Seen<'a> {
    /// Instances made from it.
    pub instances: Vec<&'a Instance>,
    /// Servers of its namespace that name it.
    pub users: Vec<String>,
    /// It is being deleted only because the kind itself is.
    pub kind_lost: bool,
}

/// What to do and say.
pub struct Plan {
    /// Let the Image go.
    pub release: bool,
    /// What to say.
    pub status: ImageStatus,
}

/// Decides for one Image.
#[must_use]
pub fn plan(image: &Image, seen: &Seen<'_>, now: Timestamp) -> Plan {
    let old = image.status.clone().unwrap_or_default();
    let by_checksum = image
        .spec
        .source
        .checksum
        .as_ref()
        .map(|c| c.to_ascii_lowercase())
        .filter(|c| c.starts_with("sha256:"));
    let imported = seen
        .instances
        .iter()
        .filter_map(|i| i.status.as_ref()?.image.as_ref());
    // Of several hosts that fetched at once the first to be seen counts, for good.
    let digest = old
        .digest
        .clone()
        .or_else(|| by_checksum.clone())
        .or_else(|| imported.clone().next().map(|i| i.digest.clone()));
    let sizes = imported
        .clone()
        .find(|i| Some(&i.digest) == digest.as_ref());
    let size = old.size.or_else(|| sizes.map(|i| i.size));
    let virtual_size = old.virtual_size.or_else(|| sizes.map(|i| i.virtual_size));

    let ready = ready(image, &seen.users);
    let verified = if size.is_some() {
        Observation::yes(
            ConditionType::Verified,
            Reason::Verified,
            "fetched and checked",
        )
    } else {
        failure(seen).unwrap_or_else(|| {
            Observation::unknown(
                ConditionType::Verified,
                Reason::NotFetched,
                "no host has needed it yet",
            )
        })
    };
    let deleting = finalize::is_deleting(image);
    Plan {
        release: deleting && (seen.users.is_empty() || seen.kind_lost),
        status: ImageStatus {
            observed_generation: image.metadata.generation,
            digest,
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

fn ready(image: &Image, users: &[String]) -> Observation {
    let no = |reason, message| Observation::no(ConditionType::Ready, reason, message);
    if finalize::is_deleting(image) {
        let users = name_some(users.to_vec());
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
    match validation::image(&image.spec) {
        Err(message) => no(Reason::InvalidSpec, message),
        Ok(()) => Observation::yes(
            ConditionType::Ready,
            Reason::Ready,
            "Servers can be made from it",
        ),
    }
}

/// What a host says about bytes that it could not get or use.
fn failure(seen: &Seen<'_>) -> Option<Observation> {
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
    seen.instances.iter().find_map(|instance| {
        let status = instance.status.as_ref()?;
        let ready = conditions::find(&status.conditions, ConditionType::Ready)?;
        let reason = Reason::parse(&ready.reason).filter(|r| ABOUT_THE_IMAGE.contains(r))?;
        let message = format!("host {}: {}", instance.spec.host, ready.message);
        Some(Observation::no(ConditionType::Verified, reason, message))
    })
}
