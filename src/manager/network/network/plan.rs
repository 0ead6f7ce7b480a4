//! Decides about Networks. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::sharing::Guests;
use crate::network::decision::Decision;
use crate::network::kinds::{
    Decided, NetworkKind, Planning, has_finalizer, is_deleting, key, owner,
};
use pileus_api::{Network, NetworkStatus, Reason};
use pileus_network::topology::{Key, NetworkIn};

/// Overhead of Geneve in each packet over IPv4, in bytes: outer Ethernet 14, IPv4 20, UDP 8,
/// Geneve 8 and OVN's option 8.
pub const OVERHEAD_IPV4: i32 = 58;
/// The same over IPv6, whose header is 20 bytes longer.
pub const OVERHEAD_IPV6: i32 = 78;

impl NetworkKind for Network {
    fn plan(planning: &mut Planning<'_>) -> Decided<Self> {
        let mut decided = Decided::<Self>::new();
        let guests = Guests::of_all(&planning.observed.networks, &planning.observed.ports);
        for network in &planning.observed.networks {
            if !has_finalizer(&**network) {
                continue;
            }
            let users = planning.users.of(&**network);
            let mut decision = decide(network, planning.max_mtu, users);
            if let Some(guests) = guests.get(&key(&**network)) {
                guests.report(&mut decision.status);
            }
            if decision.stays()
                && let Some(mtu) = decision.status.mtu
            {
                planning.topology.networks.push(NetworkIn {
                    owner: owner(planning.cluster, &**network),
                    mtu,
                });
            }
            decided.push((network.clone(), decision));
        }
        decided
    }
}

/// A Network as far as its Subnets and Ports are concerned.
#[derive(Clone, Debug)]
pub struct ParentNetwork {
    /// The Network.
    pub network: Arc<Network>,
    /// Whether it has its MTU and is not being deleted.
    pub usable: bool,
    /// Whether it is deleted now, with everything that is attached to it.
    pub leaving: bool,
}

/// The Networks by namespace and name.
#[must_use]
pub fn parent_networks(networks: &Decided<Network>) -> HashMap<Key, ParentNetwork> {
    let parent = |(network, decision): &(Arc<Network>, Decision<NetworkStatus>)| ParentNetwork {
        network: network.clone(),
        usable: decision.status.mtu.is_some() && !is_deleting(&**network),
        leaving: !decision.stays(),
    };
    networks
        .iter()
        .map(|decided| (key(&*decided.0), parent(decided)))
        .collect()
}

/// Decides about one Network. `max_mtu` is what the hosts' network carries less the tunnel's overhead, in
/// bytes; `users` names what would be cut off by a deletion.
#[must_use]
pub fn decide(network: &Network, max_mtu: i32, users: Vec<String>) -> Decision<NetworkStatus> {
    let fixed = network.status.as_ref().and_then(|s| s.mtu);
    let status = |mtu| NetworkStatus {
        mtu,
        ..NetworkStatus::default()
    };
    if is_deleting(network) {
        return Decision::deleting(status(fixed), "Network", users);
    }
    match (fixed, network.spec.mtu) {
        (Some(mtu), Some(asked)) if asked != mtu => Decision::not_ready(
            status(Some(mtu)),
            Reason::InvalidSpec,
            format!(
                "mtu {asked} does not come into force: it was fixed at {mtu} bytes when the \
                 Network was made; set it back, or make a new Network"
            ),
        ),
        (None, Some(asked)) if asked > max_mtu => Decision::not_ready(
            status(None),
            Reason::InvalidSpec,
            format!(
                "mtu {asked} is more than the hosts' network can carry: at most {max_mtu} \
                 bytes are left beside the tunnel's header; lower it or leave it out"
            ),
        ),
        (fixed, asked) => {
            let mtu = fixed.or(asked).unwrap_or(max_mtu);
            Decision::ready(status(Some(mtu)), format!("packets of up to {mtu} bytes"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pileus_api::NetworkSpec;

    fn network(asked: Option<i32>, fixed: Option<i32>) -> Network {
        let mut network = Network::new(
            "n",
            NetworkSpec {
                mtu: asked,
                ..NetworkSpec::default()
            },
        );
        network.status = fixed.map(|mtu| NetworkStatus {
            mtu: Some(mtu),
            ..NetworkStatus::default()
        });
        network
    }

    #[test]
    fn the_mtu_is_what_the_underlay_leaves_and_stays_so() {
        let decision = decide(&network(None, None), 1442, vec![]);
        assert_eq!(decision.status.mtu, Some(1442));
        let decision = decide(&network(None, Some(1442)), 8942, vec![]);
        assert_eq!(decision.status.mtu, Some(1442));
    }

    #[test]
    fn too_big_an_mtu_is_refused_with_field_value_and_limit() {
        let decision = decide(&network(Some(9000), None), 1442, vec![]);
        assert_eq!(decision.status.mtu, None);
        assert_eq!(decision.ready.reason, Reason::InvalidSpec);
        for part in ["mtu", "9000", "1442"] {
            assert!(decision.ready.message.contains(part));
        }
    }
}
