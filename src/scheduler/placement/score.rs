//! The weight of each host that fits: the sum of the weighers' normalized weights.
//!
//! Rows of 64 slots are processed in loops without branches, which the compiler turns into
//! vector instructions; hosts that do not fit are masked out. A first pass finds the minimum and
//! maximum of each weigher, a second one adds the weights row by row.

use crate::placement::host_set::{HostSet, ROW};
use crate::weighers::RawWeights;

/// Precision of normalized weights: they range from 0 to multiplier × 2^29.
const FRACTION_BITS: u32 = 29;

/// For each byte of a word: all ones for each bit that is set.
static MASKS: [[i32; 8]; 256] = masks();

const fn masks() -> [[i32; 8]; 256] {
    let mut all = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                all[byte][bit] = -1;
            }
            bit += 1;
        }
        byte += 1;
    }
    all
}

/// One weigher of the sum.
pub struct Term<'a> {
    /// Its weights.
    pub weights: RawWeights<'a>,
    /// Its multiplier, in thousandths.
    pub multiplier: i64,
    /// Multipliers that aggregates set for their hosts, by slot, ascending.
    pub overrides: Vec<(u32, i64)>,
}

/// A term whose weights differ between the hosts that fit.
struct Normalized<'a> {
    weights: &'a RawWeights<'a>,
    /// The lowest weight of the hosts that fit, and the distance of the highest from it.
    low: i64,
    span: i64,
    /// The normalized weight of a difference of 1.
    factor: i64,
    overrides: &'a [(u32, i64)],
    /// Positions in sparse weights and in `overrides`.
    cursors: (usize, usize),
}

