//! `pileus advise`: which Servers to migrate. Only advice; nothing is migrated.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::jiff::Timestamp;

use crate::objects::catalogue::Key;
use crate::objects::resolve::allocation;
use crate::placement::devices;
use crate::placement::placer::Placer;
use crate::placement::request::Request;
use crate::placement::snapshot::{Host, Snapshot};
use crate::state::State;
use pileus_api::server::Placement;

/// Maximum number of moves.
const MAX_MOVES: usize = 50;
/// A move must reduce the difference between two hosts by at least this, in thousandths of their
/// memory.
const MIN_GAIN: i64 = 50;
/// Maximum number of hosts that are tried to be emptied, those with the fewest Servers first.
const MAX_TRIED: usize = 200;

/// The goal of moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Evenly used hosts.
    Spread,
    /// Empty hosts.
    Empty,
}

/// A move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Namespace and name of the Server.
    pub server: Key,
    /// The Host that it is on.
    pub from: String,
    /// The Host to migrate it to.
    pub to: String,
}

/// Moves, in an order in which each is possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The goal.
    pub goal: Goal,
    /// The moves.
    pub moves: Vec<Move>,
    /// Hosts that are empty after them.
    pub emptied: Vec<String>,
    /// Allocated memory of the fullest host before and after, in thousandths.
    pub fullest: (i64, i64),
}

struct PlacedServer {
    key: Key,
    uid: String,
    request: Request,
    placement: Placement,
}

/// Allocated memory of a host, in thousandths.
fn memory_used(snapshot: &Snapshot, host: &str) -> i64 {
    snapshot.host(host).map_or(0, |host| {
        let all = host.limit(1).max(1);
        (all - host.free(1)).saturating_mul(1000) / all
    })
}

/// Moves for a goal, chosen by the same filters and weighers as placements.
#[must_use]
pub fn advise(state: &State, goal: Goal, now: Timestamp) -> Advice {
    let servers = servers(state, now);
    let mut snapshot = state.snapshot().clone();
    let hosts: BTreeSet<String> = snapshot.hosts().map(|h| h.name().to_owned()).collect();
    let fullest = |snapshot: &Snapshot| {
        let all = hosts.iter().map(|h| memory_used(snapshot, h));
        all.max().unwrap_or(0)
    };
    let before = fullest(&snapshot);
    let (moves, emptied) = match goal {
        Goal::Spread => (even_out(state, &servers, &mut snapshot), Vec::new()),
        Goal::Empty => empty_hosts(state, &servers, &mut snapshot),
    };
    Advice {
        goal,
        moves,
        emptied,
        fullest: (before, fullest(&snapshot)),
    }
}

fn servers(state: &State, now: Timestamp) -> Vec<PlacedServer> {
    let placed = state.servers.iter().filter_map(|(key, server)| {
        Some(PlacedServer {
            key: key.clone(),
            uid: server.metadata.uid.clone()?,
            request: state.request(server, now).ok()?,
            placement: server.status.as_ref()?.placement.clone()?,
        })
    });
    placed.collect()
}

/// A copy of the ledger in which Servers are moved.
struct Simulation<'a> {
    state: &'a State,
    servers: &'a [PlacedServer],
    snapshot: &'a mut Snapshot,
    placer: Placer,
    /// The host of each Server.
    at: Vec<String>,
}

impl<'a> Simulation<'a> {
    fn new(state: &'a State, servers: &'a [PlacedServer], snapshot: &'a mut Snapshot) -> Self {
        Self {
            state,
            servers,
            snapshot,
            placer: Placer::with_policy(state.placer.policy()),
            at: servers.iter().map(|t| t.placement.host.clone()).collect(),
        }
    }

    fn place_on(&mut self, i: usize, host: &str) {
        let server = &self.servers[i];
        let placement = if host == server.placement.host {
            server.placement.clone()
        } else {
            let resources = &server.request.requirements.resources;
            let there = self.snapshot.host(host);
            let placement = there.map(|h| devices::placement(h, resources));
            Placement {
                host: host.to_owned(),
                claim: server.placement.claim,
                ..placement.unwrap_or_default()
            }
        };
        if let Some(object) = self.state.servers.get(&server.key) {
            let allocation = allocation(object, &placement, &self.state.catalogue);
            self.snapshot.allocate(&server.uid, allocation);
        }
        host.clone_into(&mut self.at[i]);
    }

