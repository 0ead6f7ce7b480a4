//! The drivers on real libvirt, OVSDB, OVN and files; rules of the source tree; a model check of
//! placing Servers; templates as Heat has them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod architecture;
mod crds;
mod guest_files;
mod hypervisor;
mod libvirt_jobs;
mod model_placement;
mod ovn;
mod ovn_hosts;
mod ovn_refusals;
mod ovn_tls;
mod stack_heat;
mod stack_lifecycles;
mod storage;
