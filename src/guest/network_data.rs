//! `network_data.json`, as Nova's metadata service gives it.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::data::{GuestData, LinkNetwork};

/// The document.
///
/// An address that OVN's DHCP gives is written as `ipv4_dhcp`, because the lease contains
/// more than this document can (MTU, routes); others are written as static.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Link, Route};

    fn network(address: &str, cidr: &str, dhcp: bool) -> LinkNetwork {
        LinkNetwork {
            network_id: "n".into(),
            address: address.parse().unwrap(),
            cidr: cidr.parse().unwrap(),
            dhcp,
            gateway: None,
            dns: vec![],
            routes: vec![],
        }
    }

    fn network_data_of(networks: Vec<LinkNetwork>) -> Value {
        network_data(&GuestData {
            links: vec![Link {
                id: "0b0e9a3b-7069-4c65-8573-000000000001".into(),
                mac: "fa:16:3e:00:00:01".parse().unwrap(),
                mtu: 1442,
                networks,
            }],
            ..GuestData::default()
        })
    }

    #[test]
    fn without_dhcp_address_gateway_and_routes_are_written() {
        let mut v4 = network("10.0.0.5", "10.0.0.0/24", false);
        v4.gateway = Some("10.0.0.1".parse().unwrap());
        v4.routes = vec![Route {
            destination: "192.0.2.0/25".parse().unwrap(),
            next_hop: "10.0.0.9".parse().unwrap(),
        }];
        let mut v6 = network("2001:db8::5", "2001:db8::/64", false);
        v6.gateway = Some("2001:db8::1".parse().unwrap());
        let networks = &network_data_of(vec![v4, v6])["networks"];
        assert_eq!(networks[0]["type"], "ipv4");
        assert_eq!(networks[0]["ip_address"], "10.0.0.5");
        assert_eq!(networks[0]["netmask"], "255.255.255.0");
        assert_eq!(
            networks[0]["routes"],
            json!([
                {"network": "192.0.2.0", "netmask": "255.255.255.128", "gateway": "10.0.0.9"},
                {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"},
            ])
        );
        assert_eq!(networks[1]["type"], "ipv6");
        assert_eq!(networks[1]["routes"][0]["network"], "::");
    }

    #[test]
    fn with_dhcp_only_the_type_is_written() {
        let networks = &network_data_of(vec![
            network("10.0.0.5", "10.0.0.0/24", true),
            network("2001:db8::5", "2001:db8::/64", true),
        ])["networks"];
        assert_eq!(networks[0]["type"], "ipv4_dhcp");
        assert!(networks[0].get("ip_address").is_none());
        assert_eq!(networks[1]["type"], "ipv6_dhcpv6-stateful");
    }

    #[test]
    fn a_server_without_networks_has_empty_lists() {
        assert_eq!(
            network_data(&GuestData::default()),
            json!({"links": [], "networks": [], "services": []})
        );
    }
}
