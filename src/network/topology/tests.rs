//! Expected rows and properties of the compiler.

use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::*;
use crate::northbound::{AclAction, Desired, diff};
use crate::ovsdb::Replica;
use pileus_values::{ClusterId, Mac, Owner};

fn owner(kind: &str, name: &str) -> Owner {
    Owner {
        cluster: ClusterId("c1".into()),
        kind: kind.into(),
        namespace: "team".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
    }
}

fn port(name: &str, addresses: &[(&str, &str)], security: Security) -> PortIn {
    PortIn {
        owner: owner("Port", name),
        network: Key::new("team", "net"),
        mac: Mac::derive(name, 0),
        addresses: addresses
            .iter()
            .map(|(subnet, address)| AddressIn {
                subnet: (*subnet).into(),
                address: address.parse().unwrap(),
            })
            .collect(),
        security,
        binding: Binding::Anywhere,
    }
}

fn enabled(groups: &[&str]) -> Security {
    Security::Enabled {
        groups: groups.iter().map(|g| (*g).into()).collect(),
        pairs: vec![],
    }
}

fn rule(name: &str, rule: Rule) -> RuleIn {
    RuleIn {
        owner: owner("SecurityGroup", "web"),
        group: Key::new("team", "web"),
        name: name.into(),
        rule,
    }
}

/// Everything in of IPv4.
fn ingress() -> Rule {
    Rule {
        direction: Direction::Ingress,
        family: Family::V4,
        remote: Remote::Any,
        protocol: Protocol::Any,
    }
}

fn tcp_in(ports: RangeInclusive<u16>) -> Rule {
    Rule {
        protocol: Protocol::Transport {
            transport: Transport::Tcp,
            ports: Some(ports),
        },
        ..ingress()
    }
}

fn topology() -> Topology {
    Topology {
        cluster: ClusterId("c1".into()),
        networks: vec![NetworkIn {
            owner: owner("Network", "net"),
            mtu: 1442,
        }],
        subnets: vec![
            SubnetIn {
                owner: owner("Subnet", "v4"),
                network: "net".into(),
                cidr: "10.0.0.0/24".parse().unwrap(),
                gateway: Some("10.0.0.1".parse().unwrap()),
                service: Some("10.0.0.2".parse().unwrap()),
                dns_servers: vec![
                    "192.0.2.53".parse().unwrap(),
                    "2001:db8::53".parse().unwrap(),
                ],
                host_routes: vec![(
                    "198.51.100.0/24".parse().unwrap(),
                    "10.0.0.9".parse().unwrap(),
                )],
                dhcp: true,
            },
            SubnetIn {
                owner: owner("Subnet", "v6"),
                network: "net".into(),
                cidr: "fd00::/64".parse().unwrap(),
                gateway: None,
                service: None,
                dns_servers: vec!["2001:db8::53".parse().unwrap()],
                host_routes: vec![],
                dhcp: true,
            },
        ],
        ports: vec![
            port(
                "a",
                &[("v6", "fd00::10"), ("v4", "10.0.0.10")],
                enabled(&["web"]),
            ),
            port("b", &[("v4", "10.0.0.11")], enabled(&[])),
            port("c", &[("v4", "10.0.0.12")], Security::Disabled),
        ],
        groups: vec![GroupIn {
            owner: owner("SecurityGroup", "web"),
        }],
        rules: vec![rule("http", tcp_in(80..=80))],
    }
}

/// The match that a rule becomes, as the only one of its group.
fn match_of(rule_in: Rule) -> Result<String, String> {
    let mut topology = topology();
    topology.rules = vec![rule("it", rule_in)];
    let compiled = compile(&topology);
    let name = group_name(&topology.cluster, &Key::new("team", "web"));
    let group = &compiled.desired.port_groups[&name];
    match group.acls.values().next() {
        Some(acl) => Ok(acl.matches.replace(&name, "g")),
        None => Err(compiled.problems[0].message.clone()),
    }
}

