//! Ports: each gets an Ethernet address and IP addresses for life. Its logical port in OVN
//! is the business of the network's one pass ([`super::ovn_sync`]).

mod addresses;
pub mod plan;
#[cfg(test)]
mod tests;
