//! From Hosts and Servers to facts, requests and allocations.

use std::collections::BTreeMap;

use kube::ResourceExt;

use crate::objects::catalogue::{Catalogue, Key};
use crate::objects::extra_specs;
use crate::placement::facts::{
    Allocation, Device, HostFacts, Inventory, NumaNode, Profile, ResourceRequest, Taint, Units,
};
use crate::placement::query::Query;
use crate::placement::request::{
    Group, Request, Requirements, ServerReference, Spread, Toleration, hash,
};
use pileus_api::common::{Claim, Ratios};
use pileus_api::host::{self, TaintEffect};
use pileus_api::pci::HostDevice;
use pileus_api::server::{Placement, PlacementConstraints};
use pileus_api::{ConditionType, Host, Image, Reason, Server, conditions};
use pileus_values::{Bytes, parse_milli};

/// The facts of a Host, without its aggregates.
#[must_use]
pub fn host_facts(host: &Host) -> HostFacts {
    let spec = &host.spec;
    let status = host.status.clone().unwrap_or_default();
    let capabilities = status.capabilities.unwrap_or_default();
    let default = Ratios::default();
    let mut problem = host
        .metadata
        .deletion_timestamp
        .is_some()
        .then(|| "is being deleted".to_owned());
    let mut ratio = |field: &str, text: &Option<String>, default: i64| match text.as_deref() {
        None => default,
        Some(text) => parse_milli(text).unwrap_or_else(|error| {
            problem = Some(format!("has an invalid spec.{field}: {error}"));
            0
        }),
    };
    let ratios = Ratios {
        cpu: ratio(
            "cpuAllocationRatio",
            &spec.cpu_allocation_ratio,
            default.cpu,
        ),
        memory: ratio(
            "memoryAllocationRatio",
            &spec.memory_allocation_ratio,
            default.memory,
        ),
        disk: ratio(
            "diskAllocationRatio",
            &spec.disk_allocation_ratio,
            default.disk,
        ),
    };
    let mut inventories = BTreeMap::new();
    let mut units = [Units::default(); 3];
    for (class, inventory) in &spec.resources {
        // Placement's classes for vCPUs, memory and disk.
        let own = ["VCPU", "MEMORY_MB", "DISK_GB"];
        if let Some(part) = own.iter().position(|c| c == class) {
            units[part] = to_inventory(inventory, 1000).units;
            continue;
        }
        let field = format!("resources.{class}.allocationRatio");
        let ratio = ratio(&field, &inventory.allocation_ratio, 1000);
        inventories.insert(class.clone(), to_inventory(inventory, ratio));
    }
    let address = spec.address.as_ref().and_then(|text| {
        let read = text.parse().map_err(|_| {
            problem = Some(format!("has an invalid spec.address: `{text}`"));
        });
        read.ok()
    });
    let hypervisor = [
        ("cpu_info:arch", &capabilities.architecture),
        ("hypervisor_type", &capabilities.virt_type),
        ("hypervisor_version", &capabilities.qemu_version),
    ];
    let hypervisor = hypervisor.into_iter().filter(|(_, v)| !v.is_empty());
    HostFacts {
        name: host.name_any(),
        ready: conditions::is_true(&status.conditions, ConditionType::Ready),
        schedulable: spec.schedulable,
        maintenance: spec.maintenance,
        capacity: status.capacity.unwrap_or_default(),
        reserved: host.reserved_in_force(),
        ratios,
        overhead_mib: status.overhead_mib.unwrap_or_default(),
        labels: host.labels().clone(),
        images: status.images.into_iter().collect(),
        address,
        // As fractions, in thousandths.
        metrics: status
            .metrics
            .into_iter()
            .map(|(name, percent)| (name, percent.saturating_mul(10)))
            .collect(),
        profile: Profile {
            problem,
            traits: spec.traits.clone(),
            capabilities: hypervisor.map(|(k, v)| (k.to_owned(), v.clone())).collect(),
            taints: spec.taints.iter().map(taint).collect(),
            inventories,
            units,
            devices: status.pci_devices.iter().map(device).collect(),
            numa_nodes: status.numa_nodes.iter().filter_map(cell).collect(),
            architecture: capabilities.architecture,
            virt_type: capabilities.virt_type,
            ..Profile::default()
        },
        ..HostFacts::default()
    }
}

