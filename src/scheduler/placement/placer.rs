//! Chooses the host for a request, or explains why no host fits.
//!
//! For equal [`Requirements`] the set of hosts that fit is cached, and the next decision filters
//! only the hosts that have changed since. Weights are computed each time, because Nova
//! normalizes them over the hosts that fit, so that any change may affect all of them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};

use sha2::{Digest as _, Sha256};

use crate::filters::{CycleState, Domains, Filter, RejectReason, Scope};
use crate::placement::host_set::HostSet;
use crate::placement::policy::Policy;
use crate::placement::request::{Request, Requirements, ServerReference, mix};
use crate::placement::reserved::Reserved;
use crate::placement::score::{Term, scores};
use crate::placement::snapshot::Snapshot;
use crate::weighers::Weigher;

/// Number of cached results.
const MAX_CACHED: usize = 256;

/// The hosts that fit some requirements.
struct CachedFit {
    fit: HostSet,
    /// The position in the snapshot's journal up to which it is current.
    journal_position: u64,
    used: u64,
}

/// A hasher with a digest that is long enough to be unique.
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

/// The cache key of requirements: unique like the requirements, but smaller.
fn digest(requirements: &Requirements) -> u128 {
    let mut digest = Digest(Sha256::new());
    requirements.hash(&mut digest);
    let digest = digest.0.finalize();
    digest[..16].iter().fold(0, |n, b| n << 8 | u128::from(*b))
}

/// Hosts that fit, by requirements.
#[derive(Default)]
struct FitCache {
    entries: HashMap<u128, CachedFit>,
    decisions: u64,
}

/// Filters, weighs and chooses hosts by a policy. Its cache is valid for one snapshot only.
#[derive(Default)]
pub struct Placer {
    policy: std::sync::Arc<Policy>,
    cache: FitCache,
    fit: HostSet,
    work: u64,
}

/// Why no host fits: the result of each filter, independent of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Number of hosts.
    pub hosts: usize,
    /// Filters that rejected hosts; the one that rejected most comes first.
    pub rejections: Vec<Rejection>,
    /// Hosts whose reservation leaves nothing of what is required, with their figures.
    pub reserved: Reserved,
}

/// The hosts that one filter rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Name of the filter.
    pub filter: &'static str,
    /// Number of hosts that it rejected.
    pub hosts: usize,
    /// Number of hosts that no other filter rejected.
    pub exclusive: usize,
    /// The host that is nearest to fit: rejected by the fewest filters, with the least shortage.
    pub nearest: String,
    /// Why that host was rejected.
    pub reason: RejectReason,
}

/// For those who may not see Hosts: how many each filter rejected, and what the Server needs. Names
/// of hosts and what is free on them are in the fields.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hosts == 0 {
            return f.write_str(
                "no Host is registered: start `pileus-agent` on a hypervisor to add one",
            );
        }
        write!(f, "0 of {} hosts fit", self.hosts)?;
        for (i, rejection) in self.rejections.iter().enumerate() {
            let separator = if i == 0 { ":" } else { ";" };
            let (filter, hosts) = (rejection.filter, rejection.hosts);
            let reason = rejection.reason_without_names();
            write!(f, "{separator} {filter} rejected {hosts} ({reason})")?;
        }
        if self.reserved.hosts > 0 {
            let hosts = self.reserved.hosts;
            write!(
                f,
                "; {hosts} of them offer nothing of it, because they reserve all they have"
            )?;
        }
        Ok(())
    }
}

impl Rejection {
    /// Why hosts were rejected, without the name of any and without what is free on it.
    fn reason_without_names(&self) -> String {
        match &self.reason {
            RejectReason::Insufficient { needs, unit, .. } => format!("needs {needs} {unit}"),
            RejectReason::Unsuitable(why) if self.hosts > 1 => format!("such as one that {why}"),
            RejectReason::Unsuitable(why) => format!("it {why}"),
        }
    }

    /// Why the nearest host was rejected, for those who may see Hosts.
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
    /// A placer with this policy.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self::with_policy(std::sync::Arc::new(policy))
    }

    /// A placer with a policy that is shared with others.
    #[must_use]
    pub fn with_policy(policy: std::sync::Arc<Policy>) -> Self {
        Self {
            policy,
            ..Self::default()
        }
    }

    /// Its policy.
    #[must_use]
    pub fn policy(&self) -> std::sync::Arc<Policy> {
        self.policy.clone()
    }

    /// The best host for `request`.
    ///
    /// The result depends only on snapshot and request, not on the order of hosts or filters or
    /// on earlier decisions. Between hosts of equal weight the request's seed decides.
    ///
    /// # Errors
    /// If no host fits; the explanation says why.
    pub fn place<'a>(
        &mut self,
        snapshot: &'a Snapshot,
        request: &Request,
    ) -> Result<&'a str, Explanation> {
        let Self {
            policy,
            cache,
            fit,
            work,
        } = self;
        let cycle = cycle_state(snapshot, policy, request);
        *work += cache.lookup(policy, &cycle, fit);
        *work += retain_passing_request_filters(policy, &cycle, fit);
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
        if best.is_none() {
            // Each filter is asked about each host, and some why.
            *work += 2 * u64::try_from(snapshot.registered().len()).unwrap_or(u64::MAX);
        }
        best.map(|(_, _, slot)| snapshot.host_at(slot).name())
            .ok_or_else(|| explain(policy, &cycle))
    }

    /// Slots of the hosts that fit `request` if the filters named in `ignored` are not used.
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

    /// Whether the policy uses this filter.
    #[must_use]
    pub fn has_filter(&self, name: &str) -> bool {
        self.policy.filters.iter().any(|f| f.name() == name)
    }

    /// Whether any host fits `request`; cheaper than [`Self::place`], which also explains why none
    /// fits.
    pub fn fits(&mut self, snapshot: &Snapshot, request: &Request) -> bool {
        let cycle = cycle_state(snapshot, &self.policy, request);
        self.work += self.cache.lookup(&self.policy, &cycle, &mut self.fit);
        self.work += retain_passing_request_filters(&self.policy, &cycle, &mut self.fit);
        !self.fit.is_empty()
    }

    /// How many hosts filters were asked about one by one so far: what decisions cost, whatever
    /// makes them expensive. A decision on requirements that are cached costs next to nothing.
    #[must_use]
    pub fn work(&self) -> u64 {
        self.work
    }
}

