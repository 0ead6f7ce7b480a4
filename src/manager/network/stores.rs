//! What the network's pass reads: one store for each kind, and a count of changes.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use futures::StreamExt;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::Stores;
use pileus_api::{
    IPAllocation, Instance, Network, Port, SecurityGroup, SecurityGroupRule, Server, Subnet,
};
use pileus_kube_ext::chain;

/// Stores of all namespaces.
#[derive(Clone)]
pub struct NetworkStores {
    /// Networks.
    pub networks: Store<Network>,
    /// Subnets.
    pub subnets: Store<Subnet>,
    /// Ports.
    pub ports: Store<Port>,
    /// Addresses in use.
    pub allocations: Store<IPAllocation>,
    /// Security groups.
    pub groups: Store<SecurityGroup>,
    /// Security group rules.
    pub rules: Store<SecurityGroupRule>,
    /// Servers, which use Ports.
    pub servers: Store<Server>,
    /// Instances, whose interfaces are Ports.
    pub instances: Store<Instance>,
    /// Counts changes of any of them.
    pub changes: watch::Receiver<u64>,
}

impl NetworkStores {
    /// Those that the manager's controllers share.
    #[must_use]
    pub fn of(stores: &Stores) -> Self {
        Self {
            networks: stores.networks.clone(),
            subnets: stores.subnets.clone(),
            ports: stores.ports.clone(),
            allocations: stores.allocations.clone(),
            groups: stores.groups.clone(),
            rules: stores.rules.clone(),
            servers: stores.servers.clone(),
            instances: stores.instances.clone(),
            changes: stores.network_changes.clone(),
        }
    }

    /// Starts watches of its own, which end with the runtime.
    #[must_use]
    pub fn start(client: &Client) -> Self {
        let (sender, changes) = watch::channel(0);
        let sender = Arc::new(sender);
        Self {
            networks: follow(client, &sender),
            subnets: follow(client, &sender),
            ports: follow(client, &sender),
            allocations: follow(client, &sender),
            groups: follow(client, &sender),
            rules: follow(client, &sender),
            servers: follow(client, &sender),
            instances: follow(client, &sender),
            changes,
        }
    }

    /// Waits until every store holds what the API server has. Nothing may be concluded from
    /// a store before.
    pub async fn ready(&self) {
        // A store whose writer is gone is never ready; the process is ending then.
        macro_rules! wait {
            ($($store:ident),+) => { $(let _ = self.$store.wait_until_ready().await;)+ };
        }
        wait!(
            networks,
            subnets,
            ports,
            allocations,
            groups,
            rules,
            servers,
            instances
        );
    }
}

fn follow<K>(client: &Client, changes: &Arc<watch::Sender<u64>>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    let (store, writer) = reflector::store();
    let watcher = watcher(Api::<K>::all(client.clone()), watcher::Config::default());
    let events = reflector::reflector(writer, watcher).default_backoff();
    let changes = changes.clone();
    tokio::spawn(events.for_each(move |event| {
        match event {
            Ok(_) => changes.send_modify(|count| *count += 1),
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), error = %chain(&error), "watch failed");
            }
        }
        futures::future::ready(())
    }));
    store
}
