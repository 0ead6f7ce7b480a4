//! Effects of HostAggregates and of the objects that Servers refer to.

use std::collections::BTreeMap;

use super::*;
use crate::fixtures::{host, now, server, settle, state};
use crate::state::reports::Report;
use pileus_api::host::{Inventory, Taint, TaintEffect};
use pileus_api::scheduler_policy::Strategy;
use pileus_api::server::{
    PlacementConstraints, Toleration, TopologySpread, TopologySpreadConstraint,
};
use pileus_api::server_group::GroupPolicy;
use pileus_api::{
    FlavorSpec, HostAggregate, HostAggregateSpec, SchedulerPolicySpec, ServerGroupSpec, conditions,
};

fn with_constraints(name: &str, version: u64, constraints: PlacementConstraints) -> Server {
    let mut server = server(name, version, "100Mi");
    server.spec.placement = Some(constraints);
    server
}

fn group(policy: GroupPolicy) -> ServerGroup {
    let spec = ServerGroupSpec {
        policy,
        ..ServerGroupSpec::default()
    };
    let mut group = ServerGroup::new("g", spec);
    group.metadata.namespace = Some("ns".into());
    group
}

fn member(name: &str, version: u64) -> Server {
    let constraints = PlacementConstraints {
        server_group: Some("g".into()),
        ..PlacementConstraints::default()
    };
    with_constraints(name, version, constraints)
}

fn aggregate(name: &str, second: i64, hosts: &[&str], zone: Option<&str>) -> HostAggregate {
    let spec = HostAggregateSpec {
        hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
        availability_zone: zone.map(str::to_owned),
        ..HostAggregateSpec::default()
    };
    let mut aggregate = HostAggregate::new(name, spec);
    aggregate.metadata.creation_timestamp = Some(
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now(second)),
    );
    aggregate
}

fn on(decided: &[(String, Option<String>)], name: &str) -> Option<String> {
    let found = decided.iter().rev().find(|(n, _)| n == name);
    found.and_then(|(_, host)| host.clone())
}

#[test]
fn members_of_an_anti_affinity_group_share_no_host() {
    let mut state = state(&[host("h1", 1000), host("h2", 1000)]);
    state.group_applied(group(GroupPolicy::AntiAffinity));
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        state.server_applied(member(name, i as u64));
    }
    let decided = settle(&mut state, 1);
    let placed: BTreeSet<_> = decided.iter().filter_map(|(_, h)| h.clone()).collect();
    assert_eq!(placed.len(), 2, "{decided:?}");
    assert_eq!(state.queue_length(), 1);
    // A bigger host does not help, another host does.
    state.host_applied(&host("h1", 2000));
    assert!(settle(&mut state, 2).is_empty());
    state.host_applied(&host("h3", 1000));
    let decided = settle(&mut state, 3);
    assert_eq!(decided[0].1.as_deref(), Some("h3"));
}

/// On which host each of these many members of a group with this policy is placed; hosts have these
/// MiB of memory.
fn spread_of(policy: GroupPolicy, memory: &[i64], members: usize) -> BTreeMap<String, usize> {
    let hosts: Vec<_> = memory
        .iter()
        .enumerate()
        .map(|(i, mib)| {
            let mut host = host(&format!("h{i}"), *mib);
            host.status
                .as_mut()
                .unwrap()
                .capacity
                .as_mut()
                .unwrap()
                .vcpus = 64;
            host
        })
        .collect();
    let mut state = state(&hosts);
    state.group_applied(group(policy));
    for i in 0..members {
        state.server_applied(member(&format!("m{i}"), i as u64));
    }
    let mut counts = BTreeMap::new();
    for (_, host) in settle(&mut state, 1) {
        *counts.entry(host.unwrap()).or_default() += 1;
    }
    counts
}

