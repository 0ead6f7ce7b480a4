//! The decision: which host, or why none.
//!
//! What many Servers have in common is answered once: for each of their kinds the set of
//! hosts that fit is remembered, and for the next decision only hosts that have changed
//! since are asked again. Scores are made anew each time, because Nova stretches figures
//! over the hosts that fit, so that any change may move them all.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::bits::Bits;
use super::filters::{Ask, Filter, Miss, Scope};
use super::policy::Policy;
use super::request::{Asks, Peer, Request, mix};
use super::score::Scores;
use super::snapshot::{Host, Snapshot};
use super::weighers::Figures;

/// How many kinds of Servers are remembered.
const KINDS: usize = 256;

/// Hosts that fit one kind of Servers.
struct Kind {
    fit: Bits,
    /// Up to where the journal has been read.
    seen: u64,
    used: u64,
}

/// Hosts that fit, by kind of Server.
#[derive(Default)]
struct Memory {
    kinds: HashMap<Asks, Kind>,
    decisions: u64,
}

/// A policy, and what is remembered of earlier decisions. Always for the same snapshot.
#[derive(Default)]
pub struct Placer {
    policy: std::sync::Arc<Policy>,
    memory: Memory,
    fit: Bits,
    scores: Scores,
}

/// Why no host fits: what each filter says, whatever the others say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Number of hosts looked at.
    pub hosts: usize,
    /// Filters that turned hosts away, most hosts first.
    pub refusals: Vec<Refusal>,
}

/// What one filter turned away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Name of the filter.
    pub filter: &'static str,
    /// How many hosts it turned away.
    pub hosts: usize,
    /// How many of them no other filter turned away.
    pub alone: usize,
    /// The host that comes nearest: turned away by the fewest filters, and lacking least.
    pub nearest: String,
    /// What that host lacks.
    pub miss: Miss,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hosts == 0 {
            return f.write_str(
                "no Host is registered: start `pileus agent` on a hypervisor to add one",
            );
        }
        write!(f, "0 of {} hosts fit", self.hosts)?;
        for (i, refusal) in self.refusals.iter().enumerate() {
            let separator = if i == 0 { ":" } else { ";" };
            let (filter, hosts) = (refusal.filter, refusal.hosts);
            let miss = refusal.nearest_miss();
            write!(f, "{separator} {filter} turned away {hosts} ({miss})")?;
        }
        Ok(())
    }
}

impl Refusal {
    /// What the nearest host lacks, in words.
    #[must_use]
    pub fn nearest_miss(&self) -> String {
        let nearest = &self.nearest;
        match &self.miss {
            Miss::Short { needs, has, unit } if self.hosts > 1 => {
                format!("needs {needs} {unit}, best host {nearest} has {has}")
            }
            Miss::Short { needs, has, unit } => {
                format!("needs {needs} {unit}, {nearest} has {has}")
            }
            Miss::Unfit(why) if self.hosts > 1 => format!("such as {nearest}, which {why}"),
            Miss::Unfit(why) => format!("{nearest} {why}"),
        }
    }
}

