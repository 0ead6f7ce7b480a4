//! What is known of every kind, and who is woken by its changes.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::watch;

use super::log_retry;
use super::worker::Source;
use pileus_api::names::{HOST_NAMESPACE_PREFIX, STACK_UID_LABEL};
use pileus_api::{
    Flavor, Host, IPAllocation, Image, Instance, KeyPair, Network, Port, SecurityGroup,
    SecurityGroupRule, Server, ServerGroup, Stack, Subnet,
};
use pileus_kube_ext::lease::HEARTBEAT;

/// A store for each kind.
#[derive(Clone)]
pub struct Stores {
    /// Servers of all namespaces.
    pub servers: Store<Server>,
    /// Instances of all hosts.
    pub instances: Store<Instance>,
    /// Flavors.
    pub flavors: Store<Flavor>,
    /// Images.
    pub images: Store<Image>,
    /// Key pairs.
    pub key_pairs: Store<KeyPair>,
    /// Hosts.
    pub hosts: Store<Host>,
    /// Heartbeats of the hosts.
    pub leases: Store<Lease>,
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
    /// Groups of Servers.
    pub server_groups: Store<ServerGroup>,
    /// Stacks.
    pub stacks: Store<Stack>,
    /// Counts changes of anything that the network is made of.
    pub network_changes: watch::Receiver<u64>,
}

impl Stores {
    /// Waits until every store holds what the API server has.
    pub async fn ready(&self) {
        // A store whose writer is gone will never be ready; the process ends then anyway.
        macro_rules! wait { ($($store:ident),+) => { $(let _ = self.$store.wait_until_ready().await;)+ } }
        wait!(
            servers,
            instances,
            flavors,
            images,
            key_pairs,
            hosts,
            leases,
            networks,
            subnets,
            ports,
            allocations,
            groups,
            rules,
            server_groups,
            stacks
        );
    }

    /// An object by namespace and name.
    #[must_use]
    pub fn find<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<Arc<K>>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        let key = ObjectRef::new(name);
        store.get(&if namespace.is_empty() {
            key
        } else {
            key.within(namespace)
        })
    }
}

/// The controllers' ends.
pub struct Wiring {
    /// For the controller of Servers.
    pub servers: Source<Server>,
    /// For the controller of Images.
    pub images: Source<Image>,
    /// For the controller of key pairs.
    pub key_pairs: Source<KeyPair>,
    /// For the controller of Flavors.
    pub flavors: Source<Flavor>,
    /// For the controller of Hosts.
    pub hosts: Source<Host>,
    /// For the controller of Stacks.
    pub stacks: Source<Stack>,
}

#[derive(Clone)]
struct Wake {
    servers: UnboundedSender<ObjectRef<Server>>,
    images: UnboundedSender<ObjectRef<Image>>,
    key_pairs: UnboundedSender<ObjectRef<KeyPair>>,
    flavors: UnboundedSender<ObjectRef<Flavor>>,
    hosts: UnboundedSender<ObjectRef<Host>>,
    stacks: UnboundedSender<ObjectRef<Stack>>,
    known_stacks: Store<Stack>,
    network: Arc<watch::Sender<u64>>,
}

/// Wakes the Stack that has made an object: its owner, or for what may outlive it the one whose
/// mark it carries.
fn wake_owner<K: Resource<DynamicType = ()>>(wake: &Wake, object: &K) {
    let owners = object.meta().owner_references.iter().flatten();
    let mut owned = false;
    for owner in owners.filter(|owner| owner.kind == "Stack") {
        owned = true;
        let namespace = object.namespace().unwrap_or_default();
        send(&wake.stacks, ObjectRef::new(&owner.name).within(&namespace));
    }
    let Some(uid) = object.labels().get(STACK_UID_LABEL).filter(|_| !owned) else {
        return;
    };
    let is_it = |stack: &Stack| stack.metadata.uid.as_ref() == Some(uid);
    if let Some(stack) = wake.known_stacks.find(is_it) {
        send(&wake.stacks, ObjectRef::from_obj(&*stack));
    }
}

/// A controller that has ended needs no waking; nothing else can go wrong with a send.
fn send<K: Resource<DynamicType = ()>>(to: &UnboundedSender<ObjectRef<K>>, key: ObjectRef<K>) {
    let _ = to.send(key);
}

fn watch_kind<K>(
    api: Api<K>,
    config: watcher::Config,
    on_change: impl Fn(&K) + Send + 'static,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    let (store, writer) = reflector::store();
    follow(api, config, &store, writer, on_change);
    store
}

