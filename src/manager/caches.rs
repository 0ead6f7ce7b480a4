//! The caches that all controllers share: one of each kind, with the indexes that they use.

use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::watcher::Config;
use kube::{Api, Client};

use crate::{compute::server, image, network::port, stack};
use pileus_api::{
    Flavor, Host, IPAllocation, Image, Instance, KeyPair, Network, Port, SecurityGroup,
    SecurityGroupRule, Server, ServerGroup, Stack, Subnet,
};
use pileus_kube_ext::cache::{Cache, Index};
use pileus_kube_ext::lease::HEARTBEAT;

macro_rules! caches {
    ($($(#[$doc:meta])* $name:ident: $kind:ty, $config:expr, [$($index:expr),*];)+) => {
        /// A cache of each kind.
        #[derive(Clone)]
        pub struct Caches {
            $($(#[$doc])* pub $name: Cache<$kind>,)+
        }

        impl Caches {
            /// Starts the watches, which end with the runtime.
            #[must_use]
            pub fn watch(client: &Client) -> Self {
                Self {
                    $($name: Cache::watch(Api::all(client.clone()), $config, &[$($index),*]),)+
                }
            }

            /// Waits until every cache holds what the API server has.
            pub async fn ready(&self) {
                $(self.$name.ready().await;)+
            }
        }
    };
}

caches! {
    /// Servers of all namespaces.
    servers: Server, all(), [
        stack::by_stack(), server::BY_FLAVOR, server::BY_HOST, server::BY_IMAGE,
        server::BY_KEY_PAIR, server::BY_NETWORK, server::BY_PORT
    ];
    /// Instances of all hosts.
    instances: Instance, all(), [image::INSTANCES_BY_IMAGE, server::INSTANCES_BY_SERVER];
    /// Flavors.
    flavors: Flavor, all(), [stack::by_stack()];
    /// Images.
    images: Image, all(), [stack::by_stack()];
    /// Key pairs.
    key_pairs: KeyPair, all(), [stack::by_stack()];
    /// Hosts.
    hosts: Host, all(), [];
    /// Heartbeats of the hosts.
    leases: Lease, heartbeats(), [];
    /// Networks.
    networks: Network, all(), [stack::by_stack()];
    /// Subnets.
    subnets: Subnet, all(), [stack::by_stack()];
    /// Ports.
    ports: Port, all(), [stack::by_stack(), port::BY_NETWORK, server::PORTS_BY_OWNER];
    /// Addresses in use.
    allocations: IPAllocation, all(), [];
    /// Security groups.
    groups: SecurityGroup, all(), [stack::by_stack()];
    /// Security group rules.
    rules: SecurityGroupRule, all(), [stack::by_stack()];
    /// Groups of Servers.
    server_groups: ServerGroup, all(), [stack::by_stack()];
    /// Stacks.
    stacks: Stack, all(), [Index::by_uid()];
}

fn all() -> Config {
    Config::default()
}

fn heartbeats() -> Config {
    Config::default().fields(&format!("metadata.name={HEARTBEAT}"))
}
