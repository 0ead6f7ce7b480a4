//! Prefers hosts without taints that the Server would rather not have.

use super::{Ask, Figures, Weigher};
use crate::filters::tolerates;

/// Kubernetes' `TaintToleration`, its score: fewer taints `PreferNoSchedule` that are not
/// tolerated are better.
pub struct TaintTolerationWeigher;

impl Weigher for TaintTolerationWeigher {
    fn name(&self) -> &'static str {
        "TaintTolerationWeigher"
    }

    fn weigh<'a>(&self, ask: &Ask<'a>) -> Figures<'a> {
        let figures: Vec<_> = ask
            .snapshot
            .discouraging()
            .iter()
            .map(|slot| {
                let taints = ask.snapshot.at(slot).profile().taints.iter();
                let unwanted = taints
                    .filter(|t| t.effect == "PreferNoSchedule" && !tolerates(&ask.request.asks, t));
                let count = i32::try_from(unwanted.count()).unwrap_or(i32::MAX);
                (u32::try_from(slot).unwrap_or(u32::MAX), -count)
            })
            .collect();
        if figures.is_empty() {
            Figures::Same
        } else {
            Figures::Some(figures)
        }
    }
}
