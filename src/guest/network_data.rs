//! `network_data.json`, as Nova's metadata service gives it.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::data::{GuestData, LinkNetwork};

/// The document.
///
/// An address that OVN's DHCP gives is told as `ipv4_dhcp`, because the lease carries
/// more than this document can (MTU, routes); others are told as static.
#[must_use]
pub fn network_data(data: &GuestData) -> Value {
    let mut links = Vec::new();
    let mut networks = Vec::new();
    let mut services = Vec::new();
    for (number, link) in data.links.iter().enumerate() {
        let id = format!("tap{}", link.id.chars().take(11).collect::<String>());
        links.push(json!({
            "id": id,
            "vif_id": link.id,
            "type": "ovs",
            "mtu": link.mtu,
            "ethernet_mac_address": link.mac,
        }));
        for (index, network) in link.networks.iter().enumerate() {
            networks.push(one_network(
                &format!("network{number}-{index}"),
                &id,
                network,
            ));
            for dns in &network.dns {
                let service = json!({"type": "dns", "address": dns});
                if !services.contains(&service) {
                    services.push(service);
                }
            }
        }
    }
    json!({"links": links, "networks": networks, "services": services})
}

fn one_network(id: &str, link: &str, network: &LinkNetwork) -> Value {
    let family = if network.address.is_ipv4() {
        "ipv4"
    } else {
        "ipv6"
    };
    if network.dhcp {
        let kind = match network.cidr {
            IpNet::V4(_) => "ipv4_dhcp",
            IpNet::V6(_) => "ipv6_dhcpv6-stateful",
        };
        return json!({
            "id": id, "link": link, "type": kind, "network_id": network.network_id,
        });
    }
    let mut routes: Vec<Value> = network
        .routes
        .iter()
        .map(|r| {
            json!({
                "network": r.destination.network(),
                "netmask": r.destination.netmask(),
                "gateway": r.next_hop,
            })
        })
        .collect();
    if let Some(gateway) = network.gateway {
        let any = if gateway.is_ipv4() { "0.0.0.0" } else { "::" };
        routes.push(json!({"network": any, "netmask": any, "gateway": gateway}));
    }
    json!({
        "id": id,
        "link": link,
        "type": family,
        "network_id": network.network_id,
        "ip_address": network.address,
        "netmask": network.cidr.netmask(),
        "routes": routes,
        "services": network.dns.iter().map(|d| json!({"type": "dns", "address": d}))
            .collect::<Vec<_>>(),
    })
}
