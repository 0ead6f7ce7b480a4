//! Preemption and nominations, in one file because they compete for the same hosts.

use std::sync::Arc;

use k8s_openapi::api::scheduling::v1::PriorityClass;

use super::*;
use crate::fixtures::{after, bound, host, instance, now, server, settle, state, with_condition};
use crate::state::{Decision, Outcome, preemption_of, scheduled_condition};
use pileus_api::server::PlacementConstraints;
use pileus_api::{Instance, SchedulerPolicy, SchedulerPolicySpec};

pub(super) fn key(name: &str) -> Key {
    ("ns".into(), name.into())
}

/// A Server of this priority; its PriorityClass has the number as its name.
pub(super) fn ranked(state: &mut State, name: &str, memory: &str, priority: i32) -> Server {
    state.priority_class_applied(&PriorityClass {
        metadata: kube::api::ObjectMeta {
            name: Some(priority.to_string()),
            ..Default::default()
        },
        value: priority,
        ..Default::default()
    });
    let mut server = server(name, 1, memory);
    server.spec.placement = Some(PlacementConstraints {
        priority_class: Some(priority.to_string()),
        ..PlacementConstraints::default()
    });
    server
}

pub(super) fn policy(state: &mut State, spec: SchedulerPolicySpec) {
    state.policy_applied(SchedulerPolicy::new("default", spec));
}

pub(super) fn preempting(hosts: &[pileus_api::Host]) -> State {
    let mut state = state(hosts);
    policy(
        &mut state,
        SchedulerPolicySpec {
            preemption: PreemptionPolicy::LowerPriority,
            ..SchedulerPolicySpec::default()
        },
    );
    state
}

/// Places a Server and lets its host run it.
pub(super) fn running(state: &mut State, server: Server, second: i64) {
    let name = server.name_any();
    state.server_applied(server);
    settle(state, second);
    let placed = state.servers[&key(&name)].clone();
    let run = with_condition(instance(&placed, 1), true, Reason::Active);
    state.instance_applied(&run);
}

/// The Instance of a victim once manager and host have stopped it.
pub(super) fn stopped_instance(state: &State, name: &str) -> Instance {
    let server = state.servers[&key(name)].clone();
    let mut stopped = with_condition(instance(&server, 2), true, Reason::Preempted);
    stopped.spec.preempted = preemption_of(&server).is_some();
    stopped
}

pub(super) fn accept(state: &mut State, write: &StatusWrite, version: u64, second: i64) {
    let answer = Arc::new(after(write, version));
    state.write_finished(write, Outcome::Written(answer), now(second));
}

pub(super) fn free(state: &State, name: &str) -> i64 {
    state.snapshot().host(name).unwrap().free(1)
}

#[test]
fn the_lowest_priority_is_stopped_and_started_again() {
    let mut state = preempting(&[host("h", 1000)]);
    let low = ranked(&mut state, "low", "400Mi", 1);
    running(&mut state, low, 1);
    let mid = ranked(&mut state, "mid", "500Mi", 5);
    running(&mut state, mid, 2);
    let vip = ranked(&mut state, "vip", "400Mi", 10);
    state.server_applied(vip);

    let writes = state.decide(now(3));
    let decisions: Vec<_> = writes
        .iter()
        .map(|w| (w.key.1.as_str(), w.decision))
        .collect();
    let unscheduled = Decision::Unscheduled { transition: true };
    assert_eq!(
        decisions,
        [("vip", unscheduled), ("low", Decision::Preempted)]
    );
    let condition = &writes[0].status.conditions[0];
    assert_eq!(condition.reason, "Preempting");
    assert!(
        condition
            .message
            .contains("of lower priority are being stopped"),
        "{condition:?}"
    );
    assert_eq!(writes[0].status.nomination.as_ref().unwrap().host, "h");
    let victim = &writes[1].status;
    assert_eq!(
        victim.placement.as_ref().unwrap().host,
        "h",
        "it keeps its placement"
    );
    assert_eq!(victim.preemption.as_ref().unwrap().by, "uid-vip");
    assert!(victim.conditions[0].message.contains("priority 10"));

    // The reserved capacity is not given to others meanwhile, and no other Server is stopped.
    for (i, write) in writes.iter().enumerate() {
        accept(&mut state, write, 10 + i as u64, 3);
    }
    let small = ranked(&mut state, "small", "150Mi", 0);
    state.server_applied(small);
    assert!(settle(&mut state, 4).iter().all(|(_, host)| host.is_none()));
    assert_eq!(free(&state, "h"), 1000 - 400 - 500 - 400);

    // The capacity is free only once the host reports the victim as stopped.
    let stopped = stopped_instance(&state, "low");
    state.instance_applied(&stopped);
    let writes = state.decide(now(5));
    assert_eq!(
        (writes[0].key.1.as_str(), bound(&writes[0])),
        ("vip", ("h", 1))
    );
    assert_eq!(writes[0].status.nomination, None);
    accept(&mut state, &writes[0], 20, 5);
    assert_eq!(free(&state, "h"), 100);

    // The victim is started again once there is capacity.
    state.server_deleted(&key("small"));
    assert!(state.decide(now(200)).is_empty());
    state.server_deleted(&key("vip"));
    let writes = state.decide(now(201));
    assert_eq!(
        (writes[0].key.1.as_str(), writes[0].decision),
        ("low", Decision::Resumed)
    );
    assert_eq!(writes[0].status.preemption, None);
    assert_eq!(bound(&writes[0]), ("h", 1), "the same placement");
    assert_eq!(
        free(&state, "h"),
        100,
        "its capacity is allocated from the decision on"
    );
    accept(&mut state, &writes[0], 30, 201);
    assert!(state.decide(now(202)).is_empty());
    assert_eq!(free(&state, "h"), 100);
}

