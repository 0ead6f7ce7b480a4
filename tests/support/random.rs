//! Chance that a printed seed repeats.

use std::time::SystemTime;

/// A small generator that its seed decides (xorshift64*).
pub struct Random(u64);

impl Random {
    /// By the seed in `PILEUS_SEED`, else by the clock; prints which.
    pub fn printed() -> Self {
        let clock = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let seed = from_environment("PILEUS_SEED").unwrap_or(u64::from(clock.subsec_nanos()) | 1);
        println!("PILEUS_SEED={seed}");
        Self(seed)
    }

    /// A number from 0 to below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of several.
    pub fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// A number from the environment.
pub fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
