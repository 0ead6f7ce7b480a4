//! Security groups: their rules are checked; a `default` group is created once for each namespace.

pub mod default_group;
pub mod plan;
pub mod rule;
