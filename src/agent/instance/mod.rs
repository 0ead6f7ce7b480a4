//! One Instance on this host: what is seen, what is decided, what is done.

pub mod plan;
