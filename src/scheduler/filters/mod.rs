//! Filters say of a host whether it can take a Server at all. Each has Nova's name and
//! its own file; to add one, add its file and its line in [`all`].
//!
//! A filter looks at one host and one request and at nothing else, so their order makes
//! no difference to the answer.

mod compute;
mod core;
mod disk;
mod host_selector;
mod image_properties;
mod ram;

use super::request::Request;
use super::snapshot::HostState;

/// Why a filter turns a host away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Something of which the host has too little.
    Short {
        /// How much the Server needs.
        needs: i64,
        /// How much the host has left for it, 0 or more.
        has: i64,
        /// What is counted, to follow the figure.
        unit: &'static str,
    },
    /// Anything else, to follow the host's name: "h1 is not Ready".
    Unfit(String),
}

/// A yes-or-no question about a host.
pub trait Filter: Send + Sync {
    /// Nova's name.
    fn name(&self) -> &'static str;
    /// Whether the host can take the Server. Called for every host and every decision.
    fn passes(&self, host: &HostState, request: &Request) -> bool;
    /// Why not. Called only for hosts that do not pass, and only when none does.
    fn miss(&self, host: &HostState, request: &Request) -> Miss;
}

/// Every filter.
#[must_use]
pub fn all() -> Vec<Box<dyn Filter>> {
    vec![
        Box::new(compute::ComputeFilter),
        Box::new(core::CoreFilter),
        Box::new(ram::RamFilter),
        Box::new(disk::DiskFilter),
        Box::new(image_properties::ImagePropertiesFilter),
        Box::new(host_selector::HostSelector),
    ]
}

fn short(needs: i64, has: i64, unit: &'static str) -> Miss {
    let has = has.max(0);
    Miss::Short { needs, has, unit }
}
