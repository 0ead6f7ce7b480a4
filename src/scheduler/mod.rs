//! Binds Servers to Hosts.

pub mod filters;
pub mod place;
pub mod request;
pub mod resolve;
pub mod snapshot;
pub mod state;
pub mod weighers;
