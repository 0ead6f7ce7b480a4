//! Where on the host the NUMA nodes of a guest are: which processors run it and whether the
//! memory is there. Pure.
//!
//! The scheduler says which of the host's nodes; which of a node's processors a guest has to
//! itself is decided by the host, because only it knows at once what every domain uses. The
//! choice is written into the domain's metadata when it is defined, stays the same for as long
//! as the domain exists, and is read from there by every later agent.

use std::collections::{BTreeMap, BTreeSet};

use pileus_api::topology::{CpuPolicy, GuestNode, GuestTopology};
use pileus_hypervisor::{Cell, Topology};

/// What other guests use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Processors that one of them has to itself.
    pub cpus: BTreeSet<i32>,
    /// NUMA nodes of the guests that have their place on the host.
    pub guests: Vec<GuestTopology>,
}

/// Fits a guest's nodes on the host's. A guest keeps the processors that were chosen for it
/// before (`previous`), as far as they still exist and no other guest has them.
///
/// # Errors
/// Names what the host does not have, with the figures and the way out.
pub fn fit(
    wanted: &GuestTopology,
    cells: &[Cell],
    previous: &BTreeSet<i32>,
    held: &InUse,
) -> Result<Topology, String> {
    let mut used = held.cpus.clone();
    let mut nodes = Vec::with_capacity(wanted.nodes.len());
    for node in &wanted.nodes {
        let id = node.host_node;
        let Some(cell) = cells.iter().find(|cell| cell.id == id) else {
            let there: Vec<_> = cells.iter().map(|cell| cell.id.to_string()).collect();
            return Err(format!(
                "it is placed on NUMA node {id}, the host has {}",
                there.join(", ")
            ));
        };
        memory(wanted, id, cell, held)?;
        let cpus = match wanted.cpu_policy {
            CpuPolicy::Shared => shared(node, cell, &used)?,
            CpuPolicy::Dedicated => dedicated(node, cell, previous, &mut used)?,
        };
        nodes.push(pileus_hypervisor::GuestNode {
            host_node: id,
            memory_mib: node.memory_mib,
            cpus,
        });
    }
    Ok(Topology {
        nodes,
        page_kib: wanted.page_size_kib,
    })
}

/// The processors that a guest has to itself.
#[must_use]
pub fn pinned(wanted: &GuestTopology, fitted: &Topology) -> BTreeSet<i32> {
    if wanted.cpu_policy == CpuPolicy::Shared {
        return BTreeSet::new();
    }
    let cpus = fitted.nodes.iter().flat_map(|node| node.cpus.values());
    cpus.flatten().copied().collect()
}

type Pins = BTreeMap<i32, BTreeSet<i32>>;

fn shared(node: &GuestNode, cell: &Cell, used: &BTreeSet<i32>) -> Result<Pins, String> {
    let free: BTreeSet<_> = free(cell, used).collect();
    if free.is_empty() {
        return Err(format!(
            "other guests have all {} processors of NUMA node {} to themselves",
            cell.cpus.len(),
            cell.id
        ));
    }
    Ok(node.cpus.iter().map(|cpu| (*cpu, free.clone())).collect())
}

fn dedicated(
    node: &GuestNode,
    cell: &Cell,
    previous: &BTreeSet<i32>,
    used: &mut BTreeSet<i32>,
) -> Result<Pins, String> {
    let mut choice: Vec<_> = free(cell, used).collect();
    if choice.len() < node.cpus.len() {
        return Err(format!(
            "it needs {} processors of NUMA node {} to itself, {} of {} are free",
            node.cpus.len(),
            cell.id,
            choice.len(),
            cell.cpus.len()
        ));
    }
    choice.sort_by_key(|cpu| (!previous.contains(cpu), *cpu));
    choice.truncate(node.cpus.len());
    choice.sort_unstable();
    used.extend(&choice);
    let pins = node.cpus.iter().zip(choice);
    Ok(pins.map(|(cpu, on)| (*cpu, BTreeSet::from([on]))).collect())
}

