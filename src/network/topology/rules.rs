//! The match of a security group's rule, in OVN's expression language.

use ipnet::IpNet;

use pileus_api::security_group::{Direction, EtherType, SecurityRule};

/// What a rule's protocol allows to say about ports.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    Any,
    /// Has ports; OVN's name.
    Ports(&'static str),
    /// Has types and codes; OVN's name.
    Icmp(&'static str),
    Number(u8),
}

/// Names of protocols that Neutron knows, as of its API reference, less those above.
const NAMES: [(&str, u8); 16] = [
    ("ah", 51),
    ("dccp", 33),
    ("egp", 8),
    ("esp", 50),
    ("gre", 47),
    ("igmp", 2),
    ("ipip", 4),
    ("ipv6-encap", 41),
    ("ipv6-frag", 44),
    ("ipv6-nonxt", 59),
    ("ipv6-opts", 60),
    ("ipv6-route", 43),
    ("ospf", 89),
    ("pgm", 113),
    ("rsvp", 46),
    ("vrrp", 112),
];

fn protocol(text: Option<&str>, v4: bool) -> Result<Protocol, String> {
    let Some(text) = text else {
        return Ok(Protocol::Any);
    };
    let lower = text.to_ascii_lowercase();
    let icmp = |for_v4: bool| {
        if for_v4 == v4 {
            Ok(Protocol::Icmp(if v4 { "icmp4" } else { "icmp6" }))
        } else {
            let family = if v4 { "IPv4" } else { "IPv6" };
            Err(format!("protocol `{text}` does not exist in {family}"))
        }
    };
    match lower.as_str() {
        "any" => Ok(Protocol::Any),
        "tcp" | "6" => Ok(Protocol::Ports("tcp")),
        "udp" | "17" => Ok(Protocol::Ports("udp")),
        "sctp" | "132" => Ok(Protocol::Ports("sctp")),
        // Neutron takes `icmp` for the family's own.
        "icmp" => icmp(v4),
        "1" => icmp(true),
        "icmpv6" | "ipv6-icmp" | "icmp6" | "58" => icmp(false),
        "udplite" => Ok(Protocol::Number(136)),
        name => {
            if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
                return Ok(Protocol::Number(*number));
            }
            name.parse()
                .map(Protocol::Number)
                .map_err(|_| format!("protocol `{text}` is not known; write its number, 0 to 255"))
        }
    }
}

/// The match of a rule for the members of `group`. `remote` gives the port group of the
/// remote group's name.
///
/// # Errors
/// Says what is wrong with the rule.
pub(super) fn match_of(
    group: &str,
    rule: &SecurityRule,
    remote: impl Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let v4 = rule.ether_type == EtherType::IPv4;
    let ip = if v4 { "ip4" } else { "ip6" };
    let (port, side) = match rule.direction {
        Direction::Ingress => ("outport", "src"),
        Direction::Egress => ("inport", "dst"),
    };
    let mut terms = vec![format!("{port} == @{group}"), ip.to_owned()];
    match (&rule.remote_cidr, &rule.remote_group) {
        (None, None) => {}
        (Some(_), Some(_)) => {
            return Err("remoteCIDR and remoteGroup cannot both be given".to_owned());
        }
        (Some(cidr), None) => {
            let net = parse_net(cidr)?;
            if net.addr().is_ipv4() != v4 {
                return Err(format!(
                    "remoteCIDR `{cidr}` is not of etherType {:?}",
                    rule.ether_type
                ));
            }
            // Any address of the family is what the family's term says already.
            if net.prefix_len() > 0 {
                terms.push(format!("{ip}.{side} == {}", net.trunc()));
            }
        }
        (None, Some(name)) => {
            let set = remote(name)
                .ok_or_else(|| format!("remoteGroup `{name}` does not exist in this namespace"))?;
            terms.push(format!("{ip}.{side} == ${set}_{ip}"));
        }
    }
    let (min, max) = (rule.port_range_min, rule.port_range_max);
    match protocol(rule.protocol.as_deref(), v4)? {
        Protocol::Ports(name) => {
            terms.push(name.to_owned());
            terms.extend(ports(name, min, max)?);
        }
        Protocol::Icmp(name) => {
            terms.push(name.to_owned());
            terms.extend(icmp(name, min, max)?);
        }
        other => {
            if min.is_some() || max.is_some() {
                return Err(
                    "portRangeMin and portRangeMax need protocol tcp, udp, sctp or icmp".to_owned(),
                );
            }
            if let Protocol::Number(number) = other {
                terms.push(format!("ip.proto == {number}"));
            }
        }
    }
    Ok(terms.join(" && "))
}

/// One end alone stands for that one port.
fn ports(name: &str, min: Option<i32>, max: Option<i32>) -> Result<Vec<String>, String> {
    let (Some(min), Some(max)) = (min.or(max), max.or(min)) else {
        return Ok(Vec::new());
    };
    if !(0..=65535).contains(&min) || !(0..=65535).contains(&max) || min > max {
        return Err(format!(
            "ports {min} to {max} are no range; both lie in 0 to 65535, the smaller one first"
        ));
    }
    Ok(if min == max {
        vec![format!("{name}.dst == {min}")]
    } else {
        vec![
            format!("{name}.dst >= {min}"),
            format!("{name}.dst <= {max}"),
        ]
    })
}

fn icmp(name: &str, kind: Option<i32>, code: Option<i32>) -> Result<Vec<String>, String> {
    let byte = |what: &str, field: &str, value: Option<i32>| match value {
        Some(n) if !(0..=255).contains(&n) => Err(format!(
            "{field} {n} is no ICMP {what}: they go from 0 to 255"
        )),
        Some(n) => Ok(Some(format!("{name}.{what} == {n}"))),
        None => Ok(None),
    };
    if kind.is_none() && code.is_some() {
        return Err("an ICMP code (portRangeMax) needs a type (portRangeMin)".to_owned());
    }
    let terms = [
        byte("type", "portRangeMin", kind)?,
        byte("code", "portRangeMax", code)?,
    ];
    Ok(terms.into_iter().flatten().collect())
}

fn parse_net(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| format!("remoteCIDR `{text}` is not a range such as 10.0.0.0/24"))
}
