//! A property test: preemption and nominations over random histories of a cluster.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::tests::{accept, key, preempting, ranked};
use super::*;
use crate::fixtures::{host, instance, now, with_condition};
use crate::objects::resolve::size;
use crate::state::{Outcome, preemption_of};

/// An event in a cluster of Servers of different priorities.
#[derive(Clone, Debug)]
enum Event {
    /// Create a Server of this size (in 100 MiB) and this priority.
    Create(usize, u8, i32),
    Delete(usize),
    /// Hosts carry out what is in status.
    HostsAct,
    /// Decide; the API server accepts the writes for which this is true.
    Decide(Vec<bool>),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = prop_oneof![
        (0..8_usize, 1..9_u8, 0..4).prop_map(|(n, size, p)| Event::Create(n, size, p)),
        (0..8_usize).prop_map(Event::Delete),
        Just(Event::HostsAct),
        proptest::collection::vec(any::<bool>(), 8).prop_map(Event::Decide),
    ];
    proptest::collection::vec(one, 1..60)
}

/// An API server and hosts that carry out what is in status.
struct Cluster {
    state: State,
    version: u64,
    second: i64,
    /// Servers that their hosts report as stopped for preemption.
    stopped: BTreeSet<Key>,
}

impl Cluster {
    fn apply(&mut self, event: &Event) {
        self.second += 7;
        match event {
            Event::Create(n, size, priority) => {
                let name = format!("s{n}");
                if !self.state.servers.contains_key(&key(&name)) {
                    self.version += 1;
                    let memory = format!("{}Mi", u32::from(*size) * 100);
                    let mut made = ranked(&mut self.state, &name, &memory, *priority);
                    made.metadata.resource_version = Some(self.version.to_string());
                    self.state.server_applied(made);
                }
            }
            Event::Delete(n) => {
                let key = key(&format!("s{n}"));
                if let Some(server) = self.state.servers.get(&key).cloned() {
                    self.state.server_deleted(&key);
                    self.stopped.remove(&key);
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
            Event::HostsAct => self.hosts_act(),
            Event::Decide(accepted) => {
                let writes = self.state.decide(now(self.second));
                for (i, write) in writes.iter().enumerate() {
                    self.version += 1;
                    if accepted.get(i).copied().unwrap_or(true) {
                        accept(&mut self.state, write, self.version, self.second);
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

    fn hosts_act(&mut self) {
        for (key, server) in self.state.servers.clone() {
            let status = server.status.clone().unwrap_or_default();
            if status.placement.is_none() {
                continue;
            }
            let preempted = status.preemption.is_some();
            let reason = if preempted {
                Reason::Preempted
            } else {
                Reason::Active
            };
            let mut reported = with_condition(instance(&server, self.version), true, reason);
            reported.spec.preempted = preempted;
            self.state.instance_applied(&reported);
            if preempted {
                self.stopped.insert(key);
            } else {
                self.stopped.remove(&key);
            }
        }
    }

    /// Memory of the Servers that run on the host or may run.
    fn used(&self) -> i64 {
        let placed = self.state.servers.iter().filter_map(|(key, server)| {
            let status = server.status.as_ref()?;
            let stopped = self.stopped.contains(key) && status.preemption.is_some();
            Some(
                status
                    .placement
                    .as_ref()
                    .filter(|_| !stopped)?
                    .claim
                    .memory_mib,
            )
        });
        placed.sum()
    }
}

proptest! {
    #[test]
    fn no_history_overcommits_a_host_or_stops_an_equal_or_forgets_a_victim(events in events()) {
        let mut cluster = Cluster {
            state: preempting(&[host("h", 1000)]),
            version: 1,
            second: 1,
            stopped: BTreeSet::new(),
        };
        for event in &events {
            cluster.apply(event);
            prop_assert!(cluster.used() <= 1000, "{} after {event:?}", cluster.used());
            for server in cluster.state.servers.values() {
                if let Some(by) = preemption_of(server) {
                    prop_assert!(cluster.state.catalogue.priority(server).value < by.priority);
                }
            }
        }
        // When nothing more happens, every Server for which there is capacity runs.
        for _ in 0..20 {
            cluster.second += 700;
            cluster.apply(&Event::Decide(vec![]));
            cluster.apply(&Event::HostsAct);
        }
        for _ in 0..8 {
            cluster.apply(&Event::Decide(vec![]));
        }
        let is_waiting = |s: &Server| {
            let status = s.status.clone().unwrap_or_default();
            status.placement.is_none() || status.preemption.is_some()
        };
        let left = 1000 - cluster.used();
        let state = &cluster.state;
        let all = || state.servers.values().filter(|s| is_waiting(s));
        for server in all() {
            let (claim, _) = size(server, &state.catalogue).unwrap();
            // Free capacity may be reserved for another Server for a while.
            prop_assert!(
                claim.memory_mib > left || !state.nominated.is_empty(),
                "{} waits for {} of {left}", server.name_any(), claim.memory_mib
            );
        }
    }
}
