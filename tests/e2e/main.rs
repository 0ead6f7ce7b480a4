//! The whole way on a lab of two hosts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod loss;
mod preemption;
mod refusal;
mod servers;
mod stack;
