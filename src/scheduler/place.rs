//! The decision: which host, or why none.

use std::cmp::Reverse;
use std::fmt;

use super::filters::{Filter, Miss};
use super::request::{Request, hash, mix};
use super::snapshot::{HostState, Snapshot};
use super::weighers::Weigher;

/// Filters and weighers, with multipliers in thousandths.
pub struct Policy {
    filters: Vec<Box<dyn Filter>>,
    weighers: Vec<(Box<dyn Weigher>, i64)>,
}

impl Default for Policy {
    /// All filters and weighers.
    fn default() -> Self {
        Self {
            filters: super::filters::all(),
            weighers: super::weighers::all(),
        }
    }
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
            write!(
                f,
                "{separator} {} turned away {}",
                refusal.filter, refusal.hosts
            )?;
            let nearest = &refusal.nearest;
            match &refusal.miss {
                Miss::Short { needs, has, unit } if refusal.hosts > 1 => {
                    write!(f, " (needs {needs} {unit}, best host {nearest} has {has})")?;
                }
                Miss::Short { needs, has, unit } => {
                    write!(f, " (needs {needs} {unit}, {nearest} has {has})")?;
                }
                Miss::Unfit(why) if refusal.hosts > 1 => {
                    write!(f, " (such as {nearest}, which {why})")?;
                }
                Miss::Unfit(why) => write!(f, " ({nearest} {why})")?,
            }
        }
        Ok(())
    }
}

impl Policy {
    /// The best host for `request`.
    ///
    /// The answer depends on the snapshot and the request alone: not on the order of
    /// hosts or filters. Equally good hosts are told apart by the request's seed.
    ///
    /// # Errors
    /// When no host fits; says why.
    pub fn place<'a>(
        &self,
        snapshot: &'a Snapshot,
        request: &Request,
    ) -> Result<&'a str, Explanation> {
        let fit: Vec<&HostState> = snapshot
            .hosts()
            .filter(|host| self.filters.iter().all(|f| f.passes(host, request)))
            .collect();
        let mut scores = vec![0_i128; fit.len()];
        for (weigher, multiplier) in &self.weighers {
            let figures: Vec<_> = fit.iter().map(|h| weigher.weigh(h, request)).collect();
            add_scaled(&mut scores, &figures, *multiplier);
        }
        fit.iter()
            .zip(scores)
            .max_by_key(|(host, score)| {
                let name = host.facts.name.as_str();
                (*score, mix(request.seed, hash(name)), Reverse(name))
            })
            .map(|(host, _)| host.facts.name.as_str())
            .ok_or_else(|| self.explain(snapshot, request))
    }

    fn explain(&self, snapshot: &Snapshot, request: &Request) -> Explanation {
        // (filters that turn the host away, gap, host) of the nearest host, and the count.
        type Nearest<'a> = (usize, i64, &'a str);
        let mut table: Vec<(usize, Option<(Nearest<'_>, Miss)>)> =
            self.filters.iter().map(|_| (0, None)).collect();
        let mut hosts = 0;
        for host in snapshot.hosts() {
            hosts += 1;
            let failed: Vec<usize> = (0..self.filters.len())
                .filter(|&i| !self.filters[i].passes(host, request))
                .collect();
            for &i in &failed {
                let miss = self.filters[i].miss(host, request);
                let gap = match &miss {
                    Miss::Short { needs, has, .. } => needs.saturating_sub(*has),
                    Miss::Unfit(_) => 0,
                };
                let rank = (failed.len(), gap, host.facts.name.as_str());
                let (count, nearest) = &mut table[i];
                *count += 1;
                if nearest.as_ref().is_none_or(|(best, _)| rank < *best) {
                    *nearest = Some((rank, miss));
                }
            }
        }
        let mut refusals: Vec<Refusal> = self
            .filters
            .iter()
            .zip(table)
            .filter_map(|(filter, (hosts, nearest))| {
                let ((_, _, name), miss) = nearest?;
                Some(Refusal {
                    filter: filter.name(),
                    hosts,
                    nearest: name.to_owned(),
                    miss,
                })
            })
            .collect();
        refusals.sort_by_key(|r| (Reverse(r.hosts), r.filter));
        Explanation { hosts, refusals }
    }
}

/// Adds `figures`, stretched to 0 ..= 1,000,000 and multiplied, to `scores`.
fn add_scaled(scores: &mut [i128], figures: &[i64], multiplier: i64) {
    let (Some(&low), Some(&high)) = (figures.iter().min(), figures.iter().max()) else {
        return;
    };
    let span = i128::from(high) - i128::from(low);
    if span == 0 {
        return;
    }
    for (score, figure) in scores.iter_mut().zip(figures) {
        let above = i128::from(*figure) - i128::from(low);
        *score += above * 1_000_000 / span * i128::from(multiplier);
    }
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
