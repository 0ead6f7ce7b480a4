//! What can be checked in a spec without looking at other objects, and what neither the schema nor
//! CEL on the type can say: quantities, addresses, ranges and URLs, each with a message for people.
//!
//! Each function returns every fault at once, so that a user needs one round only. What the API
//! server refuses by itself is not repeated.

use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;

use super::image::Source;
use super::subnet::{AllocationPool, HostRoute};
use super::{
    FlavorSpec, HostAggregateSpec, HostSpec, ImageSpec, PortSpec, Resources, ServerSpec, StackSpec,
    SubnetSpec,
};
use pileus_values::range::to_number;
use pileus_values::{AddressRange, Bytes, Mac, parse_milli};

/// Smallest memory that a Server can have, in MiB: less is a forgotten unit, and no guest
/// starts in it.
const LEAST_MEMORY_MIB: i64 = 16;

/// Faults as they are found.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, fault: impl Into<String>) {
        self.0.push(fault.into());
    }

    /// The value, or a fault that names the field.
    fn read<T, E: Display>(&mut self, field: &str, value: Result<T, E>) -> Option<T> {
        value
            .map_err(|e| self.add(format!("spec.{field}: {e}")))
            .ok()
    }

    fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        let parsed = text
            .parse()
            .map_err(|_| format!("`{text}` is not an IP address; write it as 10.0.0.5 or fd00::5"));
        self.read(field, parsed)
    }

    /// A ratio that gives out something.
    fn ratio(&mut self, field: &str, ratio: Option<&String>) {
        if let Some(text) = ratio
            && self.read(field, parse_milli(text)) == Some(0)
        {
            self.add(format!(
                "spec.{field}: `{text}` must be above 0, such as 4 or 1.5"
            ));
        }
    }

    fn done(self) -> Result<(), String> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(self.0.join("; "))
        }
    }
}

/// Checks a Server's spec.
///
/// # Errors
/// Every fault with its field, value and way out.
pub fn server(spec: &ServerSpec) -> Result<(), String> {
    let mut faults = Faults::default();
    if let Some(Resources { memory, disk, .. }) = &spec.resources {
        size(&mut faults, "resources.", memory, disk);
    }
    for nic in &spec.networks {
        if let Some(address) = &nic.fixed_ip {
            faults.address(&format!("networks[{}].fixedIP", nic.name), address);
        }
    }
    if let Some(text) = spec.placement.as_ref().and_then(|p| p.host_cidr.as_ref()) {
        let range = text
            .parse::<IpNet>()
            .map_err(|_| format!("`{text}` is not a CIDR; write it as 10.1.0.0/16 or fd00::/64"));
        faults.read("placement.hostCIDR", range);
    }
    faults.done()
}

fn size(faults: &mut Faults, prefix: &str, memory: &str, disk: &str) {
    let field = format!("{prefix}memory");
    if let Some(memory_size) = faults.read(&field, Bytes::parse(memory))
        && memory_size.mib() < LEAST_MEMORY_MIB
    {
        faults.add(format!(
            "spec.{field}: `{memory}` is too small; give it as 512Mi or 2Gi"
        ));
    }
    faults.read(&format!("{prefix}disk"), Bytes::parse(disk));
}

/// Checks a Flavor's spec.
///
/// # Errors
/// Every fault with its field, value and way out.
pub fn flavor(spec: &FlavorSpec) -> Result<(), String> {
    let mut faults = Faults::default();
    size(&mut faults, "", &spec.memory, &spec.disk);
    faults.done()
}

/// Checks an Image's spec, but not whether its format can be used yet.
///
/// # Errors
/// Every fault with its field, value and way out.
pub fn image(spec: &ImageSpec) -> Result<(), String> {
    let mut faults = Faults::default();
    source(&mut faults, "source", &spec.source);
    if let Some(kernel) = &spec.kernel {
        source(&mut faults, "kernel", kernel);
    }
    if let Some(initrd) = &spec.initrd {
        source(&mut faults, "initrd", initrd);
    }
    for (field, value) in [("minDisk", &spec.min_disk), ("minMemory", &spec.min_memory)] {
        if let Some(value) = value {
            faults.read(field, Bytes::parse(value));
        }
    }
    faults.done()
}

