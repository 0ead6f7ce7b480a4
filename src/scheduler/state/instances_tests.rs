//! Effects of Instances on the ledger and on decisions.

use super::*;
use crate::fixtures::{after, bound, host, instance, now, server, settle, state, with_condition};
use crate::state::Outcome;
use pileus_api::Server;

fn free(state: &State, name: &str) -> i64 {
    state.snapshot().host(name).unwrap().free(1)
}

/// A Server that is placed on the only host, and its Instance.
fn placed(state: &mut State, name: &str, memory: &str) -> (Server, Instance) {
    state.server_applied(server(name, 1, memory));
    let write = state.decide(now(1)).remove(0);
    let placed = after(&write, 2);
    let outcome = Outcome::Written(std::sync::Arc::new(placed.clone()));
    state.write_finished(&write, outcome, now(1));
    let instance = instance(&placed, 3);
    state.instance_applied(&instance);
    (placed, instance)
}

#[test]
fn instances_use_their_host_whatever_the_placement_of_their_server() {
    let mut state = state(&[host("h1", 1000)]);
    let (server, mut there) = placed(&mut state, "a", "600Mi");
    assert_eq!(free(&state, "h1"), 400, "counted once");
    state.instance_applied(&with_condition(there.clone(), true, Reason::Active));
    // The Server is deleted, its Instance is not yet.
    state.server_deleted(&("ns".into(), "a".into()));
    assert_eq!(free(&state, "h1"), 400);
    state.server_applied(crate::fixtures::server("b", 9, "600Mi"));
    assert_eq!(settle(&mut state, 2), [("b".to_owned(), None)]);
    let key = (there.namespace().unwrap(), there.name_any());
    state.instance_deleted(&key);
    assert_eq!(
        settle(&mut state, 3),
        [("b".to_owned(), Some("h1".to_owned()))]
    );
    // A migration uses both hosts.
    state.host_applied(&host("h2", 1000));
    there.spec.host = "h2".into();
    there.spec.role = Role::Incoming;
    there.metadata.name = Some("uid-b-2".into());
    there.metadata.namespace = Some("pileus-host-h2".into());
    there.spec.server.uid = "uid-b".into();
    there.spec.epoch = 2;
    state.instance_applied(&with_condition(there, true, Reason::Building));
    assert_eq!((free(&state, "h1"), free(&state, "h2")), (400, 400));
    drop(server);
}

#[test]
fn a_refused_server_is_placed_elsewhere_once_its_instance_is_deleted() {
    let mut state = state(&[host("h1", 1000)]);
    let (_, there) = placed(&mut state, "a", "600Mi");
    let refused = with_condition(there.clone(), false, Reason::HostRefused);
    state.instance_applied(&refused);
    // If no other host fits, the placement stays: the host may build it later.
    assert!(settle(&mut state, 2).is_empty());
    state.host_applied(&host("h2", 1000));
    let write = state.decide(now(3)).remove(0);
    assert_eq!(write.status.placement, None);
    assert_eq!(write.status.conditions[0].reason, "HostRefused");
    let refusal = &write.status.refusals[0];
    assert_eq!((refusal.name.as_str(), refusal.epoch), ("h1", 1));
    assert_eq!(refusal.message, "no room for it");
    let withdrawn = after(&write, 10);
    let outcome = Outcome::Written(std::sync::Arc::new(withdrawn));
    state.write_finished(&write, outcome, now(3));
    assert!(
        state.decide(now(3)).is_empty(),
        "its Instance is still there"
    );
    let mut going = refused.clone();
    going.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now(4)));
    state.instance_applied(&going);
    assert!(state.decide(now(4)).is_empty());
    state.instance_deleted(&(going.namespace().unwrap(), going.name_any()));
    let write = state.decide(now(5)).remove(0);
    assert_eq!(
        bound(&write),
        ("h2", 2),
        "on another host, with the next epoch"
    );
    assert_eq!(write.status.refusals.len(), 1, "remembered");
}

#[test]
fn a_refusal_ends_after_its_timeout() {
    let mut state = state(&[host("h1", 1000)]);
    let mut refused = server("a", 1, "600Mi");
    refused.status.get_or_insert_default().refusals = vec![pileus_api::server::Refusal {
        name: "h1".into(),
        epoch: 4,
        time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now(0))),
        ..Default::default()
    }];
    state.server_applied(refused);
    assert_eq!(settle(&mut state, 10), [("a".to_owned(), None)]);
    let decided = state.decide(now(700));
    assert_eq!(bound(&decided[0]), ("h1", 5));
}

#[test]
fn a_server_whose_placement_was_withdrawn_too_late_is_placed_where_it_is() {
    let mut state = state(&[host("h1", 1000), host("h2", 1000)]);
    let (mut server, there) = placed(&mut state, "a", "600Mi");
    let at = there.spec.host.clone();
    // The placement was withdrawn in the moment in which the host built the VM.
    server.status.as_mut().unwrap().placement = None;
    server.metadata.resource_version = Some("9".into());
    state.server_applied(server);
    state.instance_applied(&with_condition(there, true, Reason::Building));
    let write = state.decide(now(2)).remove(0);
    assert_eq!(bound(&write), (at.as_str(), 1), "the same placement");
}

