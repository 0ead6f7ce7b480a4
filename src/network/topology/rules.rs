//! The match of a security group's rule, in OVN's expression language.

use std::ops::RangeInclusive;

use super::input::{Direction, Family, IcmpType, Protocol, Remote, Rule, Transport};

/// The match of a rule for the members of the port group `group`. `port_group` gives the port
/// group of a remote security group's name.
///
/// # Errors
/// Names what the rule refers to and does not exist.
pub(super) fn match_of(
    group: &str,
    rule: &Rule,
    port_group: impl Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let ip = match rule.family {
        Family::V4 => "ip4",
        Family::V6 => "ip6",
    };
    let (port, side) = match rule.direction {
        Direction::Ingress => ("outport", "src"),
        Direction::Egress => ("inport", "dst"),
    };
    let mut terms = vec![format!("{port} == @{group}"), ip.to_owned()];
    match &rule.remote {
        Remote::Any => {}
        Remote::Net(net) if Family::of(net) != rule.family => {
            return Err(format!(
                "the remote range `{net}` is not of the rule's address family"
            ));
        }
        // Any address of the family is what the family's term says already.
        Remote::Net(net) if net.prefix_len() == 0 => {}
        Remote::Net(net) => terms.push(format!("{ip}.{side} == {}", net.trunc())),
        Remote::Group(name) => {
            let set = port_group(name)
                .ok_or_else(|| format!("remoteGroup `{name}` does not exist in this namespace"))?;
            terms.push(format!("{ip}.{side} == ${set}_{ip}"));
        }
    }
    match &rule.protocol {
        Protocol::Any => {}
        Protocol::Transport { transport, ports } => {
            let name = match transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
                Transport::Sctp => "sctp",
            };
            terms.push(name.to_owned());
            if let Some(ports) = ports {
                terms.extend(port_terms(name, ports));
            }
        }
        Protocol::Icmp(icmp_type) => {
            let name = match rule.family {
                Family::V4 => "icmp4",
                Family::V6 => "icmp6",
            };
            terms.push(name.to_owned());
            if let Some(IcmpType { number, code }) = icmp_type {
                terms.push(format!("{name}.type == {number}"));
                terms.extend(code.map(|code| format!("{name}.code == {code}")));
            }
        }
        Protocol::Number(number) => terms.push(format!("ip.proto == {number}")),
    }
    Ok(terms.join(" && "))
}

fn port_terms(name: &str, ports: &RangeInclusive<u16>) -> Vec<String> {
    let (first, last) = (ports.start(), ports.end());
    if first == last {
        return vec![format!("{name}.dst == {first}")];
    }
    vec![
        format!("{name}.dst >= {first}"),
        format!("{name}.dst <= {last}"),
    ]
}
