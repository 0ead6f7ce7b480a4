//! The decision: which host, or why none.
//!
//! What many Servers have in common is answered once: for each of their kinds the set of
//! hosts that fit is remembered, and for the next decision only hosts that have changed
//! since are asked again. Scores are made anew each time, because Nova stretches figures
//! over the hosts that fit, so that any change may move them all.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};

use sha2::{Digest as _, Sha256};

use super::bits::Bits;
use super::filters::{Ask, Domains, Filter, Miss, Scope};
use super::policy::Policy;
use super::request::{Asks, Peer, Request, mix};
use super::score::{Term, scores};
use super::snapshot::Snapshot;
use super::weighers::Weigher;
use pileus_api::common::Claim;

/// How many kinds of Servers are remembered.
const KINDS: usize = 256;

/// Hosts that fit one kind of Servers.
struct Kind {
    fit: Bits,
    /// Up to where the journal has been read.
    seen: u64,
    used: u64,
}

/// Writes into a digest whatever is hashed.
struct Digest(Sha256);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        digest[..8].iter().fold(0, |n, b| n << 8 | u64::from(*b))
    }
}

/// The number of a kind of Servers; no two kinds have the same, and it is smaller than
/// what it stands for.
fn digest(asks: &Asks) -> u128 {
    let mut digest = Digest(Sha256::new());
    asks.hash(&mut digest);
    let digest = digest.0.finalize();
    digest[..16].iter().fold(0, |n, b| n << 8 | u128::from(*b))
}

/// Hosts that fit, by kind of Server.
#[derive(Default)]
struct Memory {
    kinds: HashMap<u128, Kind>,
    decisions: u64,
}

/// A policy, and what is remembered of earlier decisions. Always for the same snapshot.
#[derive(Default)]
pub struct Placer {
    policy: std::sync::Arc<Policy>,
    memory: Memory,
    fit: Bits,
}

/// Why no host fits: what each filter says, whatever the others say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Number of hosts looked at.
    pub hosts: usize,
    /// Filters that turned hosts away, most hosts first.
    pub refusals: Vec<Refusal>,
    /// Hosts whose reservation leaves nothing of what is asked for, with their figures.
    pub reserved: Reserved,
}

/// Hosts that offer nothing because of what they reserve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// How many there are.
    pub hosts: usize,
    /// The first of them by name, such as `host1 reserves 14101 of 10329 MiB memory`.
    pub named: Vec<String>,
}

/// How many hosts that reserve everything are named.
const NAMED_RESERVED: usize = 3;

impl Reserved {
    /// Looks at the hosts for a Server that asks for `claim`.
    fn find(snapshot: &Snapshot, claim: Claim) -> Self {
        let asked = [claim.vcpus, claim.memory_mib, claim.disk_gib];
        let mut all: Vec<_> = snapshot
            .hosts()
            .filter_map(|host| {
                let parts = host.exhausted().into_iter();
                let parts: Vec<_> = parts
                    .filter(|part| asked[part.part] > 0)
                    .map(|part| part.to_string())
                    .collect();
                (!parts.is_empty()).then(|| (host.name(), parts.join(" and ")))
            })
            .collect();
        all.sort_unstable();
        let hosts = all.len();
        all.truncate(NAMED_RESERVED);
        let named = all.into_iter();
        Self {
            hosts,
            named: named
                .map(|(host, figures)| format!("{host} reserves {figures}"))
                .collect(),
        }
    }
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.named.join(", "))?;
        match self.hosts.saturating_sub(self.named.len()) {
            0 => Ok(()),
            more => write!(f, ", and {more} more such Hosts"),
        }
    }
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
        if self.reserved.hosts > 0 {
            write!(f, "; {}", self.reserved)?;
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
        } = self;
        let ask = ask(snapshot, policy, request);
        memory.recall(policy, &ask, fit);
        own(policy, &ask, fit);
        let weighers = policy.weighers.iter();
        let terms: Vec<Term<'_>> = weighers.map(|(w, m)| term(&**w, *m, &ask)).collect();
        let mut best: Option<(i64, u64, usize)> = None;
        scores(fit, &terms, |slot, score| {
            if best.is_some_and(|(most, _, _)| score < most) {
                return;
            }
            let tie = mix(request.seed, snapshot.name_hash(slot));
            let better = |(most, t, s): (i64, u64, usize)| {
                let names = || Reverse(snapshot.at(slot).name()) > Reverse(snapshot.at(s).name());
                (score, tie) > (most, t) || ((score, tie) == (most, t) && names())
            };
            if best.is_none_or(better) {
                best = Some((score, tie, slot));
            }
        });
        best.map(|(_, _, slot)| snapshot.at(slot).name())
            .ok_or_else(|| explain(policy, &ask))
    }

    /// Hosts that would fit `request` but for what the filters named `room` ask.
    #[must_use]
    pub fn fits_but_for(
        &self,
        snapshot: &Snapshot,
        request: &Request,
        room: &[&str],
    ) -> Vec<usize> {
        let ask = ask(snapshot, &self.policy, request);
        let filters = self.policy.filters.iter().map(|f| &**f);
        let others = filters.filter(|f| !room.contains(&f.name()) && f.applies(&ask));
        let mut fit = snapshot.registered().clone();
        keep(&mut fit, &others.collect::<Vec<_>>(), &ask);
        fit.iter().collect()
    }

    /// Whether the policy has this filter.
    #[must_use]
    pub fn has_filter(&self, name: &str) -> bool {
        self.policy.filters.iter().any(|f| f.name() == name)
    }

    /// Whether any host fits `request`: what [`Self::place`] would say, without the cost of
    /// saying why not.
    pub fn fits(&mut self, snapshot: &Snapshot, request: &Request) -> bool {
        let ask = ask(snapshot, &self.policy, request);
        self.memory.recall(&self.policy, &ask, &mut self.fit);
        own(&self.policy, &ask, &mut self.fit);
        !self.fit.is_empty()
    }
}

