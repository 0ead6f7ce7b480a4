//! Weighers say which of the hosts that fit is best. To add one, add its file and its
//! line in [`weighers`].
//!
//! As in Nova each weigher's figures are stretched over the hosts that fit, the lowest to
//! 0 and the highest to 1, multiplied, and summed; here in whole numbers.

use crate::filters::CycleState;
use crate::placement::host_set::HostSet;

/// What a weigher says of all hosts.
pub enum RawWeights<'a> {
    /// The same of each.
    Equal,
    /// One for each slot, padded to whole rows.
    Column(&'a [i32]),
    /// 1 for those in it, 0 for the others.
    Hosts(&'a HostSet),
    /// Figures of some slots, in their order; 0 for the others.
    Sparse(Vec<(u32, i32)>),
}

/// How good a host is in one respect.
pub trait Weigher: Send + Sync {
    /// Nova's name.
    fn name(&self) -> &'static str;
    /// Nova's multiplier, in thousandths; a negative one prefers lower figures.
    fn multiplier(&self) -> i64 {
        1000
    }
    /// Nova's key by which an aggregate gives its hosts a multiplier of their own.
    fn aggregate_key(&self) -> Option<&'static str> {
        None
    }
    /// Figures that are compared only with other hosts'.
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