impl Placer {
    /// Decides by `policy`.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self::by(std::sync::Arc::new(policy))
    }

    /// Decides by a policy that others decide by as well.
    #[must_use]
    pub fn by(policy: std::sync::Arc<Policy>) -> Self {
        Self {
            policy,
            ..Self::default()
        }
    }

    /// The policy that it decides by.
    #[must_use]
    pub fn policy(&self) -> std::sync::Arc<Policy> {
        self.policy.clone()
    }

    /// The best host for `request`.
    ///
    /// The answer depends on the snapshot and the request alone: not on the order of
    /// hosts or filters, nor on earlier decisions. Equally good hosts are told apart by
    /// the request's seed.
    ///
    /// # Errors
    /// When no host fits; says why.
    pub fn place<'a>(
        &mut self,
        snapshot: &'a Snapshot,
        request: &Request,
    ) -> Result<&'a str, Explanation> {
        let Self {
            policy,
            memory,
            fit,
            scores,
        } = self;
        let ask = ask(snapshot, policy, request);
        memory.recall(policy, &ask, fit);
        own(policy, &ask, fit);
        let weighers = policy.weighers.iter();
        let figures: Vec<(Figures<'_>, i64)> = weighers
            .filter(|(_, multiplier)| *multiplier != 0)
            .map(|(weigher, multiplier)| (weigher.weigh(&ask), *multiplier))
            .collect();
        scores.make(fit, &figures);
        let mut best: Option<(i64, u64, usize)> = None;
        for slot in fit.iter() {
            let score = scores.of(slot);
            if best.is_some_and(|(most, _, _)| score < most) {
                continue;
            }
            let tie = mix(request.seed, snapshot.name_hash(slot));
            let better = |(most, t, s): (i64, u64, usize)| {
                let names = || Reverse(snapshot.at(slot).name()) > Reverse(snapshot.at(s).name());
                (score, tie) > (most, t) || ((score, tie) == (most, t) && names())
            };
            if best.is_none_or(better) {
                best = Some((score, tie, slot));
            }
        }
        best.map(|(_, _, slot)| snapshot.at(slot).name())
            .ok_or_else(|| explain(policy, &ask))
    }

    /// Whether any host fits `request`: what [`Self::place`] would say, without the cost of
    /// saying why not.
    pub fn fits(&mut self, snapshot: &Snapshot, request: &Request) -> bool {
        let ask = ask(snapshot, &self.policy, request);
        self.memory.recall(&self.policy, &ask, &mut self.fit);
        own(&self.policy, &ask, &mut self.fit);
        !self.fit.is_empty()
    }

    /// Bytes of what is remembered.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.kinds.values().map(|k| k.fit.bytes()).sum()
    }
}

impl Memory {
    /// Makes `fit` the hosts that pass all filters but those of a Server's own.
    fn recall(&mut self, policy: &Policy, ask: &Ask<'_>, fit: &mut Bits) {
        self.decisions += 1;
        let shared: Vec<&dyn Filter> = policy
            .filters
            .iter()
            .filter(|f| f.scope() != Scope::Request && f.applies(ask))
            .map(|f| &**f)
            .collect();
        let snapshot = ask.snapshot;
        let asks = &ask.request.asks;
        let (_, changed) = snapshot.since(self.kinds.get(asks).map_or(0, |k| k.seen));
        let (end, _) = snapshot.since(0);
        let kind = match (self.kinds.get_mut(asks), changed) {
            (Some(kind), Some(changed)) => {
                for &slot in changed {
                    let slot = slot as usize;
                    let host = snapshot.at(slot);
                    let fits = snapshot.registered().has(slot)
                        && shared.iter().all(|f| f.passes(host, ask));
                    kind.fit.set(slot, fits);
                }
                kind
            }
            (known, _) => {
                let all = fresh(&shared, ask);
                if known.is_none() && self.kinds.len() >= KINDS {
                    let oldest = self.kinds.iter().min_by_key(|(_, k)| k.used);
                    if let Some(oldest) = oldest.map(|(asks, _)| asks.clone()) {
                        self.kinds.remove(&oldest);
                    }
                }
                let kind = self.kinds.entry(asks.clone()).or_insert(Kind {
                    fit: Bits::default(),
                    seen: 0,
                    used: 0,
                });
                kind.fit = all;
                kind
            }
        };
        kind.seen = end;
        kind.used = self.decisions;
        fit.copy(&kind.fit);
    }
}

/// Keeps of `fit` what passes the filters of a Server's own.
fn own(policy: &Policy, ask: &Ask<'_>, fit: &mut Bits) {
    let filters = policy.filters.iter();
    for filter in filters.filter(|f| f.scope() == Scope::Request && f.applies(ask)) {
        fit.retain(|slot| filter.passes(ask.snapshot.at(slot), ask));
    }
}

