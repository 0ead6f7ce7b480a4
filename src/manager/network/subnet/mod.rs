//! Subnets: checked, held apart from each other, their own addresses reserved. What OVN
//! needs of them is the business of the network's one pass ([`super::ovn_sync`]).

pub mod ledger;
pub mod plan;
pub mod spec;
