//! The caches of the role of Stacks: Stacks, and the kinds that they make.

use kube::Api;

use super::by_stack;
use crate::caches::{all, caches};
use pileus_api::{
    Flavor, Image, KeyPair, Network, Port, SecurityGroup, SecurityGroupRule, Server, ServerGroup,
    Stack, Subnet,
};
use pileus_kube_ext::Context;
use pileus_kube_ext::cache::{Cache, Index};

caches! {
    /// A cache of Stacks, and of each kind that they make.
    Caches;
    /// Servers of all namespaces.
    servers: Server, all(), [by_stack()];
    /// Flavors.
    flavors: Flavor, all(), [by_stack()];
    /// Images.
    images: Image, all(), [by_stack()];
    /// Key pairs.
    key_pairs: KeyPair, all(), [by_stack()];
    /// Networks.
    networks: Network, all(), [by_stack()];
    /// Subnets.
    subnets: Subnet, all(), [by_stack()];
    /// Ports.
    ports: Port, all(), [by_stack()];
    /// Security groups.
    groups: SecurityGroup, all(), [by_stack()];
    /// Security group rules.
    rules: SecurityGroupRule, all(), [by_stack()];
    /// Groups of Servers.
    server_groups: ServerGroup, all(), [by_stack()];
    /// Stacks.
    stacks: Stack, all(), [Index::by_uid()];
}
