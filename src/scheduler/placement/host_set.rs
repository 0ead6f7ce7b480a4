//! Sets of hosts, one bit each, and the rows of 64 hosts that columns are padded to.

/// Hosts of one word.
pub const ROW: usize = 64;

/// A set of hosts by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSet(Vec<u64>);

impl HostSet {
    /// Whether `slot` is in it.
    #[must_use]
    pub fn has(&self, slot: usize) -> bool {
        let word = self.0.get(slot / ROW).copied().unwrap_or_default();
        word >> (slot % ROW) & 1 == 1
    }

    /// Puts `slot` in or takes it out.
    pub fn set(&mut self, slot: usize, on: bool) {
        if slot / ROW >= self.0.len() {
            if !on {
                return;
            }
            self.0.resize(slot / ROW + 1, 0);
        }
        let bit = 1 << (slot % ROW);
        if on {
            self.0[slot / ROW] |= bit;
        } else {
            self.0[slot / ROW] &= !bit;
        }
    }

    /// Becomes a copy of `other`, without a new allocation.
    pub fn copy(&mut self, other: &Self) {
        self.0.clone_from(&other.0);
    }

    /// Keeps only what `keep` says yes to.
    pub fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        for (row, word) in self.0.iter_mut().enumerate() {
            let mut left = *word;
            while left != 0 {
                let bit = left.trailing_zeros() as usize;
                left &= left - 1;
                if !keep(row * ROW + bit) {
                    *word &= !(1 << bit);
                }
            }
        }
    }

    /// Its members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(row, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(row * ROW + bit)
            })
        })
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// The words, 64 slots each.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// 64 slots, `row` × 64 and those after it.
    #[must_use]
    pub fn word(&self, row: usize) -> u64 {
        self.0.get(row).copied().unwrap_or_default()
    }
}
