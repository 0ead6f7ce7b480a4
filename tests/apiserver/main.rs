//! Reconcilers and scheduler on a real API server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod admission;
mod bad_objects;
mod definitions;
mod events;
mod hosts;
mod leadership;
mod network;
mod one_port;
mod outages;
mod rights;
mod scheduler;
mod schedulers;
mod server;
mod server_deletion;
mod shared_network;
mod stack;
mod stack_account;
mod stack_failures;
mod stack_group;
mod stack_hooks;
mod stack_lifecycle;
mod stack_opt_in;
mod stack_recovery;
mod stack_references;
mod stack_scale;
mod stack_sources;
mod stack_types;
mod tenants;
