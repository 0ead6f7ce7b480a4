//! `pileus why`: why a Server is on its host or on none, and the smallest change that would help.
//! Pure; it uses the same filters and weighers as the decisions.

use std::cmp::Reverse;
use std::fmt;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::objects::catalogue::Key;
use crate::objects::resolve::Unresolved;
use crate::placement::placer::{Explanation, Placer};
use crate::placement::request::Request;
use crate::state::preemption::nomination_key;
use crate::state::{State, preemption_of};
use pileus_api::common::Claim;
use pileus_api::{Flavor, Server};

/// Number of smaller flavors that are suggested.
const MAX_FLAVORS: usize = 3;

/// Removes a constraint from a request.
type RemoveConstraint = fn(&mut Request);

/// The answer for a Server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Namespace and name.
    pub server: Key,
    /// The verdict.
    pub verdict: Verdict,
}

/// Whether a Server is placed, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is placed.
    Placed {
        /// Name of the Host.
        host: String,
        /// Epoch of the placement.
        epoch: i64,
        /// The Host that would be chosen now, if any fits.
        best: Option<String>,
        /// The priority of the Server that it is stopped for, if it is.
        preempted: Option<i32>,
    },
    /// It is not placed yet; this host would be chosen.
    Fits(String),
    /// No host fits.
    Nowhere {
        /// The hosts that each filter rejected.
        explanation: Explanation,
        /// Changes of which each alone would help; the smallest first.
        changes: Vec<String>,
    },
    /// Its spec cannot be resolved.
    Unresolved(String),
    /// It does not exist.
    Unknown,
}

impl State {
    /// Answers why a Server is on its host or on none.
    pub fn why(&mut self, key: &Key, now: Timestamp) -> Answer {
        let verdict = self.verdict(key, now);
        Answer {
            server: key.clone(),
            verdict,
        }
    }

    fn verdict(&mut self, key: &Key, now: Timestamp) -> Verdict {
        let Some(server) = self.servers.get(key).cloned() else {
            return Verdict::Unknown;
        };
        let request = match self.request(&server, now) {
            Ok(request) => request,
            Err(Unresolved::Unreported(_, message)) => return Verdict::Unresolved(message),
            Err(Unresolved::ReportedByManager) => {
                let message = "its flavor or image is missing, not open to its namespace, or too \
                               small; its condition Ready says which";
                return Verdict::Unresolved(message.to_owned());
            }
        };
        let placement = server.status.as_ref().and_then(|s| s.placement.clone());
        // The Server's own allocation must not count against it.
        let mut without = self.snapshot.clone();
        let uid = server.uid().unwrap_or_default();
        without.release(&uid);
        without.release(&nomination_key(&uid));
        let decision = self.placer.place_uncached(&without, &request);
        if let Some(placement) = placement {
            return Verdict::Placed {
                host: placement.host,
                epoch: placement.epoch,
                best: decision.ok(),
                preempted: preemption_of(&server).map(|p| p.priority),
            };
        }
        match decision {
            Ok(host) => Verdict::Fits(host),
            Err(explanation) => {
                let changes = self.changes(&server, &request);
                Verdict::Nowhere {
                    explanation,
                    changes,
                }
            }
        }
    }

    /// Changes of which each alone would make the Server fit.
    fn changes(&mut self, server: &Server, request: &Request) -> Vec<String> {
        let mut found = Vec::new();
        let mut try_change = |what: String, changed: Request| {
            if let Ok(host) = self.placer.place_uncached(&self.snapshot, &changed) {
                found.push(format!("{what}: it would be placed on {host}"));
            }
        };
        for (flavor, claim) in smaller_flavors(server, request, self.catalogue.flavors.values()) {
            let mut changed = request.clone();
            changed.requirements.resources.claim = claim;
            changed.requirements.flavor = Some(flavor.clone());
            let Claim {
                vcpus,
                memory_mib,
                disk_gib,
            } = claim;
            let size = format!("{vcpus} vCPUs, {memory_mib} MiB, {disk_gib} GiB");
            try_change(format!("flavor {flavor} ({size})"), changed);
        }
        if let Some(zone) = &request.requirements.zone {
            let mut changed = request.clone();
            changed.requirements.zone = None;
            try_change(format!("any zone instead of {zone}"), changed);
        }
        if let Some(group) = &request.group {
            let mut changed = request.clone();
            changed.group = None;
            try_change(format!("without ServerGroup {}", group.id), changed);
        }
        if !request.requirements.host_selector.is_empty() {
            let mut changed = request.clone();
            changed.requirements.host_selector.clear();
            try_change("without hostSelector".to_owned(), changed);
        }
        let constraints: [(&str, bool, RemoveConstraint); 5] = [
            ("sameHost", !request.same_host.is_empty(), |r| {
                r.same_host = Vec::new();
            }),
            ("differentHost", !request.different_host.is_empty(), |r| {
                r.different_host = Vec::new();
            }),
            ("spread", !request.spread.is_empty(), |r| {
                r.spread = Vec::new();
            }),
            ("query", request.requirements.query.is_some(), |r| {
                r.requirements.query = None;
            }),
            ("hostCIDR", request.requirements.host_cidr.is_some(), |r| {
                r.requirements.host_cidr = None;
            }),
        ];
        for (constraint, there, remove) in constraints {
            if there {
                let mut changed = request.clone();
                remove(&mut changed);
                try_change(format!("without {constraint}"), changed);
            }
        }
        found.extend(self.higher_priority_class(request));
        found
    }

