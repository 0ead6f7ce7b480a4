//! Parses what a rule of a security group allows. Pure.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use pileus_api::security_group::{self, EtherType, SecurityRule};
use pileus_network::topology::{Direction, Family, IcmpType, Protocol, Remote, Rule, Transport};

/// Names of protocols that Neutron knows, as of its API reference, less those that have ports or
/// types.
const PROTOCOL_NAMES: [(&str, u8); 17] = [
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
    ("udplite", 136),
    ("vrrp", 112),
];

/// Parses a rule.
///
/// # Errors
/// Names the field, its value and what to write instead.
pub fn parse(rule: &SecurityRule) -> Result<Rule, String> {
    let family = match rule.ether_type {
        EtherType::IPv4 => Family::V4,
        EtherType::IPv6 => Family::V6,
    };
    Ok(Rule {
        direction: match rule.direction {
            security_group::Direction::Ingress => Direction::Ingress,
            security_group::Direction::Egress => Direction::Egress,
        },
        family,
        remote: remote(rule, family)?,
        protocol: protocol(rule, family)?,
    })
}

fn remote(rule: &SecurityRule, family: Family) -> Result<Remote, String> {
    match (&rule.remote_cidr, &rule.remote_group) {
        (None, None) => Ok(Remote::Any),
        (Some(_), Some(_)) => Err("remoteCIDR and remoteGroup cannot both be given".to_owned()),
        (None, Some(name)) => Ok(Remote::Group(name.clone())),
        (Some(text), None) => {
            let net = text
                .parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| format!("remoteCIDR `{text}` is not a range such as 10.0.0.0/24"))?;
            if Family::of(&net) != family {
                return Err(format!(
                    "remoteCIDR `{text}` is not of etherType {:?}",
                    rule.ether_type
                ));
            }
            Ok(Remote::Net(net))
        }
    }
}

fn protocol(rule: &SecurityRule, family: Family) -> Result<Protocol, String> {
    let (min, max) = (rule.port_range_min, rule.port_range_max);
    let transport = |transport| {
        Ok(Protocol::Transport {
            transport,
            ports: ports(min, max)?,
        })
    };
    let name = rule.protocol.as_deref().unwrap_or("any");
    let icmp = |of: Family| {
        if of == family {
            return Ok(Protocol::Icmp(icmp_type(min, max)?));
        }
        let family = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        Err(format!("protocol `{name}` does not exist in {family}"))
    };
    let other = match name.to_ascii_lowercase().as_str() {
        "tcp" | "6" => return transport(Transport::Tcp),
        "udp" | "17" => return transport(Transport::Udp),
        "sctp" | "132" => return transport(Transport::Sctp),
        // In Neutron `icmp` means the family's own.
        "icmp" => return icmp(family),
        "1" => return icmp(Family::V4),
        "icmpv6" | "ipv6-icmp" | "icmp6" | "58" => return icmp(Family::V6),
        "any" => Protocol::Any,
        lower => {
            let known = PROTOCOL_NAMES.iter().find(|(known, _)| *known == lower);
            let number = known.map_or_else(|| lower.parse(), |(_, number)| Ok(*number));
            Protocol::Number(number.map_err(|_| {
                format!("protocol `{name}` is not known; write its number, 0 to 255")
            })?)
        }
    };
    if min.is_some() || max.is_some() {
        return Err(
            "portRangeMin and portRangeMax need protocol tcp, udp, sctp or icmp".to_owned(),
        );
    }
    Ok(other)
}

/// One end alone means that one port.
fn ports(min: Option<i32>, max: Option<i32>) -> Result<Option<RangeInclusive<u16>>, String> {
    let (Some(min), Some(max)) = (min.or(max), max.or(min)) else {
        return Ok(None);
    };
    match (u16::try_from(min), u16::try_from(max)) {
        (Ok(first), Ok(last)) if first <= last => Ok(Some(first..=last)),
        _ => Err(format!(
            "ports {min} to {max} are no range; both lie in 0 to 65535, the smaller one first"
        )),
    }
}

