//! A model of how a Server comes to run: two schedulers, two managers (as around a hand-over
//! of leadership, each with a view of its own that may be old) and the hosts, in every order.
//! It follows `scheduler::state`, `controllers::server` and `agent::instance::plan`; what they
//! do to the API server is one conditional request each, which is what makes it safe.
//!
//! Checked in all reachable states: no Server runs twice, no host holds more than it has room
//! for, no epoch is given twice; and a Server that a host refused can come to run elsewhere.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Checker, HasDiscoveries, Model, Property};

type Server = usize;
type Host = usize;
type Epoch = u8;

const HOSTS: usize = 2;

/// `Server.status`, as far as it binds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Placing {
    version: u8,
    placement: Option<(Host, Epoch)>,
    refusals: BTreeSet<(Host, Epoch)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Said {
    Nothing,
    Refused,
    Realized,
}

/// An Instance, by Server and epoch, which are its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Instance {
    host: Host,
    version: u8,
    said: Said,
    deleting: bool,
    /// `spec.onDeletion: Remove`.
    remove: bool,
}

type Instances = BTreeMap<(Server, Epoch), Instance>;

/// What a scheduler means to write, to the version that it has seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Write {
    server: Server,
    version: u8,
    placement: Option<(Host, Epoch)>,
    refusals: BTreeSet<(Host, Epoch)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Scheduler {
    servers: Vec<Placing>,
    instances: Instances,
    pending: Option<Write>,
}

/// Its two watches are not of the same moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Manager {
    servers: Vec<Placing>,
    instances: Instances,
}

/// What is on a host, whatever anybody says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Local {
    running: BTreeMap<Server, Epoch>,
    closed: BTreeMap<Server, Epoch>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Cloud {
    servers: Vec<Placing>,
    instances: Instances,
    hosts: Vec<Local>,
    schedulers: Vec<Scheduler>,
    managers: Vec<Manager>,
    /// Placements ever written.
    given: BTreeSet<(Server, Epoch, Host)>,
    /// Room that a Server outside of the model takes for a while; the scheduler knows nothing.
    squatter: Option<Host>,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Watch(usize),
    Decide(usize, Server, Host),
    TakeBack(usize, Server),
    Send(usize),
    WatchServers(usize),
    WatchInstances(usize),
    Make(usize, Server),
    Clear(usize, Server, Epoch),
    Start(Server, Epoch),
    Refuse(Server, Epoch),
    Report(Server, Epoch),
    LetGo(Server, Epoch),
    SquatterLeaves,
}

/// What of the design is in force; without either, the model finds a Server that runs twice.
#[derive(Clone, Copy)]
struct Rules {
    /// Servers; each takes all the room of a host.
    servers: usize,
    schedulers: usize,
    managers: usize,
    /// Placements are numbered up to this; the model looks no further.
    last_epoch: Epoch,
    /// What was refused and is cleared away is removed by its host, not let go.
    clear_removes: bool,
    /// A host starts nothing of an epoch that has ended there.
    ended_stays_ended: bool,
}

fn has_room(cloud: &Cloud, host: Host) -> bool {
    cloud.hosts[host].running.is_empty() && cloud.squatter != Some(host)
}

fn views_room(scheduler: &Scheduler, server: Server, host: Host) -> bool {
    let placed = scheduler.servers.iter().enumerate();
    let mut placed = placed.filter(|(other, _)| *other != server);
    let held = placed.any(|(_, p)| p.placement.is_some_and(|(at, _)| at == host));
    let mut instances = scheduler.instances.iter();
    let counted = instances
        .any(|((other, _), i)| *other != server && i.host == host && i.said != Said::Refused);
    !held && !counted
}

/// Where a Server without placement may go, and by which number.
fn choices(scheduler: &Scheduler, server: Server) -> Option<(Vec<Host>, Epoch)> {
    let seen = &scheduler.servers[server];
    if seen.placement.is_some() {
        return None;
    }
    let own: Vec<_> = scheduler
        .instances
        .iter()
        .filter(|((of, _), _)| *of == server)
        .collect();
    let highest = own.iter().map(|((_, epoch), _)| *epoch);
    let highest = highest.chain(seen.refusals.iter().map(|(_, epoch)| *epoch));
    let next = highest.max().unwrap_or_default() + 1;
    let there = own
        .iter()
        .find(|(_, i)| !i.deleting && i.said != Said::Refused);
    if let Some((_, instance)) = there {
        return Some((vec![instance.host], next));
    }
    if !own.is_empty() {
        return None; // until the refused one is gone
    }
    let refused = |host: &Host| seen.refusals.iter().any(|(at, _)| at == host);
    let hosts = (0..HOSTS).filter(|host| !refused(host) && views_room(scheduler, server, *host));
    Some((hosts.collect(), next))
}

impl Model for Rules {
    type State = Cloud;
    type Action = Action;

