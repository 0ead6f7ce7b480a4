//! Ports: each gets an Ethernet address and IP addresses for life.

mod access;
mod addresses;
pub mod placement;
pub mod plan;
#[cfg(test)]
mod tests;

use kube::ResourceExt;

use pileus_api::Port;
use pileus_kube_ext::cache::{Index, namespaced};
use pileus_network::topology::Key;

/// Namespace and name of the Network that a Port names.
#[must_use]
pub fn network_key(port: &Port) -> Key {
    let network = &port.spec.network;
    let namespace = network.namespace.clone().or_else(|| port.namespace());
    Key {
        namespace: namespace.unwrap_or_default(),
        name: network.name.clone(),
    }
}

/// By namespace and name of the Network.
pub const BY_NETWORK: Index<Port> = Index::new("network", |port| {
    let Key { namespace, name } = network_key(port);
    vec![namespaced(&namespace, &name)]
});

/// By uid of the Server that has the Port.
pub const BY_HOLDER: Index<Port> = Index::new("holder", |port| {
    let status = port.status.as_ref();
    let holder = status.and_then(|status| status.server.as_ref());
    holder
        .map(|holder| holder.uid.clone())
        .into_iter()
        .collect()
});
