//! Subnets: checked, kept apart from each other, their own addresses reserved.

pub mod plan;
pub mod spec;
