//! Preemption, and room that is kept for those that wait long: in one file, as they take from
//! the same hosts and the property tests play both.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::scheduling::v1::PriorityClass;
use proptest::prelude::*;

use super::*;
use crate::fixtures::{after, bound, host, instance, now, said, server, settle, state};
use crate::state::Outcome;
use pileus_api::server::PlacementConstraints;
use pileus_api::{Instance, SchedulerPolicy, SchedulerPolicySpec};

fn key(name: &str) -> Key {
    ("ns".into(), name.into())
}

/// A Server whose priority is its class's name.
fn ranked(state: &mut State, name: &str, memory: &str, priority: i32) -> Server {
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

fn policy(state: &mut State, spec: SchedulerPolicySpec) {
    state.policy_applied(SchedulerPolicy::new("default", spec));
}

fn preempting(hosts: &[pileus_api::Host]) -> State {
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
fn running(state: &mut State, server: Server, second: i64) {
    let name = server.name_any();
    state.server_applied(server);
    settle(state, second);
    let placed = state.servers[&key(&name)].clone();
    let run = said(instance(&placed, 1), true, Reason::Active);
    state.instance_applied(&run);
}

/// What the manager and the host make of a Server that is to give way.
fn stopped(state: &State, name: &str) -> Instance {
    let server = state.servers[&key(name)].clone();
    let mut gone = said(instance(&server, 2), true, Reason::Preempted);
    gone.spec.preempted = preemption_of(&server).is_some();
    gone
}

fn take(state: &mut State, write: &StatusWrite, version: u64, second: i64) {
    let answer = Arc::new(after(write, version));
    state.write_finished(write, Outcome::Written(answer), now(second));
}

fn free(state: &State, name: &str) -> i64 {
    state.snapshot().host(name).unwrap().free(1)
}

#[test]
fn the_least_important_give_way_and_come_back() {
    let mut state = preempting(&[host("h", 1000)]);
    let low = ranked(&mut state, "low", "400Mi", 1);
    running(&mut state, low, 1);
    let mid = ranked(&mut state, "mid", "500Mi", 5);
    running(&mut state, mid, 2);
    let vip = ranked(&mut state, "vip", "400Mi", 10);
    state.server_applied(vip);

    let writes = state.decide(now(3));
    let kinds: Vec<_> = writes.iter().map(|w| (w.key.1.as_str(), w.kind)).collect();
    let told = Decision::Unscheduled { transition: true };
    assert_eq!(kinds, [("vip", told), ("low", Decision::Preempted)]);
    let said = &writes[0].status.conditions[0];
    assert_eq!(said.reason, "Preempting");
    assert!(said.message.contains("on h are being stopped"), "{said:?}");
    assert_eq!(writes[0].status.nomination.as_ref().unwrap().host, "h");
    let victim = &writes[1].status;
    assert_eq!(
        victim.placement.as_ref().unwrap().host,
        "h",
        "it keeps its place"
    );
    assert_eq!(victim.preemption.as_ref().unwrap().by, "uid-vip");
    assert!(victim.conditions[0].message.contains("priority 10"));

    // What is promised to it is not given to others meanwhile, nor is anybody else stopped.
    for (i, write) in writes.iter().enumerate() {
        take(&mut state, write, 10 + i as u64, 3);
    }
    let small = ranked(&mut state, "small", "150Mi", 0);
    state.server_applied(small);
    assert!(settle(&mut state, 4).iter().all(|(_, host)| host.is_none()));
    assert_eq!(free(&state, "h"), 1000 - 400 - 500 - 400);

    // Only its host's word makes it free.
    let gone = stopped(&state, "low");
    state.instance_applied(&gone);
    let writes = state.decide(now(5));
    assert_eq!(
        (writes[0].key.1.as_str(), bound(&writes[0])),
        ("vip", ("h", 1))
    );
    assert_eq!(writes[0].status.nomination, None);
    take(&mut state, &writes[0], 20, 5);
    assert_eq!(free(&state, "h"), 100);

    // And it is started again once there is room.
    state.server_deleted(&key("small"));
    assert!(state.decide(now(200)).is_empty());
    state.server_deleted(&key("vip"));
    let writes = state.decide(now(201));
    assert_eq!(
        (writes[0].key.1.as_str(), writes[0].kind),
        ("low", Decision::Resumed)
    );
    assert_eq!(writes[0].status.preemption, None);
    assert_eq!(bound(&writes[0]), ("h", 1), "the same placement");
    assert_eq!(
        free(&state, "h"),
        100,
        "its room is its own from the decision on"
    );
    take(&mut state, &writes[0], 30, 201);
    assert!(state.decide(now(202)).is_empty());
    assert_eq!(free(&state, "h"), 100);
}

#[test]
fn what_qemu_itself_takes_is_gained_too() {
    let mut small = host("h", 432);
    small.status.as_mut().unwrap().overhead_mib = Some(160);
    let mut state = preempting(&[small]);
    let low = ranked(&mut state, "low", "128Mi", 1);
    running(&mut state, low, 1);
    let vip = ranked(&mut state, "vip", "128Mi", 10);
    state.server_applied(vip);
    settle(&mut state, 2);
    let gone = stopped(&state, "low");
    state.instance_applied(&gone);
    assert_eq!(
        settle(&mut state, 3),
        [("vip".to_owned(), Some("h".to_owned()))]
    );
    state.server_deleted(&key("vip"));
    assert_eq!(settle(&mut state, 4).len(), 1, "it comes back");
}

#[test]
fn nobody_is_stopped_unless_the_policy_and_the_class_say_so_and_it_helps() {
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
            .filter(|w| w.kind == Decision::Preempted)
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
    assert_eq!(victims(&mut big, vip), 0, "not even an empty host would do");

    let mut elsewhere = full(true);
    let mut vip = ranked(&mut elsewhere, "vip", "500Mi", 10);
    vip.spec.placement.as_mut().unwrap().host_selector = [("disk".into(), "ssd".into())].into();
    assert_eq!(victims(&mut elsewhere, vip), 0, "room is not what it lacks");

    let mut meek = full(true);
    let vip = ranked(&mut meek, "vip", "500Mi", 10);
    meek.priority_class_applied(&PriorityClass {
        metadata: kube::api::ObjectMeta {
            name: Some("10".into()),
            ..Default::default()
        },
        value: 10,
        preemption_policy: Some("Never".into()),
        ..Default::default()
    });
    assert_eq!(victims(&mut meek, vip), 0);

    let mut yes = full(true);
    let vip = ranked(&mut yes, "vip", "500Mi", 10);
    assert_eq!(victims(&mut yes, vip), 1);
}

#[test]
fn who_asks_why_hears_which_class_would_help_and_for_whom_it_is_stopped() {
    let mut state = preempting(&[host("h", 1000)]);
    let low = ranked(&mut state, "low", "900Mi", 1);
    running(&mut state, low, 1);
    for unused in [0, 5, 10] {
        ranked(&mut state, "-", "1Mi", unused);
    }
    let peer = ranked(&mut state, "peer", "500Mi", 1);
    state.server_applied(peer);
    settle(&mut state, 2);
    let said = state.why(&key("peer"), now(3)).to_string();
    let helps = "priorityClass 5: 1 Server of lower priority on h would be stopped";
    assert!(said.contains(helps), "{said}");
    let vip = ranked(&mut state, "vip", "500Mi", 10);
    state.server_applied(vip);
    settle(&mut state, 4);
    let said = state.why(&key("low"), now(5)).to_string();
    assert!(
        said.contains("stopped for a Server of priority 10"),
        "{said}"
    );
}

#[test]
fn the_host_is_chosen_where_the_least_important_suffer() {
    let mut state = preempting(&[host("a", 1000), host("b", 1000), host("c", 1000)]);
    for (name, at, priority) in [("a1", "a", 3), ("b1", "b", 2), ("c1", "c", 4)] {
        let mut low = ranked(&mut state, name, "900Mi", priority);
        let wishes = low.spec.placement.as_mut().unwrap();
        wishes.query = Some(format!(r#"["=", "$host", "{at}"]"#));
        running(&mut state, low, 1);
    }
    let vip = ranked(&mut state, "vip", "500Mi", 10);
    state.server_applied(vip);
    let writes = state.decide(now(2));
    let stopped: Vec<_> = writes
        .iter()
        .filter(|w| w.kind == Decision::Preempted)
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
fn a_victim_that_could_not_be_written_is_chosen_again() {
    let mut state = preempting(&[host("h", 1000)]);
    let low = ranked(&mut state, "low", "900Mi", 1);
    running(&mut state, low.clone(), 1);
    let vip = ranked(&mut state, "vip", "500Mi", 10);
    state.server_applied(vip);
    let writes = state.decide(now(3));
    take(&mut state, &writes[0], 10, 3);
    // Somebody wrote to the victim meanwhile; its newer version comes with the watch.
    state.write_finished(&writes[1], Outcome::Conflict, now(3));
    assert!(state.decide(now(3)).is_empty());
    let mut newer = (*state.servers[&key("low")]).clone();
    newer.metadata.resource_version = Some("9999999".into());
    state.server_applied(newer);
    let again = state.decide(now(4));
    let kinds: Vec<_> = again.iter().map(|w| (w.key.1.as_str(), w.kind)).collect();
    assert!(kinds.contains(&("low", Decision::Preempted)), "{kinds:?}");
}

#[test]
fn a_host_that_does_not_stop_them_in_time_is_not_waited_for() {
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
        "the least important is there"
    );
    settle(&mut state, 200);
    assert_eq!(at(&state).as_deref(), Some("h"), "its guest has time yet");
    settle(&mut state, 1000);
    assert_eq!(at(&state).as_deref(), Some("i"));
    assert!(preemption_of(&state.servers[&key("other")]).is_some());
}

#[test]
fn another_scheduler_goes_on_from_what_is_written() {
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
    let mut run = said(
        instance(&first.servers[&key("low")], 1),
        true,
        Reason::Active,
    );
    next.instance_applied(&run);
    assert!(settle(&mut next, 4).is_empty(), "nobody else is stopped");
    run = stopped(&next, "low");
    next.instance_applied(&run);
    assert_eq!(
        settle(&mut next, 5),
        [("vip".to_owned(), Some("h".to_owned()))]
    );
    assert_eq!(free(&next, "h"), 500);
}

#[test]
fn who_stopped_in_vain_is_started_again() {
    let mut state = preempting(&[host("h", 1000)]);
    let low = ranked(&mut state, "low", "900Mi", 1);
    running(&mut state, low, 1);
    let vip = ranked(&mut state, "vip", "500Mi", 10);
    state.server_applied(vip);
    settle(&mut state, 3);
    state.server_deleted(&key("vip"));
    let writes = state.decide(now(4));
    assert_eq!(
        (writes[0].key.1.as_str(), writes[0].kind),
        ("low", Decision::Resumed)
    );
}

/// A host of 1000 MiB with two small Servers, and a big one that waits since second 2.
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
fn what_is_free_is_kept_for_one_that_has_waited_long() {
    let mut state = starving(SchedulerPolicySpec::default());
    state.server_applied(server("s3", 1, "150Mi"));
    assert_eq!(settle(&mut state, 100)[0], ("s3".into(), Some("h".into())));
    // After five minutes it has its turn.
    settle(&mut state, 310);
    let big = state.servers[&key("big")].clone();
    let kept = nomination_of(&big).unwrap();
    assert_eq!(
        (kept.host.as_str(), kept.purpose),
        ("h", NominationPurpose::Waiting)
    );
    assert!(
        scheduled_condition(&big)
            .unwrap()
            .message
            .contains("is kept for it until")
    );
    let gone = |state: &mut State, name: &str| {
        let placed = state.servers[&key(name)].clone();
        let at = instance(&placed, 1);
        state.server_deleted(&key(name));
        state.instance_deleted(&(at.namespace().unwrap(), at.name_any()));
    };
    gone(&mut state, "s1");
    state.server_applied(server("s4", 1, "150Mi"));
    let decided = settle(&mut state, 320);
    assert!(decided.contains(&("s4".into(), None)), "{decided:?}");
    gone(&mut state, "s2");
    gone(&mut state, "s3");
    let decided = settle(&mut state, 330);
    assert!(
        decided.contains(&("big".into(), Some("h".into()))),
        "{decided:?}"
    );
}

#[test]
fn a_turn_ends_and_others_get_what_was_kept() {
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
    // It rests before it has another turn.
    settle(&mut state, 310 + 1300 + 900);
    assert_eq!(nomination_of(&state.servers[&key("big")]), None);
}

#[test]
fn a_higher_priority_has_what_is_kept_for_a_lower_one() {
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
fn without_the_policy_nothing_is_kept() {
    let mut state = starving(SchedulerPolicySpec {
        waiting: WaitingPolicy::FirstFit,
        ..SchedulerPolicySpec::default()
    });
    settle(&mut state, 310);
    assert_eq!(nomination_of(&state.servers[&key("big")]), None);
}

/// Something that happens to a cluster of Servers of all priorities.
#[derive(Clone, Debug)]
enum Event {
    /// A Server of this size in 100 MiB and this priority.
    Made(usize, u8, i32),
    Deleted(usize),
    /// Hosts do what they are asked to.
    Obeyed,
    /// Decisions, of which the API server takes those that are true here.
    Decided(Vec<bool>),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = prop_oneof![
        (0..8_usize, 1..9_u8, 0..4).prop_map(|(n, size, p)| Event::Made(n, size, p)),
        (0..8_usize).prop_map(Event::Deleted),
        Just(Event::Obeyed),
        proptest::collection::vec(any::<bool>(), 8).prop_map(Event::Decided),
    ];
    proptest::collection::vec(one, 1..60)
}

/// An API server and hosts that do what they are told.
struct Cluster {
    state: State,
    version: u64,
    second: i64,
    /// Servers that have given way, as their hosts say.
    away: BTreeSet<Key>,
}

impl Cluster {
    fn happens(&mut self, event: &Event) {
        self.second += 7;
        match event {
            Event::Made(n, size, priority) => {
                let name = format!("s{n}");
                if !self.state.servers.contains_key(&key(&name)) {
                    self.version += 1;
                    let memory = format!("{}Mi", u32::from(*size) * 100);
                    let mut made = ranked(&mut self.state, &name, &memory, *priority);
                    made.metadata.resource_version = Some(self.version.to_string());
                    self.state.server_applied(made);
                }
            }
            Event::Deleted(n) => {
                let key = key(&format!("s{n}"));
                if let Some(server) = self.state.servers.get(&key).cloned() {
                    self.state.server_deleted(&key);
                    self.away.remove(&key);
                    if server
                        .status
                        .as_ref()
                        .is_some_and(|s| s.placement.is_some())
                    {
                        let at = instance(&server, 1);
                        let at = (at.namespace().unwrap(), at.name_any());
                        self.state.instance_deleted(&at);
                    }
                }
            }
            Event::Obeyed => self.obey(),
            Event::Decided(taken) => {
                let writes = self.state.decide(now(self.second));
                for (i, write) in writes.iter().enumerate() {
                    self.version += 1;
                    if taken.get(i).copied().unwrap_or(true) {
                        take(&mut self.state, write, self.version, self.second);
                    } else {
                        let key = &write.key;
                        let mut newer = (*self.state.servers[key]).clone();
                        newer.metadata.resource_version = Some(self.version.to_string());
                        self.state
                            .write_finished(write, Outcome::Conflict, now(self.second));
                        self.state.server_applied(newer);
                    }
                }
            }
        }
    }

    fn obey(&mut self) {
        for (key, server) in self.state.servers.clone() {
            let status = server.status.clone().unwrap_or_default();
            if status.placement.is_none() {
                continue;
            }
            let gives_way = status.preemption.is_some();
            let reason = if gives_way {
                Reason::Preempted
            } else {
                Reason::Active
            };
            let mut seen = said(instance(&server, self.version), true, reason);
            seen.spec.preempted = gives_way;
            self.state.instance_applied(&seen);
            if gives_way {
                self.away.insert(key);
            } else {
                self.away.remove(&key);
            }
        }
    }

    /// Memory of the Servers that run on the host, or may.
    fn used(&self) -> i64 {
        let placed = self.state.servers.iter().filter_map(|(key, server)| {
            let status = server.status.as_ref()?;
            let away = self.away.contains(key) && status.preemption.is_some();
            Some(
                status
                    .placement
                    .as_ref()
                    .filter(|_| !away)?
                    .claim
                    .memory_mib,
            )
        });
        placed.sum()
    }
}

proptest! {
    #[test]
    fn no_history_overbooks_a_host_stops_an_equal_or_forgets_who_was_stopped(events in events()) {
        let mut cluster = Cluster {
            state: preempting(&[host("h", 1000)]),
            version: 1,
            second: 1,
            away: BTreeSet::new(),
        };
        for event in &events {
            cluster.happens(event);
            prop_assert!(cluster.used() <= 1000, "{} after {event:?}", cluster.used());
            for server in cluster.state.servers.values() {
                if let Some(by) = preemption_of(server) {
                    prop_assert!(cluster.state.catalogue.priority(server).value < by.priority);
                }
            }
        }
        // Once nothing more happens, whoever has room runs.
        for _ in 0..20 {
            cluster.second += 700;
            cluster.happens(&Event::Decided(vec![]));
            cluster.happens(&Event::Obeyed);
        }
        for _ in 0..8 {
            cluster.happens(&Event::Decided(vec![]));
        }
        let waits = |s: &Server| {
            let status = s.status.clone().unwrap_or_default();
            status.placement.is_none() || status.preemption.is_some()
        };
        let left = 1000 - cluster.used();
        let state = &cluster.state;
        let all = || state.servers.values().filter(|s| waits(s));
        for server in all() {
            let (claim, _) = size(server, &state.catalogue).unwrap();
            // What is kept for one is not another's, for a while.
            prop_assert!(
                claim.memory_mib > left || !state.nominated.is_empty(),
                "{} waits for {} of {left}", server.name_any(), claim.memory_mib
            );
        }
    }
}