/// Like [`watch_kind`], for a store made before, which `on_change` may look into.
fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    store: &Store<K>,
    writer: Writer<K>,
    on_change: impl Fn(&K) + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    let events = reflector::reflector(writer, watcher(api, config)).default_backoff();
    let reader = store.clone();
    let mut before = Vec::new();
    tokio::spawn(events.for_each(move |event| {
        match event {
            Ok(Event::Apply(object) | Event::Delete(object)) => on_change(&object),
            // The store takes a new list in when it is complete, so nobody is woken
            // before, and what went while nobody watched is known only from the old list.
            Ok(Event::Init) => before = reader.state(),
            Ok(Event::InitApply(_)) => {}
            Ok(Event::InitDone) => {
                for object in reader.state() {
                    on_change(&object);
                }
                for object in before.drain(..) {
                    if reader.get(&ObjectRef::from_obj(&*object)).is_none() {
                        on_change(&object);
                    }
                }
            }
            Err(error) => log_retry("watch", &error),
        }
        futures::future::ready(())
    }));
}

/// Starts the watches.
#[allow(
    clippy::too_many_lines,
    reason = "one watch after the other; parts would only hide who wakes whom"
)]
#[must_use]
pub fn watch(client: &Client) -> (Stores, Wiring) {
    let (servers_tx, servers_rx) = mpsc::unbounded_channel();
    let (images_tx, images_rx) = mpsc::unbounded_channel();
    let (key_pairs_tx, key_pairs_rx) = mpsc::unbounded_channel();
    let (flavors_tx, flavors_rx) = mpsc::unbounded_channel();
    let (hosts_tx, hosts_rx) = mpsc::unbounded_channel();
    let (stacks_tx, stacks_rx) = mpsc::unbounded_channel();
    let (network_tx, network_changes) = watch::channel(0);
    let (stacks, stacks_writer) = reflector::store();
    let wake = Wake {
        servers: servers_tx,
        images: images_tx,
        key_pairs: key_pairs_tx,
        flavors: flavors_tx,
        hosts: hosts_tx,
        stacks: stacks_tx,
        known_stacks: stacks.clone(),
        network: Arc::new(network_tx),
    };
    let all = || watcher::Config::default();
    let network = |wake: &Wake| {
        let sender = wake.network.clone();
        move || sender.send_modify(|count| *count += 1)
    };

    let (servers, writer) = reflector::store();
    follow(Api::all(client.clone()), all(), &servers, writer, {
        let (wake, servers) = (wake.clone(), servers.clone());
        move |server: &Server| wake_by_server(&wake, &servers, server)
    });
    let on_servers = |wake: &Wake| {
        let (wake, servers) = (wake.clone(), servers.clone());
        move |concerns: &dyn Fn(&Server) -> bool| {
            for server in servers.state() {
                if concerns(&server) {
                    send(&wake.servers, ObjectRef::from_obj(&server));
                }
            }
        }
    };
    let instances = watch_kind(Api::all(client.clone()), all(), {
        let wake = wake.clone();
        move |instance: &Instance| {
            let server = &instance.spec.server;
            send(
                &wake.servers,
                ObjectRef::new(&server.name).within(&server.namespace),
            );
            if let Some((namespace, name)) = instance.spec.image.name.split_once('/') {
                send(&wake.images, ObjectRef::new(name).within(namespace));
            }
            // Its interfaces' Ports may be free now.
            if instance.metadata.deletion_timestamp.is_some() {
                wake.network.send_modify(|count| *count += 1);
            }
        }
    });
    let flavors = watch_kind(Api::all(client.clone()), all(), {
        let (wake, servers) = (wake.clone(), on_servers(&wake));
        move |flavor: &Flavor| {
            send(&wake.flavors, ObjectRef::from_obj(flavor));
            let name = flavor.name_any();
            servers(&|s| s.spec.flavor.as_ref() == Some(&name));
        }
    });
    let images = watch_kind(Api::all(client.clone()), all(), {
        let (wake, servers) = (wake.clone(), on_servers(&wake));
        move |image: &Image| {
            wake_owner(&wake, image);
            send(&wake.images, ObjectRef::from_obj(image));
            let name = image.name_any();
            servers(&|s| s.spec.image.name == name);
        }
    });
    let key_pairs = watch_kind(Api::all(client.clone()), all(), {
        let (wake, servers) = (wake.clone(), on_servers(&wake));
        move |pair: &KeyPair| {
            wake_owner(&wake, pair);
            send(&wake.key_pairs, ObjectRef::from_obj(pair));
            let name = pair.name_any();
            servers(&|s| is_unbuilt(s) && s.spec.key_pairs.contains(&name));
        }
    });
    let hosts = watch_kind(Api::all(client.clone()), all(), {
        let (wake, servers) = (wake.clone(), on_servers(&wake));
        move |host: &Host| {
            send(&wake.hosts, ObjectRef::from_obj(host));
            let name = host.name_any();
            servers(&|s| placed_on(s).is_some_and(|placed| placed == name));
        }
    });
    let heartbeats = watcher::Config::default().fields(&format!("metadata.name={HEARTBEAT}"));
    let leases = watch_kind(Api::all(client.clone()), heartbeats, {
        let wake = wake.clone();
        move |lease: &Lease| {
            let namespace = lease.namespace().unwrap_or_default();
            if let Some(host) = namespace.strip_prefix(HOST_NAMESPACE_PREFIX) {
                send(&wake.hosts, ObjectRef::new(host));
            }
        }
    });
    let networks = watch_kind(Api::all(client.clone()), all(), {
        let (wake, changed, servers) = (wake.clone(), network(&wake), on_servers(&wake));
        move |network: &Network| {
            wake_owner(&wake, network);
            changed();
            servers(&is_unbuilt);
        }
    });
    let subnets = watch_kind(Api::all(client.clone()), all(), {
        let (wake, changed) = (wake.clone(), network(&wake));
        move |subnet: &Subnet| {
            wake_owner(&wake, subnet);
            changed();
        }
    });
    let ports = watch_kind(Api::all(client.clone()), all(), {
        let (wake, changed, servers) = (wake.clone(), network(&wake), on_servers(&wake));
        move |port: &Port| {
            wake_owner(&wake, port);
            changed();
            let (namespace, name) = (port.namespace(), port.name_any());
            match port.owner_references().iter().find(|o| o.kind == "Server") {
                Some(owner) => send(
                    &wake.servers,
                    ObjectRef::new(&owner.name).within(namespace.as_deref().unwrap_or_default()),
                ),
                None => servers(&|s| {
                    s.namespace() == namespace
                        && s.spec
                            .networks
                            .iter()
                            .any(|n| n.port.as_ref() == Some(&name))
                }),
            }
        }
    });
    let allocations = watch_kind(Api::all(client.clone()), all(), {
        let changed = network(&wake);
        move |_: &IPAllocation| changed()
    });
    let groups = watch_kind(Api::all(client.clone()), all(), {
        let (wake, changed) = (wake.clone(), network(&wake));
        move |group: &SecurityGroup| {
            wake_owner(&wake, group);
            changed();
        }
    });
    let rules = watch_kind(Api::all(client.clone()), all(), {
        let (wake, changed) = (wake.clone(), network(&wake));
        move |rule: &SecurityGroupRule| {
            wake_owner(&wake, rule);
            changed();
        }
    });

    let server_groups = watch_kind(Api::all(client.clone()), all(), {
        let wake = wake.clone();
        move |group: &ServerGroup| wake_owner(&wake, group)
    });
    follow(Api::all(client.clone()), all(), &stacks, stacks_writer, {
        let wake = wake.clone();
        move |stack: &Stack| send(&wake.stacks, ObjectRef::from_obj(stack))
    });

    let wiring = Wiring {
        servers: Source {
            store: servers.clone(),
            requests: servers_rx,
        },
        images: Source {
            store: images.clone(),
            requests: images_rx,
        },
        key_pairs: Source {
            store: key_pairs.clone(),
            requests: key_pairs_rx,
        },
        flavors: Source {
            store: flavors.clone(),
            requests: flavors_rx,
        },
        hosts: Source {
            store: hosts.clone(),
            requests: hosts_rx,
        },
        stacks: Source {
            store: stacks.clone(),
            requests: stacks_rx,
        },
    };
    let stores = Stores {
        servers,
        instances,
        flavors,
        images,
        key_pairs,
        hosts,
        leases,
        networks,
        subnets,
        ports,
        allocations,
        groups,
        rules,
        server_groups,
        stacks,
        network_changes,
    };
    (stores, wiring)
}

