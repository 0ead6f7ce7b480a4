//! Which Servers could be moved to better effect. Advice only: nothing is moved by it.

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

/// How many moves are advised at most.
const MOVES: usize = 50;
/// A move that evens two hosts out by less than this is not worth it, in thousandths of
/// the memory that they give out.
const WORTH: i64 = 50;
/// How many hosts are tried to be emptied at most, those with the fewest Servers first.
const TRIED: usize = 200;

/// What moves are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// Hosts that are evenly full.
    Spread,
    /// Hosts that are empty.
    Empty,
}

/// A move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Namespace and name of the Server.
    pub server: Key,
    /// Where it is.
    pub from: String,
    /// Where it would go.
    pub to: String,
}

/// Moves, in the order in which they are possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What they are for.
    pub aim: Aim,
    /// The moves.
    pub moves: Vec<Move>,
    /// Hosts that are empty after them.
    pub emptied: Vec<String>,
    /// How full the fullest host is before and after, in thousandths of its memory.
    pub fullest: (i64, i64),
}

struct Tenant {
    key: Key,
    uid: String,
    request: Request,
    placement: Placement,
}

/// Memory given out of a host, in thousandths.
fn fullness(snapshot: &Snapshot, host: &str) -> i64 {
    snapshot.host(host).map_or(0, |host| {
        let all = host.limit(1).max(1);
        (all - host.free(1)).saturating_mul(1000) / all
    })
}

/// Moves that would make hosts evenly full, or empty. By the same filters and weighers as
/// any placement.
#[must_use]
pub fn advise(state: &State, aim: Aim, now: Timestamp) -> Advice {
    let tenants = tenants(state, now);
    let mut snapshot = state.snapshot().clone();
    let hosts: BTreeSet<String> = snapshot.hosts().map(|h| h.name().to_owned()).collect();
    let fullest = |snapshot: &Snapshot| {
        let all = hosts.iter().map(|h| fullness(snapshot, h));
        all.max().unwrap_or(0)
    };
    let before = fullest(&snapshot);
    let (moves, emptied) = match aim {
        Aim::Spread => (spread(state, &tenants, &mut snapshot), Vec::new()),
        Aim::Empty => empty(state, &tenants, &mut snapshot),
    };
    Advice {
        aim,
        moves,
        emptied,
        fullest: (before, fullest(&snapshot)),
    }
}

fn tenants(state: &State, now: Timestamp) -> Vec<Tenant> {
    let placed = state.servers.iter().filter_map(|(key, server)| {
        Some(Tenant {
            key: key.clone(),
            uid: server.metadata.uid.clone()?,
            request: state.request(server, now).ok()?,
            placement: server.status.as_ref()?.placement.clone()?,
        })
    });
    placed.collect()
}

/// Servers in a copy of the ledger, moved at no cost.
struct Trial<'a> {
    state: &'a State,
    tenants: &'a [Tenant],
    snapshot: &'a mut Snapshot,
    placer: Placer,
    /// Where each tenant is.
    at: Vec<String>,
}

impl<'a> Trial<'a> {
    fn new(state: &'a State, tenants: &'a [Tenant], snapshot: &'a mut Snapshot) -> Self {
        Self {
            state,
            tenants,
            snapshot,
            placer: Placer::with_policy(state.placer.policy()),
            at: tenants.iter().map(|t| t.placement.host.clone()).collect(),
        }
    }

    fn put(&mut self, i: usize, host: &str) {
        let tenant = &self.tenants[i];
        let placement = if host == tenant.placement.host {
            tenant.placement.clone()
        } else {
            let resources = &tenant.request.requirements.resources;
            let there = self.snapshot.host(host);
            let taken = there.map(|h| devices::placement(h, resources));
            Placement {
                host: host.to_owned(),
                claim: tenant.placement.claim,
                ..taken.unwrap_or_default()
            }
        };
        if let Some(server) = self.state.servers.get(&tenant.key) {
            let held = allocation(server, &placement, &self.state.catalogue);
            self.snapshot.allocate(&tenant.uid, held);
        }
        host.clone_into(&mut self.at[i]);
    }

    /// Moves a Server to its best host, if that is another.
    fn shift(&mut self, i: usize) -> Option<String> {
        let tenant = &self.tenants[i];
        let from = self.at[i].clone();
        self.snapshot.release(&tenant.uid);
        let best = self.placer.place(self.snapshot, &tenant.request);
        let best = best.ok().filter(|h| *h != from).map(str::to_owned);
        self.put(i, best.as_deref().unwrap_or(&from));
        best
    }

    fn on(&self, host: &str) -> Vec<usize> {
        (0..self.at.len()).filter(|&i| self.at[i] == host).collect()
    }

    fn a_move(&self, i: usize, from: &str, to: String) -> Move {
        Move {
            server: self.tenants[i].key.clone(),
            from: from.to_owned(),
            to,
        }
    }
}

