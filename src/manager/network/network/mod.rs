//! Networks: the largest packet, fixed when a Network is made, and deletion that waits for
//! its users. Its logical switch is the business of the network's one pass
//! ([`super::ovn_sync`]).

pub mod plan;
