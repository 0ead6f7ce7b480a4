//! Whether a Port may use its Network, looked at in every pass. Pure.
//!
//! A Port of the Network's own namespace may. One of another namespace may while the Network is
//! shared with that and as far as it asks for nothing that is the owner's to choose; otherwise it
//! is unplugged, and keeps its addresses.

use kube::ResourceExt;

use super::network_key;
use super::plan::{Planner, Refusal};
use crate::network::network::sharing::{has_addresses, is_foreign, is_open_to, reserved_fields};
use pileus_api::{Port, Reason};
use pileus_network::topology::Key;

/// What becomes of the rows of a Port in OVN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// They are as the Port's addresses and spec say, if it has addresses.
    Wanted,
    /// The Port is unplugged: they go.
    Removed,
    /// They stay as they are: what the Port needs is not there, which is no evidence.
    Untouched,
}

/// Whether a Port may use its Network.
pub(super) struct Access {
    pub rows: Rows,
    pub refusal: Option<Refusal>,
}

impl Planner<'_, '_> {
    /// Whether a Port may use its Network now. One of the Network's own namespace may; what is
    /// missing is reported by [`Self::decide`].
    pub(super) fn access(&self, port: &Port) -> Access {
        let network = network_key(port);
        let parent = self.networks.get(&network);
        let leaving = parent.is_some_and(|parent| parent.leaving);
        let plugged = Access {
            rows: Rows::Wanted,
            refusal: None,
        };
        if !is_foreign(port) {
            if leaving {
                // It has no addresses that it knows of, or the Network would stay.
                return Access {
                    rows: Rows::Removed,
                    ..plugged
                };
            }
            return plugged;
        }
        let own = port.namespace().unwrap_or_default();
        let keeps = if has_addresses(port) {
            "; this Port is unplugged, and keeps its addresses for the time when it may be used again"
        } else {
            ""
        };
        // The same words whether it exists or not, which is not for strangers to know.
        let missing = || {
            let message = format!(
                "there is no Network {}/{} that namespace {own} may use: it does not exist, or its \
                 owner has not listed {own} in sharedWith.namespaces{keeps}",
                network.namespace, network.name
            );
            Some((Reason::NetworkNotFound, message))
        };
        let Some(parent) = parent else {
            return Access {
                rows: Rows::Untouched,
                refusal: missing(),
            };
        };
        if leaving || !is_open_to(&parent.network, &own) {
            return Access {
                rows: Rows::Removed,
                refusal: missing(),
            };
        }
        let reserved = reserved_fields(port);
        if !reserved.is_empty() {
            let message = format!(
                "{} cannot be asked for in Network {}/{}, which is of another namespace: that is \
                 for its owner to choose; leave it out{keeps}",
                reserved.join(" and "),
                network.namespace,
                network.name
            );
            return Access {
                rows: Rows::Removed,
                refusal: Some((Reason::Forbidden, message)),
            };
        }
        match self.missing_subnet(port, &network) {
            None => plugged,
            Some(subnet) => Access {
                rows: if self.leaving_subnets.contains(&subnet) {
                    Rows::Removed
                } else {
                    Rows::Untouched
                },
                refusal: Some((
                    Reason::NoSubnet,
                    format!("Subnet {} is not there any more{keeps}", subnet.name),
                )),
            },
        }
    }

    /// A Subnet of a Port's addresses that is not in force.
    pub(super) fn missing_subnet(&self, port: &Port, network: &Key) -> Option<Key> {
        let pools = self.planning.pools.get(network);
        let in_force = |name: &str| pools.into_iter().flatten().any(|pool| pool.name() == name);
        let ips = port.status.iter().flat_map(|status| &status.fixed_ips);
        let mut subnets = ips.map(|ip| &ip.subnet);
        let missing = subnets.find(|subnet| !in_force(subnet))?;
        Some(Key::new(&network.namespace, missing))
    }
}