impl Memory {
    /// Makes `fit` the hosts that pass all filters but those of a Server's own.
    fn recall(&mut self, policy: &Policy, ask: &Ask<'_>, fit: &mut Bits) {
        self.decisions += 1;
        let shared: Vec<&dyn Filter> = policy
            .filters
            .iter()
            .filter(|f| !is_own(f.scope()) && f.applies(ask))
            .map(|f| &**f)
            .collect();
        let snapshot = ask.snapshot;
        let kind = digest(&ask.request.asks);
        let (_, changed) = snapshot.since(self.kinds.get(&kind).map_or(0, |k| k.seen));
        let (end, _) = snapshot.since(0);
        let kind = match (self.kinds.get_mut(&kind), changed) {
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
                let mut all = snapshot.registered().clone();
                keep(&mut all, &shared, ask);
                if known.is_none() && self.kinds.len() >= KINDS {
                    let oldest = self.kinds.iter().min_by_key(|(_, k)| k.used);
                    if let Some(oldest) = oldest.map(|(kind, _)| *kind) {
                        self.kinds.remove(&oldest);
                    }
                }
                let kind = self.kinds.entry(kind).or_insert(Kind {
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

/// What a weigher says, with the multipliers of hosts whose aggregates give one, as Nova's
/// `get_weight_multiplier`.
fn term<'a>(weigher: &dyn Weigher, multiplier: i64, ask: &Ask<'a>) -> Term<'a> {
    let snapshot = ask.snapshot;
    let key = weigher.aggregate_key();
    let own = snapshot.multiplying().iter().filter_map(|slot| {
        let own = snapshot.at(slot).profile().multipliers.get(key?)?;
        Some((u32::try_from(slot).unwrap_or(u32::MAX), *own))
    });
    Term {
        figures: weigher.weigh(ask),
        multiplier,
        own: own.collect(),
    }
}

/// Whether a filter looks at what is a Server's own.
fn is_own(scope: Scope) -> bool {
    matches!(scope, Scope::Request | Scope::RequestProfile)
}

/// Whether a filter looks at nothing of a host but its profile.
fn by_profile(scope: Scope) -> bool {
    matches!(scope, Scope::Profile | Scope::RequestProfile)
}

/// Keeps of `fit` what passes the filters of a Server's own.
fn own(policy: &Policy, ask: &Ask<'_>, fit: &mut Bits) {
    let filters = policy.filters.iter().map(|f| &**f);
    let filters = filters.filter(|f| is_own(f.scope()) && f.applies(ask));
    keep(fit, &filters.collect::<Vec<_>>(), ask);
}

/// Keeps of `fit` what passes `filters`. What hangs on a host's profile is asked once for
/// each profile.
fn keep(fit: &mut Bits, filters: &[&dyn Filter], ask: &Ask<'_>) {
    let (of_profile, of_host): (Vec<&dyn Filter>, Vec<_>) =
        filters.iter().partition(|f| by_profile(f.scope()));
    if !of_profile.is_empty() {
        let mut verdicts: Vec<Option<bool>> = vec![None; ask.snapshot.profile_span()];
        fit.retain(|slot| {
            let host = ask.snapshot.at(slot);
            let verdict = &mut verdicts[host.profile_id() as usize];
            *verdict.get_or_insert_with(|| of_profile.iter().all(|f| f.passes(host, ask)))
        });
    }
    for filter in of_host {
        fit.retain(|slot| filter.passes(ask.snapshot.at(slot), ask));
    }
}

/// What a filter has turned away so far.
#[derive(Default)]
struct Row<'a> {
    hosts: usize,
    alone: usize,
    /// How many filters turn the nearest host away, how much it lacks, and its name.
    nearest: Option<((usize, i64, &'a str), Miss)>,
}

fn explain(policy: &Policy, ask: &Ask<'_>) -> Explanation {
    let filters: Vec<_> = policy.filters.iter().filter(|f| f.applies(ask)).collect();
    let mut table: Vec<Row<'_>> = filters.iter().map(|_| Row::default()).collect();
    // What hangs on a profile alone is asked once for each profile.
    let by_profile = |i: &usize| by_profile(filters[*i].scope());
    let mut profiles: Vec<Option<Vec<usize>>> = vec![None; ask.snapshot.profile_span()];
    let mut failed = Vec::new();
    let mut hosts = 0;
    for host in ask.snapshot.hosts() {
        hosts += 1;
        let fails = |i: &usize| !filters[*i].passes(host, ask);
        let of_profile = profiles[host.profile_id() as usize].get_or_insert_with(|| {
            let asked = (0..filters.len()).filter(by_profile);
            asked.filter(fails).collect()
        });
        failed.clone_from(of_profile);
        let asked = (0..filters.len()).filter(|i| !by_profile(i));
        failed.extend(asked.filter(fails));
        for &i in &failed {
            let row = &mut table[i];
            row.hosts += 1;
            row.alone += usize::from(failed.len() == 1);
            // No gap is below 0: what does not come before then never does.
            let least = (failed.len(), 0, host.name());
            if row.nearest.as_ref().is_some_and(|(best, _)| least > *best) {
                continue;
            }
            let miss = filters[i].miss(host, ask);
            let gap = match &miss {
                Miss::Short { needs, has, .. } => needs.saturating_sub(*has).max(0),
                Miss::Unfit(_) => 0,
            };
            let rank = (failed.len(), gap, host.name());
            if row.nearest.as_ref().is_none_or(|(best, _)| rank < *best) {
                row.nearest = Some((rank, miss));
            }
        }
    }
    let mut refusals: Vec<Refusal> = filters
        .iter()
        .zip(table)
        .filter_map(|(filter, row)| {
            let ((_, _, name), miss) = row.nearest?;
            Some(Refusal {
                filter: filter.name(),
                hosts: row.hosts,
                alone: row.alone,
                nearest: name.to_owned(),
                miss,
            })
        })
        .collect();
    refusals.sort_by_key(|r| (Reverse(r.hosts), r.filter));
    Explanation {
        hosts,
        refusals,
        reserved: Reserved::find(ask.snapshot, ask.request.asks.shape.claim),
    }
}

fn ask<'a>(snapshot: &'a Snapshot, policy: &'a Policy, request: &'a Request) -> Ask<'a> {
    let labels = request.asks.host_selector.iter();
    let slots = |peers: &[Peer]| {
        let uids = peers.iter().filter_map(|p| p.uid.as_deref());
        uids.filter_map(|uid| snapshot.slot_of(uid)).collect()
    };
    let set = request.spread_set.as_deref().unwrap_or_default();
    let domains = request.spread.iter().map(|spread| {
        let labels = snapshot.labels();
        let mut counts = vec![None; labels.span()];
        labels
            .of_key(&spread.key)
            .for_each(|id| counts[id] = Some(0));
        for (slot, n) in snapshot.members(set) {
            for id in snapshot.at(*slot as usize).label_ids() {
                if let Some(count) = &mut counts[*id as usize] {
                    *count += n;
                }
            }
        }
        let least = counts.iter().flatten().min().copied().unwrap_or_default();
        Domains { counts, least }
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