/// Calls `visit` with each slot of `fit`, ascending, and the sum of its weights.
pub fn scores(fit: &HostSet, terms: &[Term<'_>], mut visit: impl FnMut(usize, i64)) {
    let mut terms: Vec<_> = terms.iter().filter_map(|t| normalize(fit, t)).collect();
    for (row, word) in fit.words().iter().enumerate() {
        if *word == 0 {
            continue;
        }
        let mut sums = [0; ROW];
        for term in &mut terms {
            term.add(row, *word, &mut sums);
        }
        let mut left = *word;
        while left != 0 {
            let bit = left.trailing_zeros() as usize;
            left &= left - 1;
            visit(row * ROW + bit, sums[bit]);
        }
    }
}

fn normalize<'a>(fit: &HostSet, term: &'a Term<'_>) -> Option<Normalized<'a>> {
    if term.multiplier == 0 && term.overrides.is_empty() {
        return None;
    }
    let (low, high) = match &term.weights {
        RawWeights::Equal => None,
        RawWeights::Column(column) => Some(min_max(fit, column)),
        RawWeights::Hosts(hosts) => {
            let words = || fit.words().iter().enumerate();
            let with = words().any(|(row, f)| f & hosts.word(row) != 0);
            let without = words().any(|(row, f)| f & !hosts.word(row) != 0);
            (with && without).then_some((0, 1))
        }
        RawWeights::Sparse(some) => {
            let here = || some.iter().filter(|(slot, _)| fit.contains(*slot as usize));
            let others = (here().count() < fit.len()).then_some(0);
            let weights = || here().map(|(_, f)| i64::from(*f)).chain(others);
            weights().min().zip(weights().max())
        }
    }?;
    let span = high - low;
    (span > 0).then(|| Normalized {
        weights: &term.weights,
        low,
        span,
        factor: (term.multiplier << FRACTION_BITS) / span,
        overrides: &term.overrides,
        cursors: (0, 0),
    })
}

/// The lowest and the highest weight of the hosts that fit.
fn min_max(fit: &HostSet, column: &[i32]) -> (i64, i64) {
    let (mut low, mut high) = ([i32::MAX; 8], [i32::MIN; 8]);
    let rows = fit.words().iter().zip(column.as_chunks::<ROW>().0);
    for (word, row) in rows.filter(|(word, _)| **word != 0) {
        for (byte, lanes) in word.to_le_bytes().iter().zip(row.as_chunks::<8>().0) {
            let mask = &MASKS[usize::from(*byte)];
            for i in 0..8 {
                low[i] = low[i].min((lanes[i] & mask[i]) | (i32::MAX & !mask[i]));
                high[i] = high[i].max((lanes[i] & mask[i]) | (i32::MIN & !mask[i]));
            }
        }
    }
    let low = low.into_iter().min().unwrap_or_default();
    let high = high.into_iter().max().unwrap_or_default();
    (i64::from(low), i64::from(high))
}

impl Normalized<'_> {
    /// Adds the weights of one row. Sums wrap only for slots that do not fit; these are not used.
    fn add(&mut self, row: usize, word: u64, sums: &mut [i64; ROW]) {
        let before = if self.has_override(row) {
            Some(*sums)
        } else {
            None
        };
        match self.weights {
            RawWeights::Equal => {}
            RawWeights::Column(column) => {
                let (factor, low) = (self.factor, self.low);
                for (sum, weight) in sums.iter_mut().zip(&column[row * ROW..][..ROW]) {
                    // For a slot that fits it is not negative and has at most 32 bits.
                    let above = i64::from(*weight).wrapping_sub(low).cast_unsigned() & 0xffff_ffff;
                    *sum = sum.wrapping_add(above.cast_signed().wrapping_mul(factor));
                }
            }
            RawWeights::Hosts(hosts) => {
                let mut left = hosts.word(row) & word;
                while left != 0 {
                    sums[left.trailing_zeros() as usize] += self.factor;
                    left &= left - 1;
                }
            }
            RawWeights::Sparse(some) => {
                let others = -self.low * self.factor;
                if others != 0 {
                    for sum in &mut *sums {
                        *sum = sum.wrapping_add(others);
                    }
                }
                while let Some((slot, weight)) = some.get(self.cursors.0)
                    && *slot as usize / ROW <= row
                {
                    self.cursors.0 += 1;
                    let bit = *slot as usize % ROW;
                    if *slot as usize / ROW == row && word >> bit & 1 == 1 {
                        sums[bit] += i64::from(*weight) * self.factor;
                    }
                }
            }
        }
        if let Some(before) = before {
            self.apply_overrides(row, word, &before, sums);
        }
    }

    /// Whether an aggregate sets the multiplier of a host in the row.
    fn has_override(&mut self, row: usize) -> bool {
        let behind = |(slot, _): &&(u32, i64)| (*slot as usize / ROW) < row;
        let rest = self.overrides.get(self.cursors.1..).unwrap_or_default();
        self.cursors.1 += rest.iter().take_while(behind).count();
        let next = self.overrides.get(self.cursors.1);
        next.is_some_and(|(slot, _)| *slot as usize / ROW == row)
    }

    /// Uses the multipliers of aggregates for their hosts.
    fn apply_overrides(&self, row: usize, word: u64, before: &[i64; ROW], sums: &mut [i64; ROW]) {
        let rest = self.overrides.get(self.cursors.1..).unwrap_or_default();
        let here = |(slot, _): &&(u32, i64)| *slot as usize / ROW == row;
        for (slot, multiplier) in rest.iter().take_while(here) {
            let bit = *slot as usize % ROW;
            if word >> bit & 1 == 0 {
                continue;
            }
            let weight = match self.weights {
                RawWeights::Equal => 0,
                RawWeights::Column(column) => i64::from(column[*slot as usize]),
                RawWeights::Hosts(hosts) => i64::from(hosts.contains(*slot as usize)),
                RawWeights::Sparse(some) => {
                    let found = some.binary_search_by_key(slot, |(s, _)| *s);
                    found.map_or(0, |at| i64::from(some[at].1))
                }
            };
            let factor = (multiplier << FRACTION_BITS) / self.span;
            sums[bit] = before[bit] + (weight - self.low) * factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One host: whether it fits, its weight in each of three kinds of weights, and the multiplier
    /// of its aggregate.
    type Line = (bool, i32, bool, Option<i32>, Option<i64>);

    fn line() -> impl Strategy<Value = Line> {
        (
            prop::bool::weighted(0.7),
            -50..5000_i32,
            any::<bool>(),
            prop::option::weighted(0.3, -9..9_i32),
            prop::option::weighted(0.2, -3000..3000_i64),
        )
    }

    /// Nova's formula, host by host.
    fn plain(lines: &[Line], multipliers: [i64; 3]) -> Vec<(usize, i64)> {
        let fit = || lines.iter().enumerate().filter(|(_, l)| l.0);
        let weight = |l: &Line, sort: usize| match sort {
            0 => i64::from(l.1),
            1 => i64::from(l.2),
            _ => l.3.map_or(0, i64::from),
        };
        let sum = |l: &Line| {
            let part = |sort: usize| {
                let low = fit().map(|(_, l)| weight(l, sort)).min().unwrap();
                let high = fit().map(|(_, l)| weight(l, sort)).max().unwrap();
                let multiplier = l.4.unwrap_or(multipliers[sort]);
                if high == low {
                    0
                } else {
                    (weight(l, sort) - low) * ((multiplier << FRACTION_BITS) / (high - low))
                }
            };
            (0..3).map(part).sum()
        };
        fit().map(|(slot, l)| (slot, sum(l))).collect()
    }

    proptest! {
        #[test]
        fn scores_equal_those_of_the_simple_formula(
            lines in prop::collection::vec(line(), 1..200),
            multipliers in [-2000..2000_i64, -2000..2000_i64, -2000..2000_i64],
        ) {
            let (mut fit, mut hosts) = (HostSet::default(), HostSet::default());
            let mut column = vec![0; lines.len().next_multiple_of(ROW)];
            let (mut some, mut overrides) = (Vec::new(), Vec::new());
            for (slot, line) in lines.iter().enumerate() {
                fit.set(slot, line.0);
                column[slot] = line.1;
                hosts.set(slot, line.2);
                let id = u32::try_from(slot).unwrap();
                some.extend(line.3.map(|f| (id, f)));
                overrides.extend(line.4.map(|m| (id, m)));
            }
            let weights = [RawWeights::Column(&column), RawWeights::Hosts(&hosts), RawWeights::Sparse(some)];
            let terms = weights.into_iter().zip(multipliers);
            let terms: Vec<_> = terms
                .map(|(weights, multiplier)| Term { weights, multiplier, overrides: overrides.clone() })
                .collect();
            let mut seen = Vec::new();
            scores(&fit, &terms, |slot, score| seen.push((slot, score)));
            prop_assert_eq!(seen, plain(&lines, multipliers));
        }
    }
}
