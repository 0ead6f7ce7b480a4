//! Parses and checks a Subnet's spec. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use pileus_api::SubnetSpec;
use pileus_values::range::AddressRange;

/// Shortest and longest prefix: no private range is larger than a /8, and a /30 has an address
/// for a Port only if there is no gateway.
const PREFIX_V4: (u8, u8) = (8, 30);
/// The same for IPv6.
const PREFIX_V6: (u8, u8) = (16, 126);

/// A Subnet's spec with everything parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedSpec {
    /// The range.
    pub cidr: IpNet,
    /// The addresses that hosts can have.
    pub hosts: AddressRange,
    /// The gateway, if there is one.
    pub gateway: Option<IpAddr>,
    /// Where addresses are allocated from.
    pub pools: Vec<AddressRange>,
    /// Name servers.
    pub dns_servers: Vec<IpAddr>,
    /// Routes: destination and next hop.
    pub host_routes: Vec<(IpNet, IpAddr)>,
}

fn address(field: &str, text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("{field} `{text}` is not an IP address"))
}

/// Reads a range, which must have no host bits set.
fn range(field: &str, text: &str) -> Result<IpNet, String> {
    let net: IpNet = text.parse().map_err(|_| {
        format!("{field} `{text}` is not a range; write it as 10.0.0.0/24 or fd00:1::/64")
    })?;
    if net.addr() != net.network() {
        return Err(format!(
            "{field} `{text}` has host bits set; did you mean `{}`?",
            net.trunc()
        ));
    }
    Ok(net)
}

/// The range alone, for Subnets that are in force whatever else is wrong with them.
///
/// # Errors
/// Names what is wrong with `cidr`.
pub fn cidr(text: &str) -> Result<IpNet, String> {
    let net = range("cidr", text)?;
    let (widest, narrowest) = match net {
        IpNet::V4(_) => PREFIX_V4,
        IpNet::V6(_) => PREFIX_V6,
    };
    if !(widest..=narrowest).contains(&net.prefix_len()) {
        return Err(format!(
            "cidr `{text}` has a prefix of /{}; /{widest} to /{narrowest} can be used",
            net.prefix_len()
        ));
    }
    let special = match net.network() {
        IpAddr::V4(a) => (a.octets()[0] == 0)
            .then_some("this host")
            .or(a.is_loopback().then_some("loopback"))
            .or(a
                .is_link_local()
                .then_some("link-local (metadata is served there)"))
            .or(a.is_multicast().then_some("multicast"))
            .or((a.octets()[0] >= 240).then_some("reserved")),
        IpAddr::V6(a) => a
            .is_multicast()
            .then_some("multicast")
            .or(a.is_unicast_link_local().then_some("link-local"))
            .or((a.segments()[..6] == [0; 6]).then_some("reserved")),
    };
    match special {
        Some(what) => Err(format!(
            "cidr `{text}` lies in the {what} range, which guests cannot use"
        )),
        None => Ok(net),
    }
}

/// Reads and checks a spec.
///
/// # Errors
/// Names the field, its value and what to write instead.
pub fn parse(spec: &SubnetSpec) -> Result<ParsedSpec, String> {
    let cidr = cidr(&spec.cidr)?;
    let hosts = AddressRange::hosts(cidr);
    let gateway = gateway(spec, cidr, &hosts)?;
    let own = 1 + u128::from(gateway.is_some());
    if hosts.len() <= own {
        return Err(format!(
            "cidr `{}` has no address left for a Port beside {own} that the Subnet itself needs; \
             take a wider range",
            spec.cidr
        ));
    }
    let pools = pools(spec, cidr, &hosts, gateway)?;
    let dns_servers = spec
        .dns_servers
        .iter()
        .map(|text| address("dnsServers", text))
        .collect::<Result<_, _>>()?;
    let mut host_routes = Vec::new();
    for route in &spec.host_routes {
        let destination = range(
            &format!("hostRoutes[{}].destination", route.name),
            &route.destination,
        )?;
        let field = format!("hostRoutes[{}].nextHop", route.name);
        let hop = address(&field, &route.next_hop)?;
        if destination.addr().is_ipv4() != cidr.addr().is_ipv4()
            || hop.is_ipv4() != cidr.addr().is_ipv4()
        {
            return Err(format!(
                "hostRoutes[{}] `{}` via `{}` is not of the address family of cidr `{}`",
                route.name, route.destination, route.next_hop, spec.cidr
            ));
        }
        if !cidr.contains(&hop) {
            return Err(format!(
                "{field} `{hop}` is outside cidr `{}`, so no guest could reach it",
                spec.cidr
            ));
        }
        host_routes.push((destination, hop));
    }
    Ok(ParsedSpec {
        cidr,
        hosts,
        gateway,
        pools,
        dns_servers,
        host_routes,
    })
}

