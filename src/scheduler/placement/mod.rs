//! The choice of a host: pure, synchronous, free of Kubernetes.
//!
//! | part | what it is |
//! |---|---|
//! | [`facts`] | what a host is, and what a Server uses of one |
//! | [`request`] | what a Server requires, with all references resolved |
//! | [`snapshot`] | all hosts, and the ledger of what Servers use of them |
//! | [`placer`] | filters, weighs and chooses, or explains why no host fits |
//! | [`reserved`] | hosts whose reservation leaves nothing |
//! | [`policy`] | which filters and weighers are used, and their settings |
//! | [`score`] | the weighted sum of what weighers return |
//! | [`numa`], [`devices`] | NUMA nodes and PCI devices of a host for one Server |
//! | [`query`], [`extra_spec_operators`] | Nova's small languages |
//! | [`host_set`], [`labels`], [`intern`] | data structures |
//!
//! To add a filter or a weigher, see [`crate::filters`] and [`crate::weighers`].

pub mod devices;
pub mod extra_spec_operators;
pub mod facts;
pub mod host_set;
pub mod intern;
pub mod labels;
pub mod numa;
pub mod placer;
pub mod policy;
pub mod query;
pub mod request;
pub mod reserved;
pub mod score;
pub mod snapshot;
