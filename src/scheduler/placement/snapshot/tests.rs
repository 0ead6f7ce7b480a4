//! Properties of the ledger.

use proptest::prelude::*;

use super::*;
use crate::placement::facts::Allocation;
use pileus_api::common::Ratios;

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
        ready: n % 2 == 0,
        labels: (n % 3 > 0)
            .then(|| ("l".to_owned(), n.to_string()))
            .into_iter()
            .collect(),
        images: (n % 5 > 0).then(|| "i".to_owned()).into_iter().collect(),
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

/// Everything that filters and weighers can read, by name of the host.
fn describe(snapshot: &Snapshot) -> Vec<String> {
    let host = |h: Host<'_>| {
        let free = [0, 1, 2].map(|part| (h.free(part), h.available(part)));
        let labels: Vec<_> = h.label("l").into_iter().collect();
        let has_image = snapshot.image("i").is_some_and(|i| i.contains(h.slot()));
        let members: Vec<_> = ["g0", "g1"]
            .iter()
            .flat_map(|g| snapshot.members(g))
            .filter(|(slot, _)| *slot as usize == h.slot())
            .collect();
        let members: Vec<_> = members.iter().map(|(_, n)| n).collect();
        let (name, profile, up) = (h.name(), h.profile(), h.is_up());
        let (servers, busy, extended) = (h.servers(), h.busy(), h.extended());
        format!(
            "{name} {up} {free:?} {labels:?} {has_image} {members:?} {servers} {busy} {extended:?} {profile:?}"
        )
    };
    let mut all: Vec<String> = snapshot.hosts().map(host).collect();
    all.sort();
    all
}

fn allocation(h: u8, n: i64) -> Allocation {
    Allocation {
        host: format!("h{h}"),
        resources: ResourceRequest {
            claim: claim(n),
            devices: (n % 2 == 0)
                .then(|| format!("0000:00:{n:02x}.0"))
                .into_iter()
                .collect(),
            ..ResourceRequest::default()
        },
        group: (n % 3 != 0).then(|| format!("g{}", n & 1)),
        busy: n % 5 == 0,
        ..Allocation::default()
    }
}

proptest! {
    #[test]
    fn a_snapshot_updated_step_by_step_equals_one_built_from_scratch(
        steps in prop::collection::vec(step(), 0..60)
    ) {
        let mut stepwise = Snapshot::default();
        let mut hosts: BTreeMap<u8, i64> = BTreeMap::new();
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
                    stepwise.allocate(&format!("s{s}"), allocation(h, n));
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
            rebuilt.allocate(&format!("s{s}"), allocation(h, n));
        }
        for (h, n) in hosts {
            rebuilt.set_host(facts(h, n));
        }
        prop_assert_eq!(describe(&stepwise), describe(&rebuilt));
    }
}

#[test]
fn ratios_reservations_and_overhead_count() {
    let mut snapshot = Snapshot::default();
    snapshot.allocate_claim("s1", "h", claim(1));
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
    assert_eq!(host.free(0), 9 - 1);
    assert_eq!(host.free(1), 8192 - 1024 - 3 - 2 * 100);
    assert_eq!(host.free(2), 180 - 7);
    assert_eq!(snapshot.placed_on("s1"), Some("h"));
}

#[test]
fn absurd_values_do_not_overflow() {
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
    snapshot.allocate_claim("a", "h", claim(i64::MAX));
    snapshot.allocate_claim("b", "h", claim(i64::MAX));
    let host = snapshot.host("h").unwrap();
    let _ = (host.free(0), host.free(1), host.free(2));
}