fn source(faults: &mut Faults, field: &str, source: &Source) {
    let Some(url) = faults.read(&format!("{field}.url"), url::Url::parse(&source.url)) else {
        return;
    };
    match url.scheme() {
        "https" | "http" => {}
        "file" => {
            if url.host().is_some() {
                faults.add(format!(
                    "spec.{field}.url: a file:// URL has three slashes and an absolute path"
                ));
            }
        }
        other => faults.add(format!(
            "spec.{field}.url: scheme `{other}` cannot be used; use https, http with a checksum, or file"
        )),
    }
    // The password itself is never repeated.
    if url.password().is_some() {
        faults.add(format!(
            "spec.{field}.url: holds a password, which all who can read the Image would see; \
             use a URL without one"
        ));
    }
}

/// Checks a Host's spec.
///
/// # Errors
/// Every fault with its field, value and way out.
pub fn host(spec: &HostSpec) -> Result<(), String> {
    let mut faults = Faults::default();
    for (field, ratio) in [
        ("cpuAllocationRatio", &spec.cpu_allocation_ratio),
        ("memoryAllocationRatio", &spec.memory_allocation_ratio),
        ("diskAllocationRatio", &spec.disk_allocation_ratio),
    ] {
        faults.ratio(field, ratio.as_ref());
    }
    for (class, inventory) in &spec.resources {
        let field = format!("resources.{class}.allocationRatio");
        faults.ratio(&field, inventory.allocation_ratio.as_ref());
    }
    if let Some(address) = &spec.address {
        faults.address("address", address);
    }
    faults.done()
}

/// Checks a HostAggregate's spec.
///
/// # Errors
/// Every fault with its field, value and way out.
pub fn host_aggregate(spec: &HostAggregateSpec) -> Result<(), String> {
    let mut faults = Faults::default();
    for (field, ratio) in [
        ("cpuAllocationRatio", &spec.cpu_allocation_ratio),
        ("memoryAllocationRatio", &spec.memory_allocation_ratio),
        ("diskAllocationRatio", &spec.disk_allocation_ratio),
    ] {
        faults.ratio(field, ratio.as_ref());
    }
    for (key, wrong) in spec.multipliers().filter_map(|(k, m)| Some((k, m.err()?))) {
        faults.add(format!(
            "spec.properties: {key} is {wrong}; the SchedulerPolicy's counts instead"
        ));
    }
    faults.done()
}

/// Checks a Stack's spec; the template is the engine's to judge.
///
/// # Errors
/// Every fault with its field, value and way out.
pub fn stack(spec: &StackSpec) -> Result<(), String> {
    let mut faults = Faults::default();
    // They become parts of paths at the API server.
    let from = spec
        .template_from
        .iter()
        .map(|from| ("templateFrom", &from.name));
    let files = spec.files_from.iter().map(|from| ("filesFrom", &from.name));
    let parameters = spec
        .parameters_from
        .iter()
        .map(|from| ("parametersFrom", &from.name));
    let environments = spec.environments.iter().filter_map(|e| e.from.as_ref());
    let environments = environments.map(|from| ("environments", &from.name));
    let account = spec
        .service_account_name
        .iter()
        .map(|name| ("serviceAccountName", name));
    let named = from.chain(files).chain(parameters).chain(environments);
    for (field, name) in named.chain(account) {
        if !is_name(name) {
            faults.add(format!(
                "spec.{field}: `{name}` is no name of an object: lower case letters, digits, `-` \
                 and `.`, 253 at most"
            ));
        }
    }
    faults.done()
}

