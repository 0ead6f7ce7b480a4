//! Weighers say which of the hosts that fit is best. To add one, add its file and its
//! line in [`all`].
//!
//! As in Nova each weigher's figures are stretched over the hosts that fit, the lowest to
//! 0 and the highest to 1, multiplied, and summed; here in millionths, without fractions.

mod cpu;
mod disk;
mod image_locality;
mod ram;

use super::request::Request;
use super::snapshot::HostState;

/// How good a host is in one respect.
pub trait Weigher: Send + Sync {
    /// Nova's name.
    fn name(&self) -> &'static str;
    /// A figure that is higher for a better host; compared only with other hosts'.
    fn weigh(&self, host: &HostState, request: &Request) -> i64;
}

/// Every weigher with its multiplier in thousandths; a negative one turns it around.
#[must_use]
pub fn all() -> Vec<(Box<dyn Weigher>, i64)> {
    vec![
        (Box::new(ram::RamWeigher), 1000),
        (Box::new(cpu::CpuWeigher), 1000),
        (Box::new(disk::DiskWeigher), 1000),
        (Box::new(image_locality::ImageLocalityWeigher), 1000),
    ]
}
