//! The caches that all controllers of a role share: one of each kind, with the indexes that they
//! use.

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::runtime::watcher::Config;

use crate::{compute::server, image, network::port};
use pileus_api::{
    Flavor, Host, IPAllocation, Image, Instance, KeyPair, Network, Port, SecurityGroup,
    SecurityGroupRule, Server, Subnet,
};
use pileus_kube_ext::Context;
use pileus_kube_ext::cache::Cache;
use pileus_kube_ext::lease::HEARTBEAT;

macro_rules! caches {
    ($(#[$set_doc:meta])* $set:ident;
     $($(#[$doc:meta])* $name:ident: $kind:ty, $config:expr, [$($index:expr),*];)+) => {
        $(#[$set_doc])*
        #[derive(Clone)]
        pub struct $set {
            $($(#[$doc])* pub $name: Cache<$kind>,)+
        }

        impl $set {
            /// Starts the watches, which end with the runtime, and the role with them.
            #[must_use]
            pub fn watch(context: &Context) -> Self {
                let client = &context.client;
                Self {
                    $($name: Cache::watch(
                        context, Api::all(client.clone()), $config, &[$($index),*],
                    ),)+
                }
            }

            /// Waits until every cache holds what the API server has.
            pub async fn ready(&self) {
                $(self.$name.ready().await;)+
            }
        }
    };
}

pub(crate) use caches;

caches! {
    /// A cache of each kind.
    Caches;
    /// Servers of all namespaces.
    servers: Server, all(), [
        server::BY_FLAVOR, server::BY_HOST, server::BY_IMAGE, server::BY_KEY_PAIR,
        server::BY_NETWORK, server::BY_PORT
    ];
    /// Instances of all hosts.
    instances: Instance, all(), [
        image::INSTANCES_BY_IMAGE, server::INSTANCES_BY_PORT, server::INSTANCES_BY_SERVER
    ];
    /// Flavors.
    flavors: Flavor, all(), [];
    /// Images.
    images: Image, all(), [];
    /// Key pairs.
    key_pairs: KeyPair, all(), [];
    /// Hosts.
    hosts: Host, all(), [];
    /// Heartbeats of the hosts.
    leases: Lease, heartbeats(), [];
    /// Networks.
    networks: Network, all(), [];
    /// Subnets.
    subnets: Subnet, all(), [];
    /// Ports.
    ports: Port, all(), [port::BY_NETWORK, port::BY_HOLDER, server::PORTS_BY_OWNER];
    /// Addresses in use.
    allocations: IPAllocation, all(), [];
    /// Security groups.
    groups: SecurityGroup, all(), [];
    /// Security group rules.
    rules: SecurityGroupRule, all(), [];
}

pub(crate) fn all() -> Config {
    Config::default()
}

fn heartbeats() -> Config {
    Config::default().fields(&format!("metadata.name={HEARTBEAT}"))
}