/// Whether a text is a name that objects can have: a subdomain by RFC 1123.
fn is_name(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    text.len() <= 253
        && bytes.first().is_some_and(|c| plain(*c))
        && bytes.last().is_some_and(|c| plain(*c))
        && bytes.iter().all(|c| plain(*c) || b"-.".contains(c))
}

/// Checks a Port's spec.
///
/// # Errors
/// Every fault with its field, value and way out.
pub fn port(spec: &PortSpec) -> Result<(), String> {
    let mut faults = Faults::default();
    if let Some(mac) = &spec.mac_address {
        faults.read("macAddress", mac.parse::<Mac>());
    }
    for (index, wanted) in spec.fixed_ips.iter().enumerate() {
        let field = format!("fixedIPs[{}]", wanted.name);
        if let Some(text) = &wanted.address
            && let Some(address) = faults.address(&format!("{field}.address"), text)
            && spec.fixed_ips[..index]
                .iter()
                .any(|other| read_address(other.address.as_deref()) == Some(address))
        {
            faults.add(format!("spec.{field}.address: `{text}` is given twice"));
        }
    }
    for pair in &spec.allowed_address_pairs {
        let field = format!("allowedAddressPairs[{}]", pair.name);
        let text = &pair.address;
        if text.parse::<IpAddr>().is_err() && text.parse::<IpNet>().is_err() {
            faults.add(format!(
                "spec.{field}.address: `{text}` is neither an IP address nor a CIDR such as 10.0.0.0/24"
            ));
        }
        if let Some(mac) = &pair.mac_address {
            faults.read(&format!("{field}.macAddress"), mac.parse::<Mac>());
        }
    }
    faults.done()
}

fn read_address(text: Option<&str>) -> Option<IpAddr> {
    text?.parse().ok()
}

/// Checks a Subnet's spec.
///
/// # Errors
/// Every fault with its field, value and way out.
pub fn subnet(spec: &SubnetSpec) -> Result<(), String> {
    let mut faults = Faults::default();
    let cidr = &spec.cidr;
    let parsed = cidr
        .parse::<IpNet>()
        .map_err(|_| format!("`{cidr}` is not a CIDR; write it as 10.0.0.0/24 or fd00:1::/64"));
    let Some(net) = faults.read("cidr", parsed) else {
        return faults.done();
    };
    if net.trunc() != net {
        faults.add(format!(
            "spec.cidr: `{cidr}` has host bits set; the range is {}",
            net.trunc()
        ));
    }
    let first = net.network();
    if first.is_multicast() || first.is_loopback() || first.is_unspecified() {
        faults.add(format!(
            "spec.cidr: `{cidr}` holds no addresses that guests can have"
        ));
    }
    // An empty text stands for no gateway.
    if let Some(text) = spec.gateway_ip.as_deref().filter(|g| !g.is_empty())
        && let Some(gateway) = faults.address("gatewayIP", text)
        && !AddressRange::hosts(net).contains(gateway)
    {
        faults.add(format!(
            "spec.gatewayIP: `{text}` is no host's address in {cidr}"
        ));
    }
    pools(&mut faults, net, &spec.allocation_pools);
    for server in &spec.dns_servers {
        faults.address("dnsServers", server);
    }
    for route in &spec.host_routes {
        host_route(&mut faults, net, route);
    }
    faults.done()
}

fn pools(faults: &mut Faults, net: IpNet, pools: &[AllocationPool]) {
    let mut ranges: Vec<(&str, AddressRange)> = Vec::new();
    for pool in pools {
        let field = format!("allocationPools[{}]", pool.name);
        let start = faults.address(&format!("{field}.start"), &pool.start);
        let end = faults.address(&format!("{field}.end"), &pool.end);
        let (Some(start), Some(end)) = (start, end) else {
            continue;
        };
        let Some(range) = AddressRange::new(start, end) else {
            faults.add(format!(
                "spec.{field}: {start} to {end} is no range; both are of one family, the smaller one first"
            ));
            continue;
        };
        let hosts = AddressRange::hosts(net);
        if !hosts.contains(start) || !hosts.contains(end) {
            faults.add(format!(
                "spec.{field}: {start} to {end} lies outside the addresses of {net}, {} to {}",
                hosts.first(),
                hosts.last()
            ));
        }
        if let Some((other, _)) = ranges.iter().find(|(_, r)| overlap(*r, range)) {
            faults.add(format!("spec.{field}: overlaps allocationPools[{other}]"));
        }
        ranges.push((&pool.name, range));
    }
}