fn is_unbuilt(server: &Server) -> bool {
    server.status.as_ref().is_none_or(|s| s.instance.is_none())
}

fn placed_on(server: &Server) -> Option<&str> {
    Some(server.status.as_ref()?.placement.as_ref()?.host.as_str())
}

/// A Server wakes its own controller, and what may wait to be deleted until no Server
/// uses it, and the Servers that wait for its Ports. It wakes the network too: its namespace may need a `default` group.
fn wake_by_server(wake: &Wake, servers: &Store<Server>, server: &Server) {
    send(&wake.servers, ObjectRef::from_obj(server));
    wake_owner(wake, server);
    // One that went while nobody watched was last seen without a mark of deletion.
    let gone = servers.get(&ObjectRef::from_obj(server)).is_none();
    if server.metadata.deletion_timestamp.is_none() && !gone {
        return;
    }
    let namespace = server.namespace().unwrap_or_default();
    let image = &server.spec.image;
    let image_namespace = image.namespace.as_ref().unwrap_or(&namespace);
    send(
        &wake.images,
        ObjectRef::new(&image.name).within(image_namespace),
    );
    for name in &server.spec.key_pairs {
        send(&wake.key_pairs, ObjectRef::new(name).within(&namespace));
    }
    if let Some(flavor) = &server.spec.flavor {
        send(&wake.flavors, ObjectRef::new(flavor));
    }
    let ports: Vec<_> = named_ports(server).collect();
    if !ports.is_empty() {
        for other in servers.state() {
            if other.metadata.namespace == server.metadata.namespace
                && named_ports(&other).any(|port| ports.contains(&port))
            {
                send(&wake.servers, ObjectRef::from_obj(&other));
            }
        }
    }
    wake.network.send_modify(|count| *count += 1);
}

fn named_ports(server: &Server) -> impl Iterator<Item = &str> {
    server
        .spec
        .networks
        .iter()
        .filter_map(|n| n.port.as_deref())
}
