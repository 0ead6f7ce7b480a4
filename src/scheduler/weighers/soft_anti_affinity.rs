//! Prefers hosts that hold less of the group.

use super::{Ask, Figures, Weigher};
use crate::placement::request::GroupPolicy;

/// Nova's `ServerGroupSoftAntiAffinityWeigher`.
pub struct ServerGroupSoftAntiAffinityWeigher;

impl Weigher for ServerGroupSoftAntiAffinityWeigher {
    fn name(&self) -> &'static str {
        "ServerGroupSoftAntiAffinityWeigher"
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("soft_anti_affinity_weight_multiplier")
    }

    fn weigh<'a>(&self, ask: &Ask<'a>) -> Figures<'a> {
        if !ask.has_policy(GroupPolicy::SoftAntiAffinity) {
            return Figures::Same;
        }
        let figure = |(slot, n): &(u32, u32)| (*slot, -i32::try_from(*n).unwrap_or(i32::MAX));
        Figures::Some(ask.members.iter().map(figure).collect())
    }
}