#[test]
fn a_port_may_use_its_addresses_only_and_gets_dhcp_in_both_families() {
    let compiled = compile(&topology());
    assert_eq!(compiled.problems, []);
    let name = |port: &str| logical_port(&ClusterId("c1".into()), &Key::new("team", port));
    let mac = Mac::derive("a", 0);
    let a = &compiled.desired.ports[&name("a")];
    let own = format!("{mac} 10.0.0.10 fd00::10");
    assert_eq!(a.addresses.iter().collect::<Vec<_>>(), [&own]);
    assert_eq!(a.port_security, a.addresses);
    assert_eq!(a.dhcpv4.as_deref(), Some("Subnet/team/v4"));
    assert_eq!(a.dhcpv6.as_deref(), Some("Subnet/team/v6"));
    let c = &compiled.desired.ports[&name("c")];
    assert!(c.port_security.is_empty() && c.addresses.contains("unknown"));

    let drop = &compiled.desired.port_groups[&drop_group_name(&ClusterId("c1".into()))];
    assert_eq!(
        drop.ports,
        [name("a"), name("b")].into_iter().collect(),
        "secured ports, also those without groups"
    );
    assert_eq!(drop.acls["drop-to"].action, AclAction::Drop);
    assert!(drop.acls["drop-to"].priority < drop.acls["dhcpv4"].priority);
}

#[test]
fn the_default_route_is_repeated_among_the_routes_because_clients_ignore_the_router_option() {
    let compiled = compile(&topology());
    let v4 = &compiled.desired.dhcp_options["Subnet/team/v4"];
    let options: Vec<String> = v4
        .options
        .iter()
        .filter(|(key, _)| *key != "server_mac")
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    assert_eq!(
        options,
        [
            "T1=43200",
            "T2=75600",
            "classless_static_route={198.51.100.0/24,10.0.0.9, 0.0.0.0/0,10.0.0.1}",
            "dns_server={192.0.2.53}",
            "lease_time=86400",
            "mtu=1442",
            "router=10.0.0.1",
            "server_id=10.0.0.2",
        ]
    );
    let v6 = &compiled.desired.dhcp_options["Subnet/team/v6"];
    assert_eq!(v6.options["dns_server"], "{2001:db8::53}");
    assert!(v6.options["server_id"].parse::<Mac>().is_ok());
}

#[test]
fn rules_become_matches_as_neutron_writes_them() {
    let icmp = |icmp_type| Rule {
        protocol: Protocol::Icmp(icmp_type),
        ..ingress()
    };
    let cases = [
        (ingress(), "outport == @g && ip4"),
        (
            Rule {
                direction: Direction::Egress,
                family: Family::V6,
                remote: Remote::Net("fd00::/8".parse().unwrap()),
                ..ingress()
            },
            "inport == @g && ip6 && ip6.dst == fd00::/8",
        ),
        (
            Rule {
                remote: Remote::Net("0.0.0.0/0".parse().unwrap()),
                ..tcp_in(90..=99)
            },
            "outport == @g && ip4 && tcp && tcp.dst >= 90 && tcp.dst <= 99",
        ),
        (
            Rule {
                remote: Remote::Group("web".into()),
                ..tcp_in(22..=22)
            },
            "outport == @g && ip4 && ip4.src == $g_ip4 && tcp && tcp.dst == 22",
        ),
        (
            icmp(Some(IcmpType {
                number: 8,
                code: Some(0),
            })),
            "outport == @g && ip4 && icmp4 && icmp4.type == 8 && icmp4.code == 0",
        ),
        (
            Rule {
                family: Family::V6,
                ..icmp(None)
            },
            "outport == @g && ip6 && icmp6",
        ),
        (
            Rule {
                protocol: Protocol::Number(112),
                ..ingress()
            },
            "outport == @g && ip4 && ip.proto == 112",
        ),
    ];
    for (rule, expected) in cases {
        assert_eq!(match_of(rule.clone()).as_deref(), Ok(expected), "{rule:?}");
    }
}

