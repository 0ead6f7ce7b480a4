//! Ports: each gets an Ethernet address and IP addresses for life.

mod addresses;
pub mod plan;
#[cfg(test)]
mod tests;
