//! The network: a client of OVSDB, the rows of OVN's Northbound database, and the compiler that
//! makes those rows of networks, subnets, ports and security groups. Knows nothing of
//! Kubernetes.

pub mod northbound;
pub mod ovsdb;
pub mod topology;
