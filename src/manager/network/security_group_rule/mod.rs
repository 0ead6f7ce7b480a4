//! Security group rules that are objects of their own, so that others can add to a group that they
//! do not own.

pub mod plan;
