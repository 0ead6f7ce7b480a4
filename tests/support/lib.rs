//! What the tests share: a real API server, OVN, libvirt and web server of a test's own, the lab,
//! and the shorthands for the objects they make there.
#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    clippy::missing_errors_doc,
    clippy::must_use_candidate,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: what fails ends the test"
)]

pub mod apiserver;
pub mod chassis;
pub mod counting;
pub mod heat_cases;
pub mod hostile;
pub mod lab;
pub mod libvirt;
pub mod ovn;
pub mod program;
pub mod proxy;
pub mod random;
pub mod scheduling;
pub mod servers;
pub mod stack_lifecycle;
pub mod stacks;
pub mod trouble;
pub mod web;
