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

use crate::filters::{CycleState, Domains, Filter, RejectReason, Scope};
use crate::placement::host_set::HostSet;
use crate::placement::policy::Policy;
use crate::placement::request::{Request, Requirements, ServerReference, mix};
use crate::placement::score::{Term, scores};
use crate::placement::snapshot::Snapshot;
use crate::weighers::Weigher;

/// How many kinds of Servers are remembered.
const MAX_CACHED: usize = 256;

/// Hosts that fit one kind of Servers.
struct CachedFit {
    fit: HostSet,
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
fn digest(requirements: &Requirements) -> u128 {
    let mut digest = Digest(Sha256::new());
    requirements.hash(&mut digest);
    let digest = digest.0.finalize();
    digest[..16].iter().fold(0, |n, b| n << 8 | u128::from(*b))
}

/// Hosts that fit, by kind of Server.
#[derive(Default)]
struct FitCache {
    entries: HashMap<u128, CachedFit>,
    decisions: u64,
}

/// A policy, and what is remembered of earlier decisions. Always for the same snapshot.
#[derive(Default)]
pub struct Placer {
    policy: std::sync::Arc<Policy>,
    cache: FitCache,
    fit: HostSet,
}

/// Why no host fits: what each filter says, whatever the others say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Number of hosts looked at.
    pub hosts: usize,
    /// Filters that turned hosts away, most hosts first.
    pub rejections: Vec<Rejection>,
}

/// What one filter turned away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Name of the filter.
    pub filter: &'static str,
    /// How many hosts it turned away.
    pub hosts: usize,
    /// How many of them no other filter turned away.
    pub exclusive: usize,
    /// The host that comes nearest: turned away by the fewest filters, and lacking least.
    pub nearest: String,
    /// What that host lacks.
    pub reason: RejectReason,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hosts == 0 {
            return f.write_str(
                "no Host is registered: start `pileus agent` on a hypervisor to add one",
            );
        }
        write!(f, "0 of {} hosts fit", self.hosts)?;
        for (i, rejection) in self.rejections.iter().enumerate() {
            let separator = if i == 0 { ":" } else { ";" };
            let (filter, hosts) = (rejection.filter, rejection.hosts);
            let reason = rejection.nearest_reason();
            write!(f, "{separator} {filter} turned away {hosts} ({reason})")?;
        }
        Ok(())
    }
}

impl Rejection {
    /// What the nearest host lacks, in words.
    #[must_use]
    pub fn nearest_reason(&self) -> String {
        let nearest = &self.nearest;
        match &self.reason {
            RejectReason::Insufficient { needs, has, unit } if self.hosts > 1 => {
                format!("needs {needs} {unit}, best host {nearest} has {has}")
            }
            RejectReason::Insufficient { needs, has, unit } => {
                format!("needs {needs} {unit}, {nearest} has {has}")
            }
            RejectReason::Unsuitable(why) if self.hosts > 1 => {
                format!("such as {nearest}, which {why}")
            }
            RejectReason::Unsuitable(why) => format!("{nearest} {why}"),
        }
    }
}

impl Placer {
    /// Decides by `policy`.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self::with_policy(std::sync::Arc::new(policy))
    }

    /// Decides by a policy that others decide by as well.
    #[must_use]
    pub fn with_policy(policy: std::sync::Arc<Policy>) -> Self {
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
        let Self { policy, cache, fit } = self;
        let cycle = cycle_state(snapshot, policy, request);
        cache.lookup(policy, &cycle, fit);
        retain_passing_request_filters(policy, &cycle, fit);
        let weighers = policy.weighers.iter();
        let terms: Vec<Term<'_>> = weighers.map(|(w, m)| term(&**w, *m, &cycle)).collect();
        let mut best: Option<(i64, u64, usize)> = None;
        scores(fit, &terms, |slot, score| {
            if best.is_some_and(|(most, _, _)| score < most) {
                return;
            }
            let tie = mix(request.seed, snapshot.name_hash(slot));
            let better = |(most, t, s): (i64, u64, usize)| {
                let names =
                    || Reverse(snapshot.host_at(slot).name()) > Reverse(snapshot.host_at(s).name());
                (score, tie) > (most, t) || ((score, tie) == (most, t) && names())
            };
            if best.is_none_or(better) {
                best = Some((score, tie, slot));
            }
        });
        best.map(|(_, _, slot)| snapshot.host_at(slot).name())
            .ok_or_else(|| explain(policy, &cycle))
    }

    /// Hosts that would fit `request` but for what the filters named `room` ask.
    #[must_use]
    pub fn fits_ignoring(
        &self,
        snapshot: &Snapshot,
        request: &Request,
        ignored: &[&str],
    ) -> Vec<usize> {
        let cycle = cycle_state(snapshot, &self.policy, request);
        let filters = self.policy.filters.iter().map(|f| &**f);
        let others = filters.filter(|f| !ignored.contains(&f.name()) && f.applies(&cycle));
        let mut fit = snapshot.registered().clone();
        retain_passing(&mut fit, &others.collect::<Vec<_>>(), &cycle);
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
        let cycle = cycle_state(snapshot, &self.policy, request);
        self.cache.lookup(&self.policy, &cycle, &mut self.fit);
        retain_passing_request_filters(&self.policy, &cycle, &mut self.fit);
        !self.fit.is_empty()
    }
}