#[test]
fn the_memory_overhead_of_a_victim_is_released_too() {
    let mut small = host("h", 432);
    small.status.as_mut().unwrap().overhead_mib = Some(160);
    let mut state = preempting(&[small]);
    let low = ranked(&mut state, "low", "128Mi", 1);
    running(&mut state, low, 1);
    let vip = ranked(&mut state, "vip", "128Mi", 10);
    state.server_applied(vip);
    settle(&mut state, 2);
    let stopped = stopped_instance(&state, "low");
    state.instance_applied(&stopped);
    assert_eq!(
        settle(&mut state, 3),
        [("vip".to_owned(), Some("h".to_owned()))]
    );
    state.server_deleted(&key("vip"));
    assert_eq!(settle(&mut state, 4).len(), 1, "it is started again");
}

#[test]
fn servers_are_stopped_only_if_policy_and_class_allow_it_and_it_helps() {
    let full = |policy: bool| {
        let mut state = if policy {
            preempting(&[host("h", 1000)])
        } else {
            state(&[host("h", 1000)])
        };
        let low = ranked(&mut state, "low", "900Mi", 1);
        running(&mut state, low, 1);
        state
    };
    let victims = |state: &mut State, server: Server| {
        state.server_applied(server);
        let writes = state.decide(now(2));
        writes
            .iter()
            .filter(|w| w.decision == Decision::Preempted)
            .count()
    };
    let mut never = full(false);
    let vip = ranked(&mut never, "vip", "500Mi", 10);
    assert_eq!(victims(&mut never, vip), 0);

    let mut equal = full(true);
    let peer = ranked(&mut equal, "peer", "500Mi", 1);
    assert_eq!(victims(&mut equal, peer), 0);

    let mut big = full(true);
    let vip = ranked(&mut big, "vip", "1100Mi", 10);
    assert_eq!(victims(&mut big, vip), 0, "too big for an empty host");

    let mut elsewhere = full(true);
    let mut vip = ranked(&mut elsewhere, "vip", "500Mi", 10);
    vip.spec.placement.as_mut().unwrap().host_selector = [("disk".into(), "ssd".into())].into();
    assert_eq!(
        victims(&mut elsewhere, vip),
        0,
        "capacity is not what it lacks"
    );

    let mut never_preempts = full(true);
    let vip = ranked(&mut never_preempts, "vip", "500Mi", 10);
    never_preempts.priority_class_applied(&PriorityClass {
        metadata: kube::api::ObjectMeta {
            name: Some("10".into()),
            ..Default::default()
        },
        value: 10,
        preemption_policy: Some("Never".into()),
        ..Default::default()
    });
    assert_eq!(victims(&mut never_preempts, vip), 0);

    let mut yes = full(true);
    let vip = ranked(&mut yes, "vip", "500Mi", 10);
    assert_eq!(victims(&mut yes, vip), 1);
}

