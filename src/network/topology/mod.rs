//! The network compiler: networks, subnets, ports and security groups in, desired rows of
//! OVN's Northbound database out. Pure: the same input, in whatever order, gives the same
//! rows. What cannot be compiled becomes a [`Problem`] that names its object, and
//! everything else is compiled.
//!
//! Semantics follow Neutron's OVN driver: one logical switch per Network; one logical port
//! per Port; a port group per security group with stateful ACLs at priority 1002; one port
//! group of all secured ports, which drops other IP traffic at priority 1001. ARP, neighbour
//! discovery and router advertisements pass by northd's own flows, DHCP requests by two ACLs
//! of that group, DHCP replies by northd's flows.
//!
//! Left for Routers: router advertisements need a logical router port, so until there is
//! one an IPv6 guest uses DHCPv6 only if it is configured so, or its config drive.

pub mod compile;
mod dhcp;
pub mod input;
mod rules;
#[cfg(test)]
mod tests;

pub use compile::{
    Compiled, Problem, REQUESTED_CHASSIS, compile, drop_group_name, group_name, logical_port,
    switch_name,
};
pub use input::{
    AddressIn, AddressPairIn, Binding, Direction, Family, GroupIn, IcmpType, Key, NO_CHASSIS,
    NetworkIn, PortIn, Protocol, Remote, Rule, RuleIn, Security, SubnetIn, Topology, Transport,
};
