//! What of the host a guest gets: whether that is asked at all, which processors it has to
//! itself, and which PCI devices. Pure: what every domain and Instance uses comes in.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::devices::allocate as allocate_devices;
use crate::topology::{InUse, fit, pinned};
use pileus_api::instance::InstanceSpec;
use pileus_hypervisor::{Cell, ListedDomain, PciAddress, PciDevice, Topology};

/// What of the host a guest gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostResources {
    /// Where its NUMA nodes are.
    pub topology: Option<Topology>,
    /// Processors that it has to itself.
    pub pinned: BTreeSet<i32>,
    /// PCI devices.
    pub devices: Vec<PciAddress>,
}

/// What there is of an Instance, as far as it says whether the host must have capacity for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// Its domain is defined.
    pub domain: bool,
    /// Its root disk exists.
    pub disk: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// The status said last that it was stopped for a Server of higher priority.
    pub preempted: bool,
    /// Highest epoch this host has ever seen for the Server's uid.
    pub highest_epoch: Option<i64>,
}

/// Whether the host must have capacity left for the Instance: it is new here, or comes back
/// after it was stopped for another.
#[must_use]
pub fn needs_capacity(spec: &InstanceSpec, presence: &Presence) -> bool {
    let is_new = !presence.domain && !presence.disk;
    let returns = presence.preempted && !spec.preempted;
    is_new || returns
}

/// Whether the guest asks for NUMA nodes or PCI devices of the host.
#[must_use]
pub fn asks_for_resources(spec: &InstanceSpec) -> bool {
    spec.topology.is_some() || !spec.pci_devices.is_empty()
}

/// Whether resources must be allocated for it now: a domain that exists has its own, and an
/// older epoch defines none.
#[must_use]
pub fn needs_allocation(spec: &InstanceSpec, presence: &Presence) -> bool {
    let is_older = presence
        .highest_epoch
        .is_some_and(|epoch| epoch > spec.epoch);
    asks_for_resources(spec) && !presence.domain && !presence.deleting && !is_older
}

/// What the host has, and what of it others use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inventory<'a> {
    /// NUMA cells.
    pub cells: &'a [Cell],
    /// PCI devices.
    pub devices: &'a [PciDevice],
    /// Every domain.
    pub domains: &'a [ListedDomain],
    /// Specs of the Instances that have their place here, or come before this one.
    pub others: &'a [&'a InstanceSpec],
}

