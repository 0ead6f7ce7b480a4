//! Who may attach Ports to a Network, and with which say: as in Neutron, some of a Port is for the
//! Network's owner alone to choose. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kube::ResourceExt;

use crate::network::port::network_key;
use pileus_api::network::PortSecurity;
use pileus_api::{Network, NetworkStatus, Port};
use pileus_network::topology::Key;

/// Whether a Port is of another namespace than the Network that it names.
#[must_use]
pub fn is_foreign(port: &Port) -> bool {
    port.namespace().unwrap_or_default() != network_key(port).namespace
}

/// Whether Ports of a namespace may be attached.
#[must_use]
pub fn is_open_to(network: &Network, namespace: &str) -> bool {
    let shared = network.spec.shared_with.as_ref();
    network.namespace().as_deref() == Some(namespace)
        || shared.is_some_and(|shared| shared.allows(namespace))
}

/// What a Port has that only Ports of the Network's own namespace may have. What was chosen when
/// the Port got its addresses stays its own.
#[must_use]
pub fn reserved_fields(port: &Port) -> Vec<&'static str> {
    if !is_foreign(port) {
        return Vec::new();
    }
    let spec = &port.spec;
    let has_addresses = has_addresses(port);
    let fields = [
        (
            "portSecurity Disabled",
            spec.port_security == Some(PortSecurity::Disabled),
        ),
        (
            "allowedAddressPairs",
            !spec.allowed_address_pairs.is_empty(),
        ),
        ("macAddress", !has_addresses && spec.mac_address.is_some()),
        (
            "an address in fixedIPs",
            !has_addresses && spec.fixed_ips.iter().any(|ip| ip.address.is_some()),
        ),
    ];
    let given = fields.into_iter().filter(|(_, given)| *given);
    given.map(|(field, _)| field).collect()
}

/// Whether a Port has got its addresses.
#[must_use]
pub fn has_addresses(port: &Port) -> bool {
    let status = port.status.as_ref();
    status.is_some_and(|status| status.mac_address.is_some())
}

/// The other namespaces that have Ports in a Network, and those of them whose Ports are unplugged.
#[derive(Debug, Default)]
pub struct Guests {
    attached: BTreeSet<String>,
    unplugged: BTreeSet<String>,
}

impl Guests {
    /// Those of all Networks.
    #[must_use]
    pub fn of_all(networks: &[Arc<Network>], ports: &[Arc<Port>]) -> HashMap<Key, Self> {
        let networks: HashMap<Key, &Arc<Network>> = networks
            .iter()
            .map(|network| (crate::network::kinds::key(&**network), network))
            .collect();
        let mut found: HashMap<Key, Self> = HashMap::new();
        let foreign = ports.iter().filter(|port| is_foreign(port));
        for port in foreign.filter(|port| has_addresses(port)) {
            let key = network_key(port);
            let Some(network) = networks.get(&key) else {
                continue;
            };
            let namespace = port.namespace().unwrap_or_default();
            let guests = found.entry(key).or_default();
            if is_open_to(network, &namespace) && reserved_fields(port).is_empty() {
                guests.attached.insert(namespace);
            } else {
                guests.unplugged.insert(namespace);
            }
        }
        found
    }

    /// Reports to the Network's owner.
    pub fn report(&self, status: &mut NetworkStatus) {
        status.attached_namespaces = self.attached.iter().cloned().collect();
        status.unplugged_namespaces = self.unplugged.iter().cloned().collect();
    }
}
