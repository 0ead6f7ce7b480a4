//! The sum of the weighers' figures over the hosts that fit.
//!
//! Rows of 64 slots are taken whole, in loops without branches that the compiler turns
//! into vector instructions; what does not fit is masked out.

use super::bits::{Bits, ROW};
use super::weighers::Figures;

/// How finely a figure is stretched: its span becomes multiplier × 2^29.
const FINE: u32 = 29;

/// For each byte of a word, all ones where its bit is set.
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

/// Room for scores, kept between decisions.
#[derive(Default)]
pub struct Scores(Vec<i64>);

impl Scores {
    /// Makes the scores of all of `fit`, by figures and multipliers in thousandths.
    pub fn make(&mut self, fit: &Bits, figures: &[(Figures<'_>, i64)]) {
        self.0.clear();
        self.0.resize(fit.words().len() * ROW, 0);
        for (figures, multiplier) in figures {
            let whole = multiplier << FINE;
            match figures {
                _ if whole == 0 => {}
                Figures::Same => {}
                Figures::Column(column) => self.column(fit, column, whole),
                Figures::Bits(held) => {
                    let words = || fit.words().iter().zip(held.words());
                    let both = words().any(|(f, h)| f & h != 0);
                    let last = fit.words().iter().skip(held.words().len());
                    let without =
                        words().any(|(f, h)| f & !h != 0) || last.into_iter().any(|f| *f != 0);
                    if both && without {
                        for slot in held.iter().filter(|s| fit.has(*s)) {
                            self.0[slot] += whole;
                        }
                    }
                }
                Figures::Some(some) => self.some(fit, some, whole),
            }
        }
    }

    /// The score of a slot that fits.
    #[must_use]
    pub fn of(&self, slot: usize) -> i64 {
        self.0[slot]
    }

    fn column(&mut self, fit: &Bits, column: &[i32], whole: i64) {
        let (mut low, mut high) = ([i32::MAX; 8], [i32::MIN; 8]);
        let rows = || fit.words().iter().zip(column.as_chunks::<ROW>().0);
        for (word, row) in rows().filter(|(word, _)| **word != 0) {
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
        let span = i64::from(high) - i64::from(low);
        if span <= 0 {
            return;
        }
        // Wrapping only where a slot does not fit, whose score nobody looks at.
        let factor = (whole / span).cast_unsigned();
        let scores = self.0.as_chunks_mut::<ROW>().0;
        for ((word, row), scores) in rows().zip(scores) {
            if *word == 0 {
                continue;
            }
            for i in 0..ROW {
                let above = u64::from(row[i].wrapping_sub(low).cast_unsigned());
                scores[i] = scores[i].wrapping_add(above.wrapping_mul(factor).cast_signed());
            }
        }
    }

    fn some(&mut self, fit: &Bits, some: &[(u32, i32)], whole: i64) {
        let here = || {
            let slots = some
                .iter()
                .map(|(slot, figure)| (*slot as usize, i64::from(*figure)));
            slots.filter(|(slot, _)| fit.has(*slot))
        };
        let others = (here().count() < fit.len()).then_some(0);
        let figures = || here().map(|(_, f)| f).chain(others);
        let (Some(low), Some(high)) = (figures().min(), figures().max()) else {
            return;
        };
        if high > low {
            let factor = whole / (high - low);
            for (slot, figure) in here() {
                self.0[slot] += figure * factor;
            }
        }
    }
}
