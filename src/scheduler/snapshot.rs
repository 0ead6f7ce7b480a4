//! What the scheduler decides from: hosts, and the ledger of what Servers take of them.
//!
//! Usage is never stored anywhere but derived from placements, so claims cannot leak: a
//! snapshot that was updated in any order equals one built from scratch. A placement on
//! a host that is not registered (yet, or any more) counts as soon as the host is.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::common::Claim;

/// What a host is, whatever it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Name of the host.
    pub name: String,
    /// Whether its Ready condition is True.
    pub ready: bool,
    /// Whether the administrator lets it take new Servers.
    pub schedulable: bool,
    /// Whether an administrator works on it.
    pub maintenance: bool,
    /// Why what the host says of itself cannot be used, if so; names field and value.
    pub problem: Option<String>,
    /// What it has in all.
    pub capacity: Claim,
    /// What is kept back for the host itself.
    pub reserved: Claim,
    /// How often its resources may be given out.
    pub ratios: Ratios,
    /// QEMU's own memory for each VM, in MiB.
    pub overhead_mib: i64,
    /// Architecture, such as `x86_64`.
    pub architecture: String,
    /// `kvm` or `qemu`.
    pub virt_type: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Digests of the images that it holds.
    pub images: BTreeSet<String>,
}

/// How often resources may be given out, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratios {
    /// Processors.
    pub cpu: i64,
    /// Memory.
    pub memory: i64,
    /// Disk.
    pub disk: i64,
}

impl Default for Ratios {
    /// Four times the processors, everything else once.
    fn default() -> Self {
        Self {
            cpu: 4000,
            memory: 1000,
            disk: 1000,
        }
    }
}

/// What the Servers of a host take of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of Servers.
    pub servers: i64,
    /// Sum of their claims.
    pub claim: Claim,
}

/// A host as filters and weighers see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// What it is.
    pub facts: HostFacts,
    /// What it holds.
    pub used: Usage,
}

impl HostState {
    /// Processors that another Server could have.
    #[must_use]
    pub fn free_vcpus(&self) -> i64 {
        let f = &self.facts;
        free(f.capacity.vcpus, f.reserved.vcpus, f.ratios.cpu).saturating_sub(self.used.claim.vcpus)
    }

    /// Memory that another Server's guest could have in MiB, QEMU's own taken off.
    #[must_use]
    pub fn free_memory_mib(&self) -> i64 {
        let f = &self.facts;
        let overhead = f.overhead_mib.saturating_mul(self.used.servers + 1);
        free(
            f.capacity.memory_mib,
            f.reserved.memory_mib,
            f.ratios.memory,
        )
        .saturating_sub(self.used.claim.memory_mib)
        .saturating_sub(overhead)
    }

    /// Disk that another Server could have, in GiB.
    #[must_use]
    pub fn free_disk_gib(&self) -> i64 {
        let f = &self.facts;
        free(f.capacity.disk_gib, f.reserved.disk_gib, f.ratios.disk)
            .saturating_sub(self.used.claim.disk_gib)
    }
}

/// Placement's formula: (total − reserved) × allocation ratio.
fn free(total: i64, reserved: i64, ratio: i64) -> i64 {
    let base = i128::from(total.saturating_sub(reserved).max(0));
    let given = base * i128::from(ratio.max(0)) / 1000;
    i64::try_from(given).unwrap_or(i64::MAX)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    host: String,
    claim: Claim,
}

/// Hosts and ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    hosts: BTreeMap<String, HostState>,
    placed: BTreeMap<String, Placed>,
}

impl Snapshot {
    /// The hosts, in the order of their names.
    pub fn hosts(&self) -> impl Iterator<Item = &HostState> {
        self.hosts.values()
    }

    /// One host.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<&HostState> {
        self.hosts.get(name)
    }

    /// Where a Server is placed.
    #[must_use]
    pub fn placed_on(&self, server: &str) -> Option<&str> {
        self.placed.get(server).map(|p| p.host.as_str())
    }

    /// Takes in a host, new or changed. Says whether anything changed.
    pub fn set_host(&mut self, facts: HostFacts) -> bool {
        if let Some(host) = self.hosts.get_mut(&facts.name) {
            let changed = host.facts != facts;
            host.facts = facts;
            return changed;
        }
        let mut used = Usage::default();
        for placed in self.placed.values().filter(|p| p.host == facts.name) {
            used.add(placed.claim);
        }
        self.hosts
            .insert(facts.name.clone(), HostState { facts, used });
        true
    }

    /// Forgets a host; its Servers stay in the ledger.
    pub fn remove_host(&mut self, name: &str) {
        self.hosts.remove(name);
    }

    /// Enters a placement, in place of the Server's earlier one. Says whether that made
    /// room anywhere.
    pub fn claim(&mut self, server: &str, host: &str, claim: Claim) -> bool {
        if let Some(placed) = self.placed.get(server)
            && placed.host == host
            && placed.claim == claim
        {
            return false;
        }
        let freed = self.release(server);
        if let Some(state) = self.hosts.get_mut(host) {
            state.used.add(claim);
        }
        let placed = Placed {
            host: host.to_owned(),
            claim,
        };
        self.placed.insert(server.to_owned(), placed);
        freed
    }

    /// Strikes a Server from the ledger. Says whether it was there.
    pub fn release(&mut self, server: &str) -> bool {
        let Some(placed) = self.placed.remove(server) else {
            return false;
        };
        if let Some(state) = self.hosts.get_mut(&placed.host) {
            state.used.subtract(placed.claim);
        }
        true
    }
}

