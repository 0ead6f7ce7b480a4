//! What people get wrong and what breaks, on a lab of two hosts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod addresses;
mod attack;
mod input;
mod outages;
