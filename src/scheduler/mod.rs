//! Binds Servers to Hosts.

pub mod filters;
pub mod place;
pub mod request;
pub mod snapshot;
pub mod weighers;
