//! From API objects to what the core decides by.

use std::collections::BTreeMap;

use kube::ResourceExt;

use super::facts::{HostFacts, Profile, Shape};
use super::request::{Asks, Request, hash};
use crate::api::common::{Claim, Ratios};
use crate::api::{ConditionType, Flavor, Host, Image, Server, conditions};
use crate::model::{Bytes, parse_milli};

/// What the core knows of a Host.
#[must_use]
pub fn host_facts(host: &Host) -> HostFacts {
    let spec = &host.spec;
    let status = host.status.clone().unwrap_or_default();
    let capabilities = status.capabilities.unwrap_or_default();
    let usual = Ratios::default();
    let mut problem = host
        .metadata
        .deletion_timestamp
        .is_some()
        .then(|| "is being deleted".to_owned());
    let mut ratio = |field: &str, text: &Option<String>, usual: i64| match text.as_deref() {
        None => usual,
        Some(text) => parse_milli(text).unwrap_or_else(|error| {
            problem = Some(format!("has a spec.{field} that cannot be used: {error}"));
            0
        }),
    };
    let ratios = Ratios {
        cpu: ratio("cpuAllocationRatio", &spec.cpu_allocation_ratio, usual.cpu),
        memory: ratio(
            "memoryAllocationRatio",
            &spec.memory_allocation_ratio,
            usual.memory,
        ),
        disk: ratio(
            "diskAllocationRatio",
            &spec.disk_allocation_ratio,
            usual.disk,
        ),
    };
    HostFacts {
        name: host.name_any(),
        ready: conditions::is_true(&status.conditions, ConditionType::Ready),
        schedulable: spec.schedulable,
        maintenance: spec.maintenance,
        capacity: status.capacity.unwrap_or_default(),
        reserved: spec.reserved.unwrap_or_default(),
        ratios,
        overhead_mib: status.overhead_mib.unwrap_or_default(),
        labels: host.labels().clone(),
        images: status.images.into_iter().collect(),
        profile: Profile {
            problem,
            architecture: capabilities.architecture,
            virt_type: capabilities.virt_type,
            ..Profile::default()
        },
        ..HostFacts::default()
    }
}

/// What a Server refers to, by name.
pub struct Catalogue<'a> {
    /// Flavors by name.
    pub flavors: &'a BTreeMap<String, Flavor>,
    /// Images by namespace and name.
    pub images: &'a BTreeMap<(String, String), Image>,
}

/// Namespace and name of a Server's image.
#[must_use]
pub fn image_key(server: &Server) -> (String, String) {
    let image = &server.spec.image;
    let own = || server.namespace().unwrap_or_default();
    (
        image.namespace.clone().unwrap_or_else(own),
        image.name.clone(),
    )
}

/// What a Server asks for; `None` while something that it refers to is missing, not
/// shared with it or malformed, which the manager reports on the Server.
#[must_use]
pub fn request(server: &Server, catalogue: &Catalogue<'_>) -> Option<Request> {
    let namespace = server.namespace().unwrap_or_default();
    let spec = &server.spec;
    let claim = if let Some(name) = &spec.flavor {
        let flavor = &catalogue.flavors.get(name)?.spec;
        if !flavor.access.as_ref().is_none_or(|a| a.allows(&namespace)) {
            return None;
        }
        claim(flavor.vcpus, &flavor.memory, &flavor.disk)?
    } else {
        let resources = spec.resources.as_ref()?;
        claim(resources.vcpus, &resources.memory, &resources.disk)?
    };
    let (provider, name) = image_key(server);
    let image = catalogue.images.get(&(provider.clone(), name))?;
    let shared = provider == namespace
        || image
            .spec
            .shared_with
            .as_ref()
            .is_some_and(|s| s.allows(&namespace));
    if !shared {
        return None;
    }
    let least = |text: &Option<String>| match text {
        Some(text) => Bytes::parse(text).ok(),
        None => Some(Bytes(0)),
    };
    let too_small = claim.memory_mib < least(&image.spec.min_memory)?.mib()
        // A disk of 0 has the image's own size.
        || (claim.disk_gib > 0 && claim.disk_gib < least(&image.spec.min_disk)?.gib());
    if too_small {
        return None;
    }
    let wishes = spec.placement.as_ref();
    Some(Request {
        asks: Asks {
            shape: Shape {
                claim,
                ..Shape::default()
            },
            host_selector: wishes.map(|p| p.host_selector.clone()).unwrap_or_default(),
            image_properties: image.spec.properties.clone(),
            image: format!("{provider}/{}", spec.image.name),
            flavor: spec.flavor.clone(),
            ..Asks::default()
        },
        image_digest: image.status.as_ref().and_then(|s| s.digest.clone()),
        seed: hash(&server.uid().unwrap_or_default()),
        namespace,
        ..Request::default()
    })
}

fn claim(vcpus: i32, memory: &str, disk: &str) -> Option<Claim> {
    let claim = Claim {
        vcpus: i64::from(vcpus),
        memory_mib: Bytes::parse(memory).ok()?.mib(),
        disk_gib: Bytes::parse(disk).ok()?.gib(),
    };
    (claim.vcpus > 0 && claim.memory_mib > 0).then_some(claim)
}
