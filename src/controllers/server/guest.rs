//! What the Server's guest is told, from what was resolved. Pure.

use sha2::{Digest, Sha256};

use super::plan::{NicSeen, Seen, UserData};
use crate::api::subnet::Dhcp;
use crate::api::{Server, Subnet};
use crate::guest::{GuestData, Link, LinkNetwork, Route};
use crate::model::stable_id;

use kube::ResourceExt;

/// The guest's data. Addresses that do not parse are left out: they were given by the
/// controller of Ports, which parsed them.
#[must_use]
pub fn guest_data(server: &Server, seen: &Seen) -> GuestData {
    let namespace = server.namespace().unwrap_or_default();
    GuestData {
        instance_id: stable_id(&seen.cluster, "Server", &namespace, &server.name_any()),
        name: server.name_any(),
        namespace,
        availability_zone: None,
        ssh_keys: seen
            .key_pairs
            .iter()
            .filter_map(|(name, pair)| Some((name.clone(), pair.as_ref()?.spec.public_key.clone())))
            .collect(),
        metadata: server.spec.metadata.clone(),
        user_data: match &seen.user_data {
            UserData::Is(bytes) => Some(bytes.clone()),
            _ => None,
        },
        links: seen.nics.iter().filter_map(link).collect(),
    }
}

fn link(nic: &NicSeen) -> Option<Link> {
    let network = nic.network.as_ref()?;
    let status = nic.port.as_ref()?.status.as_ref()?;
    let networks = status
        .fixed_ips
        .iter()
        .filter_map(|ip| {
            let subnet = nic.subnets.iter().find(|s| s.name_any() == ip.subnet)?;
            link_network(
                network.uid().unwrap_or_default(),
                ip.address.parse().ok()?,
                subnet,
            )
        })
        .collect();
    Some(Link {
        id: status.port_id.clone()?,
        mac: status.mac_address.as_ref()?.parse().ok()?,
        mtu: network.status.as_ref()?.mtu?,
        networks,
    })
}

fn link_network(
    network_id: String,
    address: std::net::IpAddr,
    subnet: &Subnet,
) -> Option<LinkNetwork> {
    let gateway = subnet.status.as_ref().and_then(|s| s.gateway_ip.as_ref());
    Some(LinkNetwork {
        network_id,
        address,
        cidr: subnet.spec.cidr.parse().ok()?,
        dhcp: subnet.spec.dhcp == Dhcp::Enabled,
        gateway: gateway.and_then(|g| g.parse().ok()),
        dns: subnet
            .spec
            .dns_servers
            .iter()
            .filter_map(|d| d.parse().ok())
            .collect(),
        routes: subnet
            .spec
            .host_routes
            .iter()
            .filter_map(|r| {
                Some(Route {
                    destination: r.destination.parse().ok()?,
                    next_hop: r.next_hop.parse().ok()?,
                })
            })
            .collect(),
    })
}

/// A fingerprint of the parts of a spec that only reach a guest when it is built: tells
/// later whether they were changed.
#[must_use]
pub fn fingerprint(server: &Server) -> String {
    let spec = &server.spec;
    let parts = serde_json::json!([
        spec.user_data,
        spec.user_data_from,
        spec.key_pairs,
        spec.metadata,
        spec.config_drive
    ]);
    hex::encode(&Sha256::digest(parts.to_string().as_bytes())[..16])
}
