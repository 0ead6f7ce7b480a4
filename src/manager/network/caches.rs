//! What the network's pass reads: the caches of the network's kinds, and a count of changes.

use std::sync::Arc;

use kube::Resource;
use tokio::sync::watch;

use super::port::placement::{chassis_of, host_of};
use crate::caches::Caches;
use pileus_api::{
    Host, IPAllocation, Instance, Network, Port, SecurityGroup, SecurityGroupRule, Server, Subnet,
};
use pileus_kube_ext::cache::{Cache, Change};

/// Caches of all namespaces.
#[derive(Clone)]
pub struct NetworkCaches {
    /// Networks.
    pub networks: Cache<Network>,
    /// Subnets.
    pub subnets: Cache<Subnet>,
    /// Ports.
    pub ports: Cache<Port>,
    /// Addresses in use.
    pub allocations: Cache<IPAllocation>,
    /// Security groups.
    pub groups: Cache<SecurityGroup>,
    /// Security group rules.
    pub rules: Cache<SecurityGroupRule>,
    /// Servers, which use Ports.
    pub servers: Cache<Server>,
    /// Instances, whose interfaces are Ports.
    pub instances: Cache<Instance>,
    /// Hosts, whose chassis Ports are tied to.
    pub hosts: Cache<Host>,
    /// Counts changes that a pass has to look at.
    pub changes: watch::Receiver<u64>,
}

impl NetworkCaches {
    /// Those that the manager's controllers share.
    #[must_use]
    pub fn of(caches: &Caches) -> Self {
        let (count, changes) = watch::channel(0);
        let count = Arc::new(count);
        count_changes(&count, &caches.networks, |_| true);
        count_changes(&count, &caches.subnets, |_| true);
        count_changes(&count, &caches.ports, |_| true);
        count_changes(&count, &caches.allocations, |_| true);
        count_changes(&count, &caches.groups, |_| true);
        count_changes(&count, &caches.rules, |_| true);
        // The namespace of a new one may need its `default` group; its Ports are tied to its host
        // when it is placed, and may be free when it goes.
        count_changes(&count, &caches.servers, |change| {
            let before = change.before.as_deref();
            change.is_leaving()
                || before.is_none_or(|before| host_of(before) != host_of(&change.object))
        });
        count_changes(&count, &caches.hosts, |change| {
            let before = change.before.as_deref();
            before.and_then(chassis_of) != chassis_of(&change.object)
        });
        count_changes(&count, &caches.instances, Change::is_leaving);
        Self {
            networks: caches.networks.clone(),
            subnets: caches.subnets.clone(),
            ports: caches.ports.clone(),
            allocations: caches.allocations.clone(),
            groups: caches.groups.clone(),
            rules: caches.rules.clone(),
            servers: caches.servers.clone(),
            instances: caches.instances.clone(),
            hosts: caches.hosts.clone(),
            changes,
        }
    }

    /// Waits until every cache holds what the API server has. Nothing may be concluded from
    /// a cache before.
    pub async fn ready(&self) {
        self.networks.ready().await;
        self.subnets.ready().await;
        self.ports.ready().await;
        self.allocations.ready().await;
        self.groups.ready().await;
        self.rules.ready().await;
        self.servers.ready().await;
        self.instances.ready().await;
        self.hosts.ready().await;
    }
}

/// Counts those changes of a kind that `counts`.
fn count_changes<K>(
    count: &Arc<watch::Sender<u64>>,
    cache: &Cache<K>,
    counts: impl Fn(&Change<K>) -> bool + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let count = count.clone();
    cache.subscribe(move |change| {
        if counts(change) {
            count.send_modify(|count| *count += 1);
        }
    });
}