/// For ICMP, `portRangeMin` is the type and `portRangeMax` the code.
fn icmp_type(number: Option<i32>, code: Option<i32>) -> Result<Option<IcmpType>, String> {
    let byte = |what: &str, field: &str, value: i32| {
        u8::try_from(value)
            .map_err(|_| format!("{field} {value} is no ICMP {what}: they go from 0 to 255"))
    };
    match (number, code) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            Err("an ICMP code (portRangeMax) needs a type (portRangeMin)".to_owned())
        }
        (Some(number), code) => Ok(Some(IcmpType {
            number: byte("type", "portRangeMin", number)?,
            code: code
                .map(|code| byte("code", "portRangeMax", code))
                .transpose()?,
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(min: i32, max: i32) -> SecurityRule {
        SecurityRule {
            protocol: Some("tcp".into()),
            port_range_min: Some(min),
            port_range_max: Some(max),
            ..SecurityRule::default()
        }
    }

    fn of(protocol: &str) -> SecurityRule {
        SecurityRule {
            protocol: Some(protocol.into()),
            ..SecurityRule::default()
        }
    }

    fn to_cidr(cidr: &str) -> SecurityRule {
        SecurityRule {
            remote_cidr: Some(cidr.into()),
            ..SecurityRule::default()
        }
    }

    #[test]
    fn protocols_are_read_as_neutron_reads_them() {
        let ports = |transport, ports| Protocol::Transport { transport, ports };
        let v6 = SecurityRule {
            ether_type: EtherType::IPv6,
            ..of("icmp")
        };
        let one_end = SecurityRule {
            port_range_min: None,
            ..tcp(0, 443)
        };
        let echo = SecurityRule {
            port_range_min: Some(8),
            ..of("1")
        };
        for (rule, expected) in [
            (SecurityRule::default(), Protocol::Any),
            (of("ANY"), Protocol::Any),
            (of("17"), ports(Transport::Udp, None)),
            (tcp(80, 90), ports(Transport::Tcp, Some(80..=90))),
            (one_end, ports(Transport::Tcp, Some(443..=443))),
            (v6, Protocol::Icmp(None)),
            (
                echo,
                Protocol::Icmp(Some(IcmpType {
                    number: 8,
                    code: None,
                })),
            ),
            (of("vrrp"), Protocol::Number(112)),
            (of("udplite"), Protocol::Number(136)),
            (of("250"), Protocol::Number(250)),
        ] {
            assert_eq!(parse(&rule).unwrap().protocol, expected, "{rule:?}");
        }
    }

    #[test]
    fn an_address_alone_is_a_range_of_one() {
        let net = "10.0.0.7/32".parse().unwrap();
        assert_eq!(
            parse(&to_cidr("10.0.0.7")).unwrap().remote,
            Remote::Net(net)
        );
    }

    #[test]
    fn a_rule_that_makes_no_sense_is_refused_with_field_and_value() {
        let both = SecurityRule {
            remote_group: Some("g".into()),
            ..to_cidr("10.0.0.0/8")
        };
        let code_alone = SecurityRule {
            port_range_max: Some(0),
            ..of("icmp")
        };
        let type_too_big = SecurityRule {
            port_range_min: Some(256),
            ..of("icmp")
        };
        let ports_of_gre = SecurityRule {
            protocol: Some("gre".into()),
            ..tcp(80, 80)
        };
        for (rule, expected) in [
            (to_cidr("fd00::/8"), "etherType"),
            (to_cidr("10.0.0.0/33"), "10.0.0.0/33"),
            (both, "cannot both"),
            (of("icmpv6"), "does not exist in IPv4"),
            (of("tcp && 1"), "not known"),
            (tcp(80, 79), "no range"),
            (tcp(0, 65536), "no range"),
            (ports_of_gre, "need protocol"),
            (code_alone, "needs a type"),
            (type_too_big, "portRangeMin 256"),
        ] {
            let message = parse(&rule).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }
}
