//! What each filter rejects.

use super::*;
use crate::placement::facts::{
    Aggregate, Allocation, Device, HostFacts, NumaNode, NumaRequest, Profile, ResourceRequest,
    Taint,
};
use crate::placement::numa::fit;
use crate::placement::placer::Placer;
use crate::placement::policy::Policy;
use crate::placement::query::Query;
use crate::placement::request::{Group, ServerReference, Spread};
use pileus_api::common::Claim;

fn host(name: &str, memory_mib: i64) -> HostFacts {
    HostFacts {
        name: name.into(),
        ready: true,
        schedulable: true,
        capacity: Claim {
            vcpus: 16,
            memory_mib,
            disk_gib: 100,
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

fn peer(name: &str) -> ServerReference {
    ServerReference {
        name: name.into(),
        uid: Some(name.into()),
    }
}

fn request_of(memory_mib: i64) -> Request {
    let mut request = Request::default();
    request.requirements.resources.claim = Claim {
        vcpus: 1,
        memory_mib,
        disk_gib: 1,
    };
    request
}

/// Filters that compare more than numbers give the same results as in Nova.
#[allow(clippy::too_many_lines, reason = "a table")]
#[test]
fn filters_reject_what_nova_rejects() {
    let verdict = |profile: Profile, cycle: &dyn Fn(&mut Request)| {
        let facts = HostFacts {
            profile,
            address: "192.0.2.7".parse().ok(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            ..host("h", 4096)
        };
        let mut snapshot = with([facts]);
        let allocation = Allocation {
            host: "h".into(),
            group: Some("g".into()),
            spread: Some("s".into()),
            ..Allocation::default()
        };
        snapshot.allocate("there", allocation);
        snapshot.set_host(HostFacts {
            ready: false,
            labels: [("zone".to_owned(), "b".to_owned())].into(),
            ..host("other", 1)
        });
        let mut request = request_of(1);
        cycle(&mut request);
        let policy = Policy {
            filters: all(),
            ..Policy::default()
        };
        let why = Placer::new(policy).place(&snapshot, &request).map(drop);
        why.err().map(|e| {
            let of_h = e
                .rejections
                .iter()
                .filter(|r| r.nearest == "h")
                .map(|r| r.filter);
            of_h.collect::<Vec<_>>().join(" ")
        })
    };
    let plain = Profile::default;
    let aggregate = |key: &str, value: &str| Profile {
        aggregates: vec![Aggregate {
            name: "a".into(),
            properties: [(key.to_owned(), value.to_owned())].into(),
            ..Default::default()
        }],
        ..Profile::default()
    };
    let spec = |key: &'static str, value: &'static str| {
        move |r: &mut Request| drop(r.requirements.extra_specs.insert(key.into(), value.into()))
    };
    let rejected_by = |name: &str| Some(name.to_owned());
    assert_eq!(verdict(plain(), &|_| ()), None);
    assert_eq!(
        verdict(plain(), &|r| r.requirements.zone = Some("nova".into())),
        None
    );
    assert_eq!(
        verdict(plain(), &|r| r.requirements.zone = Some("z".into())),
        rejected_by("AvailabilityZoneFilter")
    );
    let fast = "aggregate_instance_extra_specs:disk";
    assert_eq!(
        verdict(plain(), &spec(fast, "ssd")),
        rejected_by("AggregateInstanceExtraSpecsFilter")
    );
    assert_eq!(
        verdict(aggregate("disk", "hdd,ssd"), &spec(fast, "ssd")),
        None
    );
    assert_eq!(verdict(plain(), &spec("hw:cpu_policy", "shared")), None);
    assert_eq!(
        verdict(plain(), &spec("capabilities:x", "1")),
        rejected_by("ComputeCapabilitiesFilter")
    );
    assert_eq!(
        verdict(plain(), &spec("trait:T", "required")),
        rejected_by("TraitFilter")
    );
    assert_eq!(verdict(plain(), &spec("trait:T", "forbidden")), None);
    let property = |r: &mut Request| {
        drop(
            r.requirements
                .image_properties
                .insert("os_type".into(), "linux".into()),
        );
    };
    assert_eq!(
        verdict(aggregate("os_type", "windows"), &property),
        rejected_by("AggregateImagePropertiesIsolation")
    );
    assert_eq!(verdict(aggregate("os_type", "windows"), &|_| ()), None);
    assert_eq!(
        verdict(aggregate("instance_type", "big"), &|_| ()),
        rejected_by("AggregateTypeAffinityFilter")
    );
    let mut isolated = aggregate("x", "y");
    isolated.aggregates[0].namespaces.insert("mine".into());
    assert_eq!(
        verdict(isolated.clone(), &|_| ()),
        rejected_by("AggregateMultiTenancyIsolation")
    );
    assert_eq!(verdict(isolated, &|r| r.namespace = "mine".into()), None);
    assert_eq!(
        verdict(plain(), &|r| r.same_host = vec![peer("nobody")]),
        rejected_by("SameHostFilter")
    );
    assert_eq!(
        verdict(plain(), &|r| r.same_host = vec![peer("there")]),
        None
    );
    assert_eq!(
        verdict(plain(), &|r| r.different_host = vec![peer("there")]),
        rejected_by("DifferentHostFilter")
    );
    let group = |policy, max_per_host| {
        move |r: &mut Request| {
            r.group = Some(Group {
                min_members: 0,
                id: "g".into(),
                policy,
                max_per_host,
            });
        }
    };
    assert_eq!(
        verdict(plain(), &group(GroupPolicy::AntiAffinity, 1)),
        rejected_by("ServerGroupAntiAffinityFilter")
    );
    assert_eq!(verdict(plain(), &group(GroupPolicy::AntiAffinity, 2)), None);
    assert_eq!(verdict(plain(), &group(GroupPolicy::Affinity, 1)), None);
    let net =
        |net: &'static str| move |r: &mut Request| r.requirements.host_cidr = net.parse().ok();
    assert_eq!(verdict(plain(), &net("192.0.2.0/24")), None);
    assert_eq!(
        verdict(plain(), &net("198.51.100.0/24")),
        rejected_by("SimpleCIDRAffinityFilter")
    );
    let query = |text: &'static str| {
        move |r: &mut Request| {
            r.requirements.query = Some(Query::parse(text).unwrap());
        }
    };
    assert_eq!(
        verdict(plain(), &query(r#"[">=", "$free_ram_mb", 1024]"#)),
        None
    );
    assert_eq!(
        verdict(plain(), &query(r#"["not", ["=", "$host", "h"]]"#)),
        rejected_by("JsonFilter")
    );
    let spread = |r: &mut Request| {
        r.spread = vec![Spread {
            key: "zone".into(),
            max_skew: 1,
        }];
        r.spread_set = Some("s".into());
    };
    assert_eq!(verdict(plain(), &spread), rejected_by("TopologySpread"));
    let device = |r: &mut Request| {
        assert!(
            r.requirements
                .resources
                .pci
                .insert("gpu".into(), 1)
                .is_none()
        );
    };
    assert_eq!(
        verdict(plain(), &device),
        rejected_by("PciPassthroughFilter")
    );
    assert_eq!(
        verdict(
            Profile {
                devices: vec![Device {
                    alias: "gpu".into(),
                    ..Device::default()
                }],
                ..plain()
            },
            &device
        ),
        None
    );
    let numa = |r: &mut Request| {
        r.requirements.resources.numa = Some(NumaRequest {
            nodes: vec![(2, 512)],
            pinned: true,
            page_kib: None,
        });
    };
    assert_eq!(verdict(plain(), &numa), rejected_by("NUMATopologyFilter"));
    let cell = NumaNode {
        cpus: 2,
        memory_mib: 512,
        ..Default::default()
    };
    assert_eq!(
        verdict(
            Profile {
                numa_nodes: vec![cell],
                ..plain()
            },
            &numa
        ),
        None
    );
    let taint = Taint {
        key: "k".into(),
        effect: "NoSchedule".into(),
        ..Default::default()
    };
    let tainted = Profile {
        taints: vec![taint],
        ..plain()
    };
    assert_eq!(
        verdict(tainted.clone(), &|_| ()),
        rejected_by("TaintToleration")
    );
    assert_eq!(
        verdict(tainted, &|r| r
            .requirements
            .tolerations
            .push(Default::default())),
        None
    );
    assert_eq!(
        verdict(plain(), &|r| assert!(
            r.refused_by
                .insert("h".into(), "refused it".into())
                .is_none()
        )),
        rejected_by("RefusedFilter")
    );
    let class = |r: &mut Request| {
        assert!(
            r.requirements
                .resources
                .classes
                .insert("CUSTOM_X".into(), 1)
                .is_none()
        );
    };
    assert_eq!(verdict(plain(), &class), rejected_by("ResourceClassFilter"));
}

#[test]
fn a_pinned_guest_is_counted_on_its_numa_nodes() {
    let cell = |id, cpus| NumaNode {
        id,
        cpus,
        memory_mib: 1024,
        ..Default::default()
    };
    let facts = HostFacts {
        profile: Profile {
            numa_nodes: vec![cell(1, 2), cell(8, 4)],
            ..Profile::default()
        },
        ..host("h", 8192)
    };
    let mut snapshot = with([facts]);
    let numa = NumaRequest {
        nodes: vec![(2, 100)],
        pinned: true,
        page_kib: None,
    };
    let asking = |numa: &NumaRequest| ResourceRequest {
        numa: Some(numa.clone()),
        ..ResourceRequest::default()
    };
    let mut placed = 0;
    for i in 0..5 {
        let Some(numa_nodes) = fit(snapshot.host("h").unwrap(), &asking(&numa)) else {
            break;
        };
        let expected = if i == 0 { 1 } else { 8 };
        assert_eq!(numa_nodes[0], expected, "the host's number of the node");
        let resources = ResourceRequest {
            numa: Some(numa.clone()),
            ..ResourceRequest::default()
        };
        snapshot.allocate(
            &format!("s{i}"),
            Allocation {
                host: "h".into(),
                resources,
                numa_nodes,
                ..Allocation::default()
            },
        );
        placed += 1;
    }
    assert_eq!(placed, 3);
    let shared = NumaRequest {
        pinned: false,
        ..numa.clone()
    };
    let full = fit(snapshot.host("h").unwrap(), &asking(&shared));
    assert_eq!(full, None, "no CPU is left to share");
    snapshot.release("s0");
    assert!(fit(snapshot.host("h").unwrap(), &asking(&numa)).is_some());
}
