//! What wakes the controller of Servers.

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use crate::caches::Caches;
use crate::network::port;
use pileus_api::{Instance, KeyPair, Network, Port, Server, Subnet};
use pileus_kube_ext::cache::{Cache, Index, key_of, namespaced};
use pileus_kube_ext::triggers::Triggers;

/// By the name of the Flavor.
pub const BY_FLAVOR: Index<Server> = Index::new("flavor", |server| {
    server.spec.flavor.iter().cloned().collect()
});

/// By the name of the host that a Server is placed on.
pub const BY_HOST: Index<Server> = Index::new("host", |server| {
    let status = server.status.as_ref();
    let placement = status.and_then(|status| status.placement.as_ref());
    placement
        .map(|placement| placement.host.clone())
        .into_iter()
        .collect()
});

/// By namespace and name of the Image.
pub const BY_IMAGE: Index<Server> = Index::new("image", |server| {
    let image = &server.spec.image;
    vec![namespaced(
        &namespace_of(server, image.namespace.as_ref()),
        &image.name,
    )]
});

/// By namespace and names of the KeyPairs.
pub const BY_KEY_PAIR: Index<Server> = Index::new("key pair", |server| {
    let namespace = namespace_of(server, None);
    let names = server.spec.key_pairs.iter();
    names.map(|name| namespaced(&namespace, name)).collect()
});

/// By namespace and names of the Networks that are named as such, and not by a Port.
pub const BY_NETWORK: Index<Server> = Index::new("network", |server| {
    let networks = server
        .spec
        .networks
        .iter()
        .filter_map(|nic| nic.network.as_ref());
    networks
        .map(|network| {
            namespaced(
                &namespace_of(server, network.namespace.as_ref()),
                &network.name,
            )
        })
        .collect()
});

/// By namespace and names of the Ports that are named, and not made for the Server.
pub const BY_PORT: Index<Server> = Index::new("port", |server| {
    let namespace = namespace_of(server, None);
    let names = server
        .spec
        .networks
        .iter()
        .filter_map(|nic| nic.port.as_ref());
    names.map(|name| namespaced(&namespace, name)).collect()
});

/// Instances by namespace and names of the Ports that they are plugged into; only those that
/// Pileus has made.
pub const INSTANCES_BY_PORT: Index<Instance> = Index::new("port", |instance| {
    if instance.is_genuine() {
        ports_of(instance)
    } else {
        Vec::new()
    }
});

fn ports_of(instance: &Instance) -> Vec<String> {
    let namespace = &instance.spec.server.namespace;
    let nics = instance.spec.nics.iter();
    nics.map(|nic| namespaced(namespace, &nic.port)).collect()
}

/// The Instances of a Server, by its uid; only those that Pileus has made.
pub const INSTANCES_BY_SERVER: Index<Instance> = Index::new("server", |instance| {
    let genuine = instance.is_genuine();
    let uid = genuine.then(|| instance.spec.server.uid.clone());
    uid.into_iter().collect()
});

/// The Ports that are owned, by the uids of their owners.
pub const PORTS_BY_OWNER: Index<Port> = Index::new("owner", |port| {
    let owners = port.owner_references().iter();
    owners.map(|owner| owner.uid.clone()).collect()
});

/// The namespace of what a Server refers to: its own, if the reference names none.
fn namespace_of(server: &Server, named: Option<&String>) -> String {
    let named = named.cloned().or_else(|| server.namespace());
    named.unwrap_or_default()
}

/// What wakes the controller of Servers.
#[must_use]
pub fn triggers(caches: &Caches) -> Triggers<Server> {
    let servers = &caches.servers;
    Triggers::controller(servers)
        .woken_by(&caches.instances, |instance: &Instance| {
            let server = &instance.spec.server;
            let genuine = instance.is_genuine();
            genuine.then(|| ObjectRef::new(&server.name).within(&server.namespace))
        })
        .woken_by_reference(&caches.flavors, BY_FLAVOR, ResourceExt::name_any)
        .woken_by_reference(&caches.images, BY_IMAGE, key_of)
        .woken_by(&caches.key_pairs, waiting_for_key_pair(servers.clone()))
        .woken_by_reference(&caches.hosts, BY_HOST, ResourceExt::name_any)
        .woken_by(&caches.networks, waiting_for_network(caches))
        .woken_by(&caches.subnets, waiting_for_subnet(caches))
        .woken_by_owned(&caches.ports)
        .woken_by_reference(&caches.ports, BY_PORT, key_of)
        // Of several Servers that name one Port the next gets it when one goes.
        .woken_by_release(servers, sharing_ports(servers.clone()))
        .woken_by_release(&caches.instances, naming_ports(servers.clone()))
}

