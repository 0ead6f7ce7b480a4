//! `OS::Neutron`: Networks, Subnets, Ports, SecurityGroups and their rules.

use std::collections::BTreeSet;

use super::{
    FindObject, MappedObjects, Mapping, MappingInput, SupportedType, display_name, reference, text,
};
use crate::value::{Map, Value, json};
use crate::{Error, Result};
use pileus_api::network::PortSecurity;
use pileus_api::port::{AddressPair, FixedIp};
use pileus_api::security_group::{Direction, EtherType, NamedRule, SecurityRule};
use pileus_api::subnet::{AllocationPool, Dhcp, HostRoute};
use pileus_api::{
    NetworkSpec, PortSpec, SecurityGroupRuleSpec, SecurityGroupSpec, Sharing, SubnetSpec,
};

pub(super) const TYPES: &[SupportedType] = &[
    SupportedType {
        name: "OS::Neutron::Net",
        mapping: Mapping::Objects {
            kind: "Network",
            map: network,
            attributes: network_attributes,
        },
        properties: &["name", "port_security_enabled", "shared"],
        ignored: &["tags", "tenant_id"],
        replaced_on_change: &[],
        by_account: false,
    },
    SupportedType {
        name: "OS::Neutron::Subnet",
        mapping: Mapping::Objects {
            kind: "Subnet",
            map: subnet,
            attributes: subnet_attributes,
        },
        properties: &[
            "allocation_pools",
            "cidr",
            "dns_nameservers",
            "enable_dhcp",
            "gateway_ip",
            "host_routes",
            "ip_version",
            "name",
            "network",
        ],
        ignored: &["tags", "tenant_id"],
        replaced_on_change: &[],
        by_account: false,
    },
    SupportedType {
        name: "OS::Neutron::Port",
        mapping: Mapping::Objects {
            kind: "Port",
            map: port,
            attributes: port_attributes,
        },
        properties: &[
            "allowed_address_pairs",
            "fixed_ips",
            "mac_address",
            "name",
            "network",
            "port_security_enabled",
            "security_groups",
        ],
        ignored: &["replacement_policy", "tags"],
        // A Port has its addresses for life.
        replaced_on_change: &["fixed_ips"],
        by_account: false,
    },
    SupportedType {
        name: "OS::Neutron::SecurityGroup",
        mapping: Mapping::Objects {
            kind: "SecurityGroup",
            map: security_group,
            attributes: named_attributes,
        },
        properties: &["description", "name", "rules"],
        ignored: &[],
        replaced_on_change: &[],
        by_account: false,
    },
    SupportedType {
        name: "OS::Neutron::SecurityGroupRule",
        mapping: Mapping::Objects {
            kind: "SecurityGroupRule",
            map: security_group_rule,
            attributes: named_attributes,
        },
        properties: &[
            "direction",
            "ethertype",
            "port_range_max",
            "port_range_min",
            "protocol",
            "remote_group",
            "remote_ip_prefix",
            "security_group",
        ],
        ignored: &["description"],
        replaced_on_change: &[],
        by_account: false,
    },
];

fn security(flag: Option<bool>) -> Option<PortSecurity> {
    flag.map(|enabled| {
        if enabled {
            PortSecurity::Enabled
        } else {
            PortSecurity::Disabled
        }
    })
}

fn network(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let shared = request.flag("shared") == Some(true);
    let spec = NetworkSpec {
        port_security: security(request.flag("port_security_enabled")).unwrap_or_default(),
        shared_with: shared.then(|| Sharing {
            namespaces: vec!["*".to_owned()],
        }),
        ..NetworkSpec::default()
    };
    Ok(MappedObjects {
        objects: vec![request.object("Network", request.name, &spec)?],
        ..MappedObjects::default()
    })
}

fn network_attributes(network: &Value, _: FindObject<'_>) -> Map {
    let security = network["spec"]["portSecurity"] != "Disabled";
    let mut attributes = named_attributes(network, &|_, _| None);
    attributes.insert("admin_state_up", Value::Bool(true));
    attributes.insert("mtu", network["status"]["mtu"].clone());
    attributes.insert("port_security_enabled", Value::Bool(security));
    attributes.insert("status", Value::from("ACTIVE"));
    attributes
}