#[test]
fn hosts_with_failed_builds_are_avoided() {
    let mut big = host("h1", 8000);
    let capacity = big.status.as_mut().unwrap().capacity.as_mut().unwrap();
    (capacity.vcpus, capacity.disk_gib) = (64, 1000);
    let mut state = state(&[big]);
    let (_, there) = placed(&mut state, "a", "600Mi");
    state.host_applied(&host("h2", 2000));
    state.instance_applied(&with_condition(
        there.clone(),
        true,
        Reason::HypervisorFailed,
    ));
    let mut next = |name: &str, at| {
        state.server_applied(server(name, 20, "1Mi"));
        if name == "c" {
            state.instance_deleted(&(there.namespace().unwrap(), there.name_any()));
        }
        settle(&mut state, at)[0].1.clone()
    };
    assert_eq!(next("b", 2).as_deref(), Some("h2"));
    assert_eq!(next("c", 3).as_deref(), Some("h1"));
}

#[test]
fn a_refusal_ends_when_the_host_is_restarted_or_has_more_free_capacity() {
    let booted = |id: &str| {
        let mut host = host("h1", 1000);
        host.status.as_mut().unwrap().boot_id = Some(id.into());
        host
    };
    let refused = |state: &mut State| {
        let (_, there) = placed(state, "a", "600Mi");
        state.server_applied(server("beside", 30, "300Mi"));
        settle(state, 2);
        state.instance_applied(&with_condition(there.clone(), false, Reason::HostRefused));
        state.host_applied(&host("h2", 2000));
        let write = state.decide(now(3)).remove(0);
        let refusal = write.status.refusals[0].clone();
        assert_eq!(refusal.boot_id.as_deref(), Some("one"));
        assert_eq!(refusal.left.unwrap().memory_mib, 700, "without it");
        let outcome = Outcome::Written(std::sync::Arc::new(after(&write, 2_000_000)));
        state.write_finished(&write, outcome, now(3));
        let mut closed = host("h2", 2000);
        closed.spec.schedulable = false;
        state.host_applied(&closed);
        state.instance_deleted(&(there.namespace().unwrap(), there.name_any()));
        let unscheduled = state.decide(now(4)).remove(0);
        let message = &unscheduled.status.conditions[0].message;
        let until = "(it refused it (no room for it); it is tried again at 1970-01-01T00:10:03Z, or \
                     when the host was restarted or has more free capacity)";
        assert!(message.contains(until), "{message}");
        let outcome = Outcome::Written(std::sync::Arc::new(after(&unscheduled, 2_000_001)));
        state.write_finished(&unscheduled, outcome, now(4));
        assert!(settle(state, 5).is_empty());
    };
    let again = [("a".to_owned(), Some("h1".to_owned()))];
    let mut first = state(&[booted("one")]);
    refused(&mut first);
    first.host_applied(&booted("two"));
    assert_eq!(settle(&mut first, 20), again);
    let mut second = state(&[booted("one")]);
    refused(&mut second);
    second.server_deleted(&("ns".into(), "beside".into()));
    assert_eq!(settle(&mut second, 20), again);
}

#[test]
fn instances_that_pileus_has_not_made_count_for_nothing() {
    let mut state = state(&[host("h1", 1000), host("h2", 1000)]);
    let (server, there) = placed(&mut state, "a", "600Mi");
    let (at, other) = match there.spec.host.as_str() {
        "h1" => ("h1", "h2"),
        _ => ("h2", "h1"),
    };
    // In a namespace of somebody's own: of a Server that is placed, of one that is not, of none.
    for (uid, host) in [
        ("uid-a", other),
        ("uid-b", other),
        ("nobody", other),
        ("nobody", at),
    ] {
        let mut forged = there.clone();
        forged.metadata.namespace = Some("tenant".into());
        forged.metadata.name = Some(format!("{uid}-9"));
        forged.metadata.uid = Some(format!("forged-{uid}-{host}"));
        forged.spec.server.uid = uid.into();
        forged.spec.epoch = 9;
        forged.spec.host = host.into();
        state.instance_applied(&with_condition(forged.clone(), true, Reason::Active));
        state.instances_listed(&[there.clone(), forged], &BTreeSet::new());
    }
    assert_eq!((free(&state, at), free(&state, other)), (400, 1000));
    state.server_applied(crate::fixtures::server("b", 9, "900Mi"));
    assert_eq!(
        settle(&mut state, 2),
        [("b".to_owned(), Some(other.to_owned()))]
    );
    // Its own still counts when a forged one goes.
    state.instance_deleted(&("tenant".into(), "uid-a-9".into()));
    assert_eq!(free(&state, at), 400);
    drop(server);
}

#[test]
fn a_server_whose_instance_cannot_be_read_is_placed_nowhere_else() {
    let mut state = state(&[host("h1", 1000), host("h2", 1000)]);
    // Its placement was lost, say with a restored backup.
    state.server_applied(server("a", 1, "600Mi"));
    let key = (String::from("pileus-host-h1"), String::from("uid-a-1"));
    let none = BTreeSet::new();
    state.instances_listed(&[], &[key.clone()].into());
    assert!(settle(&mut state, 1).is_empty());
    state.instances_listed(&[], &none);
    state.instance_unreadable(&key);
    assert!(settle(&mut state, 2).is_empty());
    state.instance_deleted(&key);
    assert_eq!(settle(&mut state, 3).len(), 1);
}
