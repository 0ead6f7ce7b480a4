//! Prefers hosts with fewer members of the ServerGroup.

use super::{CycleState, RawWeights, SOFT_GROUP, Weigher};
use crate::placement::request::GroupPolicy;

/// Nova's `ServerGroupSoftAntiAffinityWeigher`.
pub struct ServerGroupSoftAntiAffinityWeigher;

impl Weigher for ServerGroupSoftAntiAffinityWeigher {
    fn name(&self) -> &'static str {
        "ServerGroupSoftAntiAffinityWeigher"
    }

    fn multiplier(&self) -> i64 {
        SOFT_GROUP
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("soft_anti_affinity_weight_multiplier")
    }

    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a> {
        if !cycle.has_policy(GroupPolicy::SoftAntiAffinity) {
            return RawWeights::Equal;
        }
        let weight = |(slot, n): &(u32, u32)| (*slot, -i32::try_from(*n).unwrap_or(i32::MAX));
        RawWeights::Sparse(cycle.members.iter().map(weight).collect())
    }
}
