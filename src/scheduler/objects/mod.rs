//! From API objects to the values that [`crate::placement`] works with.

pub mod catalogue;
pub mod extra_specs;
pub mod resolve;
