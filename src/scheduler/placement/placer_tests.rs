//! Properties of decisions.

use proptest::prelude::*;

use super::*;
use crate::placement::facts::{Allocation, Device, HostFacts, Profile};
use crate::placement::request::{Group, GroupPolicy, Spread, hash};
use pileus_api::common::{Claim, Ratios};

fn claim(vcpus: i64, memory_mib: i64, disk_gib: i64) -> Claim {
    Claim {
        vcpus,
        memory_mib,
        disk_gib,
    }
}

fn host(name: &str, memory: i64) -> HostFacts {
    HostFacts {
        name: name.into(),
        ready: true,
        schedulable: true,
        capacity: claim(16, memory, 100),
        profile: Profile {
            architecture: "x86_64".into(),
            virt_type: "kvm".into(),
            ..Profile::default()
        },
        ..HostFacts::default()
    }
}

fn with(hosts: impl IntoIterator<Item = HostFacts>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for host in hosts {
        snapshot.set_host(host);
    }
    snapshot
}

fn request_of(memory_mib: i64) -> Request {
    asking(claim(1, memory_mib, 1))
}

fn asking(claim: Claim) -> Request {
    let mut request = Request::default();
    request.requirements.resources.claim = claim;
    request
}

#[test]
fn the_host_with_more_free_resources_is_chosen() {
    let mut policy = Placer::default();
    let snapshot = with([host("h1", 4096), host("h2", 8192)]);
    assert_eq!(policy.place(&snapshot, &request_of(1024)), Ok("h2"));
}

#[test]
fn the_host_with_the_image_in_its_cache_is_chosen() {
    let mut holder = host("h2", 4096);
    holder.images.insert("sha256:1".into());
    let snapshot = with([host("h1", 4096), holder, host("h3", 4096)]);
    for seed in 0..20 {
        let request = Request {
            image_digest: Some("sha256:1".into()),
            seed,
            ..request_of(1)
        };
        assert_eq!(Placer::default().place(&snapshot, &request), Ok("h2"));
    }
}

#[test]
fn weighers_prefer_the_hosts_that_nova_prefers() {
    let best = |hosts: [HostFacts; 2], request: &Request| {
        let snapshot = with(hosts);
        Placer::default()
            .place(&snapshot, request)
            .unwrap()
            .to_owned()
    };
    // A failed build outweighs any amount of free resources.
    let failed = HostFacts {
        failed_builds: 1,
        ..host("h2", 8192)
    };
    assert_eq!(best([host("h1", 2048), failed], &request_of(1)), "h1");
    // Hosts with many devices are left to Servers that need many.
    let with_devices = |name: &str, n| {
        let mut it = host(name, 4096);
        let device = |i| Device {
            address: format!("0000:{i:02x}:00.0"),
            alias: "gpu".into(),
            node: None,
        };
        it.profile.devices = (0..n).map(device).collect();
        it
    };
    let mut one = request_of(1);
    for seed in 0..20 {
        one.seed = seed;
        let hosts = || [with_devices("h1", 1), host("h2", 4096)];
        assert_eq!(best(hosts(), &one), "h2");
        let hosts = || [with_devices("h1", 1), with_devices("h2", 8)];
        let mut device = one.clone();
        device.requirements.resources.pci.insert("gpu".into(), 1);
        assert_eq!(best(hosts(), &device), "h1");
    }
}

