//! OVN's Northbound database: the desired rows, the operations that lead to them, and who may write
//! them; and whether a host's ovn-controller works.
//!
//! | file | what it holds |
//! |---|---|
//! | [`rows`] | desired rows, and which columns are ours |
//! | [`diff`](fn@diff) | current rows and desired rows in, one transaction out (pure) |
//! | [`controller`] | whether a host's ovn-controller works |
//! | `apply` | one transaction, and what is done when the database refuses it |
//! | [`token`] | the leader's token, which fences transactions |
//! | [`NorthboundDb`] | the database behind a trait, and the real one |
//!
//! A row is ours when the owner's metadata in its `external_ids` has our cluster's id, or when it
//! has no such metadata but a name that only we derive. Every other row in the database stays as
//! it is, also as a member of our rows.

mod apply;
pub mod controller;
mod database;
mod diff;
mod refusals;
pub mod rows;
#[cfg(test)]
mod tests;
pub mod token;

pub use database::{ApplyError, Northbound, NorthboundDb, monitor};
pub use diff::{Diff, NotApplied, Orphan, Scope, diff, diff_within, not_carried};
pub use rows::{
    Acl, AclAction, AddressSet, Desired, DhcpOptions, LogicalSwitch, LogicalSwitchPort, PortGroup,
};