fn overlap(a: AddressRange, b: AddressRange) -> bool {
    a.first().is_ipv4() == b.first().is_ipv4()
        && to_number(a.first()) <= to_number(b.last())
        && to_number(b.first()) <= to_number(a.last())
}

fn host_route(faults: &mut Faults, net: IpNet, route: &HostRoute) {
    let field = format!("hostRoutes[{}]", route.name);
    let text = &route.destination;
    let destination = text
        .parse::<IpNet>()
        .map_err(|_| format!("`{text}` is not a CIDR; write it as 192.168.0.0/16"));
    let destination = faults.read(&format!("{field}.destination"), destination);
    let hop = faults.address(&format!("{field}.nextHop"), &route.next_hop);
    let families = [
        destination.map(|d| d.addr().is_ipv4()),
        hop.map(|h| h.is_ipv4()),
    ];
    if families
        .into_iter()
        .flatten()
        .any(|v4| v4 != net.addr().is_ipv4())
    {
        faults.add(format!("spec.{field}: is of another family than {net}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn faults<S: serde::de::DeserializeOwned>(
        check: impl Fn(&S) -> Result<(), String>,
        spec: Value,
    ) -> String {
        check(&serde_json::from_value(spec).unwrap())
            .err()
            .unwrap_or_default()
    }

    #[test]
    fn all_faults_of_a_server_are_said_at_once() {
        let said = faults(
            server,
            json!({
                "image": {"name": "debian"},
                "resources": {"vcpus": 1, "memory": "1GB"},
                "placement": {"hostCIDR": "here"},
                "networks": [
                    {"name": "d", "network": {"name": "n"}, "fixedIP": "10.0.0.300"},
                ],
            }),
        );
        for part in [
            "spec.resources.memory: `1GB`",
            "spec.placement.hostCIDR: `here` is not a CIDR",
            "spec.networks[d].fixedIP: `10.0.0.300`",
        ] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
    }

    #[test]
    fn sizes_are_quantities() {
        let fault = |memory: &str, disk: &str| {
            faults(flavor, json!({"vcpus": 1, "memory": memory, "disk": disk}))
        };
        assert_eq!(fault("512Mi", "0"), "");
        assert!(fault("512MB", "20Gi").starts_with("spec.memory: `512MB` is not a quantity"));
        assert!(fault("512", "20Gi").starts_with("spec.memory: `512` is too small"));
        assert!(fault("0", "20Gi").starts_with("spec.memory: `0` is too small"));
        assert!(fault("1Gi", "-1").starts_with("spec.disk: `-1` is out of range"));
        let inline = json!({"image": {"name": "i"}, "resources": {"vcpus": 1, "memory": "x"}});
        assert!(faults(server, inline).starts_with("spec.resources.memory"));
    }

    #[test]
    fn sources_are_safe_and_reachable() {
        let fault = |url: &str| faults(image, json!({"source": {"url": url}}));
        assert_eq!(fault("https://example.org/a.qcow2"), "");
        assert_eq!(fault("file:///srv/a.qcow2"), "");
        assert!(fault("ftp://example.org/a").contains("scheme `ftp`"));
        assert!(fault("file://srv/a.qcow2").contains("three slashes"));
        let secret = fault("https://me:hunter2@example.org/a");
        assert!(
            secret.contains("password") && !secret.contains("hunter2"),
            "{secret}"
        );
        let many = json!({"source": {"url": "https://e.org/a"}, "minDisk": "many"});
        assert!(faults(image, many).contains("minDisk: `many`"));
    }

    #[test]
    fn ranges_of_a_subnet_lie_in_it() {
        let fault = |more: Value| {
            let mut spec = json!({"network": "n", "cidr": "10.0.0.0/24"});
            let (Value::Object(spec_map), Value::Object(more)) = (&mut spec, more) else {
                return String::new();
            };
            spec_map.extend(more);
            faults(subnet, spec)
        };
        assert_eq!(fault(json!({"gatewayIP": ""})), "");
        assert_eq!(fault(json!({"gatewayIP": "10.0.0.254"})), "");
        assert!(fault(json!({"gatewayIP": "10.0.1.1"})).contains("no host's address"));
        assert!(fault(json!({"gatewayIP": "10.0.0.255"})).contains("no host's address"));
        assert!(fault(json!({"cidr": "10.0.0.5/24"})).contains("the range is 10.0.0.0/24"));
        assert!(fault(json!({"cidr": "224.0.0.0/8"})).contains("no addresses that guests"));
        assert!(fault(json!({"cidr": "ten"})).starts_with("spec.cidr: `ten` is not a CIDR"));
        let pools = json!({"allocationPools": [
            {"name": "a", "start": "10.0.0.10", "end": "10.0.0.20"},
            {"name": "b", "start": "10.0.0.20", "end": "10.0.0.30"},
            {"name": "c", "start": "10.0.0.9", "end": "10.0.0.8"},
            {"name": "d", "start": "10.0.0.250", "end": "10.0.1.5"},
            {"name": "e", "start": "fd00::1", "end": "10.0.0.5"},
        ]});
        let said = fault(pools);
        for part in [
            "spec.allocationPools[b]: overlaps allocationPools[a]",
            "spec.allocationPools[c]: 10.0.0.9 to 10.0.0.8 is no range",
            "allocationPools[d]: 10.0.0.250 to 10.0.1.5 lies outside",
            "allocationPools[e]: fd00::1 to 10.0.0.5 is no range",
        ] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
        let route = json!({"hostRoutes": [{"name": "r", "destination": "fd00::/8", "nextHop": "10.0.0.1"}]});
        assert!(fault(route).contains("another family"));
    }

    #[test]
    fn addresses_of_a_port_are_addresses() {
        let said = faults(
            port,
            json!({
                "network": {"name": "n"},
                "macAddress": "ff:ff:ff:ff:ff:ff",
                "fixedIPs": [{"name": "a", "address": "fd00::1"}, {"name": "b", "address": "fd00:0::1"}],
                "allowedAddressPairs": [{"name": "v", "address": "10.0.0.0/33"}],
            }),
        );
        for part in [
            "macAddress:",
            "fixedIPs[b].address: `fd00:0::1` is given twice",
            "allowedAddressPairs[v].address",
        ] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
    }

    #[test]
    fn a_host_gives_out_something() {
        let fault = |ratio: &str| faults(host, json!({"cpuAllocationRatio": ratio}));
        assert_eq!(fault("1.5"), "");
        assert!(fault("0").contains("must be above 0"));
        assert!(fault("four").contains("cpuAllocationRatio: `four`"));
        let address = json!({"address": "10.0.0.300"});
        assert!(faults(host, address).contains("spec.address: `10.0.0.300`"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_check_panic(text in "\\PC{0,40}", other in "[0-9a-f.:/]{0,20}") {
            for text in [&text, &other] {
                let pool = json!([{"name": "p", "start": text, "end": other}]);
                faults(subnet, json!({"network": "n", "cidr": text}));
                faults(subnet, json!({"network": "n", "cidr": "fd00::/64", "allocationPools": pool}));
                faults(image, json!({"source": {"url": text}, "minDisk": text}));
                faults(port, json!({"network": {"name": "n"}, "macAddress": text}));
                faults(flavor, json!({"vcpus": 1, "memory": text, "disk": text}));
            }
        }
    }
}