    fn init_states(&self) -> Vec<Cloud> {
        vec![Cloud {
            servers: vec![Placing::default(); self.servers],
            hosts: vec![Local::default(); HOSTS],
            schedulers: vec![
                Scheduler {
                    servers: vec![Placing::default(); self.servers],
                    ..Scheduler::default()
                };
                self.schedulers
            ],
            managers: vec![
                Manager {
                    servers: vec![Placing::default(); self.servers],
                    ..Manager::default()
                };
                self.managers
            ],
            // In the small model there is a refusal to see.
            squatter: (self.servers == 1).then_some(0),
            ..Cloud::default()
        }]
    }

    fn actions(&self, cloud: &Cloud, actions: &mut Vec<Action>) {
        for (n, scheduler) in cloud.schedulers.iter().enumerate() {
            if scheduler.servers != cloud.servers || scheduler.instances != cloud.instances {
                actions.push(Action::Watch(n));
            }
            if scheduler.pending.is_some() {
                actions.push(Action::Send(n));
                continue;
            }
            for server in 0..self.servers {
                if let Some((hosts, _)) = choices(scheduler, server) {
                    actions.extend(hosts.into_iter().map(|h| Action::Decide(n, server, h)));
                }
                let placed = scheduler.servers[server].placement;
                let refused = placed.and_then(|(_, e)| scheduler.instances.get(&(server, e)));
                if refused.is_some_and(|i| i.said == Said::Refused && !i.deleting) {
                    actions.push(Action::TakeBack(n, server));
                }
            }
        }
        for (n, manager) in cloud.managers.iter().enumerate() {
            if manager.servers != cloud.servers {
                actions.push(Action::WatchServers(n));
            }
            if manager.instances != cloud.instances {
                actions.push(Action::WatchInstances(n));
            }
            for (server, seen) in manager.servers.iter().enumerate() {
                if let Some((_, epoch)) = seen.placement
                    && !manager.instances.contains_key(&(server, epoch))
                {
                    actions.push(Action::Make(n, server));
                }
                for (host, epoch) in &seen.refusals {
                    let instance = manager.instances.get(&(server, *epoch));
                    if instance.is_some_and(|i| i.said == Said::Refused && !i.deleting)
                        && seen.placement != Some((*host, *epoch))
                    {
                        actions.push(Action::Clear(n, server, *epoch));
                    }
                }
            }
        }
        for ((server, epoch), instance) in &cloud.instances {
            let (server, epoch) = (*server, *epoch);
            let local = &cloud.hosts[instance.host];
            let runs = local.running.get(&server) == Some(&epoch);
            if instance.deleting {
                actions.push(Action::LetGo(server, epoch));
            } else if runs && instance.said != Said::Realized {
                actions.push(Action::Report(server, epoch));
            } else if !runs {
                let ended = local.closed.get(&server).is_some_and(|e| *e >= epoch);
                if has_room(cloud, instance.host) && !(self.ended_stays_ended && ended) {
                    actions.push(Action::Start(server, epoch));
                } else if instance.said == Said::Nothing {
                    actions.push(Action::Refuse(server, epoch));
                }
            }
        }
        if cloud.squatter.is_some() {
            actions.push(Action::SquatterLeaves);
        }
    }

    fn next_state(&self, last: &Cloud, action: Action) -> Option<Cloud> {
        let mut cloud = last.clone();
        match action {
            Action::Watch(n) => {
                cloud.schedulers[n].servers.clone_from(&last.servers);
                cloud.schedulers[n].instances.clone_from(&last.instances);
            }
            Action::Decide(n, server, host) => {
                let scheduler = &mut cloud.schedulers[n];
                let (_, epoch) = choices(scheduler, server)?;
                let seen = &scheduler.servers[server];
                scheduler.pending = Some(Write {
                    server,
                    version: seen.version,
                    placement: Some((host, epoch)),
                    refusals: seen.refusals.clone(),
                });
            }
            Action::TakeBack(n, server) => {
                let scheduler = &mut cloud.schedulers[n];
                let seen = &scheduler.servers[server];
                let mut refusals = seen.refusals.clone();
                refusals.extend(seen.placement);
                scheduler.pending = Some(Write {
                    server,
                    version: seen.version,
                    placement: None,
                    refusals,
                });
            }
            Action::Send(n) => {
                let write = cloud.schedulers[n].pending.take()?;
                let server = &mut cloud.servers[write.server];
                if server.version == write.version {
                    server.version += 1;
                    server.placement = write.placement;
                    server.refusals = write.refusals;
                    let told = server.clone();
                    let given = write
                        .placement
                        .map(|(host, epoch)| (write.server, epoch, host));
                    cloud.given.extend(given);
                    cloud.schedulers[n].servers[write.server] = told;
                }
            }
            Action::WatchServers(n) => cloud.managers[n].servers.clone_from(&last.servers),
            Action::WatchInstances(n) => cloud.managers[n].instances.clone_from(&last.instances),
            Action::Make(n, server) => {
                let (host, epoch) = cloud.managers[n].servers[server].placement?;
                let made = cloud.instances.entry((server, epoch)).or_insert(Instance {
                    host,
                    version: 0,
                    said: Said::Nothing,
                    deleting: false,
                    remove: false,
                });
                let made = made.clone();
                cloud.managers[n].instances.insert((server, epoch), made);
            }
            Action::Clear(n, server, epoch) => {
                let seen = cloud.managers[n].instances.remove(&(server, epoch))?;
                if let Some(instance) = cloud.instances.get_mut(&(server, epoch))
                    && instance.version == seen.version
                    && !instance.deleting
                {
                    instance.version += 1;
                    instance.deleting = true;
                    instance.remove = self.clear_removes;
                }
            }
            Action::Start(server, epoch) => {
                let host = cloud.instances[&(server, epoch)].host;
                cloud.hosts[host].running.insert(server, epoch);
            }
            Action::Refuse(server, epoch) => {
                let instance = cloud.instances.get_mut(&(server, epoch))?;
                instance.said = Said::Refused;
                instance.version += 1;
            }
            Action::Report(server, epoch) => {
                let instance = cloud.instances.get_mut(&(server, epoch))?;
                instance.said = Said::Realized;
                instance.version += 1;
            }
            Action::LetGo(server, epoch) => {
                let instance = cloud.instances.remove(&(server, epoch))?;
                let local = &mut cloud.hosts[instance.host];
                if instance.remove {
                    if local.running.get(&server) == Some(&epoch) {
                        local.running.remove(&server);
                    }
                    let closed = local.closed.entry(server).or_default();
                    *closed = epoch.max(*closed);
                }
            }
            Action::SquatterLeaves => cloud.squatter = None,
        }
        (cloud != *last).then_some(cloud)
    }

