//! Decides about all Ports at once, so that no two ever get one address. Pure.
//!
//! Ports that have their addresses go first, then the older ones. What a Port has it keeps:
//! a later fault of its spec, or of what it refers to, shows in its condition and takes
//! nothing away.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use kube::ResourceExt;

use super::addresses;
use crate::network::decision::Decision;
use crate::network::subnet::ledger::{Holder, Ledger};
use pileus_api::network::PortSecurity;
use pileus_api::port::AllocatedIp;
use pileus_api::validation;
use pileus_api::{IPAllocation, Network, Port, PortStatus, Reason, names};
use pileus_values::{ClusterId, Mac, stable_id};

/// Namespace and name.
pub type Key = (String, String);

/// Attempts at deriving an Ethernet address that is free in the Network.
const MAC_ATTEMPTS: u32 = 64;

/// What Ports are decided from.
#[derive(Debug)]
pub struct Input<'a> {
    /// The cluster, from which ids are derived.
    pub cluster: &'a ClusterId,
    /// Ports.
    pub ports: &'a [Arc<Port>],
    /// Networks by namespace and name; true if they have their MTU and live.
    pub networks: &'a HashMap<Key, (Arc<Network>, bool)>,
    /// Security groups.
    pub groups: &'a HashSet<Key>,
    /// Addresses in use.
    pub allocations: &'a [Arc<IPAllocation>],
    /// Who uses a Port, by namespace and name.
    pub users: &'a HashMap<Key, BTreeSet<String>>,
    /// Ethernet addresses that rows in OVN have, by port id.
    pub hinted_macs: &'a HashMap<String, Mac>,
}

/// What is to be done for Ports.
#[derive(Debug, Default)]
pub struct Ports {
    /// A decision for each Port.
    pub decisions: Vec<(Arc<Port>, Decision<PortStatus>)>,
    /// Addresses to take, each for the Port of this uid.
    pub create: Vec<(String, IPAllocation)>,
    /// Addresses that Ports being deleted give up, after OVN has forgotten them.
    pub release: Vec<Arc<IPAllocation>>,
    /// Addresses that a Port of the same name but another uid holds; to be given up once
    /// the API server says that the Port is no more.
    pub stale: Vec<Arc<IPAllocation>>,
}

/// A refusal: reason and words.
pub(super) type Refusal = (Reason, String);

/// The Port's name in OVN.
#[must_use]
pub fn port_id(cluster: &ClusterId, port: &Port) -> String {
    let namespace = port.namespace().unwrap_or_default();
    stable_id(cluster, "Port", &namespace, &port.name_any()).to_string()
}

pub(super) struct Planner<'a, 'i> {
    pub input: &'a Input<'i>,
    pub ledgers: &'a mut HashMap<Key, Vec<Ledger>>,
    /// Ethernet addresses in use, by Network.
    macs: HashMap<Key, HashMap<Mac, String>>,
    /// Allocations by the holder's namespace and name.
    pub held: HashMap<Key, Vec<Arc<IPAllocation>>>,
    pub out: Ports,
}

/// Decides about all Ports; takes addresses in `ledgers`.
#[must_use]
#[allow(clippy::implicit_hasher, reason = "only our own maps come here")]
pub fn plan(input: &Input<'_>, ledgers: &mut HashMap<Key, Vec<Ledger>>) -> Ports {
    let mut held: HashMap<Key, Vec<Arc<IPAllocation>>> = HashMap::new();
    for allocation in input.allocations {
        if let Holder::Port {
            namespace, name, ..
        } = Holder::of(allocation)
        {
            held.entry((namespace, name))
                .or_default()
                .push(allocation.clone());
        }
    }
    let mut planner = Planner {
        input,
        ledgers,
        macs: HashMap::new(),
        held,
        out: Ports::default(),
    };
    let mut sorted: Vec<&Arc<Port>> = input.ports.iter().collect();
    sorted.sort_by_cached_key(|p| {
        (
            p.status.as_ref().is_none_or(|s| s.mac_address.is_none()),
            p.metadata.creation_timestamp.as_ref().map(|t| t.0),
            p.namespace(),
            p.name_any(),
        )
    });
    for port in sorted {
        let decision = planner.one(port);
        planner.out.decisions.push((port.clone(), decision));
    }
    planner.out
}