/// What a Subnet in force keeps when its spec has become invalid: its range, which cannot change,
/// its gateway so far, what else can be parsed, and no pool, so that no address is allocated from
/// a wrong range.
#[must_use]
pub fn readable_part(spec: &SubnetSpec, gateway: Option<IpAddr>) -> Option<ParsedSpec> {
    let cidr = cidr(&spec.cidr).ok()?;
    let host_routes = spec.host_routes.iter().filter_map(|route| {
        Some((
            route.destination.parse().ok()?,
            route.next_hop.parse().ok()?,
        ))
    });
    Some(ParsedSpec {
        cidr,
        hosts: AddressRange::hosts(cidr),
        gateway,
        pools: Vec::new(),
        dns_servers: spec
            .dns_servers
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect(),
        host_routes: host_routes.collect(),
    })
}

fn gateway(spec: &SubnetSpec, cidr: IpNet, hosts: &AddressRange) -> Result<Option<IpAddr>, String> {
    match spec.gateway_ip.as_deref() {
        None => Ok(Some(hosts.first())),
        Some("") => Ok(None),
        Some(text) => {
            let gateway = address("gatewayIP", text)?;
            if !cidr.contains(&gateway) {
                return Err(format!(
                    "gatewayIP `{text}` is outside cidr `{}`; hosts have {} to {}",
                    spec.cidr,
                    hosts.first(),
                    hosts.last()
                ));
            }
            if !hosts.contains(gateway) {
                return Err(format!(
                    "gatewayIP `{text}` is the network's or the broadcast address of `{}`; \
                     hosts have {} to {}",
                    spec.cidr,
                    hosts.first(),
                    hosts.last()
                ));
            }
            Ok(Some(gateway))
        }
    }
}

