//! OVN's Northbound database: the rows we want, the steps to them, and who may take them;
//! and how a host's part of OVN is.
//!
//! | file | what it holds |
//! |---|---|
//! | [`rows`] | values of desired rows, and which columns are ours |
//! | [`diff`](fn@diff) | current rows and desired rows in, one transaction out (pure) |
//! | [`controller`] | whether a host's ovn-controller works |
//! | [`token`] | the leader's token, which fences transactions |
//! | [`NorthboundDb`] | the database behind a trait, and the real one |
//!
//! A row is ours when its `external_ids` carry our marks with our cluster's id, or when it
//! has none but bears a name that only we derive. Everything else in the database is left
//! alone, also as a member of what is ours.

pub mod controller;
mod database;
mod diff;
pub mod rows;
#[cfg(test)]
mod tests;
pub mod token;

pub use database::{ApplyError, Northbound, NorthboundDb, monitor};
pub use diff::{Conflict, Diff, Orphan, diff};
pub use rows::{
    Acl, AclAction, AddressSet, Desired, DhcpOptions, LogicalSwitch, LogicalSwitchPort, PortGroup,
};