#[test]
fn why_names_the_class_that_would_help_and_the_priority_that_a_victim_is_stopped_for() {
    let mut state = preempting(&[host("h", 1000)]);
    let low = ranked(&mut state, "low", "900Mi", 1);
    running(&mut state, low, 1);
    for unused in [0, 5, 10] {
        ranked(&mut state, "-", "1Mi", unused);
    }
    let peer = ranked(&mut state, "peer", "500Mi", 1);
    state.server_applied(peer);
    settle(&mut state, 2);
    let answer = state.why(&key("peer"), now(3)).to_string();
    let change = "priorityClass 5: 1 Server of lower priority on h would be stopped";
    assert!(answer.contains(change), "{answer}");
    let vip = ranked(&mut state, "vip", "500Mi", 10);
    state.server_applied(vip);
    settle(&mut state, 4);
    let answer = state.why(&key("low"), now(5)).to_string();
    assert!(
        answer.contains("stopped for a Server of priority 10"),
        "{answer}"
    );
}

#[test]
fn the_host_with_the_victim_of_lowest_priority_is_chosen() {
    let mut state = preempting(&[host("a", 1000), host("b", 1000), host("c", 1000)]);
    for (name, at, priority) in [("a1", "a", 3), ("b1", "b", 2), ("c1", "c", 4)] {
        let mut low = ranked(&mut state, name, "900Mi", priority);
        let constraints = low.spec.placement.as_mut().unwrap();
        constraints.query = Some(format!(r#"["=", "$host", "{at}"]"#));
        running(&mut state, low, 1);
    }
    let vip = ranked(&mut state, "vip", "500Mi", 10);
    state.server_applied(vip);
    let writes = state.decide(now(2));
    let stopped: Vec<_> = writes
        .iter()
        .filter(|w| w.decision == Decision::Preempted)
        .collect();
    assert_eq!(stopped.len(), 1);
    let at = writes[0].status.nomination.as_ref().unwrap().host.clone();
    let chosen = stopped[0].status.placement.as_ref().unwrap().host.clone();
    assert_eq!(at, chosen);
    let least = state
        .servers
        .values()
        .map(|s| state.catalogue.priority(s).value);
    let victim = &state.servers[&stopped[0].key];
    assert_eq!(Some(state.catalogue.priority(victim).value), least.min());
}

#[test]
fn a_victim_whose_write_conflicted_is_chosen_again() {
    let mut state = preempting(&[host("h", 1000)]);
    let low = ranked(&mut state, "low", "900Mi", 1);
    running(&mut state, low.clone(), 1);
    let vip = ranked(&mut state, "vip", "500Mi", 10);
    state.server_applied(vip);
    let writes = state.decide(now(3));
    accept(&mut state, &writes[0], 10, 3);
    // The victim was changed meanwhile; the watch delivers its newer version.
    state.write_finished(&writes[1], Outcome::Conflict, now(3));
    assert!(state.decide(now(3)).is_empty());
    let mut newer = (*state.servers[&key("low")]).clone();
    newer.metadata.resource_version = Some("9999999".into());
    state.server_applied(newer);
    let again = state.decide(now(4));
    let decisions: Vec<_> = again
        .iter()
        .map(|w| (w.key.1.as_str(), w.decision))
        .collect();
    assert!(
        decisions.contains(&("low", Decision::Preempted)),
        "{decisions:?}"
    );
}

#[test]
fn another_host_is_nominated_if_victims_are_not_stopped_in_time() {
    let mut state = preempting(&[host("h", 1000)]);
    let low = ranked(&mut state, "low", "900Mi", 1);
    running(&mut state, low, 1);
    state.host_applied(&host("i", 1000));
    let other = ranked(&mut state, "other", "900Mi", 2);
    running(&mut state, other, 2);
    let vip = ranked(&mut state, "vip", "500Mi", 10);
    state.server_applied(vip);
    settle(&mut state, 3);
    let at = |state: &State| nomination_of(&state.servers[&key("vip")]).map(|n| n.host.clone());
    assert_eq!(
        at(&state).as_deref(),
        Some("h"),
        "the victim of lowest priority is there"
    );
    settle(&mut state, 200);
    assert_eq!(
        at(&state).as_deref(),
        Some("h"),
        "its guest may still shut down"
    );
    settle(&mut state, 1000);
    assert_eq!(at(&state).as_deref(), Some("i"));
    assert!(preemption_of(&state.servers[&key("other")]).is_some());
}

#[test]
fn the_next_leader_continues_from_status() {
    let mut first = preempting(&[host("h", 1000)]);
    let low = ranked(&mut first, "low", "900Mi", 1);
    running(&mut first, low, 1);
    let vip = ranked(&mut first, "vip", "500Mi", 10);
    first.server_applied(vip);
    settle(&mut first, 3);

    let mut next = preempting(&[host("h", 1000)]);
    for priority in [1, 10] {
        ranked(&mut next, "-", "1Mi", priority);
    }
    for server in first.servers.values() {
        next.server_applied((**server).clone());
    }
    let mut run = with_condition(
        instance(&first.servers[&key("low")], 1),
        true,
        Reason::Active,
    );
    next.instance_applied(&run);
    assert!(
        settle(&mut next, 4).is_empty(),
        "no other Server is stopped"
    );
    run = stopped_instance(&next, "low");
    next.instance_applied(&run);
    assert_eq!(
        settle(&mut next, 5),
        [("vip".to_owned(), Some("h".to_owned()))]
    );
    assert_eq!(free(&next, "h"), 500);
}

#[test]
fn a_victim_is_started_again_when_the_preemptor_is_deleted() {
    let mut state = preempting(&[host("h", 1000)]);
    let low = ranked(&mut state, "low", "900Mi", 1);
    running(&mut state, low, 1);
    let vip = ranked(&mut state, "vip", "500Mi", 10);
    state.server_applied(vip);
    settle(&mut state, 3);
    state.server_deleted(&key("vip"));
    let writes = state.decide(now(4));
    assert_eq!(
        (writes[0].key.1.as_str(), writes[0].decision),
        ("low", Decision::Resumed)
    );
}

/// A host of 1000 MiB with two small Servers, and a big one that has waited since second 2.
fn starving(spec: SchedulerPolicySpec) -> State {
    let mut state = state(&[host("h", 1000)]);
    policy(&mut state, spec);
    for name in ["s1", "s2"] {
        let small = server(name, 1, "400Mi");
        running(&mut state, small, 1);
    }
    state.server_applied(server("big", 1, "900Mi"));
    settle(&mut state, 2);
    state
}

#[test]
fn free_capacity_is_reserved_for_a_server_that_has_waited_long() {
    let mut state = starving(SchedulerPolicySpec::default());
    state.server_applied(server("s3", 1, "150Mi"));
    assert_eq!(settle(&mut state, 100)[0], ("s3".into(), Some("h".into())));
    // After five minutes it is nominated.
    settle(&mut state, 310);
    let big = state.servers[&key("big")].clone();
    let nomination = nomination_of(&big).unwrap();
    assert_eq!(
        (nomination.host.as_str(), nomination.purpose),
        ("h", NominationPurpose::Waiting)
    );
    assert!(
        scheduled_condition(&big)
            .unwrap()
            .message
            .contains("is reserved for it until")
    );
    let delete = |state: &mut State, name: &str| {
        let placed = state.servers[&key(name)].clone();
        let at = instance(&placed, 1);
        state.server_deleted(&key(name));
        state.instance_deleted(&(at.namespace().unwrap(), at.name_any()));
    };
    delete(&mut state, "s1");
    state.server_applied(server("s4", 1, "150Mi"));
    let decided = settle(&mut state, 320);
    assert!(decided.contains(&("s4".into(), None)), "{decided:?}");
    delete(&mut state, "s2");
    delete(&mut state, "s3");
    let decided = settle(&mut state, 330);
    assert!(
        decided.contains(&("big".into(), Some("h".into()))),
        "{decided:?}"
    );
}

#[test]
fn a_nomination_ends_and_others_get_the_capacity() {
    let mut state = starving(SchedulerPolicySpec::default());
    settle(&mut state, 310);
    state.server_applied(server("s4", 1, "150Mi"));
    let first = settle(&mut state, 320);
    assert!(first.contains(&("s4".into(), None)), "{first:?}");
    let after = settle(&mut state, 310 + 1300);
    assert!(
        after.contains(&("s4".into(), Some("h".into()))),
        "{after:?}"
    );
    assert_eq!(nomination_of(&state.servers[&key("big")]), None);
    // It is not nominated again soon.
    settle(&mut state, 310 + 1300 + 900);
    assert_eq!(nomination_of(&state.servers[&key("big")]), None);
}

#[test]
fn a_higher_priority_may_use_capacity_reserved_for_a_lower_one() {
    let mut state = starving(SchedulerPolicySpec::default());
    settle(&mut state, 310);
    let vip = ranked(&mut state, "vip", "150Mi", 10);
    state.server_applied(vip);
    let decided = settle(&mut state, 320);
    assert!(
        decided.contains(&("vip".into(), Some("h".into()))),
        "{decided:?}"
    );
}

#[test]
fn with_the_policy_first_fit_nothing_is_reserved() {
    let mut state = starving(SchedulerPolicySpec {
        waiting: WaitingPolicy::FirstFit,
        ..SchedulerPolicySpec::default()
    });
    settle(&mut state, 310);
    assert_eq!(nomination_of(&state.servers[&key("big")]), None);
}