    fn within_boundary(&self, cloud: &Cloud) -> bool {
        cloud
            .given
            .iter()
            .all(|(_, epoch, _)| *epoch <= self.last_epoch)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("no Server runs twice", |_, cloud| {
                (0..cloud.servers.len()).all(|server| {
                    let runs = |local: &&Local| local.running.contains_key(&server);
                    cloud.hosts.iter().filter(runs).count() <= 1
                })
            }),
            Property::<Self>::always("no host is overbooked", |_, cloud| {
                let held = |(n, local): (usize, &Local)| {
                    local.running.len() + usize::from(cloud.squatter == Some(n))
                };
                cloud.hosts.iter().enumerate().map(held).all(|n| n <= 1)
            }),
            Property::<Self>::always("no epoch is given twice", |_, cloud| {
                let names: BTreeSet<_> = cloud.given.iter().map(|(s, e, _)| (s, e)).collect();
                names.len() == cloud.given.len()
            }),
            Property::<Self>::sometimes("who was refused runs elsewhere", |_, cloud| {
                let elsewhere = |(server, placing): (usize, &Placing)| {
                    let at = placing.placement.map(|(host, _)| host);
                    placing.refusals.iter().any(|(host, _)| Some(*host) != at)
                        && at.is_some_and(|h| cloud.hosts[h].running.contains_key(&server))
                };
                cloud.servers.iter().enumerate().any(elsewhere)
            }),
        ]
    }
}

fn check(rules: Rules, until: HasDiscoveries) -> impl Checker<Rules> {
    let checker = rules.checker().threads(2).finish_when(until);
    checker.spawn_bfs().join()
}

/// Both rules, and two managers, as a hand-over of leadership brings them together.
const RULES: Rules = Rules {
    servers: 1,
    schedulers: 1,
    managers: 2,
    last_epoch: 2,
    clear_removes: true,
    ended_stays_ended: true,
};

#[test]
fn in_no_order_of_events_does_a_server_run_twice() {
    for (schedulers, managers) in [(1, 2), (2, 1)] {
        let rules = Rules {
            schedulers,
            managers,
            ..RULES
        };
        let checked = check(rules, HasDiscoveries::All);
        println!("{} states", checked.unique_state_count());
        checked.assert_properties();
    }
}

#[test]
fn in_no_order_of_events_does_a_host_hold_too_much() {
    let rules = Rules {
        servers: 2,
        schedulers: 2,
        managers: 1,
        last_epoch: 1,
        ..RULES
    };
    let checked = check(rules, HasDiscoveries::All);
    println!("{} states", checked.unique_state_count());
    // Nobody is placed a second time, so nobody gets elsewhere.
    checked.assert_no_discovery("no Server runs twice");
    checked.assert_no_discovery("no host is overbooked");
    checked.assert_no_discovery("no epoch is given twice");
}

/// The model is worth something: it finds what happens without either rule.
#[test]
fn without_either_of_two_rules_a_server_would_run_twice() {
    for (clear_removes, ended_stays_ended) in [(false, true), (true, false)] {
        let rules = Rules {
            clear_removes,
            ended_stays_ended,
            ..RULES
        };
        let checked = check(rules, HasDiscoveries::AnyFailures);
        let found = checked.discovery("no Server runs twice");
        assert!(found.is_some(), "{clear_removes} {ended_stays_ended}");
    }
}
