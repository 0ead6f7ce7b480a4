//! Servers and what they are made from: flavors, key pairs, hosts.

pub mod flavor;
pub mod host;
pub mod key_pair;
pub mod server;