impl FitCache {
    /// Makes `fit` the hosts that pass all filters but those of a Server's own.
    fn lookup(&mut self, policy: &Policy, cycle: &CycleState<'_>, fit: &mut HostSet) {
        self.decisions += 1;
        let shared: Vec<&dyn Filter> = policy
            .filters
            .iter()
            .filter(|f| !is_per_request(f.scope()) && f.applies(cycle))
            .map(|f| &**f)
            .collect();
        let snapshot = cycle.snapshot;
        let kind = digest(&cycle.request.requirements);
        let (_, changed) = snapshot.changes_since(self.entries.get(&kind).map_or(0, |k| k.seen));
        let (end, _) = snapshot.changes_since(0);
        let kind = match (self.entries.get_mut(&kind), changed) {
            (Some(kind), Some(changed)) => {
                for &slot in changed {
                    let slot = slot as usize;
                    let host = snapshot.host_at(slot);
                    let fits = snapshot.registered().contains(slot)
                        && shared.iter().all(|f| f.passes(host, cycle));
                    kind.fit.set(slot, fits);
                }
                kind
            }
            (known, _) => {
                let mut all = snapshot.registered().clone();
                retain_passing(&mut all, &shared, cycle);
                if known.is_none() && self.entries.len() >= MAX_CACHED {
                    let oldest = self.entries.iter().min_by_key(|(_, k)| k.used);
                    if let Some(oldest) = oldest.map(|(kind, _)| *kind) {
                        self.entries.remove(&oldest);
                    }
                }
                let kind = self.entries.entry(kind).or_insert(CachedFit {
                    fit: HostSet::default(),
                    seen: 0,
                    used: 0,
                });
                kind.fit = all;
                kind
            }
        };
        kind.seen = end;
        kind.used = self.decisions;
        fit.copy_from(&kind.fit);
    }
}

/// What a weigher says, with the multipliers of hosts whose aggregates give one, as Nova's
/// `get_weight_multiplier`.
fn term<'a>(weigher: &dyn Weigher, multiplier: i64, cycle: &CycleState<'a>) -> Term<'a> {
    let snapshot = cycle.snapshot;
    let key = weigher.aggregate_key();
    let overrides = snapshot.with_multipliers().iter().filter_map(|slot| {
        let multiplier = snapshot.host_at(slot).profile().multipliers.get(key?)?;
        Some((u32::try_from(slot).unwrap_or(u32::MAX), *multiplier))
    });
    Term {
        weights: weigher.weigh(cycle),
        multiplier,
        overrides: overrides.collect(),
    }
}

/// Whether a filter looks at what is a Server's own.
fn is_per_request(scope: Scope) -> bool {
    matches!(scope, Scope::Request | Scope::RequestProfile)
}

/// Whether a filter looks at nothing of a host but its profile.
fn is_per_profile(scope: Scope) -> bool {
    matches!(scope, Scope::Profile | Scope::RequestProfile)
}

/// Keeps of `fit` what passes the filters of a Server's own.
fn retain_passing_request_filters(policy: &Policy, cycle: &CycleState<'_>, fit: &mut HostSet) {
    let filters = policy.filters.iter().map(|f| &**f);
    let filters = filters.filter(|f| is_per_request(f.scope()) && f.applies(cycle));
    retain_passing(fit, &filters.collect::<Vec<_>>(), cycle);
}

