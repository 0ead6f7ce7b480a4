//! Ports: each gets an Ethernet address and IP addresses for life.

mod addresses;
pub mod placement;
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
