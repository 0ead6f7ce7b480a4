//! DHCP options of a subnet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::northbound::DhcpOptions;
use pileus_values::{ClusterId, Mac, stable_id};

use super::input::SubnetIn;

/// How long a lease lasts, in seconds. Addresses belong to Ports for life, so this only
/// says how soon a guest learns of other options; Neutron's default is a day, too.
const LEASE_SECONDS: u32 = 86_400;

/// The row that serves a subnet, or `None` if nothing serves it.
///
/// # Errors
/// Names what the subnet lacks.
pub(super) fn options(
    cluster: &ClusterId,
    subnet: &SubnetIn,
    mtu: i32,
) -> Result<Option<DhcpOptions>, String> {
    if !subnet.dhcp {
        return Ok(None);
    }
    let v4 = subnet.cidr.addr().is_ipv4();
    let mac = server_mac(cluster, subnet).to_string();
    let dns: Vec<String> = subnet
        .dns_servers
        .iter()
        .filter(|server| server.is_ipv4() == v4)
        .map(IpAddr::to_string)
        .collect();
    let mut options = BTreeMap::new();
    let mut set = |key: &str, value: String| options.insert(key.to_owned(), value);
    if !dns.is_empty() {
        set("dns_server", format!("{{{}}}", dns.join(", ")));
    }
    if v4 {
        let server = subnet.service.or(subnet.gateway).ok_or_else(|| {
            "DHCP needs an address to be served from: the subnet has neither a service address \
             nor a gateway"
                .to_owned()
        })?;
        set("server_id", server.to_string());
        set("server_mac", mac);
        set("lease_time", LEASE_SECONDS.to_string());
        set("T1", (LEASE_SECONDS / 2).to_string());
        set("T2", (LEASE_SECONDS / 8 * 7).to_string());
        set("mtu", mtu.to_string());
        if let Some(gateway) = subnet.gateway {
            set("router", gateway.to_string());
        }
        if let Some(routes) = classless_routes(subnet) {
            set("classless_static_route", routes);
        }
    } else {
        // In DHCPv6 the server has a DUID, which OVN derives from the MAC.
        set("server_id", mac);
    }
    Ok(Some(DhcpOptions {
        owner: subnet.owner.clone(),
        cidr: subnet.cidr.trunc().to_string(),
        options,
    }))
}

fn server_mac(cluster: &ClusterId, subnet: &SubnetIn) -> Mac {
    let owner = &subnet.owner;
    let id = stable_id(cluster, "Subnet", &owner.namespace, &owner.name);
    Mac::derive(&format!("dhcp/{id}"), 0)
}

/// A client that gets classless routes ignores the router option (RFC 3442), so the default
/// route is repeated here.
fn classless_routes(subnet: &SubnetIn) -> Option<String> {
    let mut routes: Vec<String> = subnet
        .host_routes
        .iter()
        .filter(|(net, hop)| net.addr().is_ipv4() && hop.is_ipv4())
        .map(|(net, hop)| format!("{},{hop}", net.trunc()))
        .collect();
    if routes.is_empty() {
        return None;
    }
    routes.sort();
    routes.dedup();
    if let Some(gateway) = subnet.gateway
        && !routes.iter().any(|route| route.starts_with("0.0.0.0/0,"))
    {
        routes.push(format!("0.0.0.0/0,{gateway}"));
    }
    Some(format!("{{{}}}", routes.join(", ")))
}