fn key_of(port: &Port) -> Key {
    (port.namespace().unwrap_or_default(), port.name_any())
}

fn refuse(status: PortStatus, (reason, message): Refusal) -> Decision<PortStatus> {
    Decision::not_ready(status, reason, message)
}

impl Planner<'_, '_> {
    fn one(&mut self, port: &Arc<Port>) -> Decision<PortStatus> {
        let key = key_of(port);
        let mut status = PortStatus {
            observed_generation: None,
            conditions: Vec::new(),
            ..port.status.clone().unwrap_or_default()
        };
        let network_namespace = port.spec.network.namespace.as_ref().unwrap_or(&key.0);
        let network_key = (network_namespace.clone(), port.spec.network.name.clone());
        if port.metadata.deletion_timestamp.is_some() {
            return self.deleting(port, &key, &network_key, status);
        }
        let has_addresses = status.mac_address.is_some();
        // Old API servers do not hold to the rules of the definition. A Port that has its
        // addresses keeps them, and is told below.
        if !has_addresses && let Err(message) = validation::port(&port.spec) {
            return refuse(status, (Reason::InvalidSpec, message));
        }
        let networks = self.input.networks;
        let network = match find_network(networks, &network_key, &key.0, has_addresses) {
            Ok(network) => network,
            Err(refusal) => return refuse(status, refusal),
        };
        let mac = match self.mac(port, &key, &network_key, &status) {
            Ok(mac) => mac,
            Err(refusal) => return refuse(status, refusal),
        };
        let id = port_id(self.input.cluster, port);
        let found = match addresses::assign(self, port, &network_key, &id, mac, &status) {
            Ok(found) => found,
            Err(refusal) => return refuse(status, refusal),
        };
        self.macs
            .entry(network_key)
            .or_default()
            .insert(mac, format!("{}/{}", key.0, key.1));
        status.port_id = Some(id);
        status.network_uid = network.uid();
        status.mac_address = Some(mac.to_string());
        status.addresses = Some(joined(&found));
        status.fixed_ips = found;
        match self.check(port, &key.0, network, &status) {
            Err(refusal) => refuse(status, refusal),
            Ok(()) => {
                let addresses = joined(&status.fixed_ips);
                let message = format!("{addresses} in Network {}", network.name_any());
                Decision::ready(status, message)
            }
        }
    }

    fn deleting(
        &mut self,
        port: &Arc<Port>,
        key: &Key,
        network: &Key,
        status: PortStatus,
    ) -> Decision<PortStatus> {
        // Until it is gone its address is not for others.
        if let Some(mac) = status.mac_address.as_ref().and_then(|m| m.parse().ok()) {
            self.macs
                .entry(network.clone())
                .or_default()
                .insert(mac, format!("{}/{}", key.0, key.1));
        }
        if let Some(users) = self.input.users.get(key).filter(|users| !users.is_empty()) {
            return Decision::deleting(status, "Port", users.iter().cloned().collect());
        }
        let uid = port.uid();
        let held = self.held.get(key).into_iter().flatten();
        self.out.release.extend(
            held.filter(|allocation| allocation.spec.port_uid == uid)
                .cloned(),
        );
        Decision::deleting(status, "Port", Vec::new())
    }

