//! Networks, Subnets, Ports and security groups, one directory each; one pass
//! ([`ovn_sync`]) plans them all and writes OVN's Northbound database.

pub mod caches;
pub mod from_api;
#[allow(
    clippy::module_inception,
    reason = "the kind Network, among the kinds of the network"
)]
pub mod network;
pub mod ovn_sync;
pub mod port;
pub mod security_group;
pub mod subnet;
