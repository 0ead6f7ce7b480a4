//! Gang scheduling.

use std::sync::Arc;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::scheduling::v1::PriorityClass;

use super::*;
use crate::fixtures::{after, bound, host, now, server, settle, state};
use crate::state::Outcome;
use pileus_api::host::Orphan;
use pileus_api::server::PlacementConstraints;
use pileus_api::server_group::GroupPolicy;
use pileus_api::{ServerGroup, ServerGroupSpec};

fn free(state: &State, name: &str) -> i64 {
    state.snapshot().host(name).unwrap().free(1)
}

fn gang(state: &mut State, least: i32) {
    let spec = ServerGroupSpec {
        policy: GroupPolicy::AntiAffinity,
        min_members: Some(least),
        ..ServerGroupSpec::default()
    };
    let mut group = ServerGroup::new("g", spec);
    group.metadata.namespace = Some("ns".into());
    state.group_applied(group);
}

fn member(name: &str) -> Server {
    let mut member = server(name, 1, "600Mi");
    member.spec.placement = Some(PlacementConstraints {
        server_group: Some("g".into()),
        ..PlacementConstraints::default()
    });
    member
}

#[test]
fn a_gang_is_placed_all_or_nothing() {
    let mut state = state(&[host("h1", 1000), host("h2", 1000)]);
    gang(&mut state, 3);
    state.server_applied(member("a"));
    let write = state.decide(now(1)).remove(0);
    assert_eq!(write.status.conditions[0].reason, "GroupIncomplete");
    let message = &write.status.conditions[0].message;
    assert!(message.contains("1 of 3 members"), "{message}");
    state.write_finished(
        &write,
        Outcome::Written(std::sync::Arc::new(after(&write, 2))),
        now(1),
    );
    state.server_applied(member("b"));
    state.server_applied(member("c"));
    let decided = settle(&mut state, 20);
    assert!(
        !decided.is_empty() && decided.iter().all(|(_, h)| h.is_none()),
        "{decided:?}"
    );
    assert_eq!(
        (free(&state, "h1"), free(&state, "h2")),
        (1000, 1000),
        "nothing is allocated"
    );
    let a = ("ns".to_owned(), "a".to_owned());
    let message = state.servers[&a].status.as_ref().unwrap().conditions[0]
        .message
        .clone();
    assert!(
        message.contains("after placing 2 of the others"),
        "{message}"
    );
    assert!(
        message.contains("ServerGroupAntiAffinityFilter rejected 2"),
        "{message}"
    );
    state.host_applied(&host("h3", 1000));
    let decided = settle(&mut state, 40);
    let hosts: BTreeSet<_> = decided.iter().filter_map(|(_, h)| h.clone()).collect();
    assert_eq!((decided.len(), hosts.len()), (3, 3), "{decided:?}");
    // A member that is added later is placed alone.
    state.host_applied(&host("h4", 1000));
    state.server_applied(member("d"));
    assert_eq!(
        settle(&mut state, 50),
        [("d".to_owned(), Some("h4".to_owned()))]
    );
}

/// A Server of higher priority than all others.
fn vip(state: &mut State, version: u64) -> Server {
    state.priority_class_applied(&PriorityClass {
        metadata: kube::api::ObjectMeta {
            name: Some("high".into()),
            ..Default::default()
        },
        value: 1000,
        ..Default::default()
    });
    let mut vip = server("vip", version, "600Mi");
    vip.spec.placement = Some(PlacementConstraints {
        priority_class: Some("high".into()),
        ..PlacementConstraints::default()
    });
    vip
}

#[test]
fn a_gang_is_completed_after_a_conflict() {
    // The newer version may arrive after the response or before it.
    for event_first in [false, true] {
        let mut state = state(&["h1", "h2", "h3"].map(|name| host(name, 1000)));
        gang(&mut state, 3);
        for name in ["a", "b", "c"] {
            state.server_applied(member(name));
        }
        let writes = state.decide(now(1));
        assert_eq!(writes.len(), 3);
        let high = vip(&mut state, 4);
        state.server_applied(high);
        let mut newer = member("b");
        newer.metadata.resource_version = Some("9".into());
        newer.metadata.labels = Some([("touched".to_owned(), "yes".to_owned())].into());
        if event_first {
            state.server_applied(newer.clone());
        }
        for (i, write) in writes.iter().enumerate() {
            let placed = Outcome::Written(Arc::new(after(write, 20 + i as u64)));
            let conflict = write.key.1 == "b";
            let outcome = if conflict { Outcome::Conflict } else { placed };
            state.write_finished(write, outcome, now(1));
        }
        if !event_first {
            // No other Server gets the capacity before the newer version is known.
            let writes = state.decide(now(1));
            assert_eq!((writes.len(), &*writes[0].key.1), (1, "vip"));
            assert_eq!(writes[0].status.placement, None);
            state.server_applied(newer);
        }
        let next = state.decide(now(2));
        assert_eq!(next[0].key.1, "b", "before the Server of higher priority");
        let (b, _) = bound(&next[0]);
        let others = writes.iter().filter(|w| w.key.1 != "b").map(|w| bound(w).0);
        assert!(others.into_iter().all(|h| h != b));
        assert!(next[1..].iter().all(|w| w.status.placement.is_none()));
    }
}

#[test]
fn a_gang_that_the_former_leader_started_is_completed_first() {
    let mut first = state(&["h1", "h2", "h3"].map(|name| host(name, 1000)));
    gang(&mut first, 3);
    for name in ["a", "b", "c"] {
        first.server_applied(member(name));
    }
    let writes = first.decide(now(1));
    // The former leader ended after two of the three writes.
    let mut next = state(&["h1", "h2", "h3"].map(|name| host(name, 1000)));
    gang(&mut next, 3);
    let high = vip(&mut next, 4);
    let placed = writes[..2].iter().map(|w| after(w, 10));
    let all = placed.chain([member(&writes[2].key.1), high]);
    next.servers_listed(all.collect(), &BTreeSet::new());
    let decided: BTreeMap<_, _> = settle(&mut next, 2).into_iter().collect();
    assert_eq!(
        decided[&writes[2].key.1].as_deref(),
        Some(bound(&writes[2]).0)
    );
    assert_eq!(decided["vip"], None);
}

#[test]
fn a_gang_member_whose_vm_still_runs_is_placed_on_its_host() {
    let mut holder = host("h1", 10);
    holder.status.as_mut().unwrap().orphans = vec![Orphan {
        name: "dom".into(),
        server_namespace: "ns".into(),
        server_name: "a".into(),
        epoch: 4,
        ..Orphan::default()
    }];
    let mut state = state(&[holder, host("h2", 1000), host("h3", 1000)]);
    gang(&mut state, 2);
    state.server_applied(member("a"));
    state.server_applied(member("b"));
    let decided: BTreeMap<_, _> = settle(&mut state, 1).into_iter().collect();
    assert_eq!(decided["a"].as_deref(), Some("h1"));
}