    /// Moves a Server to its best host, if that is another one.
    fn move_to_best(&mut self, i: usize) -> Option<String> {
        let server = &self.servers[i];
        let from = self.at[i].clone();
        self.snapshot.release(&server.uid);
        let best = self.placer.place(self.snapshot, &server.request);
        let best = best.ok().filter(|h| *h != from).map(str::to_owned);
        self.place_on(i, best.as_deref().unwrap_or(&from));
        best
    }

    fn servers_on(&self, host: &str) -> Vec<usize> {
        (0..self.at.len()).filter(|&i| self.at[i] == host).collect()
    }

    fn new_move(&self, i: usize, from: &str, to: String) -> Move {
        Move {
            server: self.servers[i].key.clone(),
            from: from.to_owned(),
            to,
        }
    }
}

/// Moves Servers from the fullest host to their best host, as long as the difference shrinks.
fn even_out(state: &State, servers: &[PlacedServer], snapshot: &mut Snapshot) -> Vec<Move> {
    let mut moves: Vec<Move> = Vec::new();
    let mut simulation = Simulation::new(state, servers, snapshot);
    let hosts: Vec<String> = names(simulation.snapshot);
    let mut settled: BTreeSet<String> = BTreeSet::new();
    while moves.len() < MAX_MOVES {
        let full = hosts
            .iter()
            .map(|h| (memory_used(simulation.snapshot, h), h));
        let full: Vec<_> = full.collect();
        let sum: i64 = full.iter().map(|(n, _)| n).sum();
        let mean = sum / i64::try_from(full.len().max(1)).unwrap_or(i64::MAX);
        let left = full.into_iter().filter(|(_, h)| !settled.contains(*h));
        // Hosts that are not above the average are left alone.
        let Some((full, from)) = left.max().filter(|(n, _)| *n > mean) else {
            break;
        };
        let mut on_it = simulation.servers_on(from);
        on_it.sort_by_key(|&i| Reverse(servers[i].placement.claim.memory_mib));
        let found = on_it.into_iter().find_map(|i| {
            let to = simulation.move_to_best(i)?;
            if memory_used(simulation.snapshot, &to) + MIN_GAIN <= full {
                return Some((i, to));
            }
            simulation.place_on(i, from);
            None
        });
        match found {
            Some((i, to)) => moves.push(simulation.new_move(i, from, to)),
            None => drop(settled.insert(from.clone())),
        }
    }
    moves
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.hosts().map(|h| h.name().to_owned()).collect()
}

/// Empties hosts, those with the fewest Servers first, each completely or not at all.
fn empty_hosts(
    state: &State,
    servers: &[PlacedServer],
    snapshot: &mut Snapshot,
) -> (Vec<Move>, Vec<String>) {
    let (mut moves, mut emptied) = (Vec::new(), Vec::new());
    let mut simulation = Simulation::new(state, servers, snapshot);
    let servers = |snapshot: &Snapshot, h: &str| snapshot.host(h).map_or(0, Host::servers);
    let mut hosts = names(simulation.snapshot);
    hosts.sort_by_key(|h| (servers(simulation.snapshot, h), h.clone()));
    // Servers are not moved to unused hosts, because these would not be empty then.
    let (idle, mut used): (Vec<_>, Vec<_>) = hosts
        .into_iter()
        .partition(|h| servers(simulation.snapshot, h) == 0);
    for host in &idle {
        set_closed(state, simulation.snapshot, host, true);
    }
    used.truncate(MAX_TRIED);
    for host in used {
        let on_it = simulation.servers_on(&host);
        if moves.len() + on_it.len() > MAX_MOVES {
            continue;
        }
        set_closed(state, simulation.snapshot, &host, true);
        let mut moved_away = Vec::new();
        for &i in &on_it {
            let Some(to) = simulation.move_to_best(i) else {
                break;
            };
            moved_away.push(simulation.new_move(i, &host, to));
        }
        if moved_away.len() == on_it.len() && servers(simulation.snapshot, &host) == 0 {
            moves.extend(moved_away);
            emptied.push(host);
        } else {
            for i in on_it {
                simulation.place_on(i, &host);
            }
            set_closed(state, simulation.snapshot, &host, false);
        }
    }
    (moves, emptied)
}

