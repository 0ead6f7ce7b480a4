//! From API objects to what the core decides by.

use std::collections::BTreeMap;

use kube::ResourceExt;

use super::catalogue::{Catalogue, Key};
use super::extra_specs;
use super::facts::{Cell, Device, Holding, HostFacts, Inventory, Profile, Shape, Taint, Units};
use super::query::Query;
use super::request::{Asks, Group, Peer, Request, Spread, Toleration, hash};
use pileus_api::common::{Claim, Ratios};
use pileus_api::host::{self, TaintEffect};
use pileus_api::pci::HostDevice;
use pileus_api::server::{Placement, PlacementWishes};
use pileus_api::{ConditionType, Host, Image, Reason, Server, conditions};
use pileus_values::{Bytes, parse_milli};

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
    let mut resources = BTreeMap::new();
    let mut units = [Units::default(); 3];
    for (class, inventory) in &spec.resources {
        // Placement's classes of what each Server takes.
        let own = ["VCPU", "MEMORY_MB", "DISK_GB"];
        if let Some(part) = own.iter().position(|c| c == class) {
            units[part] = stock(inventory, 1000).units;
            continue;
        }
        let field = format!("resources.{class}.allocationRatio");
        let ratio = ratio(&field, &inventory.allocation_ratio, 1000);
        resources.insert(class.clone(), stock(inventory, ratio));
    }
    let address = spec.address.as_ref().and_then(|text| {
        let read = text.parse().map_err(|_| {
            problem = Some(format!("has a spec.address that is none: `{text}`"));
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
            resources,
            units,
            devices: status.pci_devices.iter().map(device).collect(),
            cells: status.numa_nodes.iter().filter_map(cell).collect(),
            architecture: capabilities.architecture,
            virt_type: capabilities.virt_type,
            ..Profile::default()
        },
        ..HostFacts::default()
    }
}

fn stock(inventory: &host::Inventory, ratio: i64) -> Inventory {
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

/// `None` for a node whose number is none that the ledger can hold.
fn cell(node: &host::NumaNode) -> Option<Cell> {
    let pages = node.huge_pages.iter();
    let pages: BTreeMap<i64, i64> = pages
        .filter_map(|(size, total)| Some((size.parse().ok()?, *total)))
        .collect();
    let huge = pages.iter().fold(0_i64, |sum, (size, total)| {
        sum.saturating_add(size.saturating_mul(*total) / 1024)
    });
    Some(Cell {
        id: node.name.parse().ok().filter(|id| *id != u8::MAX)?,
        cpus: i64::try_from(node.cpus.len()).unwrap_or(i64::MAX),
        memory_mib: node.memory_mib.saturating_sub(huge),
        pages,
    })
}

/// Why a Server cannot be asked for yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// Something that the manager reports on the Server.
    ByManager,
    /// Something that nobody else looks at.
    Told(Reason, String),
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

/// The core's name for what is named so in a namespace.
fn within(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// What a Server asks for. `uid` is the uid of another Server, if there is one.
///
/// # Errors
/// While something that it refers to is missing, not shared with it or malformed.
pub fn request(
    server: &Server,
    catalogue: &Catalogue,
    uid: &dyn Fn(&Key) -> Option<String>,
) -> Result<Request, Unresolved> {
    let namespace = server.namespace().unwrap_or_default();
    let spec = &server.spec;
    let (claim, extra_specs) = size(server, catalogue).ok_or(Unresolved::ByManager)?;
    let (provider, name) = image_key(server);
    let image = catalogue.images.get(&(provider.clone(), name));
    let image = image.filter(|i| usable(i, claim, &provider, &namespace));
    let image = image.ok_or(Unresolved::ByManager)?;
    let properties = &image.spec.properties;
    let shape = extra_specs::shape(claim, &extra_specs, properties).map_err(|wrong| {
        let of = spec.flavor.as_deref().unwrap_or("none");
        let message = format!("the extra specs of flavor {of}, or the image's properties: {wrong}");
        Unresolved::Told(Reason::InvalidSpec, message)
    })?;
    let mut request = Request {
        asks: Asks {
            shape,
            image_properties: properties.clone(),
            image: within(&provider, &spec.image.name),
            flavor: spec.flavor.clone(),
            extra_specs,
            ..Asks::default()
        },
        image_digest: image.status.as_ref().and_then(|s| s.digest.clone()),
        seed: hash(&server.uid().unwrap_or_default()),
        namespace,
        ..Request::default()
    };
    if let Some(wishes) = &spec.placement {
        wish(&mut request, wishes, catalogue, uid)?;
    }
    Ok(request)
}

fn wish(
    request: &mut Request,
    wishes: &PlacementWishes,
    catalogue: &Catalogue,
    uid: &dyn Fn(&Key) -> Option<String>,
) -> Result<(), Unresolved> {
    let invalid = |message| Unresolved::Told(Reason::InvalidSpec, message);
    let namespace = request.namespace.clone();
    let peers = |names: &[String]| {
        let peer = |name: &String| Peer {
            name: name.clone(),
            uid: uid(&(namespace.clone(), name.clone())),
        };
        names.iter().map(peer).collect()
    };
    request.same_host = peers(&wishes.same_host);
    request.different_host = peers(&wishes.different_host);
    let asks = &mut request.asks;
    asks.host_selector.clone_from(&wishes.host_selector);
    asks.zone.clone_from(&wishes.availability_zone);
    if let Some(text) = &wishes.host_cidr {
        let net = text.parse().map_err(|_| {
            invalid(format!(
                "spec.placement.hostCIDR: `{text}` is no range such as 10.1.0.0/16"
            ))
        })?;
        asks.near = Some(net);
    }
    if let Some(text) = &wishes.query {
        let query = Query::parse(text);
        asks.query = Some(query.map_err(|e| invalid(format!("spec.placement.query {e}")))?);
    }
    let toleration = |t: &pileus_api::server::Toleration| Toleration {
        key: (t.name != "*").then(|| t.name.clone()),
        value: t.value.clone(),
        effect: None,
    };
    asks.tolerations = wishes.tolerations.iter().map(toleration).collect();
    if let Some(spread) = &wishes.spread {
        request.spread_set = Some(within(&namespace, &spread.set));
        let over = spread.over.iter().map(|over| Spread {
            key: over.name.clone(),
            max_skew: over.max_skew.unsigned_abs(),
        });
        request.spread = over.collect();
    }
    if let Some(name) = &wishes.server_group {
        let Some(group) = catalogue.groups.get(&(namespace.clone(), name.clone())) else {
            let message = format!(
                "spec.placement.serverGroup: there is no ServerGroup `{name}` in namespace \
                 {namespace}; it is placed once there is"
            );
            return Err(Unresolved::Told(Reason::ServerGroupNotFound, message));
        };
        let most = group.spec.max_servers_per_host;
        request.group = Some(Group {
            id: within(&namespace, name),
            policy: group.spec.policy,
            max_per_host: most.unwrap_or(1).unsigned_abs(),
            min_members: group.spec.min_members.unwrap_or(0).unsigned_abs(),
        });
    }
    if let Some(name) = &wishes.priority_class {
        let Some(priority) = catalogue.priorities.get(name) else {
            let known: Vec<_> = catalogue.priority_names().into_iter().take(20).collect();
            let message = format!(
                "spec.placement.priorityClass: there is no PriorityClass `{name}`; there are {}",
                known.join(", ")
            );
            return Err(Unresolved::Told(Reason::PriorityClassNotFound, message));
        };
        request.priority = *priority;
    }
    Ok(())
}

/// What a placed Server holds.
#[must_use]
pub fn holding(server: &Server, placement: &Placement, catalogue: &Catalogue) -> Holding {
    let namespace = server.namespace().unwrap_or_default();
    let wishes = server.spec.placement.as_ref();
    let extra_specs = size(server, catalogue).map(|(_, e)| e).unwrap_or_default();
    let image = catalogue.images.get(&image_key(server));
    let properties = image.map(|i| i.spec.properties.clone()).unwrap_or_default();
    let plain = || Shape {
        claim: placement.claim,
        ..Shape::default()
    };
    let shape = extra_specs::shape(placement.claim, &extra_specs, &properties);
    let mut shape = shape.unwrap_or_else(|_| plain());
    let mut cells = [0; 4];
    for (cell, node) in cells.iter_mut().zip(&placement.numa_nodes) {
        *cell = u8::try_from(*node).unwrap_or(u8::MAX);
    }
    let devices = placement.pci_devices.iter();
    shape.devices = devices.map(|device| device.name.clone()).collect();
    // Placed before it was known which nodes: nothing is counted on any.
    shape.numa = shape
        .numa
        .filter(|n| n.cells.len() == placement.numa_nodes.len());
    Holding {
        host: placement.host.clone(),
        shape,
        group: wishes
            .and_then(|w| w.server_group.as_ref())
            .map(|g| within(&namespace, g)),
        spread: wishes
            .and_then(|w| w.spread.as_ref())
            .map(|s| within(&namespace, &s.set)),
        cells,
        ..Holding::default()
    }
}

/// Size and extra specs, if its flavor is there for it.
pub(super) fn size(
    server: &Server,
    catalogue: &Catalogue,
) -> Option<(Claim, BTreeMap<String, String>)> {
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

/// Whether an image may be used from `namespace` and fits the size.
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
    // A disk of 0 has the image's own size.
    let too_small =
        claim.memory_mib < memory.mib() || (claim.disk_gib > 0 && claim.disk_gib < disk.gib());
    shared && !too_small
}

/// The size of a flavor.
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
