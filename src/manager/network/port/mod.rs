//! Ports: each gets an Ethernet address and IP addresses for life.

mod addresses;
pub mod plan;
#[cfg(test)]
mod tests;

use kube::ResourceExt;

use pileus_api::Port;
use pileus_kube_ext::cache::{Index, namespaced};

/// By namespace and name of the Network.
pub const BY_NETWORK: Index<Port> = Index::new("network", |port| {
    let network = &port.spec.network;
    let namespace = network.namespace.clone().or_else(|| port.namespace());
    vec![namespaced(&namespace.unwrap_or_default(), &network.name)]
});

/// By uid of the Server that has the Port.
pub const BY_HOLDER: Index<Port> = Index::new("holder", |port| {
    let status = port.status.as_ref();
    let holder = status.and_then(|status| status.server.as_ref());
    holder.map(|holder| holder.uid.clone()).into_iter().collect()
});
