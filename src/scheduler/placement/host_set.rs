//! Sets of hosts, one bit for each slot, and the row length of 64 slots.

/// Hosts in one word; columns are padded to a multiple of it.
pub const ROW: usize = 64;

/// A set of hosts by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSet(Vec<u64>);

impl HostSet {
    /// Whether it contains `slot`.
    #[must_use]
    pub fn contains(&self, slot: usize) -> bool {
        let word = self.0.get(slot / ROW).copied().unwrap_or_default();
        word >> (slot % ROW) & 1 == 1
    }

    /// Adds or removes `slot`.
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

    /// Copies `other`, without allocating memory.
    pub fn copy_from(&mut self, other: &Self) {
        self.0.clone_from(&other.0);
    }

    /// Keeps only the slots for which `keep` is true.
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

    /// Its slots, ascending.
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

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Number of its slots.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Its words, 64 slots each.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// The word of one row.
    #[must_use]
    pub fn word(&self, row: usize) -> u64 {
        self.0.get(row).copied().unwrap_or_default()
    }
}