    /// The lowest PriorityClass for which Servers would be stopped.
    fn higher_priority_class(&self, request: &Request) -> Option<String> {
        let all = self.catalogue.priorities.iter();
        let mut higher: Vec<_> = all
            .filter(|(_, class)| class.value > request.priority.value)
            .collect();
        higher.sort_by_key(|(name, class)| (class.value, *name));
        higher.into_iter().find_map(|(name, class)| {
            let changed = Request {
                priority: *class,
                ..request.clone()
            };
            let (host, count) = self.would_preempt(&changed)?;
            let those = if count == 1 { "Server" } else { "Servers" };
            Some(format!(
                "priorityClass {name}: {count} {those} of lower priority on {host} would be stopped"
            ))
        })
    }
}

/// Flavors that are smaller in something and bigger in nothing; the biggest first.
fn smaller_flavors<'a>(
    server: &Server,
    request: &Request,
    flavors: impl Iterator<Item = &'a Flavor>,
) -> Vec<(String, Claim)> {
    let namespace = server.namespace().unwrap_or_default();
    let now = request.requirements.resources.claim;
    let open = flavors.filter(|f| {
        let access = f.spec.access.as_ref();
        f.spec.extra_specs == request.requirements.extra_specs
            && access.is_none_or(|a| a.allows(&namespace))
    });
    let mut less: Vec<_> = open
        .filter_map(|f| Some((f.name_any(), crate::objects::resolve::claim_of(&f.spec)?)))
        .filter(|(_, c)| {
            let parts = [
                (c.vcpus, now.vcpus),
                (c.memory_mib, now.memory_mib),
                (c.disk_gib, now.disk_gib),
            ];
            *c != now && parts.iter().all(|(a, b)| a <= b)
        })
        .collect();
    less.sort_by_key(|(name, c)| (Reverse((c.memory_mib, c.vcpus, c.disk_gib)), name.clone()));
    less.truncate(MAX_FLAVORS);
    less
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespace, name) = &self.server;
        write!(f, "Server {namespace}/{name} ")?;
        match &self.verdict {
            Verdict::Placed {
                host,
                epoch,
                best,
                preempted,
            } => {
                write!(f, "is placed on {host} (epoch {epoch})")?;
                if let Some(priority) = preempted {
                    write!(
                        f,
                        ", and stopped for a Server of priority {priority} until {host} has \
                         capacity for it again"
                    )?;
                }
                match best {
                    Some(best) if best == host => write!(f, ", which is the best host for it now"),
                    Some(best) => write!(f, "; placed now it would be on {best}"),
                    None => write!(f, "; placed now it would fit on no host"),
                }
            }
            Verdict::Fits(host) => write!(f, "is not placed yet; it would be placed on {host}"),
            Verdict::Unresolved(message) => write!(f, "cannot be placed: {message}"),
            Verdict::Unknown => f.write_str("does not exist"),
            Verdict::Nowhere {
                explanation,
                changes,
            } => {
                writeln!(f, "fits on none of {} hosts", explanation.hosts)?;
                if explanation.hosts == 0 {
                    return write!(f, "\n{explanation}");
                }
                table(f, explanation)?;
                if explanation.reserved.hosts > 0 {
                    write!(
                        f,
                        "\nNothing is offered by Hosts that reserve all they have: {}; lower their \
                         spec.reserved, or see their condition CapacityAvailable.",
                        explanation.reserved
                    )?;
                }
                if changes.is_empty() {
                    return f.write_str("\nNo single change of the Server would help.");
                }
                f.write_str("\nEach of these alone would help, the smallest first:")?;
                changes.iter().try_for_each(|c| write!(f, "\n  {c}"))
            }
        }
    }
}