/// Sets a host into maintenance in the copy, or back.
fn set_closed(state: &State, snapshot: &mut Snapshot, host: &str, closed: bool) {
    if let Some(object) = state.hosts.get(host) {
        let mut facts = state.catalogue.facts(object);
        facts.maintenance |= closed;
        snapshot.set_host(facts);
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.moves.is_empty() {
            return match self.goal {
                Goal::Spread => writeln!(f, "No move would make the hosts more evenly used."),
                Goal::Empty => writeln!(f, "No host can be emptied to the other used hosts."),
            };
        }
        for Move { server, from, to } in &self.moves {
            writeln!(f, "move {}/{} from {from} to {to}", server.0, server.1)?;
        }
        let percent = |n: i64| n / 10;
        match self.goal {
            Goal::Spread => writeln!(
                f,
                "The fullest host would have {} % of its memory allocated, now {} %.",
                percent(self.fullest.1),
                percent(self.fullest.0)
            ),
            Goal::Empty => writeln!(f, "This would empty {}.", self.emptied.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{host, now, server, state};
    use pileus_api::common::Claim;
    use pileus_api::server::PlacementConstraints;

    fn on(name: &str, host: &str) -> pileus_api::Server {
        let mut server = server(name, 1, "400Mi");
        server.status.get_or_insert_default().placement = Some(Placement {
            host: host.into(),
            epoch: 1,
            claim: Claim {
                vcpus: 1,
                memory_mib: 400,
                disk_gib: 1,
            },
            ..Placement::default()
        });
        server
    }

    #[test]
    fn load_is_evened_out_and_servers_with_a_host_selector_stay() {
        let mut labelled = host("h1", 2000);
        labelled.metadata.labels = Some([("here".to_owned(), "only".to_owned())].into());
        let mut state = state(&[labelled, host("h2", 2000)]);
        for name in ["a", "b", "c"] {
            state.server_applied(on(name, "h1"));
        }
        let mut pinned = on("pinned", "h1");
        pinned.spec.placement = Some(PlacementConstraints {
            host_selector: [("here".to_owned(), "only".to_owned())].into(),
            ..PlacementConstraints::default()
        });
        state.server_applied(pinned);
        let advice = advise(&state, Goal::Spread, now(1));
        assert_eq!(advice.moves.len(), 2, "{advice}");
        assert!(
            advice
                .moves
                .iter()
                .all(|m| m.to == "h2" && m.server.1 != "pinned")
        );
        assert_eq!(advice.fullest, (800, 400));
        assert!(
            advice
                .to_string()
                .contains("40 % of its memory allocated, now 80 %")
        );
        assert_eq!(
            state.snapshot().host("h1").unwrap().servers(),
            4,
            "nothing is moved"
        );
    }

    #[test]
    fn a_host_is_emptied_completely_or_not_at_all() {
        let mut state = state(&[host("h1", 2000), host("h2", 2000), host("idle", 2000)]);
        for (name, host) in [("a", "h1"), ("b", "h1"), ("c", "h2"), ("d", "h1")] {
            state.server_applied(on(name, host));
        }
        let advice = advise(&state, Goal::Empty, now(1));
        assert_eq!(advice.emptied, ["h2"]);
        assert_eq!(advice.moves.len(), 1, "{advice}");
        assert_eq!(advice.moves[0].to, "h1");
        for (name, host) in [("e", "h1"), ("f", "h2")] {
            state.server_applied(on(name, host));
        }
        let advice = advise(&state, Goal::Empty, now(1));
        assert!(advice.moves.is_empty(), "{advice}");
    }
}
