//! Weighers: which of the hosts that fit is best. To add one, add its file and its line in the
//! list `weighers!` below.
//!
//! As in Nova the weights of each weigher are normalized over the hosts that fit, the lowest to
//! 0 and the highest to 1, multiplied and added; here in integers.

use crate::filters::CycleState;
use crate::placement::host_set::HostSet;

/// The weights of a weigher for all hosts, before normalization.
pub enum RawWeights<'a> {
    /// The same for all hosts.
    Equal,
    /// One for each slot, padded to whole rows.
    Column(&'a [i32]),
    /// 1 for these hosts, 0 for the others.
    Hosts(&'a HostSet),
    /// Weights of some slots, ascending; 0 for the others.
    Sparse(Vec<(u32, i32)>),
}

/// The multiplier of a ServerGroup with a soft policy, in thousandths. In Nova it is 1, so that a
/// wish which somebody has named counts less than a few bytes of free memory. Here one member more
/// or less outweighs all of the room, as long as hosts differ by less than a hundred members; failed
/// builds still count more.
pub const SOFT_GROUP: i64 = 1_000_000;

/// A weigher.
pub trait Weigher: Send + Sync {
    /// Nova's name.
    fn name(&self) -> &'static str;
    /// The default multiplier, in thousandths, which is Nova's but for soft ServerGroups; a negative
    /// one prefers lower weights.
    fn multiplier(&self) -> i64 {
        1000
    }
    /// Nova's property by which an aggregate overrides the multiplier for its hosts.
    fn aggregate_key(&self) -> Option<&'static str> {
        None
    }
    /// The weights; only their differences matter.
    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a>;
}

macro_rules! weighers {
    ($($module:ident::$name:ident,)*) => {
        $(mod $module;)*
        /// Every weigher.
        #[must_use]
        pub fn all() -> Vec<Box<dyn Weigher>> {
            vec![$(Box::new($module::$name)),*]
        }
    };
}

weighers! {
    build_failure::BuildFailureWeigher,
    cpu::CpuWeigher,
    disk::DiskWeigher,
    image_locality::ImageLocalityWeigher,
    io_ops::IoOpsWeigher,
    metrics::MetricsWeigher,
    pci::PciWeigher,
    ram::RamWeigher,
    soft_affinity::ServerGroupSoftAffinityWeigher,
    soft_anti_affinity::ServerGroupSoftAntiAffinityWeigher,
    taints::TaintTolerationWeigher,
}