fn subnet(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let field = |item: &Value, key: &str| item.get(key).and_then(text).unwrap_or_default();
    let items = |key: &str| request.list(key).into_iter().flatten().enumerate();
    let spec = SubnetSpec {
        network: request.required("network")?,
        cidr: request.text("cidr").ok_or_else(|| {
            Error::at("cidr", "is needed: taking it from a pool is not there yet")
        })?,
        // An empty text stands for no gateway, here as in Heat.
        gateway_ip: request.get("gateway_ip").and_then(text),
        allocation_pools: items("allocation_pools")
            .map(|(index, item)| AllocationPool {
                name: format!("pool-{index}"),
                start: field(item, "start"),
                end: field(item, "end"),
            })
            .collect(),
        dns_servers: request.texts("dns_nameservers"),
        host_routes: items("host_routes")
            .map(|(index, item)| HostRoute {
                name: format!("route-{index}"),
                destination: field(item, "destination"),
                next_hop: field(item, "nexthop"),
            })
            .collect(),
        dhcp: match request.flag("enable_dhcp") {
            Some(false) => Dhcp::Disabled,
            _ => Dhcp::Enabled,
        },
    };
    Ok(MappedObjects {
        // Two subnets of a network may not overlap.
        claims: BTreeSet::from([format!("Network/{}/{}", spec.network, spec.cidr)]),
        objects: vec![request.object("Subnet", request.name, &spec)?],
    })
}

fn subnet_attributes(subnet: &Value, _: FindObject<'_>) -> Map {
    let spec = &subnet["spec"];
    let six = spec["cidr"].as_str().is_some_and(|cidr| cidr.contains(':'));
    let list = |value: &Value| {
        if value.is_array() {
            value.clone()
        } else {
            json!([])
        }
    };
    let mut attributes = named_attributes(subnet, &|_, _| None);
    let mut put = |name: &str, value: Value| attributes.insert(name.to_owned(), value);
    put("cidr", spec["cidr"].clone());
    put("network_id", spec["network"].clone());
    put("gateway_ip", subnet["status"]["gatewayIP"].clone());
    put("dns_nameservers", list(&spec["dnsServers"]));
    put("enable_dhcp", Value::Bool(spec["dhcp"] != "Disabled"));
    put("ip_version", Value::from(if six { 6 } else { 4 }));
    put("allocation_pools", list(&spec["allocationPools"]));
    put("host_routes", list(&spec["hostRoutes"]));
    attributes
}

fn port(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let network = reference(&request.required("network")?);
    let fixed = request.list("fixed_ips").into_iter().flatten().enumerate();
    let fixed_ips = fixed.map(|(index, item)| FixedIp {
        name: format!("ip-{index}"),
        subnet: item.get("subnet").and_then(text),
        address: item.get("ip_address").and_then(text),
    });
    let pairs = request.list("allowed_address_pairs").into_iter().flatten();
    let pairs = pairs.enumerate().map(|(index, item)| AddressPair {
        name: format!("pair-{index}"),
        address: item.get("ip_address").and_then(text).unwrap_or_default(),
        mac_address: item.get("mac_address").and_then(text),
    });
    let spec = PortSpec {
        fixed_ips: fixed_ips.collect(),
        mac_address: request.text("mac_address"),
        security_groups: request
            .list("security_groups")
            .map(|_| request.texts("security_groups")),
        port_security: security(request.flag("port_security_enabled")),
        allowed_address_pairs: pairs.collect(),
        network,
    };
    make_port(request, &spec)
}

/// A Port; no other may have its addresses.
pub(super) fn make_port(request: &MappingInput<'_>, spec: &PortSpec) -> Result<MappedObjects> {
    let network = &spec.network;
    let place = format!(
        "{}/{}",
        network.namespace.as_deref().unwrap_or_default(),
        network.name
    );
    let addresses = spec.fixed_ips.iter().filter_map(|ip| ip.address.as_ref());
    let claims = addresses
        .chain(&spec.mac_address)
        .map(|address| format!("Address/{place}/{address}"));
    Ok(MappedObjects {
        claims: claims.collect(),
        objects: vec![request.object("Port", request.name, spec)?],
    })
}