/// Keeps of `fit` what passes `filters`. What hangs on a host's profile is asked once for
/// each profile.
fn retain_passing(fit: &mut HostSet, filters: &[&dyn Filter], cycle: &CycleState<'_>) {
    let (of_profile, of_host): (Vec<&dyn Filter>, Vec<_>) =
        filters.iter().partition(|f| is_per_profile(f.scope()));
    if !of_profile.is_empty() {
        let mut verdicts: Vec<Option<bool>> = vec![None; cycle.snapshot.profile_id_bound()];
        fit.retain(|slot| {
            let host = cycle.snapshot.host_at(slot);
            let verdict = &mut verdicts[host.profile_id() as usize];
            *verdict.get_or_insert_with(|| of_profile.iter().all(|f| f.passes(host, cycle)))
        });
    }
    for filter in of_host {
        fit.retain(|slot| filter.passes(cycle.snapshot.host_at(slot), cycle));
    }
}

/// What a filter has turned away so far.
#[derive(Default)]
struct Tally<'a> {
    hosts: usize,
    exclusive: usize,
    /// How many filters turn the nearest host away, how much it lacks, and its name.
    nearest: Option<((usize, i64, &'a str), RejectReason)>,
}

fn explain(policy: &Policy, cycle: &CycleState<'_>) -> Explanation {
    let filters: Vec<_> = policy.filters.iter().filter(|f| f.applies(cycle)).collect();
    let mut table: Vec<Tally<'_>> = filters.iter().map(|_| Tally::default()).collect();
    // What hangs on a profile alone is asked once for each profile.
    let is_per_profile = |i: &usize| is_per_profile(filters[*i].scope());
    let mut profiles: Vec<Option<Vec<usize>>> = vec![None; cycle.snapshot.profile_id_bound()];
    let mut failed = Vec::new();
    let mut hosts = 0;
    for host in cycle.snapshot.hosts() {
        hosts += 1;
        let fails = |i: &usize| !filters[*i].passes(host, cycle);
        let of_profile = profiles[host.profile_id() as usize].get_or_insert_with(|| {
            let asked = (0..filters.len()).filter(is_per_profile);
            asked.filter(fails).collect()
        });
        failed.clone_from(of_profile);
        let asked = (0..filters.len()).filter(|i| !is_per_profile(i));
        failed.extend(asked.filter(fails));
        for &i in &failed {
            let tally = &mut table[i];
            tally.hosts += 1;
            tally.exclusive += usize::from(failed.len() == 1);
            // No gap is below 0: what does not come before then never does.
            let least = (failed.len(), 0, host.name());
            if tally
                .nearest
                .as_ref()
                .is_some_and(|(best, _)| least > *best)
            {
                continue;
            }
            let reason = filters[i].explain(host, cycle);
            let gap = match &reason {
                RejectReason::Insufficient { needs, has, .. } => needs.saturating_sub(*has).max(0),
                RejectReason::Unsuitable(_) => 0,
            };
            let rank = (failed.len(), gap, host.name());
            if tally.nearest.as_ref().is_none_or(|(best, _)| rank < *best) {
                tally.nearest = Some((rank, reason));
            }
        }
    }
    let mut rejections: Vec<Rejection> = filters
        .iter()
        .zip(table)
        .filter_map(|(filter, tally)| {
            let ((_, _, name), reason) = tally.nearest?;
            Some(Rejection {
                filter: filter.name(),
                hosts: tally.hosts,
                exclusive: tally.exclusive,
                nearest: name.to_owned(),
                reason,
            })
        })
        .collect();
    rejections.sort_by_key(|r| (Reverse(r.hosts), r.filter));
    Explanation { hosts, rejections }
}

fn cycle_state<'a>(
    snapshot: &'a Snapshot,
    policy: &'a Policy,
    request: &'a Request,
) -> CycleState<'a> {
    let labels = request.requirements.host_selector.iter();
    let slots = |peers: &[ServerReference]| {
        let uids = peers.iter().filter_map(|p| p.uid.as_deref());
        uids.filter_map(|uid| snapshot.slot_of(uid)).collect()
    };
    let set = request.spread_set.as_deref().unwrap_or_default();
    let domains = request.spread.iter().map(|spread| {
        let labels = snapshot.labels();
        let mut counts = vec![None; labels.id_bound()];
        labels
            .of_key(&spread.key)
            .for_each(|id| counts[id] = Some(0));
        for (slot, n) in snapshot.members(set) {
            for id in snapshot.host_at(*slot as usize).label_ids() {
                if let Some(count) = &mut counts[*id as usize] {
                    *count += n;
                }
            }
        }
        let least = counts.iter().flatten().min().copied().unwrap_or_default();
        Domains { counts, least }
    });
    CycleState {
        request,
        settings: &policy.settings,
        snapshot,
        labels: labels.map(|(k, v)| snapshot.label_id(k, v)).collect(),
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
#[path = "placer_tests.rs"]
mod tests;
