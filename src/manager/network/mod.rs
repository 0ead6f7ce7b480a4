//! Networks, Subnets, Ports and security groups, one directory each; one pass ([`pass`]) plans
//! all objects and writes OVN's Northbound database.
//!
//! | module | what it holds |
//! |---|---|
//! | [`kinds`] | the list of kinds, and what every kind of the network implements |
//! | one for each kind | its planner: objects in, decisions and the compiler's input out (pure) |
//! | [`plan`](mod@plan) | runs the planners and the compiler (pure) |
//! | [`pass`] | observes, plans, acts, reports, for all kinds at once |
//!
//! A new kind takes a directory with an implementation of [`kinds::NetworkKind`], a line in the
//! list of [`kinds`], and a cache in [`caches`].

pub mod address_pool;
pub mod caches;
pub mod decision;
pub mod kinds;
#[allow(
    clippy::module_inception,
    reason = "the kind Network, among the kinds of the network"
)]
pub mod network;
pub mod ovn_addresses;
pub mod pass;
pub mod plan;
pub mod port;
mod requests;
pub mod security_group;
pub mod security_group_rule;
pub mod subnet;