fn pools(
    spec: &SubnetSpec,
    cidr: IpNet,
    hosts: &AddressRange,
    gateway: Option<IpAddr>,
) -> Result<Vec<AddressRange>, String> {
    if spec.allocation_pools.is_empty() {
        return Ok(vec![*hosts]);
    }
    let mut pools: Vec<(AddressRange, &str)> = Vec::new();
    for pool in &spec.allocation_pools {
        let field = format!("allocationPools[{}]", pool.name);
        let start = address(&format!("{field}.start"), &pool.start)?;
        let end = address(&format!("{field}.end"), &pool.end)?;
        let Some(range) = AddressRange::new(start, end) else {
            return Err(format!(
                "{field} goes from `{start}` to `{end}`; the first address must be the smaller one \
                 of the same family"
            ));
        };
        if !hosts.contains(start) || !hosts.contains(end) {
            return Err(format!(
                "{field} `{start}` to `{end}` is not within {} to {}, which hosts can have in \
                 `{cidr}`",
                hosts.first(),
                hosts.last()
            ));
        }
        if let Some(gateway) = gateway.filter(|g| range.contains(*g)) {
            return Err(format!(
                "{field} `{start}` to `{end}` has the gateway {gateway} in it; leave it out of the \
                 pool, or set gatewayIP"
            ));
        }
        if let Some((_, other)) = pools
            .iter()
            .find(|(other, _)| other.first() <= end && start <= other.last())
        {
            return Err(format!(
                "{field} `{start}` to `{end}` overlaps allocationPools[{other}]"
            ));
        }
        pools.push((range, &pool.name));
    }
    Ok(pools.into_iter().map(|(range, _)| range).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pileus_api::subnet::{AllocationPool, HostRoute};

    fn spec(cidr: &str) -> SubnetSpec {
        SubnetSpec {
            network: "n".into(),
            cidr: cidr.into(),
            ..SubnetSpec::default()
        }
    }

    fn pool(name: &str, start: &str, end: &str) -> AllocationPool {
        AllocationPool {
            name: name.into(),
            start: start.into(),
            end: end.into(),
        }
    }

    fn assert_refused(spec: &SubnetSpec, parts: &[&str]) {
        let message = parse(spec).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "{message} lacks {part}");
        }
    }

    #[test]
    fn a_plain_range_has_its_first_address_as_gateway() {
        let parsed = parse(&spec("10.0.0.0/24")).unwrap();
        assert_eq!(parsed.gateway, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(parsed.pools, vec![parsed.hosts]);
        let mut none = spec("10.0.0.0/24");
        none.gateway_ip = Some(String::new());
        assert_eq!(parse(&none).unwrap().gateway, None);
    }

    #[test]
    fn bad_ranges_are_refused_with_the_way_out() {
        assert_refused(&spec("10.0.0.5/24"), &["10.0.0.5/24", "10.0.0.0/24"]);
        assert_refused(&spec("fd00::1/64"), &["fd00::/64"]);
        assert_refused(&spec("nonsense"), &["nonsense", "10.0.0.0/24"]);
        assert_refused(&spec("10.0.0.0/33"), &["10.0.0.0/33"]);
        assert_refused(&spec("10.0.0.0/32"), &["/30"]);
        assert_refused(&spec("0.0.0.0/0"), &["/8"]);
        assert_refused(&spec("127.0.0.0/24"), &["loopback"]);
        assert_refused(&spec("224.0.0.0/24"), &["multicast"]);
        assert_refused(&spec("169.254.0.0/16"), &["link-local"]);
        assert_refused(&spec("fe80::/64"), &["link-local"]);
        assert_refused(&spec("10.0.0.0/30"), &["no address left"]);
    }

    #[test]
    fn pools_lie_inside_apart_and_beside_the_gateway() {
        let mut it = spec("10.0.0.0/24");
        it.allocation_pools = vec![pool("a", "10.0.0.10", "10.0.0.20")];
        assert_eq!(parse(&it).unwrap().pools[0].len(), 11);
        it.allocation_pools = vec![pool("a", "10.0.0.20", "10.0.0.10")];
        assert_refused(&it, &["[a]", "smaller"]);
        it.allocation_pools = vec![pool("a", "10.0.0.10", "10.0.1.10")];
        assert_refused(&it, &["[a]", "not within"]);
        it.allocation_pools = vec![pool("a", "10.0.0.1", "10.0.0.10")];
        assert_refused(&it, &["gateway 10.0.0.1"]);
        it.allocation_pools = vec![
            pool("a", "10.0.0.10", "10.0.0.20"),
            pool("b", "10.0.0.20", "10.0.0.30"),
        ];
        assert_refused(&it, &["[b]", "[a]"]);
        it.allocation_pools = vec![pool("a", "fd00::1", "fd00::2")];
        assert_refused(&it, &["not within"]);
    }

    #[test]
    fn gateway_servers_and_routes_are_checked() {
        let mut it = spec("10.0.0.0/24");
        it.gateway_ip = Some("10.0.1.1".into());
        assert_refused(&it, &["gatewayIP", "10.0.1.1", "10.0.0.0/24"]);
        it.gateway_ip = Some("10.0.0.255".into());
        assert_refused(&it, &["broadcast"]);
        it.gateway_ip = None;
        it.dns_servers = vec!["8.8.8".into()];
        assert_refused(&it, &["dnsServers", "8.8.8"]);
        it.dns_servers.clear();
        it.host_routes = vec![HostRoute {
            name: "r".into(),
            destination: "fd00::/64".into(),
            next_hop: "10.0.0.9".into(),
        }];
        assert_refused(&it, &["hostRoutes[r]", "family"]);
    }
}