#[test]
fn a_rule_that_cannot_be_compiled_is_a_problem_with_its_name_and_affects_only_itself() {
    for (remote, expected) in [
        (Remote::Group("gone".into()), "remoteGroup `gone`"),
        (
            Remote::Net("fd00::/8".parse().unwrap()),
            "`fd00::/8` is not of the rule's address family",
        ),
    ] {
        let message = match_of(Rule {
            remote,
            ..ingress()
        })
        .unwrap_err();
        assert!(
            message.starts_with("rule it: ") && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn a_rule_of_a_group_that_does_not_exist_is_a_problem_of_the_rule() {
    let mut topology = topology();
    topology.rules.push(RuleIn {
        owner: owner("SecurityGroupRule", "lost"),
        group: Key::new("team", "absent"),
        name: String::new(),
        rule: ingress(),
    });
    let compiled = compile(&topology);
    let problems: Vec<_> = compiled
        .problems
        .iter()
        .map(|p| (p.owner.name.as_str(), p.message.as_str()))
        .collect();
    assert_eq!(problems, [("lost", "security group absent does not exist")]);
}

#[test]
fn a_missing_reference_is_named_and_the_rest_is_compiled() {
    let mut topology = topology();
    topology.ports[0].network = Key::new("team", "gone");
    topology.ports[1].security = enabled(&["absent"]);
    let compiled = compile(&topology);
    let messages: Vec<_> = compiled
        .problems
        .iter()
        .map(|p| (p.owner.name.as_str(), p.message.as_str()))
        .collect();
    assert_eq!(
        messages,
        [
            ("a", "network team/gone does not exist"),
            ("b", "security group absent does not exist"),
        ]
    );
    assert_eq!(compiled.desired.ports.len(), 2);
}

#[test]
fn address_pairs_add_to_what_may_be_sent() {
    let mut topology = topology();
    let pair = |mac: Option<&str>, net: &str| AddressPairIn {
        mac: mac.map(|mac| mac.parse().unwrap()),
        net: net.parse().unwrap(),
    };
    topology.ports[1].security = Security::Enabled {
        groups: vec![],
        pairs: vec![
            pair(None, "10.0.0.200/32"),
            pair(Some("fa:16:3e:00:00:99"), "10.1.0.0/16"),
        ],
    };
    let compiled = compile(&topology);
    let name = logical_port(&topology.cluster, &Key::new("team", "b"));
    let mac = Mac::derive("b", 0);
    let expected = [
        format!("{mac} 10.0.0.11 10.0.0.200"),
        "fa:16:3e:00:00:99 10.1.0.0/16".to_owned(),
    ];
    assert_eq!(
        compiled.desired.ports[&name].port_security,
        expected.into_iter().collect()
    );
}

#[test]
fn names_are_short_enough_for_ovn_however_long_the_objects_names_are() {
    let mut topology = topology();
    let long = "x".repeat(253);
    topology.groups[0].owner.name.clone_from(&long);
    topology.rules[0].group.name.clone_from(&long);
    topology.ports[0].security = enabled(&[&long]);
    let compiled = compile(&topology);
    for (name, group) in &compiled.desired.port_groups {
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
        assert!(!group.acls.is_empty());
        assert!(
            group
                .acls
                .values()
                .all(|acl| acl.name.chars().count() <= 63)
        );
    }
}

#[test]
fn an_empty_topology_compiles_to_no_rows() {
    assert_eq!(compile(&Topology::default()).desired, Desired::default());
}

proptest! {
    #[test]
    fn the_order_of_the_input_does_not_matter(
        ports in Just((0..12).collect::<Vec<usize>>()).prop_shuffle(),
        rules in Just((1..9).collect::<Vec<u16>>()).prop_shuffle(),
    ) {
        let build = |ports: &[usize], rules: &[u16]| {
            let mut topology = topology();
            topology.ports = ports
                .iter()
                .map(|n| {
                    let groups: &[&str] = if n % 3 == 0 { &[] } else { &["web"] };
                    port(&format!("p{n}"), &[("v4", &format!("10.0.0.{}", 20 + n))], enabled(groups))
                })
                .collect();
            topology.rules =
                rules.iter().map(|n| rule(&format!("r{n}"), tcp_in(*n..=*n))).collect();
            topology
        };
        let (mut sorted_ports, mut sorted_rules) = (ports.clone(), rules.clone());
        sorted_ports.sort_unstable();
        sorted_rules.sort_unstable();
        let one = compile(&build(&ports, &rules));
        let mut reordered = build(&sorted_ports, &sorted_rules);
        reordered.subnets.reverse();
        let two = compile(&reordered);
        prop_assert_eq!(&one, &two);
        // The same rows give the same transaction, down to the order of its steps.
        let cluster = ClusterId("c1".into());
        let steps = |desired| diff(&Replica::default(), &cluster, desired, &std::collections::BTreeSet::new());
        prop_assert_eq!(steps(&one.desired), steps(&two.desired));
    }
}