fn to_inventory(inventory: &host::Inventory, ratio: i64) -> Inventory {
    Inventory {
        total: inventory.total,
        reserved: inventory.reserved,
        ratio,
        units: Units {
            min: inventory.min_unit.unwrap_or(1),
            max: inventory.max_unit.unwrap_or(i64::MAX),
            step: inventory.step_size.unwrap_or(1),
        },
    }
}

fn taint(taint: &host::Taint) -> Taint {
    Taint {
        key: taint.name.clone(),
        value: taint.value.clone(),
        effect: match taint.effect {
            TaintEffect::NoSchedule => "NoSchedule".to_owned(),
            TaintEffect::PreferNoSchedule => "PreferNoSchedule".to_owned(),
        },
    }
}

fn device(device: &HostDevice) -> Device {
    Device {
        address: device.name.clone(),
        alias: device.alias.clone(),
        node: device.numa_node.and_then(|node| u8::try_from(node).ok()),
    }
}

/// `None` for a node whose number the ledger cannot store.
fn cell(node: &host::NumaNode) -> Option<NumaNode> {
    let pages = node.huge_pages.iter();
    let pages: BTreeMap<i64, i64> = pages
        .filter_map(|(size, total)| Some((size.parse().ok()?, *total)))
        .collect();
    let huge = pages.iter().fold(0_i64, |sum, (size, total)| {
        sum.saturating_add(size.saturating_mul(*total) / 1024)
    });
    Some(NumaNode {
        id: node.name.parse().ok().filter(|id| *id != u8::MAX)?,
        cpus: i64::try_from(node.cpus.len()).unwrap_or(i64::MAX),
        memory_mib: node.memory_mib.saturating_sub(huge),
        pages,
    })
}

/// Why there is no request for a Server yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// The manager reports the reason in the Server's condition Ready.
    ReportedByManager,
    /// The scheduler must report this reason and message.
    Unreported(Reason, String),
}

/// Namespace and name of a Server's image.
#[must_use]
pub fn image_key(server: &Server) -> Key {
    let image = &server.spec.image;
    let own = || server.namespace().unwrap_or_default();
    (
        image.namespace.clone().unwrap_or_else(own),
        image.name.clone(),
    )
}

/// Namespace and name of a Server's ServerGroup.
#[must_use]
pub fn group_key(server: &Server) -> Option<Key> {
    let group = server.spec.placement.as_ref()?.server_group.clone()?;
    Some((server.namespace().unwrap_or_default(), group))
}