fn explain(policy: &Policy, ask: &Ask<'_>) -> Explanation {
    // (filters that turn the host away, gap, host) of the nearest host, and the count.
    type Nearest<'a> = (usize, i64, &'a str);
    let filters: Vec<_> = policy.filters.iter().filter(|f| f.applies(ask)).collect();
    type Row<'a> = (usize, usize, Option<(Nearest<'a>, Miss)>);
    let mut table: Vec<Row<'_>> = filters.iter().map(|_| (0, 0, None)).collect();
    let mut hosts = 0;
    for host in ask.snapshot.hosts() {
        hosts += 1;
        let failed: Vec<usize> = (0..filters.len())
            .filter(|&i| !filters[i].passes(host, ask))
            .collect();
        for &i in &failed {
            let (count, alone, nearest) = &mut table[i];
            *count += 1;
            *alone += usize::from(failed.len() == 1);
            if nearest
                .as_ref()
                .is_some_and(|((least, ..), _)| failed.len() > *least)
            {
                continue;
            }
            let miss = filters[i].miss(host, ask);
            let gap = match &miss {
                Miss::Short { needs, has, .. } => needs.saturating_sub(*has),
                Miss::Unfit(_) => 0,
            };
            let rank = (failed.len(), gap, host.name());
            if nearest.as_ref().is_none_or(|(best, _)| rank < *best) {
                *nearest = Some((rank, miss));
            }
        }
    }
    let mut refusals: Vec<Refusal> = filters
        .iter()
        .zip(table)
        .filter_map(|(filter, (hosts, alone, nearest))| {
            let ((_, _, name), miss) = nearest?;
            Some(Refusal {
                filter: filter.name(),
                hosts,
                alone,
                nearest: name.to_owned(),
                miss,
            })
        })
        .collect();
    refusals.sort_by_key(|r| (Reverse(r.hosts), r.filter));
    Explanation { hosts, refusals }
}

/// The hosts that pass `filters`, from scratch. What hangs on a profile alone is asked
/// once for each profile.
fn fresh(filters: &[&dyn Filter], ask: &Ask<'_>) -> Bits {
    let snapshot = ask.snapshot;
    let mut verdicts: Vec<Option<bool>> = vec![None; snapshot.profile_span()];
    let of_profile = |host: Host<'_>| {
        let mut filters = filters.iter().filter(|f| f.scope() == Scope::Profile);
        filters.all(|f| f.passes(host, ask))
    };
    let mut fit = snapshot.registered().clone();
    fit.retain(|slot| {
        let host = snapshot.at(slot);
        let verdict = &mut verdicts[host.profile_id() as usize];
        *verdict.get_or_insert_with(|| of_profile(host))
    });
    for filter in filters.iter().filter(|f| f.scope() == Scope::Host) {
        fit.retain(|slot| filter.passes(snapshot.at(slot), ask));
    }
    fit
}

fn ask<'a>(snapshot: &'a Snapshot, policy: &'a Policy, request: &'a Request) -> Ask<'a> {
    let labels = request.asks.host_selector.iter();
    let slots = |peers: &[Peer]| {
        let uids = peers.iter().filter_map(|p| p.uid.as_deref());
        uids.filter_map(|uid| snapshot.slot_of(uid)).collect()
    };
    let set = request.spread_set.as_deref().unwrap_or_default();
    let domains = request.spread.iter().map(|spread| {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for host in snapshot.hosts() {
            if let Some(domain) = host.label(&spread.key) {
                counts.entry(domain).or_default();
            }
        }
        for (slot, n) in snapshot.members(set) {
            let domain = snapshot.at(*slot as usize).label(&spread.key);
            if let Some(count) = domain.and_then(|d| counts.get_mut(d)) {
                *count += n;
            }
        }
        let least = counts.values().min().copied().unwrap_or_default();
        (counts, least)
    });
    Ask {
        request,
        settings: &policy.settings,
        snapshot,
        labels: labels.map(|(k, v)| snapshot.pair(k, v)).collect(),
        members: request
            .group
            .as_ref()
            .map_or(&[], |g| snapshot.members(&g.id)),
        domains: domains.collect(),
        same: slots(&request.same_host),
        different: slots(&request.different_host),
    }
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
