//! Security groups and their rules: checked by the network's compiler; a `default` group
//! made once for each namespace.

pub mod default_group;
pub mod plan;