#[test]
fn a_soft_group_outweighs_free_room() {
    let two = |n: usize| BTreeMap::from([("h0".to_owned(), n), ("h1".to_owned(), n)]);
    for memory in [[8000, 8000], [8000, 8100], [8000, 64_000]] {
        assert_eq!(spread_of(GroupPolicy::SoftAntiAffinity, &memory, 4), two(2));
    }
    let together = spread_of(GroupPolicy::SoftAffinity, &[8000, 8100, 8050], 4);
    assert_eq!(together.values().copied().collect::<Vec<_>>(), [4]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    /// However different hosts are: as long as all have room, no host gets two members more than
    /// another.
    #[test]
    fn soft_anti_affinity_is_even(
        memory in proptest::collection::vec(4000..64_000_i64, 1..7),
        members in 1..24_usize,
    ) {
        let counts = spread_of(GroupPolicy::SoftAntiAffinity, &memory, members);
        let most = counts.values().max().copied().unwrap_or_default();
        let least = if counts.len() < memory.len() { 0 } else { counts.values().min().copied().unwrap_or_default() };
        proptest::prop_assert!(most - least <= 1, "{counts:?}");
        proptest::prop_assert_eq!(counts.values().sum::<usize>(), members);
    }
}

#[test]
fn a_server_waits_for_its_group_and_reports_it() {
    let mut state = state(&[host("h1", 1000)]);
    state.server_applied(member("a", 1));
    let write = state.decide(now(1)).remove(0);
    assert_eq!(write.status.conditions[0].reason, "ServerGroupNotFound");
    assert!(
        write.status.conditions[0]
            .message
            .contains("no ServerGroup `g`")
    );
    let answer = crate::fixtures::after(&write, 2);
    state.server_applied(answer);
    assert!(settle(&mut state, 1).is_empty(), "a write is under way");
    let mut state = crate::fixtures::state(&[host("h1", 1000)]);
    state.server_applied(member("a", 1));
    settle(&mut state, 1);
    state.group_applied(group(GroupPolicy::Affinity));
    assert_eq!(on(&settle(&mut state, 2), "a").as_deref(), Some("h1"));
}

#[test]
fn a_server_with_same_host_waits_for_the_other_and_follows_it() {
    let mut state = state(&[host("h1", 1000), host("h2", 9000)]);
    let pinned = PlacementConstraints {
        same_host: vec!["peer".into()],
        ..PlacementConstraints::default()
    };
    state.server_applied(with_constraints("follower", 1, pinned));
    assert_eq!(on(&settle(&mut state, 1), "follower"), None);
    let selector = PlacementConstraints {
        tolerations: vec![Toleration {
            name: "t".into(),
            value: None,
        }],
        different_host: vec!["follower".into()],
        ..PlacementConstraints::default()
    };
    state.server_applied(with_constraints("peer", 2, selector));
    let decided = settle(&mut state, 2);
    assert!(on(&decided, "peer").is_some());
    assert_eq!(on(&decided, "peer"), on(&decided, "follower"));
}

#[test]
fn zones_and_ratios_come_from_aggregates_and_the_oldest_gives_the_zone() {
    let mut state = state(&[host("h1", 1000), host("h2", 1000)]);
    let zoned = PlacementConstraints {
        availability_zone: Some("b".into()),
        ..PlacementConstraints::default()
    };
    state.server_applied(with_constraints("a", 1, zoned));
    assert_eq!(on(&settle(&mut state, 1), "a"), None);
    state.aggregate_applied(aggregate("new", 20, &["h1", "h2"], Some("b")));
    state.aggregate_applied(aggregate("old", 10, &["h2"], Some("a")));
    assert_eq!(on(&settle(&mut state, 2), "a").as_deref(), Some("h1"));
    let reported: Vec<_> = state
        .reports(now(3))
        .into_iter()
        .filter_map(|r| match r {
            Report::Aggregate(a, s) => Some((a.name_any(), s.hosts, s.conditions[0].clone())),
            _ => None,
        })
        .collect();
    assert_eq!(reported[0].0, "old");
    assert_eq!(
        (reported[0].1, reported[0].2.status.as_str()),
        (Some(1), "True")
    );
    assert_eq!(
        (reported[1].1, reported[1].2.reason.as_str()),
        (Some(2), "ZoneConflict")
    );
    assert!(
        reported[1]
            .2
            .message
            .contains("Host h2 is in zone a by the older")
    );
    assert!(state.reports(now(3)).is_empty(), "reported once");
    // Ratios: the lowest of the aggregates, unless the Host's spec has one.
    let mut twice = aggregate("twice", 30, &["h1"], None);
    twice.spec.memory_allocation_ratio = Some("2".into());
    state.aggregate_applied(twice.clone());
    let free = |state: &State, host| state.snapshot().host(host).unwrap().free(1);
    assert_eq!(free(&state, "h1"), 1900);
    twice.spec.memory_allocation_ratio = Some("1.5".into());
    state.aggregate_applied(twice);
    assert_eq!(free(&state, "h1"), 1400);
    let mut own = host("h1", 1000);
    own.spec.memory_allocation_ratio = Some("1".into());
    state.host_applied(&own);
    assert_eq!(free(&state, "h1"), 900);
    state.host_applied(&host("h1", 1000));
    state.aggregate_deleted("twice");
    assert_eq!(free(&state, "h1"), 900);
}

#[test]
fn a_host_allocates_vcpus_and_memory_in_units() {
    let mut host = host("h1", 4000);
    let units = |min_unit, max_unit, step_size| Inventory {
        min_unit,
        max_unit,
        step_size,
        ..Inventory::default()
    };
    host.spec.resources = [
        ("VCPU".to_owned(), units(None, Some(4), None)),
        ("MEMORY_MB".to_owned(), units(Some(512), None, Some(256))),
    ]
    .into();
    let mut state = state(&[host]);
    for (name, memory, fits) in [
        ("a", "256Mi", false),
        ("b", "600Mi", false),
        ("c", "768Mi", true),
    ] {
        state.server_applied(server(name, 1, memory));
        let decided = settle(&mut state, 1);
        assert_eq!(on(&decided, name).is_some(), fits, "{decided:?}");
    }
    let mut wide = server("wide", 2, "512Mi");
    wide.spec.resources.as_mut().unwrap().vcpus = 5;
    state.server_applied(wide);
    let writes = state.decide(now(2));
    let write = writes.iter().find(|w| w.key.1 == "wide").unwrap();
    let message = &write.status.conditions[0].message;
    assert!(
        message.contains("allocates vCPUs to a Server in steps of 1 from 1 to 4, not 5"),
        "{message}"
    );
}

#[test]
fn the_lowest_multiplier_of_the_aggregates_counts_and_an_invalid_one_is_reported() {
    let mut state = state(&[host("h1", 1000)]);
    let key = "cpu_weight_multiplier";
    for (name, text) in [("a", "2.5"), ("b", "-1.5"), ("c", "much")] {
        let mut given = aggregate(name, 1, &["h1"], None);
        given.spec.properties = [(key.to_owned(), text.to_owned())].into();
        state.aggregate_applied(given);
    }
    let host = state.snapshot().host("h1").unwrap();
    assert_eq!(host.profile().multipliers[key], -1500);
    let is_reported = state.reports(now(1)).into_iter().any(|r| match r {
        Report::Aggregate(a, s) => {
            a.name_any() == "c" && s.conditions[0].message.contains("`much`")
        }
        _ => false,
    });
    assert!(is_reported);
}

#[test]
fn a_changed_policy_is_used_at_once_and_an_invalid_one_never() {
    let policy = |name: &str, spec| SchedulerPolicy::new(name, spec);
    let mut big = host("h2", 4000);
    let capacity = big.status.as_mut().unwrap().capacity.as_mut().unwrap();
    (capacity.vcpus, capacity.disk_gib) = (64, 1000);
    let mut state = state(&[host("h1", 1000), big]);
    let next = |state: &mut State, name: &str, at| {
        state.server_applied(server(name, at, "100Mi"));
        on(&settle(state, i64::try_from(at).unwrap()), name).unwrap()
    };
    assert_eq!(next(&mut state, "a", 1), "h2");
    let pack = SchedulerPolicySpec {
        strategy: Strategy::Pack,
        ..SchedulerPolicySpec::default()
    };
    state.policy_applied(policy("other", pack.clone()));
    assert_eq!(next(&mut state, "b", 2), "h2");
    state.policy_applied(policy("default", pack));
    assert_eq!(next(&mut state, "c", 3), "h1");
    let wrong = SchedulerPolicySpec {
        filters: Some(vec!["RamFliter".into()]),
        ..SchedulerPolicySpec::default()
    };
    state.policy_applied(policy("default", wrong));
    assert_eq!(next(&mut state, "d", 4), "h1");
    let reported: Vec<_> = state
        .reports(now(5))
        .into_iter()
        .filter_map(|r| match r {
            Report::Policy(_, s) => Some(s.conditions[0].clone()),
            _ => None,
        })
        .collect();
    assert_eq!(reported[0].reason, "InvalidSpec");
    assert!(
        reported[0]
            .message
            .contains("spec.filters names `RamFliter`"),
        "{}",
        reported[0].message
    );
    assert_eq!(reported[1].reason, "NotUsed");
    assert!(!conditions::is_true(
        &reported,
        pileus_api::ConditionType::Ready
    ));
    state.policy_deleted("default");
    assert_eq!(next(&mut state, "e", 6), "h2");
}

#[test]
fn the_highest_priority_gets_free_capacity_first() {
    let mut state = state(&[]);
    state.priority_class_applied(&PriorityClass {
        metadata: kube::api::ObjectMeta {
            name: Some("high".into()),
            ..Default::default()
        },
        value: 1000,
        ..PriorityClass::default()
    });
    state.server_applied(server("a", 1, "600Mi"));
    let mut high = server("z", 2, "600Mi");
    high.spec.placement = Some(PlacementConstraints {
        priority_class: Some("high".into()),
        ..PlacementConstraints::default()
    });
    state.server_applied(high.clone());
    settle(&mut state, 1);
    state.host_applied(&host("h", 1000));
    let decided = settle(&mut state, 2);
    assert_eq!(on(&decided, "z").as_deref(), Some("h"));
    assert_eq!(on(&decided, "a"), None);
    high.metadata.name = Some("y".into());
    high.metadata.uid = Some("uid-y".into());
    high.spec.placement.as_mut().unwrap().priority_class = Some("higher".into());
    state.server_applied(high);
    let write = state.decide(now(3)).remove(0);
    let reported = &write.status.conditions[0];
    assert_eq!(reported.reason, "PriorityClassNotFound");
    assert!(
        reported.message.contains("there are high"),
        "{}",
        reported.message
    );
}

#[test]
fn taints_spread_queries_and_extra_specs_reach_the_filters() {
    let mut tainted = host("h1", 1000);
    tainted.spec.taints = vec![Taint {
        name: "dedicated".into(),
        value: "db".into(),
        effect: TaintEffect::NoSchedule,
    }];
    tainted.metadata.labels = Some([("rack".to_owned(), "r1".to_owned())].into());
    let mut other = host("h2", 1000);
    other.metadata.labels = Some([("rack".to_owned(), "r2".to_owned())].into());
    other.spec.traits = ["CUSTOM_FAST".to_owned()].into();
    let license = Inventory {
        total: 1,
        ..Default::default()
    };
    other.spec.resources = [("CUSTOM_LICENSE".to_owned(), license)].into();
    let mut state = state(&[tainted, other]);
    let spread = |tolerates: bool| PlacementConstraints {
        tolerations: tolerates
            .then(|| Toleration {
                name: "dedicated".into(),
                value: Some("db".into()),
            })
            .into_iter()
            .collect(),
        spread: Some(TopologySpread {
            set: "web".into(),
            over: vec![TopologySpreadConstraint {
                name: "rack".into(),
                max_skew: 1,
            }],
        }),
        ..PlacementConstraints::default()
    };
    state.server_applied(with_constraints("a", 1, spread(false)));
    assert_eq!(on(&settle(&mut state, 1), "a").as_deref(), Some("h2"));
    state.server_applied(with_constraints("b", 2, spread(false)));
    assert_eq!(
        on(&settle(&mut state, 2), "b"),
        None,
        "r1 is tainted, r2 would be one more"
    );
    state.server_applied(with_constraints("c", 3, spread(true)));
    let decided = settle(&mut state, 3);
    assert_eq!(on(&decided, "c").as_deref(), Some("h1"));
    assert_eq!(
        on(&decided, "b").as_deref(),
        Some("h2"),
        "both domains hold one again"
    );
    let query = |text: &str| PlacementConstraints {
        query: Some(text.into()),
        ..PlacementConstraints::default()
    };
    state.server_applied(with_constraints("q", 4, query("[]")));
    let write = state.decide(now(4)).remove(0);
    assert_eq!(write.status.conditions[0].reason, "InvalidSpec");
    // A flavor that requires a trait and the only license.
    let specs = [
        ("trait:CUSTOM_FAST", "required"),
        ("resources:CUSTOM_LICENSE", "1"),
    ];
    let flavor = FlavorSpec {
        vcpus: 1,
        memory: "64Mi".into(),
        disk: "0".into(),
        extra_specs: specs.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..FlavorSpec::default()
    };
    state.flavor_applied(Flavor::new("licensed", flavor));
    for (i, (name, host)) in [("l1", Some("h2")), ("l2", None)].into_iter().enumerate() {
        let mut licensed = server(name, 10 + i as u64, "1Mi");
        licensed.spec.resources = None;
        licensed.spec.flavor = Some("licensed".into());
        state.server_applied(licensed);
        assert_eq!(on(&settle(&mut state, 5), name).as_deref(), host, "{name}");
    }
}

#[test]
fn a_disk_of_zero_counts_as_the_images_as_soon_as_its_size_is_known() {
    let mut state = state(&[host("h1", 1000)]);
    let unsized_disk = |name: &str, version| {
        let mut server = server(name, version, "100Mi");
        server.spec.resources.as_mut().unwrap().disk = "0".into();
        server
    };
    state.server_applied(unsized_disk("a", 1));
    let write = state.decide(now(1)).remove(0);
    let claimed =
        |write: &crate::state::StatusWrite| write.status.placement.as_ref().unwrap().claim.disk_gib;
    assert_eq!(claimed(&write), 0, "nobody has fetched the image");
    let placed = std::sync::Arc::new(crate::fixtures::after(&write, 2));
    state.write_finished(&write, crate::state::Outcome::Written(placed), now(1));
    let free = |state: &State| state.snapshot.host("h1").unwrap().free(2);
    assert_eq!(free(&state), 100);
    // 59.5 GiB, of a host that has 100.
    let mut image = crate::fixtures::image();
    image.status = Some(pileus_api::ImageStatus {
        virtual_size: Some((59 << 30) + (1 << 29)),
        ..pileus_api::ImageStatus::default()
    });
    state.image_applied(image);
    assert_eq!(free(&state), 40);
    state.server_applied(unsized_disk("b", 3));
    let decided = settle(&mut state, 2);
    assert_eq!(on(&decided, "b"), None, "{decided:?}");
    state.host_applied(&host("h2", 1000));
    let write = state.decide(now(3)).remove(0);
    assert_eq!((write.key.1.as_str(), claimed(&write)), ("b", 60));
}