fn free<'a>(cell: &'a Cell, used: &'a BTreeSet<i32>) -> impl Iterator<Item = i32> + 'a {
    cell.cpus.iter().copied().filter(|cpu| !used.contains(cpu))
}

/// Whether a node's memory, of the kind that is asked for, holds all guests that are on it.
fn memory(wanted: &GuestTopology, id: i32, cell: &Cell, held: &InUse) -> Result<(), String> {
    let on = |guest: &GuestTopology| {
        let nodes = guest.nodes.iter().filter(|node| node.host_node == id);
        nodes.fold(0_i64, |sum, node| sum.saturating_add(node.memory_mib))
    };
    let alike = |guest: &&GuestTopology| guest.page_size_kib == wanted.page_size_kib;
    let others = held.guests.iter().filter(alike);
    let used = others.fold(0_i64, |sum, guest| sum.saturating_add(on(guest)));
    let of_pages = |(size, count): (&i64, &i64)| size.saturating_mul(*count) / 1024;
    let (total, what) = match wanted.page_size_kib {
        None => {
            let huge = cell.pages.iter().map(of_pages).sum();
            (cell.memory_mib.saturating_sub(huge), "MiB".to_owned())
        }
        Some(size) => {
            let Some(count) = cell.pages.get(&size) else {
                return Err(format!(
                    "it needs memory in pages of {size} KiB, of which NUMA node {id} has none; \
                     an administrator sets them aside in \
                     /sys/devices/system/node/node{id}/hugepages/hugepages-{size}kB/nr_hugepages"
                ));
            };
            let what = format!("MiB in pages of {size} KiB");
            (of_pages((&size, count)), what)
        }
    };
    let (needs, left) = (on(wanted), total.saturating_sub(used));
    if needs > left {
        let left = left.max(0);
        return Err(format!(
            "it needs {needs} {what} of NUMA node {id}, {left} of {total} are left"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cells() -> Vec<Cell> {
        let cell = |id: i32, cpus: [i32; 4]| Cell {
            id,
            cpus: cpus.to_vec(),
            memory_mib: 4096,
            pages: [(2048, 512)].into(),
        };
        vec![cell(0, [0, 2, 4, 6]), cell(1, [1, 3, 5, 7])]
    }

    fn guest(cpu_policy: CpuPolicy, nodes: &[(i32, i32)]) -> GuestTopology {
        let mut first = 0;
        let nodes = nodes.iter().map(|&(host_node, vcpus)| {
            let cpus = (first..first + vcpus).collect();
            first += vcpus;
            GuestNode {
                cpus,
                memory_mib: 256,
                host_node,
                ..GuestNode::default()
            }
        });
        GuestTopology {
            cpu_policy,
            page_size_kib: None,
            nodes: nodes.collect(),
        }
    }

    fn cpus(all: &[i32]) -> BTreeSet<i32> {
        all.iter().copied().collect()
    }

    fn held(all: &[i32]) -> InUse {
        InUse {
            cpus: cpus(all),
            guests: Vec::new(),
        }
    }

    #[test]
    fn each_dedicated_processor_is_on_the_node_and_nobody_elses() {
        let wanted = guest(CpuPolicy::Dedicated, &[(1, 2), (0, 1)]);
        let fitted = fit(&wanted, &cells(), &cpus(&[]), &held(&[1, 0])).unwrap();
        assert_eq!(
            fitted.nodes[0].cpus,
            [(0, cpus(&[3])), (1, cpus(&[5]))].into()
        );
        assert_eq!(fitted.nodes[1].cpus, [(2, cpus(&[2]))].into());
        assert_eq!(pinned(&wanted, &fitted), cpus(&[2, 3, 5]));
        // Chosen again, it keeps what it had, though others are free by now.
        let again = fit(&wanted, &cells(), &cpus(&[2, 5, 3]), &held(&[]));
        assert_eq!(again.unwrap(), fitted);
    }

    #[test]
    fn shared_processors_are_those_that_no_guest_has_to_itself() {
        let wanted = guest(CpuPolicy::Shared, &[(0, 2)]);
        let fitted = fit(&wanted, &cells(), &cpus(&[]), &held(&[0, 6])).unwrap();
        let rest = cpus(&[2, 4]);
        assert_eq!(
            fitted.nodes[0].cpus,
            [(0, rest.clone()), (1, rest)].into(),
            "one may run on the other's"
        );
        assert_eq!(pinned(&wanted, &fitted), cpus(&[]));
        let refused = fit(&wanted, &cells(), &cpus(&[]), &held(&[0, 2, 4, 6]));
        assert!(refused.unwrap_err().contains("all 4 processors"));
    }

    #[test]
    fn what_the_host_does_not_have_is_named() {
        let none = cpus(&[]);
        let refused = |wanted: &GuestTopology, held: &InUse| {
            fit(wanted, &cells(), &none, held).expect_err("refused")
        };
        let wanted = guest(CpuPolicy::Dedicated, &[(0, 3)]);
        assert_eq!(
            refused(&wanted, &held(&[0, 2, 7])),
            "it needs 3 processors of NUMA node 0 to itself, 2 of 4 are free"
        );
        let elsewhere = guest(CpuPolicy::Shared, &[(2, 1)]);
        assert_eq!(
            refused(&elsewhere, &held(&[])),
            "it is placed on NUMA node 2, the host has 0, 1"
        );
        let mut huge = guest(CpuPolicy::Shared, &[(1, 1)]);
        huge.page_size_kib = Some(1024 * 1024);
        let said = refused(&huge, &held(&[]));
        assert!(said.contains("node1/hugepages/hugepages-1048576kB"));
        // 1 GiB in huge pages and 3 GiB of others, for those that are on the node.
        for (size, all, fits) in [(Some(2048), 1024, 4), (None, 3072, 12)] {
            huge.page_size_kib = size;
            let mut others = InUse::default();
            for _ in 0..fits {
                fit(&huge, &cells(), &none, &others).unwrap();
                others.guests.push(huge.clone());
                others.guests.push(guest(CpuPolicy::Shared, &[(0, 1)]));
            }
            let said = refused(&huge, &others);
            assert!(said.contains(&format!("0 of {all} are left")), "{said}");
        }
    }

    proptest! {
        #[test]
        fn no_processor_is_given_twice(
            asks in proptest::collection::vec(
                (any::<bool>(), proptest::collection::vec((0..3, 1..4), 1..3)), 1..12),
            gone in proptest::collection::vec(any::<bool>(), 12),
        ) {
            let mut owners: Vec<(GuestTopology, BTreeSet<i32>)> = Vec::new();
            for (at, (dedicated, nodes)) in asks.iter().enumerate() {
                let policy = if *dedicated { CpuPolicy::Dedicated } else { CpuPolicy::Shared };
                let wanted = guest(policy, nodes);
                let held = InUse {
                    cpus: owners.iter().flat_map(|(_, cpus)| cpus).copied().collect(),
                    guests: Vec::new(),
                };
                let Ok(fitted) = fit(&wanted, &cells(), &BTreeSet::new(), &held) else { continue };
                let own = pinned(&wanted, &fitted);
                prop_assert!(own.is_disjoint(&held.cpus));
                for (node, on) in wanted.nodes.iter().zip(&fitted.nodes) {
                    let cell = cells().into_iter().find(|c| c.id == node.host_node).unwrap();
                    prop_assert_eq!(node.cpus.len(), on.cpus.len());
                    for runs_on in on.cpus.values() {
                        prop_assert!(!runs_on.is_empty());
                        prop_assert!(runs_on.iter().all(|c| cell.cpus.contains(c)));
                        prop_assert!(runs_on.is_disjoint(&held.cpus));
                    }
                }
                let vcpus: usize = wanted.nodes.iter().map(|n| n.cpus.len()).sum();
                prop_assert_eq!(own.len(), if *dedicated { vcpus } else { 0 });
                // Defined again it stays where it is.
                prop_assert_eq!(fit(&wanted, &cells(), &own, &held), Ok(fitted));
                owners.push((wanted, own));
                if gone[at] {
                    owners.remove(0);
                }
            }
        }
    }
}