    /// The Ethernet address: the one it has, the one it asks for, or one derived from its
    /// id; free in its Network.
    fn mac(
        &self,
        port: &Port,
        key: &Key,
        network: &Key,
        status: &PortStatus,
    ) -> Result<Mac, Refusal> {
        let own = format!("{}/{}", key.0, key.1);
        let used = self.macs.get(network);
        let holder = |mac: &Mac| used.and_then(|used| used.get(mac)).filter(|h| **h != own);
        let fixed = match (&status.mac_address, &port.spec.mac_address) {
            (Some(text), _) | (None, Some(text)) => Some(
                text.parse::<Mac>()
                    .map_err(|error| (Reason::InvalidSpec, format!("macAddress: {error}")))?,
            ),
            (None, None) => None,
        };
        if let Some(mac) = fixed {
            return match holder(&mac) {
                None => Ok(mac),
                Some(other) => Err((
                    Reason::MacInUse,
                    format!(
                        "macAddress `{mac}` is held by Port {other} of the same Network {}; choose \
                         another, leave it out, or delete that Port",
                        network.1
                    ),
                )),
            };
        }
        let id = port_id(self.input.cluster, port);
        let hint = self.input.hinted_macs.get(&id).copied();
        hint.into_iter()
            .chain((0..MAC_ATTEMPTS).map(|attempt| Mac::derive(&id, attempt)))
            .find(|mac| holder(mac).is_none())
            .ok_or_else(|| {
                (
                    Reason::MacInUse,
                    format!(
                        "no free Ethernet address was found in Network {}; set macAddress",
                        network.1
                    ),
                )
            })
    }

    /// What is wrong although the Port has its addresses.
    fn check(
        &self,
        port: &Port,
        namespace: &str,
        network: &Network,
        status: &PortStatus,
    ) -> Result<(), Refusal> {
        let spec = &port.spec;
        let security = spec.port_security.unwrap_or(network.spec.port_security);
        let invalid = |message: String| Err((Reason::InvalidSpec, message));
        if let Err(message) = validation::port(spec) {
            return invalid(message);
        }
        if let Some(asked) = addresses::changed(port, status) {
            return invalid(asked);
        }
        if security == PortSecurity::Disabled {
            return match spec.security_groups.as_deref() {
                None | Some([]) => Ok(()),
                Some(groups) => invalid(format!(
                    "securityGroups {} cannot be enforced with portSecurity Disabled; leave them out, \
                     or enable it",
                    groups.join(", ")
                )),
            };
        }
        let default = [names::DEFAULT_GROUP.to_owned()];
        let groups = spec.security_groups.as_deref().unwrap_or(&default);
        let missing: Vec<&str> = groups
            .iter()
            .filter(|g| {
                !self
                    .input
                    .groups
                    .contains(&(namespace.to_owned(), (*g).clone()))
            })
            .map(String::as_str)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err((
            Reason::SecurityGroupNotFound,
            format!(
                "SecurityGroup {} does not exist in namespace {namespace}; make it, or name others in \
                 securityGroups",
                missing.join(", ")
            ),
        ))
    }
}

fn find_network<'n>(
    networks: &'n HashMap<Key, (Arc<Network>, bool)>,
    key: &Key,
    namespace: &str,
    has_addresses: bool,
) -> Result<&'n Arc<Network>, Refusal> {
    let Some((network, usable)) = networks.get(key) else {
        return Err((
            Reason::NetworkNotFound,
            format!(
                "Network {} does not exist in namespace {}; make it, or correct `network`",
                key.1, key.0
            ),
        ));
    };
    if has_addresses {
        return Ok(network);
    }
    let shared = network.spec.shared_with.as_ref();
    if key.0 != namespace && !shared.is_some_and(|s| s.allows(namespace)) {
        return Err((
            Reason::NetworkNotShared,
            format!(
                "Network {}/{} is not shared with namespace {namespace}; its owner can add that to \
                 sharedWith.namespaces",
                key.0, key.1
            ),
        ));
    }
    if !usable {
        return Err((
            Reason::DependencyNotReady,
            format!("Network {} is not ready; see its conditions", key.1),
        ));
    }
    Ok(network)
}

fn joined(ips: &[AllocatedIp]) -> String {
    let texts: Vec<&str> = ips.iter().map(|ip| ip.address.as_str()).collect();
    texts.join(",")
}