#[test]
fn the_seed_spreads_servers_over_equal_hosts() {
    let snapshot = with((0..4).map(|i| host(&format!("h{i}"), 4096)));
    let mut counts = std::collections::BTreeMap::<String, i32>::new();
    for i in 0..400 {
        let request = Request {
            seed: hash(&format!("uid-{i}")),
            ..request_of(1)
        };
        let name = Placer::default().place(&snapshot, &request).unwrap();
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    assert_eq!(counts.len(), 4);
    assert!(counts.values().all(|&n| n > 60), "{counts:?}");
}

#[test]
fn the_explanation_names_each_filter() {
    let mut policy = Placer::default();
    let down = HostFacts {
        ready: false,
        ..host("h1", 65536)
    };
    let snapshot = with([down, host("h7", 3072), host("h8", 2048)]);
    let why = policy.place(&snapshot, &request_of(4096)).unwrap_err();
    assert_eq!(
        why.to_string(),
        "0 of 3 hosts fit: RamFilter rejected 2 (needs 4096 MiB of memory); ComputeFilter rejected 1 \
         (it is not Ready)"
    );
    // Who may read Hosts sees their names, and what they have.
    let named: Vec<String> = why
        .rejections
        .iter()
        .map(Rejection::nearest_reason)
        .collect();
    assert_eq!(
        named,
        [
            "needs 4096 MiB of memory, best host h7 has 3072",
            "h1 is not Ready"
        ]
    );
    let why = policy
        .place(&Snapshot::default(), &request_of(1))
        .unwrap_err();
    assert!(why.to_string().contains("no Host is registered"), "{why}");
}

#[test]
fn the_nearest_host_is_rejected_by_the_fewest_filters() {
    // h1 has a smaller shortage of memory, but is down as well.
    let down = HostFacts {
        ready: false,
        ..host("h1", 4000)
    };
    let why = Placer::default()
        .place(&with([down, host("h2", 1000)]), &request_of(4096))
        .unwrap_err();
    let ram = why
        .rejections
        .iter()
        .find(|r| r.filter == "RamFilter")
        .unwrap();
    assert_eq!((ram.hosts, ram.nearest.as_str()), (2, "h2"));
}

#[test]
fn labels_architecture_and_host_state_are_respected() {
    let mut policy = Placer::default();
    let mut arm = host("arm", 4096);
    arm.profile.architecture = "aarch64".into();
    arm.labels.insert("rack".into(), "r1".into());
    let busy = HostFacts {
        maintenance: true,
        ..host("busy", 4096)
    };
    let closed = HostFacts {
        schedulable: false,
        ..host("closed", 4096)
    };
    let broken = HostFacts {
        profile: Profile {
            problem: Some("has spec.cpuAllocationRatio `x`".into()),
            ..host("broken", 4096).profile
        },
        ..host("broken", 4096)
    };
    let snapshot = with([arm, busy, closed, broken]);
    let mut request = request_of(1);
    assert_eq!(policy.place(&snapshot, &request), Ok("arm"));
    request
        .requirements
        .host_selector
        .insert("rack".into(), "r1".into());
    assert_eq!(policy.place(&snapshot, &request), Ok("arm"));
    request
        .requirements
        .host_selector
        .insert("rack".into(), "r2".into());
    let why = policy.place(&snapshot, &request).unwrap_err().to_string();
    assert!(why.contains("HostSelector rejected 4"), "{why}");
    assert!(why.contains("not labelled rack=r2"), "{why}");
    request.requirements.host_selector.clear();
    request
        .requirements
        .image_properties
        .insert("hw_architecture".into(), "x86_64".into());
    let why = policy.place(&snapshot, &request).unwrap_err().to_string();
    assert!(
        why.contains("ImagePropertiesFilter rejected 1 (it cannot run"),
        "{why}"
    );
}

#[test]
fn no_server_is_overcommitted_against_itself() {
    // 16 CPUs with a ratio of 4 give 64 vCPUs, but never 17 to one Server.
    let snapshot = with([host("h", 4096)]);
    let mut request = request_of(1);
    request.requirements.resources.claim.vcpus = 17;
    let why = Placer::default().place(&snapshot, &request).unwrap_err();
    assert!(
        why.rejections[0]
            .nearest_reason()
            .contains("needs 17 vCPUs, h has 16"),
        "{why}"
    );
}

#[test]
fn aggregates_override_the_multiplier_for_their_hosts() {
    let mut small = host("small", 2000);
    let big = host("big", 4000);
    let mut policy = Placer::default();
    assert_eq!(
        policy.place(&with([small.clone(), big.clone()]), &request_of(1)),
        Ok("big")
    );
    let mut repelled = big.clone();
    repelled.profile.multipliers = [("ram_weight_multiplier".to_owned(), -2000)].into();
    let mut policy = Placer::default();
    assert_eq!(
        policy.place(&with([small.clone(), repelled]), &request_of(1)),
        Ok("small")
    );
    // Other weighers are not affected.
    small.profile.multipliers = [("cpu_weight_multiplier".to_owned(), 9000)].into();
    let mut policy = Placer::default();
    assert_eq!(policy.place(&with([small, big]), &request_of(1)), Ok("big"));
}

fn some_host(i: usize) -> impl Strategy<Value = HostFacts> {
    let figures = (0..20_i64, 0..5000_i64, 0..50_i64);
    let reserved = (0..3_i64, 0..600_i64, 0..10_i64);
    let ratios = (500..5000_i64, 500..2000_i64, 500..2000_i64);
    (
        figures,
        reserved,
        ratios,
        0..200_i64,
        prop::bool::weighted(0.8),
        prop::bool::ANY,
    )
        .prop_map(move |(c, r, q, overhead_mib, ready, labelled)| HostFacts {
            ready,
            capacity: claim(c.0, c.1, c.2),
            reserved: claim(r.0, r.1, r.2),
            ratios: Ratios {
                cpu: q.0,
                memory: q.1,
                disk: q.2,
            },
            overhead_mib,
            labels: labelled
                .then(|| ("ssd".to_owned(), "yes".to_owned()))
                .into_iter()
                .collect(),
            ..host(&format!("h{i}"), 0)
        })
}

fn some_hosts() -> impl Strategy<Value = Vec<HostFacts>> {
    (0..6_usize).prop_flat_map(|n| (0..n).map(some_host).collect::<Vec<_>>())
}

fn some_request() -> impl Strategy<Value = Request> {
    (
        0..8_i64,
        // No Server is without memory.
        16..1500_i64,
        0..20_i64,
        any::<u64>(),
        prop::bool::ANY,
    )
        .prop_map(|(vcpus, memory, disk, seed, with_selector)| {
            let mut request = asking(claim(vcpus, memory, disk));
            request.seed = seed;
            let label = with_selector.then(|| ("ssd".to_owned(), "yes".to_owned()));
            request.requirements.host_selector = label.into_iter().collect();
            request
        })
}

/// Placement's formula, written independently.
fn fits_all(f: &HostFacts, on_it: &[&Request]) -> bool {
    let n = i64::try_from(on_it.len()).unwrap();
    let sum = |part: fn(&Claim) -> i64| {
        on_it
            .iter()
            .map(|r| part(&r.requirements.resources.claim))
            .sum::<i64>()
    };
    let limit = |total: i64, reserved: i64, ratio: i64| (total - reserved).max(0) * ratio / 1000;
    sum(|c| c.vcpus) <= limit(f.capacity.vcpus, f.reserved.vcpus, f.ratios.cpu)
        && sum(|c| c.memory_mib) + n * f.overhead_mib
            <= limit(
                f.capacity.memory_mib,
                f.reserved.memory_mib,
                f.ratios.memory,
            )
        && sum(|c| c.disk_gib) <= limit(f.capacity.disk_gib, f.reserved.disk_gib, f.ratios.disk)
}

proptest! {
    #[test]
    fn no_sequence_overcommits_a_host_or_uses_an_unsuitable_one(
        hosts in some_hosts(),
        requests in prop::collection::vec((some_request(), prop::bool::weighted(0.2)), 0..60),
    ) {
        let mut policy = Placer::default();
        let mut snapshot = with(hosts.clone());
        let mut placed: Vec<(usize, String)> = Vec::new();
        for (i, (request, then_delete)) in requests.iter().enumerate() {
            if let Ok(name) = policy.place(&snapshot, request) {
                let name = name.to_owned();
                let facts = hosts.iter().find(|h| h.name == name).unwrap();
                prop_assert!(facts.ready);
                prop_assert!(request.requirements.host_selector.is_empty() || !facts.labels.is_empty());
                snapshot.allocate_claim(&format!("s{i}"), &name, request.requirements.resources.claim);
                placed.push((i, name));
            } else {
                // No ready host may have had capacity for it.
                for f in hosts.iter().filter(|f| f.ready) {
                    let labelled = request.requirements.host_selector.is_empty() || !f.labels.is_empty();
                    let itself = request.requirements.resources.claim.vcpus <= f.capacity.vcpus
                        && request.requirements.resources.claim.memory_mib <= f.capacity.memory_mib
                        && request.requirements.resources.claim.disk_gib <= f.capacity.disk_gib;
                    let mut on_it: Vec<&Request> = placed
                        .iter()
                        .filter(|(_, h)| *h == f.name)
                        .map(|(j, _)| &requests[*j].0)
                        .collect();
                    on_it.push(request);
                    prop_assert!(!(labelled && itself && fits_all(f, &on_it)));
                }
            }
            if *then_delete && !placed.is_empty() {
                let (gone, _) = placed.remove(i % placed.len());
                snapshot.release(&format!("s{gone}"));
            }
        }
        for f in &hosts {
            let on_it: Vec<&Request> = placed
                .iter()
                .filter(|(_, h)| *h == f.name)
                .map(|(j, _)| &requests[*j].0)
                .collect();
            prop_assert!(on_it.is_empty() || fits_all(f, &on_it));
        }
    }

    #[test]
    fn the_decision_depends_only_on_snapshot_and_request(
        hosts in some_hosts(),
        request in some_request(),
        turn in 0..6_usize,
    ) {
        let mut policy = Placer::default();
        let mut turned = Policy::default();
        turned.filters.rotate_left(turn);
        turned.weighers.reverse();
        let mut turned = Placer::new(turned);
        let snapshot = with(hosts.clone());
        let mut backwards = hosts;
        backwards.reverse();
        let again = with(backwards);
        prop_assert_eq!(policy.place(&snapshot, &request), turned.place(&again, &request));
    }

    #[test]
    fn the_cache_changes_no_decision(
        hosts in some_hosts(),
        history in prop::collection::vec((some_request(), 0..6_usize, 0..4_u8), 0..40),
    ) {
        let mut snapshot = with(hosts.clone());
        let mut cached = Placer::default();
        for (i, (mut request, which, event)) in history.into_iter().enumerate() {
            request.group = (i % 3 > 0).then(|| Group {
                min_members: 0,
                id: "g".into(),
                policy: [GroupPolicy::AntiAffinity, GroupPolicy::Affinity,
                    GroupPolicy::SoftAntiAffinity, GroupPolicy::SoftAffinity][which % 4],
                max_per_host: 1 + u32::from(event),
            });
            if which == 0 {
                request.spread = vec![Spread { key: "ssd".into(), max_skew: 1 }];
                request.spread_set = Some("s".into());
            }
            let answer = cached.place(&snapshot, &request).map(str::to_owned);
            let fresh = Placer::default().place(&snapshot, &request).map(str::to_owned);
            prop_assert_eq!(&answer, &fresh);
            if let Ok(host) = answer {
                snapshot.allocate(&format!("s{i}"), Allocation {
                    host,
                    resources: request.requirements.resources,
                    group: request.group.map(|g| g.id),
                    spread: request.spread_set,
                    ..Allocation::default()
                });
            }
            match (event, hosts.get(which)) {
                (0, Some(host)) => snapshot.remove_host(&host.name),
                (1, Some(host)) => {
                    snapshot.set_host(HostFacts { ready: !host.ready, ..host.clone() });
                }
                (2, _) => {
                    snapshot.release(&format!("s{which}"));
                }
                (_, Some(host)) => {
                    snapshot.set_host(host.clone());
                }
                _ => {}
            }
        }
    }
}