/// From the fullest host to the best for each, as long as that evens them out.
fn spread(state: &State, tenants: &[Tenant], snapshot: &mut Snapshot) -> Vec<Move> {
    let mut moves: Vec<Move> = Vec::new();
    let mut trial = Trial::new(state, tenants, snapshot);
    let hosts: Vec<String> = names(trial.snapshot);
    let mut settled: BTreeSet<String> = BTreeSet::new();
    while moves.len() < MOVES {
        let full = hosts.iter().map(|h| (fullness(trial.snapshot, h), h));
        let full: Vec<_> = full.collect();
        let sum: i64 = full.iter().map(|(n, _)| n).sum();
        let mean = sum / i64::try_from(full.len().max(1)).unwrap_or(i64::MAX);
        let left = full.into_iter().filter(|(_, h)| !settled.contains(*h));
        // Whoever is no fuller than most has nothing to give.
        let Some((full, from)) = left.max().filter(|(n, _)| *n > mean) else {
            break;
        };
        let mut on_it = trial.on(from);
        on_it.sort_by_key(|&i| Reverse(tenants[i].placement.claim.memory_mib));
        let shifted = on_it.into_iter().find_map(|i| {
            let to = trial.shift(i)?;
            if fullness(trial.snapshot, &to) + WORTH <= full {
                return Some((i, to));
            }
            trial.put(i, from);
            None
        });
        match shifted {
            Some((i, to)) => moves.push(trial.a_move(i, from, to)),
            None => drop(settled.insert(from.clone())),
        }
    }
    moves
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.hosts().map(|h| h.name().to_owned()).collect()
}

/// Hosts with the fewest Servers first, each wholly or not at all.
fn empty(state: &State, tenants: &[Tenant], snapshot: &mut Snapshot) -> (Vec<Move>, Vec<String>) {
    let (mut moves, mut emptied) = (Vec::new(), Vec::new());
    let mut trial = Trial::new(state, tenants, snapshot);
    let servers = |snapshot: &Snapshot, h: &str| snapshot.host(h).map_or(0, Host::servers);
    let mut hosts = names(trial.snapshot);
    hosts.sort_by_key(|h| (servers(trial.snapshot, h), h.clone()));
    // A host that nobody uses is no better than the one to be emptied.
    let (idle, mut used): (Vec<_>, Vec<_>) = hosts
        .into_iter()
        .partition(|h| servers(trial.snapshot, h) == 0);
    for host in &idle {
        close(state, trial.snapshot, host, true);
    }
    used.truncate(TRIED);
    for host in used {
        let on_it = trial.on(&host);
        if moves.len() + on_it.len() > MOVES {
            continue;
        }
        close(state, trial.snapshot, &host, true);
        let mut gone = Vec::new();
        for &i in &on_it {
            let Some(to) = trial.shift(i) else {
                break;
            };
            gone.push(trial.a_move(i, &host, to));
        }
        if gone.len() == on_it.len() && servers(trial.snapshot, &host) == 0 {
            moves.extend(gone);
            emptied.push(host);
        } else {
            for i in on_it {
                trial.put(i, &host);
            }
            close(state, trial.snapshot, &host, false);
        }
    }
    (moves, emptied)
}

/// Lets nobody onto a host any more, or again whom it let before.
fn close(state: &State, snapshot: &mut Snapshot, host: &str, closed: bool) {
    if let Some(object) = state.hosts.get(host) {
        let mut facts = state.catalogue.facts(object);
        facts.maintenance |= closed;
        snapshot.set_host(facts);
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.moves.is_empty() {
            return match self.aim {
                Aim::Spread => writeln!(f, "No move would make the hosts more evenly full."),
                Aim::Empty => writeln!(f, "No host can be emptied onto those in use."),
            };
        }
        for Move { server, from, to } in &self.moves {
            writeln!(f, "move {}/{} from {from} to {to}", server.0, server.1)?;
        }
        let percent = |n: i64| n / 10;
        match self.aim {
            Aim::Spread => writeln!(
                f,
                "The fullest host would have {} % of its memory given out, now {} %.",
                percent(self.fullest.1),
                percent(self.fullest.0)
            ),
            Aim::Empty => writeln!(f, "That would empty {}.", self.emptied.join(", ")),
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
    fn full_hosts_are_evened_out_and_pinned_servers_stay() {
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
        let advice = advise(&state, Aim::Spread, now(1));
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
                .contains("40 % of its memory given out, now 80 %")
        );
        assert_eq!(
            state.snapshot().host("h1").unwrap().servers(),
            4,
            "nothing is moved"
        );
    }

    #[test]
    fn a_host_is_emptied_wholly_or_not_at_all() {
        let mut state = state(&[host("h1", 2000), host("h2", 2000), host("idle", 2000)]);
        for (name, host) in [("a", "h1"), ("b", "h1"), ("c", "h2"), ("d", "h1")] {
            state.server_applied(on(name, host));
        }
        let advice = advise(&state, Aim::Empty, now(1));
        assert_eq!(advice.emptied, ["h2"]);
        assert_eq!(advice.moves.len(), 1, "{advice}");
        assert_eq!(advice.moves[0].to, "h1");
        for (name, host) in [("e", "h1"), ("f", "h2")] {
            state.server_applied(on(name, host));
        }
        let advice = advise(&state, Aim::Empty, now(1));
        assert!(advice.moves.is_empty(), "{advice}");
    }
}