impl Usage {
    // Wrapping, because adding and subtracting must undo each other whatever nonsense
    // an object claims.
    fn add(&mut self, claim: Claim) {
        self.servers += 1;
        self.claim.vcpus = self.claim.vcpus.wrapping_add(claim.vcpus);
        self.claim.memory_mib = self.claim.memory_mib.wrapping_add(claim.memory_mib);
        self.claim.disk_gib = self.claim.disk_gib.wrapping_add(claim.disk_gib);
    }

    fn subtract(&mut self, claim: Claim) {
        self.servers -= 1;
        self.claim.vcpus = self.claim.vcpus.wrapping_sub(claim.vcpus);
        self.claim.memory_mib = self.claim.memory_mib.wrapping_sub(claim.memory_mib);
        self.claim.disk_gib = self.claim.disk_gib.wrapping_sub(claim.disk_gib);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        SetHost(u8, i64),
        RemoveHost(u8),
        Claim(u8, u8, i64),
        Release(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4_u8, 0..100_i64).prop_map(|(h, n)| Step::SetHost(h, n)),
            (0..4_u8).prop_map(Step::RemoveHost),
            (0..8_u8, 0..4_u8, any::<i64>()).prop_map(|(s, h, n)| Step::Claim(s, h, n)),
            (0..8_u8).prop_map(Step::Release),
        ]
    }

    fn facts(host: u8, n: i64) -> HostFacts {
        HostFacts {
            name: format!("h{host}"),
            capacity: claim(n),
            ..HostFacts::default()
        }
    }

    fn claim(n: i64) -> Claim {
        Claim {
            vcpus: n,
            memory_mib: n.wrapping_mul(3),
            disk_gib: n.wrapping_mul(7),
        }
    }

    proptest! {
        #[test]
        fn a_snapshot_updated_step_by_step_equals_one_built_from_scratch(
            steps in prop::collection::vec(step(), 0..60)
        ) {
            let mut stepwise = Snapshot::default();
            let mut hosts = BTreeMap::new();
            let mut placed = BTreeMap::new();
            for step in steps {
                match step {
                    Step::SetHost(h, n) => {
                        stepwise.set_host(facts(h, n));
                        hosts.insert(h, n);
                    }
                    Step::RemoveHost(h) => {
                        stepwise.remove_host(&format!("h{h}"));
                        hosts.remove(&h);
                    }
                    Step::Claim(s, h, n) => {
                        stepwise.claim(&format!("s{s}"), &format!("h{h}"), claim(n));
                        placed.insert(s, (h, n));
                    }
                    Step::Release(s) => {
                        let was = stepwise.release(&format!("s{s}"));
                        prop_assert_eq!(was, placed.remove(&s).is_some());
                    }
                }
            }
            let mut rebuilt = Snapshot::default();
            for (s, (h, n)) in placed {
                rebuilt.claim(&format!("s{s}"), &format!("h{h}"), claim(n));
            }
            for (h, n) in hosts {
                rebuilt.set_host(facts(h, n));
            }
            prop_assert_eq!(stepwise, rebuilt);
        }
    }

    #[test]
    fn ratios_reservations_and_overhead_count() {
        let mut snapshot = Snapshot::default();
        snapshot.claim("s1", "h", claim(1));
        snapshot.set_host(HostFacts {
            name: "h".into(),
            capacity: Claim {
                vcpus: 8,
                memory_mib: 8192,
                disk_gib: 100,
            },
            reserved: Claim {
                vcpus: 2,
                memory_mib: 1024,
                disk_gib: 10,
            },
            ratios: Ratios {
                cpu: 1500,
                memory: 1000,
                disk: 2000,
            },
            overhead_mib: 100,
            ..HostFacts::default()
        });
        let host = snapshot.host("h").unwrap();
        assert_eq!(host.free_vcpus(), 9 - 1);
        assert_eq!(host.free_memory_mib(), 8192 - 1024 - 3 - 2 * 100);
        assert_eq!(host.free_disk_gib(), 180 - 7);
        assert_eq!(snapshot.placed_on("s1"), Some("h"));
    }

    #[test]
    fn figures_out_of_all_proportion_do_not_overflow() {
        let mut snapshot = Snapshot::default();
        snapshot.set_host(HostFacts {
            name: "h".into(),
            capacity: claim(i64::MAX),
            reserved: claim(i64::MIN),
            ratios: Ratios {
                cpu: i64::MAX,
                memory: -1,
                disk: 0,
            },
            overhead_mib: i64::MAX,
            ..HostFacts::default()
        });
        snapshot.claim("a", "h", claim(i64::MAX));
        snapshot.claim("b", "h", claim(i64::MAX));
        let host = snapshot.host("h").unwrap();
        let _ = (
            host.free_vcpus(),
            host.free_memory_mib(),
            host.free_disk_gib(),
        );
    }
}