/// A Server whose guest was built has the keys that it was built with.
fn waiting_for_key_pair(servers: Cache<Server>) -> impl Fn(&KeyPair) -> Vec<ObjectRef<Server>> {
    move |pair| {
        unbuilt(
            servers
                .by(&BY_KEY_PAIR, &key_of(pair))
                .iter()
                .map(AsRef::as_ref),
        )
    }
}

fn waiting_for_network(caches: &Caches) -> impl Fn(&Network) -> Vec<ObjectRef<Server>> + use<> {
    let waiting = waiting_for(caches);
    move |network| waiting(&key_of(network))
}

/// What the guest's network data says of its Subnet must be known before it is built.
fn waiting_for_subnet(caches: &Caches) -> impl Fn(&Subnet) -> Vec<ObjectRef<Server>> + use<> {
    let waiting = waiting_for(caches);
    move |subnet| {
        let namespace = subnet.namespace().unwrap_or_default();
        waiting(&namespaced(&namespace, &subnet.spec.network))
    }
}

/// Servers without an Instance whose interfaces are in a Network.
fn waiting_for(caches: &Caches) -> impl Fn(&str) -> Vec<ObjectRef<Server>> + use<> {
    let (servers, ports) = (caches.servers.clone(), caches.ports.clone());
    move |network| {
        let mut waiting = servers.by(&BY_NETWORK, network);
        for port in ports.by(&port::BY_NETWORK, network) {
            waiting.extend(servers.by(&BY_PORT, &key_of(&*port)));
        }
        unbuilt(waiting.iter().map(AsRef::as_ref))
    }
}

fn sharing_ports(servers: Cache<Server>) -> impl Fn(&Server) -> Vec<ObjectRef<Server>> {
    move |server| {
        let ports = BY_PORT.keys(server);
        let sharing = ports
            .iter()
            .flat_map(|port| servers.names_by(&BY_PORT, port));
        sharing.collect()
    }
}

fn naming_ports(servers: Cache<Server>) -> impl Fn(&Instance) -> Vec<ObjectRef<Server>> {
    move |instance| {
        let ports = ports_of(instance);
        let naming = ports
            .iter()
            .flat_map(|port| servers.names_by(&BY_PORT, port));
        naming.collect()
    }
}

fn unbuilt<'a>(servers: impl Iterator<Item = &'a Server>) -> Vec<ObjectRef<Server>> {
    let is_unbuilt = |server: &&Server| {
        let status = server.status.as_ref();
        status.is_none_or(|status| status.instance.is_none())
    };
    servers
        .filter(is_unbuilt)
        .map(ObjectRef::from_obj)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn server(spec: &Value) -> Server {
        let spec = spec.as_object().cloned().unwrap();
        let mut all = json!({"image": {"name": "i"}, "flavor": "small"});
        all.as_object_mut().unwrap().extend(spec);
        serde_json::from_value(
            json!({"apiVersion": "pileus.dev/v1alpha1", "kind": "Server",
            "metadata": {"name": "s", "namespace": "demo"}, "spec": all}),
        )
        .unwrap()
    }

    #[test]
    fn references_are_found_by_the_namespace_that_they_mean() {
        let server = server(&json!({
            "image": {"name": "i", "namespace": "shared"},
            "keyPairs": ["one", "two"],
            "networks": [
                {"name": "a", "network": {"name": "n"}},
                {"name": "b", "network": {"name": "n", "namespace": "shared"}},
                {"name": "c", "port": "p"},
            ],
        }));
        assert_eq!(BY_FLAVOR.keys(&server), ["small"]);
        assert_eq!(BY_IMAGE.keys(&server), ["shared/i"]);
        assert_eq!(BY_KEY_PAIR.keys(&server), ["demo/one", "demo/two"]);
        assert_eq!(BY_NETWORK.keys(&server), ["demo/n", "shared/n"]);
        assert_eq!(BY_PORT.keys(&server), ["demo/p"]);
        assert!(BY_HOST.keys(&server).is_empty());
    }
}
