//! Spreads by memory.

use super::{Ask, Figures, Weigher};

/// Nova's `RAMWeigher`: more free memory is better.
pub struct RamWeigher;

impl Weigher for RamWeigher {
    fn name(&self) -> &'static str {
        "RAMWeigher"
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("ram_weight_multiplier")
    }

    fn weigh<'a>(&self, ask: &Ask<'a>) -> Figures<'a> {
        Figures::Column(ask.snapshot.free_column(1))
    }
}
