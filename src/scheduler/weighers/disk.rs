//! Spreads by disk.

use super::{Ask, Figures, Weigher};

/// Nova's `DiskWeigher`: more free disk is better.
pub struct DiskWeigher;

impl Weigher for DiskWeigher {
    fn name(&self) -> &'static str {
        "DiskWeigher"
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("disk_weight_multiplier")
    }

    fn weigh<'a>(&self, ask: &Ask<'a>) -> Figures<'a> {
        Figures::Column(ask.snapshot.free_column(2))
    }
}
