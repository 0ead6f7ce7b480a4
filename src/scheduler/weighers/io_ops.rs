//! Prefers hosts that are less busy.

use super::{Ask, Figures, Weigher};

/// Nova's `IoOpsWeigher`.
pub struct IoOpsWeigher;

impl Weigher for IoOpsWeigher {
    fn name(&self) -> &'static str {
        "IoOpsWeigher"
    }

    fn multiplier(&self) -> i64 {
        -1000
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("io_ops_weight_multiplier")
    }

    fn weigh<'a>(&self, ask: &Ask<'a>) -> Figures<'a> {
        Figures::Column(ask.snapshot.busy_column())
    }
}