/// Allocates what the guest `id` asks for. `reserved` are processors that were chosen for other
/// guests whose domain may not be defined yet, `kept` those that were chosen for this one before.
///
/// # Errors
/// Names what the host cannot give, with the figures.
pub fn allocate(
    spec: &InstanceSpec,
    id: Uuid,
    inventory: &Inventory<'_>,
    reserved: &BTreeSet<i32>,
    kept: &BTreeSet<i32>,
) -> Result<HostResources, String> {
    let others = inventory.others;
    let elsewhere = inventory.domains.iter().filter(|domain| domain.id != id);
    let metadata: Vec<_> = elsewhere.filter_map(|d| d.metadata.as_ref()).collect();
    let given = others.iter().flat_map(|other| &other.pci_devices);
    let mut given: BTreeSet<_> = given.filter_map(|d| d.name.parse().ok()).collect();
    given.extend(metadata.iter().flat_map(|metadata| &metadata.devices));
    let devices = allocate_devices(&spec.pci_devices, inventory.devices, &given)?;
    let Some(wanted) = &spec.topology else {
        return Ok(HostResources {
            devices,
            ..HostResources::default()
        });
    };
    let mut cpus = reserved.clone();
    cpus.extend(metadata.iter().flat_map(|metadata| &metadata.pinned));
    let held = InUse {
        cpus,
        guests: others.iter().filter_map(|o| o.topology.clone()).collect(),
    };
    let topology = fit(wanted, inventory.cells, kept, &held)?;
    Ok(HostResources {
        pinned: pinned(wanted, &topology),
        topology: Some(topology),
        devices,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pileus_api::pci::GivenDevice;
    use pileus_api::topology::{CpuPolicy, GuestNode, GuestTopology};
    use pileus_hypervisor::{OwnerMetadata, State};

    const OWN: Uuid = Uuid::from_u128(1);

    fn cells() -> Vec<Cell> {
        vec![Cell {
            id: 0,
            cpus: vec![0, 1, 2, 3],
            memory_mib: 4096,
            ..Cell::default()
        }]
    }

    fn pins_one() -> InstanceSpec {
        let node = GuestNode {
            cpus: vec![0],
            memory_mib: 64,
            ..GuestNode::default()
        };
        InstanceSpec {
            epoch: 2,
            topology: Some(GuestTopology {
                cpu_policy: CpuPolicy::Dedicated,
                nodes: vec![node],
                ..GuestTopology::default()
            }),
            ..InstanceSpec::default()
        }
    }

    fn domain(id: u128, pinned: &[i32], device: Option<&str>) -> ListedDomain {
        ListedDomain {
            id: Uuid::from_u128(id),
            metadata: Some(OwnerMetadata {
                pinned: pinned.iter().copied().collect(),
                devices: device.iter().map(|d| d.parse().unwrap()).collect(),
                ..OwnerMetadata::default()
            }),
            state: State::Running,
        }
    }

    #[test]
    fn the_lowest_processor_that_is_neither_used_nor_reserved_is_chosen() {
        let (cells, spec) = (cells(), pins_one());
        let domains = [domain(1, &[3], None), domain(2, &[0], None)];
        let inventory = Inventory {
            cells: &cells,
            domains: &domains,
            ..Inventory::default()
        };
        let chosen = |reserved: &[i32], kept: &[i32]| {
            let set = |all: &[i32]| all.iter().copied().collect();
            let found = allocate(&spec, OWN, &inventory, &set(reserved), &set(kept));
            found.map(|found| found.pinned)
        };
        assert_eq!(chosen(&[], &[]), Ok([1].into()), "0 is another domain's");
        assert_eq!(chosen(&[1], &[]), Ok([2].into()), "1 is reserved");
        assert_eq!(chosen(&[1], &[3]), Ok([3].into()), "it keeps its own");
        let none = chosen(&[1, 2, 3], &[]).unwrap_err();
        assert!(none.contains("0 of 4 are free"), "{none}");
    }

    #[test]
    fn memory_and_devices_of_earlier_instances_are_not_given_again() {
        let cells = cells();
        let mut spec = pins_one();
        spec.topology.as_mut().unwrap().nodes[0].memory_mib = 2100;
        let device = |name: &str| PciDevice {
            address: name.parse().unwrap(),
            ..PciDevice::default()
        };
        let devices = [device("0000:81:00.0"), device("0000:82:00.0")];
        let gpu = |name: &str| GivenDevice {
            name: name.into(),
            alias: "gpu".into(),
        };
        let mut other = spec.clone();
        other.pci_devices = vec![gpu("0000:81:00.0")];
        let others = [&other];
        let domains = [domain(2, &[], Some("0000:82:00.0"))];
        let inventory = Inventory {
            cells: &cells,
            devices: &devices,
            domains: &domains,
            others: &others,
        };
        let none = BTreeSet::new();
        let full = allocate(&spec, OWN, &inventory, &none, &none).unwrap_err();
        assert!(full.contains("needs 2100 MiB"), "{full}");
        for name in ["0000:81:00.0", "0000:82:00.0"] {
            spec.pci_devices = vec![gpu(name)];
            let held = allocate(&spec, OWN, &inventory, &none, &none).unwrap_err();
            assert!(held.contains("another guest's"), "{held}");
        }
        let alone = Inventory {
            others: &[],
            ..inventory
        };
        spec.pci_devices = vec![gpu("0000:81:00.0")];
        let found = allocate(&spec, OWN, &alone, &none, &none).unwrap();
        assert_eq!(found.devices, [devices[0].address]);
        spec.topology = None;
        let found = allocate(&spec, OWN, &alone, &none, &none).unwrap();
        assert_eq!((found.topology, found.pinned), (None, BTreeSet::new()));
    }

    #[test]
    fn only_new_and_returning_instances_need_capacity() {
        let mut spec = pins_one();
        let new = Presence::default();
        let built = Presence {
            domain: true,
            disk: true,
            ..new
        };
        assert!(needs_capacity(&spec, &new));
        assert!(!needs_capacity(&spec, &Presence { disk: true, ..new }));
        assert!(!needs_capacity(&spec, &built));
        let preempted = Presence {
            preempted: true,
            ..built
        };
        assert!(needs_capacity(&spec, &preempted), "it comes back");
        spec.preempted = true;
        assert!(!needs_capacity(&spec, &preempted), "it still gives way");
    }

    #[test]
    fn resources_are_allocated_only_for_a_domain_that_is_to_be_defined() {
        let spec = pins_one();
        let new = Presence {
            highest_epoch: Some(2),
            ..Presence::default()
        };
        assert!(needs_allocation(&spec, &new));
        assert!(!needs_allocation(&InstanceSpec::default(), &new));
        let refused = [
            Presence {
                domain: true,
                ..new
            },
            Presence {
                deleting: true,
                ..new
            },
            Presence {
                highest_epoch: Some(3),
                ..new
            },
        ];
        for presence in refused {
            assert!(!needs_allocation(&spec, &presence), "{presence:?}");
        }
    }
}