fn port_attributes(port: &Value, find: FindObject<'_>) -> Map {
    let spec = &port["spec"];
    let fixed = port["status"]["fixedIPs"].as_array().into_iter().flatten();
    let fixed: Vec<Value> = fixed
        .map(|ip| json!({"subnet_id": ip["subnet"], "ip_address": ip["address"]}))
        .collect();
    let subnets = fixed
        .iter()
        .filter_map(|ip| find("Subnet", ip["subnet_id"].as_str()?));
    let subnets: Vec<Value> = subnets
        .map(|subnet| json!({"id": subnet["metadata"]["name"], "cidr": subnet["spec"]["cidr"]}))
        .collect();
    let mut attributes = named_attributes(port, find);
    let mut put = |name: &str, value: Value| attributes.insert(name.to_owned(), value);
    put("fixed_ips", fixed.into());
    put("subnets", subnets.into());
    put("mac_address", port["status"]["macAddress"].clone());
    put("network_id", spec["network"]["name"].clone());
    put("security_groups", spec["securityGroups"].clone());
    put("allowed_address_pairs", spec["allowedAddressPairs"].clone());
    put(
        "port_security_enabled",
        Value::Bool(spec["portSecurity"] != "Disabled"),
    );
    put("admin_state_up", Value::Bool(true));
    put("status", Value::from("ACTIVE"));
    attributes
}

fn security_group(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let mut rules = Vec::new();
    for (index, item) in request.list("rules").into_iter().flatten().enumerate() {
        let mut rule = rule(&|key| item.get(key).filter(|value| !value.is_null()))
            .map_err(|error| error.below(&format!("rules[{index}]")))?;
        let group = item
            .get("remote_group_id")
            .and_then(text)
            .filter(|g| !g.is_empty());
        // Without an id the group itself is meant.
        let own = item.get("remote_mode").and_then(Value::as_str) == Some("remote_group_id");
        rule.remote_group = group.or_else(|| own.then(|| request.name.to_owned()));
        rules.push(NamedRule {
            name: format!("rule-{index}"),
            rule,
        });
    }
    group_of(request, request.text("description"), rules)
}

/// A SecurityGroup with `rules`. As in Heat, everything may go out unless a rule says what
/// may.
pub(super) fn group_of(
    request: &MappingInput<'_>,
    description: Option<String>,
    mut rules: Vec<NamedRule>,
) -> Result<MappedObjects> {
    if !rules
        .iter()
        .any(|named| named.rule.direction == Direction::Egress)
    {
        for (name, ether_type) in [
            ("egress-ipv4", EtherType::IPv4),
            ("egress-ipv6", EtherType::IPv6),
        ] {
            rules.push(NamedRule {
                name: name.to_owned(),
                rule: SecurityRule {
                    direction: Direction::Egress,
                    ether_type,
                    ..SecurityRule::default()
                },
            });
        }
    }
    let spec = SecurityGroupSpec { description, rules };
    Ok(MappedObjects {
        objects: vec![request.object("SecurityGroup", request.name, &spec)?],
        ..MappedObjects::default()
    })
}

fn security_group_rule(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let mut rule = rule(&|key| request.get(key))?;
    rule.remote_group = request.text("remote_group");
    let spec = SecurityGroupRuleSpec {
        security_group: request.required("security_group")?,
        rule,
    };
    Ok(MappedObjects {
        objects: vec![request.object("SecurityGroupRule", request.name, &spec)?],
        ..MappedObjects::default()
    })
}

fn rule<'a>(get: &dyn Fn(&str) -> Option<&'a Value>) -> Result<SecurityRule> {
    let port = |key: &str| {
        let number = get(key).and_then(Value::as_i64).map(i32::try_from);
        number.transpose().map_err(|_| Error::at(key, "is no port"))
    };
    let word = |key: &str| get(key).and_then(text).filter(|text| !text.is_empty());
    Ok(SecurityRule {
        direction: match word("direction").as_deref() {
            Some("egress") => Direction::Egress,
            _ => Direction::Ingress,
        },
        ether_type: match word("ethertype").as_deref() {
            Some("IPv6") => EtherType::IPv6,
            _ => EtherType::IPv4,
        },
        // Neutron's word for every protocol is none.
        protocol: word("protocol").filter(|protocol| protocol != "any"),
        port_range_min: port("port_range_min")?,
        port_range_max: port("port_range_max")?,
        remote_cidr: word("remote_ip_prefix"),
        remote_group: None,
    })
}

fn named_attributes(object: &Value, _: FindObject<'_>) -> Map {
    let mut attributes = Map::new();
    attributes.insert("name", display_name(object));
    attributes.insert(
        "show",
        json!({"id": object["metadata"]["name"], "name": display_name(object)}),
    );
    attributes
}