fn table(f: &mut fmt::Formatter<'_>, explanation: &Explanation) -> fmt::Result {
    let wide = explanation.rejections.iter().map(|r| r.filter.len());
    let wide = wide.max().unwrap_or(0).max("FILTER".len());
    writeln!(
        f,
        "\n{:wide$}  {:>8}  {:>7}  NEAREST HOST",
        "FILTER", "REJECTED", "ONLY IT"
    )?;
    for rejection in &explanation.rejections {
        writeln!(
            f,
            "{:wide$}  {:>8}  {:>7}  {}",
            rejection.filter,
            rejection.hosts,
            rejection.exclusive,
            rejection.nearest_reason()
        )?;
    }
    Ok(())
}

impl Placer {
    /// Places without the cache, which is valid for another snapshot only.
    fn place_uncached(
        &self,
        snapshot: &crate::placement::snapshot::Snapshot,
        request: &Request,
    ) -> Result<String, Explanation> {
        let mut fresh = Placer::with_policy(self.policy());
        fresh.place(snapshot, request).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{host, now, server, settle, state};
    use pileus_api::FlavorSpec;
    use pileus_api::server::PlacementConstraints;

    fn flavor(name: &str, memory: &str) -> Flavor {
        let spec = FlavorSpec {
            vcpus: 1,
            memory: memory.into(),
            disk: "1Gi".into(),
            ..FlavorSpec::default()
        };
        Flavor::new(name, spec)
    }

    #[test]
    fn the_answer_has_a_table_of_filters_and_the_smallest_changes() {
        let mut labelled = host("h7", 3072);
        labelled.metadata.labels = Some([("disk".to_owned(), "fast".to_owned())].into());
        let mut state = state(&[labelled, host("h8", 8000)]);
        for (name, memory) in [("m4", "4Gi"), ("m3", "3Gi"), ("m2", "2Gi"), ("m1", "1Gi")] {
            state.flavor_applied(flavor(name, memory));
        }
        let mut big = server("big", 1, "1Mi");
        big.spec.resources = None;
        big.spec.flavor = Some("m4".into());
        big.spec.placement = Some(PlacementConstraints {
            host_selector: [("disk".to_owned(), "fast".to_owned())].into(),
            ..PlacementConstraints::default()
        });
        state.server_applied(big);
        let key = ("ns".to_owned(), "big".to_owned());
        let text = state.why(&key, now(1)).to_string();
        for line in [
            "Server ns/big fits on none of 2 hosts",
            "RamFilter            1        1  needs 4096 MiB of memory, h7 has 3072",
            "HostSelector         1        1  h8 is not labelled disk=fast",
            "  flavor m3 (1 vCPUs, 3072 MiB, 1 GiB): it would be placed on h7",
            "  without hostSelector: it would be placed on h8",
        ] {
            assert!(text.contains(line), "{line}\nis missing in\n{text}");
        }
        state.server_applied(server("small", 2, "100Mi"));
        let small = ("ns".to_owned(), "small".to_owned());
        assert_eq!(
            state.why(&small, now(1)).verdict,
            Verdict::Fits("h8".into())
        );
        settle(&mut state, 2);
        let text = state.why(&small, now(1)).to_string();
        assert!(
            text.contains("is placed on h8 (epoch 1), which is the best"),
            "{text}"
        );
        assert!(!text.contains("reserves"), "{text}");
        let unknown = ("ns".to_owned(), "unknown".to_owned());
        assert_eq!(state.why(&unknown, now(1)).verdict, Verdict::Unknown);
    }

    #[test]
    fn hosts_that_reserve_all_they_have_are_named() {
        let mut reserving = host("h1", 10_329);
        if let Some(status) = &mut reserving.status {
            status.reserved = Some(Claim {
                memory_mib: 14_101,
                ..Claim::default()
            });
        }
        let mut state = state(&[reserving.clone()]);
        state.server_applied(server("web", 1, "100Mi"));
        let key = ("ns".to_owned(), "web".to_owned());
        let answer = state.why(&key, now(1));
        let text = answer.to_string();
        let figures = "h1 reserves 14101 of 10329 MiB memory";
        assert!(text.contains(figures), "{text}");
        let Verdict::Nowhere { explanation, .. } = answer.verdict else {
            panic!("{text}");
        };
        let told = explanation.to_string();
        assert!(
            told.contains("1 of them offer nothing") && !told.contains("h1"),
            "{told}"
        );
        // What the administrator says counts instead.
        reserving.spec.reserved = Some(Claim::default());
        state.host_applied(&reserving);
        let fits = state.why(&key, now(1)).verdict;
        assert_eq!(fits, Verdict::Fits("h1".into()));
    }
}