impl FitCache {
    /// Sets `fit` to the hosts that pass all filters except those that depend on the single
    /// request; returns about how many hosts they were asked about.
    fn lookup(&mut self, policy: &Policy, cycle: &CycleState<'_>, fit: &mut HostSet) -> u64 {
        self.decisions += 1;
        let asked;
        let shared: Vec<&dyn Filter> = policy
            .filters
            .iter()
            .filter(|f| !is_per_request(f.scope()) && f.applies(cycle))
            .map(|f| &**f)
            .collect();
        let snapshot = cycle.snapshot;
        let key = digest(&cycle.request.requirements);
        let (_, changed) =
            snapshot.changes_since(self.entries.get(&key).map_or(0, |k| k.journal_position));
        let (end, _) = snapshot.changes_since(0);
        let cached = match (self.entries.get_mut(&key), changed) {
            (Some(cached), Some(changed)) => {
                asked = changed.len();
                for &slot in changed {
                    let slot = slot as usize;
                    let host = snapshot.host_at(slot);
                    let fits = snapshot.registered().contains(slot)
                        && shared.iter().all(|f| f.passes(host, cycle));
                    cached.fit.set(slot, fits);
                }
                cached
            }
            (known, _) => {
                let mut all = snapshot.registered().clone();
                asked = all.len();
                retain_passing(&mut all, &shared, cycle);
                if known.is_none() && self.entries.len() >= MAX_CACHED {
                    let oldest = self.entries.iter().min_by_key(|(_, k)| k.used);
                    if let Some(oldest) = oldest.map(|(key, _)| *key) {
                        self.entries.remove(&oldest);
                    }
                }
                let cached = self.entries.entry(key).or_insert(CachedFit {
                    fit: HostSet::default(),
                    journal_position: 0,
                    used: 0,
                });
                cached.fit = all;
                cached
            }
        };
        cached.journal_position = end;
        cached.used = self.decisions;
        fit.copy_from(&cached.fit);
        u64::try_from(asked).unwrap_or(u64::MAX)
    }
}

/// The weights of a weigher, and the multipliers that aggregates set for their hosts; Nova's
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

/// Whether a filter depends on the single request.
fn is_per_request(scope: Scope) -> bool {
    matches!(scope, Scope::Request | Scope::RequestProfile)
}

/// Whether a filter needs nothing of a host but its profile.
fn is_per_profile(scope: Scope) -> bool {
    matches!(scope, Scope::Profile | Scope::RequestProfile)
}

/// Keeps in `fit` the hosts that pass the filters that depend on the single request; returns how many
/// hosts those were asked about that are asked about each.
fn retain_passing_request_filters(
    policy: &Policy,
    cycle: &CycleState<'_>,
    fit: &mut HostSet,
) -> u64 {
    let filters = policy.filters.iter().map(|f| &**f);
    let filters = filters.filter(|f| is_per_request(f.scope()) && f.applies(cycle));
    let filters: Vec<_> = filters.collect();
    let each = filters.iter().any(|f| !is_per_profile(f.scope()));
    let asked = if each { fit.len() } else { 0 };
    retain_passing(fit, &filters, cycle);
    u64::try_from(asked).unwrap_or(u64::MAX)
}

/// Keeps in `fit` the hosts that pass `filters`. Filters that need only the profile run once for
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

/// The hosts that a filter has rejected so far.
#[derive(Default)]
struct Tally<'a> {
    hosts: usize,
    exclusive: usize,
    /// The nearest host: number of filters that reject it, shortage, name, and the reason.
    nearest: Option<((usize, i64, &'a str), RejectReason)>,
}

fn explain(policy: &Policy, cycle: &CycleState<'_>) -> Explanation {
    let filters: Vec<_> = policy.filters.iter().filter(|f| f.applies(cycle)).collect();
    let mut table: Vec<Tally<'_>> = filters.iter().map(|_| Tally::default()).collect();
    // Filters that need only the profile run once for each profile.
    let is_per_profile = |i: &usize| is_per_profile(filters[*i].scope());
    let mut profiles: Vec<Option<Vec<usize>>> = vec![None; cycle.snapshot.profile_id_bound()];
    let mut failed = Vec::new();
    let mut hosts = 0;
    for host in cycle.snapshot.hosts() {
        hosts += 1;
        let fails = |i: &usize| !filters[*i].passes(host, cycle);
        let of_profile = profiles[host.profile_id() as usize].get_or_insert_with(|| {
            let selected = (0..filters.len()).filter(is_per_profile);
            selected.filter(fails).collect()
        });
        failed.clone_from(of_profile);
        let selected = (0..filters.len()).filter(|i| !is_per_profile(i));
        failed.extend(selected.filter(fails));
        for &i in &failed {
            let tally = &mut table[i];
            tally.hosts += 1;
            tally.exclusive += usize::from(failed.len() == 1);
            // A shortage is never below 0, so a host that is not nearer with 0 never is.
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
    Explanation {
        hosts,
        rejections,
        reserved: Reserved::find(cycle.snapshot, cycle.request.requirements.resources.claim),
    }
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