/// The id of a ServerGroup or spread set of a namespace.
fn qualified(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// The request of a Server. `uid` returns the uid of another Server, if it exists.
///
/// # Errors
/// If an object that it refers to is missing, not shared with its namespace or invalid.
pub fn request(
    server: &Server,
    catalogue: &Catalogue,
    uid: &dyn Fn(&Key) -> Option<String>,
) -> Result<Request, Unresolved> {
    let namespace = server.namespace().unwrap_or_default();
    let spec = &server.spec;
    let (claim, extra_specs) = spec_size(server, catalogue).ok_or(Unresolved::ReportedByManager)?;
    let (provider, name) = image_key(server);
    let image = catalogue.images.get(&(provider.clone(), name));
    let image = image.filter(|i| usable(i, claim, &provider, &namespace));
    let image = image.ok_or(Unresolved::ReportedByManager)?;
    let claim = claim.with_image(virtual_size(image));
    let properties = &image.spec.properties;
    let resources =
        extra_specs::resource_request(claim, &extra_specs, properties).map_err(|wrong| {
            let of = spec.flavor.as_deref().unwrap_or("none");
            let message =
                format!("the extra specs of flavor {of}, or the image's properties: {wrong}");
            Unresolved::Unreported(Reason::InvalidSpec, message)
        })?;
    let mut request = Request {
        requirements: Requirements {
            resources,
            image_properties: properties.clone(),
            image: qualified(&provider, &spec.image.name),
            flavor: spec.flavor.clone(),
            extra_specs,
            ..Requirements::default()
        },
        image_digest: image.status.as_ref().and_then(|s| s.digest.clone()),
        seed: hash(&server.uid().unwrap_or_default()),
        namespace,
        ..Request::default()
    };
    if let Some(constraints) = &spec.placement {
        add_constraints(&mut request, constraints, catalogue, uid)?;
    }
    Ok(request)
}

fn add_constraints(
    request: &mut Request,
    constraints: &PlacementConstraints,
    catalogue: &Catalogue,
    uid: &dyn Fn(&Key) -> Option<String>,
) -> Result<(), Unresolved> {
    let invalid = |message| Unresolved::Unreported(Reason::InvalidSpec, message);
    let namespace = request.namespace.clone();
    let peers = |names: &[String]| {
        let peer = |name: &String| ServerReference {
            name: name.clone(),
            uid: uid(&(namespace.clone(), name.clone())),
        };
        names.iter().map(peer).collect()
    };
    request.same_host = peers(&constraints.same_host);
    request.different_host = peers(&constraints.different_host);
    let requirements = &mut request.requirements;
    requirements
        .host_selector
        .clone_from(&constraints.host_selector);
    requirements.zone.clone_from(&constraints.availability_zone);
    if let Some(text) = &constraints.host_cidr {
        let net = text.parse().map_err(|_| {
            invalid(format!(
                "spec.placement.hostCIDR: `{text}` is not a network such as 10.1.0.0/16"
            ))
        })?;
        requirements.host_cidr = Some(net);
    }
    if let Some(text) = &constraints.query {
        let query = Query::parse(text);
        requirements.query = Some(query.map_err(|e| invalid(format!("spec.placement.query {e}")))?);
    }
    let toleration = |t: &pileus_api::server::Toleration| Toleration {
        key: (t.name != "*").then(|| t.name.clone()),
        value: t.value.clone(),
        effect: None,
    };
    requirements.tolerations = constraints.tolerations.iter().map(toleration).collect();
    if let Some(spread) = &constraints.spread {
        request.spread_set = Some(qualified(&namespace, &spread.set));
        let over = spread.over.iter().map(|over| Spread {
            key: over.name.clone(),
            max_skew: over.max_skew.unsigned_abs(),
        });
        request.spread = over.collect();
    }
    if let Some(name) = &constraints.server_group {
        let Some(group) = catalogue.groups.get(&(namespace.clone(), name.clone())) else {
            let message = format!(
                "spec.placement.serverGroup: there is no ServerGroup `{name}` in namespace \
                 {namespace}; the Server is placed once it exists"
            );
            return Err(Unresolved::Unreported(Reason::ServerGroupNotFound, message));
        };
        let most = group.spec.max_servers_per_host;
        request.group = Some(Group {
            id: qualified(&namespace, name),
            policy: group.spec.policy,
            max_per_host: most.unwrap_or(1).unsigned_abs(),
            min_members: group.spec.min_members.unwrap_or(0).unsigned_abs(),
        });
    }
    if let Some(name) = &constraints.priority_class {
        let Some(priority) = catalogue.priorities.get(name) else {
            let known: Vec<_> = catalogue.priority_names().into_iter().take(20).collect();
            let message = format!(
                "spec.placement.priorityClass: there is no PriorityClass `{name}`; there are {}",
                known.join(", ")
            );
            return Err(Unresolved::Unreported(
                Reason::PriorityClassNotFound,
                message,
            ));
        };
        request.priority = *priority;
    }
    Ok(())
}

/// The allocation of a placed Server.
#[must_use]
pub fn allocation(server: &Server, placement: &Placement, catalogue: &Catalogue) -> Allocation {
    let namespace = server.namespace().unwrap_or_default();
    let constraints = server.spec.placement.as_ref();
    let extra_specs = size(server, catalogue).map(|(_, e)| e).unwrap_or_default();
    let image = catalogue.images.get(&image_key(server));
    let properties = image.map(|i| i.spec.properties.clone()).unwrap_or_default();
    // A disk of 0 that was placed before anybody had fetched the image counts from then on.
    let claim = placement.claim.with_image(image.and_then(virtual_size));
    let plain = || ResourceRequest {
        claim,
        ..ResourceRequest::default()
    };
    let resources = extra_specs::resource_request(claim, &extra_specs, &properties);
    let mut resources = resources.unwrap_or_else(|_| plain());
    let mut numa_nodes = [0; 4];
    for (cell, node) in numa_nodes.iter_mut().zip(&placement.numa_nodes) {
        *cell = u8::try_from(*node).unwrap_or(u8::MAX);
    }
    let devices = placement.pci_devices.iter();
    resources.devices = devices.map(|device| device.name.clone()).collect();
    // A placement without NUMA nodes is not counted on any node.
    resources.numa = resources
        .numa
        .filter(|n| n.nodes.len() == placement.numa_nodes.len());
    Allocation {
        host: placement.host.clone(),
        resources,
        group: constraints
            .and_then(|w| w.server_group.as_ref())
            .map(|g| qualified(&namespace, g)),
        spread: constraints
            .and_then(|w| w.spread.as_ref())
            .map(|s| qualified(&namespace, &s.set)),
        numa_nodes,
        ..Allocation::default()
    }
}

/// Size and extra specs of a Server, if its flavor exists and is open to its namespace; a root
/// disk of 0 has the image's size, once that is known.
pub(crate) fn size(
    server: &Server,
    catalogue: &Catalogue,
) -> Option<(Claim, BTreeMap<String, String>)> {
    let (claim, extra_specs) = spec_size(server, catalogue)?;
    let image = catalogue.images.get(&image_key(server));
    Some((claim.with_image(image.and_then(virtual_size)), extra_specs))
}

/// Size of an image's disk in bytes, once a host has fetched it.
#[must_use]
pub fn virtual_size(image: &Image) -> Option<i64> {
    image.status.as_ref()?.virtual_size
}

/// The size as the flavor, or the spec itself, gives it.
fn spec_size(server: &Server, catalogue: &Catalogue) -> Option<(Claim, BTreeMap<String, String>)> {
    let Some(name) = &server.spec.flavor else {
        let resources = server.spec.resources.as_ref()?;
        let claim = claim(resources.vcpus, &resources.memory, &resources.disk)?;
        return Some((claim, BTreeMap::new()));
    };
    let flavor = &catalogue.flavors.get(name)?.spec;
    let namespace = server.namespace().unwrap_or_default();
    if !flavor.access.as_ref().is_none_or(|a| a.allows(&namespace)) {
        return None;
    }
    let claim = claim(flavor.vcpus, &flavor.memory, &flavor.disk)?;
    Some((claim, flavor.extra_specs.clone()))
}

/// Whether an image is shared with `namespace` and fits the size.
fn usable(image: &Image, claim: Claim, provider: &str, namespace: &str) -> bool {
    let sharing = image.spec.shared_with.as_ref();
    let shared = provider == namespace || sharing.is_some_and(|s| s.allows(namespace));
    let least = |text: &Option<String>| match text {
        Some(text) => Bytes::parse(text).ok(),
        None => Some(Bytes(0)),
    };
    let (Some(memory), Some(disk)) = (least(&image.spec.min_memory), least(&image.spec.min_disk))
    else {
        return false;
    };
    // A disk of 0 gets the size of the image.
    let too_small =
        claim.memory_mib < memory.mib() || (claim.disk_gib > 0 && claim.disk_gib < disk.gib());
    shared && !too_small
}

/// The size of a flavor, if it is valid.
#[must_use]
pub fn claim_of(flavor: &pileus_api::FlavorSpec) -> Option<Claim> {
    claim(flavor.vcpus, &flavor.memory, &flavor.disk)
}

fn claim(vcpus: i32, memory: &str, disk: &str) -> Option<Claim> {
    let claim = Claim {
        vcpus: i64::from(vcpus),
        memory_mib: Bytes::parse(memory).ok()?.mib(),
        disk_gib: Bytes::parse(disk).ok()?.gib(),
    };
    (claim.vcpus > 0 && claim.memory_mib > 0).then_some(claim)
}
