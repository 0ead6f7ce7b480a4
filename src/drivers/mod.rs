//! The systems Pileus drives, each behind a small trait and in value types of
//! its own. Nothing in here knows Kubernetes.

pub mod hypervisor;
pub mod ovn;
pub mod ovsdb;
pub mod storage;
