//! `AWS::EC2`: what CloudFormation templates call the same things.
//!
//! Heat makes a router of a VPC and puts its subnets on it; routers are not there yet, so a
//! VPC is a Network, whose guests reach each other and nothing else.

use super::nova::{placement_constraints, with_user_data};
use super::{
    FindObject, MappedObjects, Mapping, MappingInput, SupportedType, kubernetes_name, neutron,
    reference, text,
};
use crate::value::{Map, Value};
use crate::{Error, Result};
use pileus_api::port::FixedIp;
use pileus_api::security_group::{Direction, EtherType, NamedRule, SecurityRule};
use pileus_api::server::ServerNetwork;
use pileus_api::{NetworkSpec, PortSpec, ServerSpec, SubnetSpec};

pub(super) const TYPES: &[SupportedType] = &[
    SupportedType {
        name: "AWS::EC2::Instance",
        mapping: Mapping::Objects {
            kind: "Server",
            map: instance,
            attributes: instance_attributes,
        },
        properties: &[
            "AvailabilityZone",
            "ImageId",
            "InstanceType",
            "KeyName",
            "NetworkInterfaces",
            "NovaSchedulerHints",
            "SecurityGroupIds",
            "SecurityGroups",
            "SubnetId",
            "Tags",
            "UserData",
        ],
        ignored: &[],
        replaced_on_change: &["InstanceType", "NetworkInterfaces", "SubnetId"],
        by_account: false,
    },
    SupportedType {
        name: "AWS::EC2::NetworkInterface",
        mapping: Mapping::Objects {
            kind: "Port",
            map: network_interface,
            attributes: network_interface_attributes,
        },
        properties: &["GroupSet", "PrivateIpAddress", "SubnetId"],
        ignored: &["Description", "Tags"],
        replaced_on_change: &[],
        by_account: false,
    },
    SupportedType {
        name: "AWS::EC2::SecurityGroup",
        mapping: Mapping::Objects {
            kind: "SecurityGroup",
            map: security_group,
            attributes: |_, _| Map::new(),
        },
        properties: &[
            "GroupDescription",
            "SecurityGroupEgress",
            "SecurityGroupIngress",
        ],
        ignored: &["VpcId"],
        replaced_on_change: &[],
        by_account: false,
    },
    SupportedType {
        name: "AWS::EC2::Subnet",
        mapping: Mapping::Objects {
            kind: "Subnet",
            map: subnet,
            attributes: |_, _| Map::new(),
        },
        properties: &["CidrBlock", "VpcId"],
        ignored: &["AvailabilityZone", "Tags"],
        replaced_on_change: &[],
        by_account: false,
    },
    SupportedType {
        name: "AWS::EC2::VPC",
        mapping: Mapping::Objects {
            kind: "Network",
            map: vpc,
            attributes: |_, _| Map::new(),
        },
        properties: &[],
        ignored: &["CidrBlock", "Tags"],
        replaced_on_change: &[],
        by_account: false,
    },
];

/// A list of maps with a key and a value each, as one map.
fn pairs(request: &MappingInput<'_>, name: &str) -> Map {
    let items = request.list(name).into_iter().flatten();
    items
        .filter_map(|item| Some((text(&item["Key"])?, item["Value"].clone())))
        .collect()
}

fn instance(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let mut groups = request.texts("SecurityGroupIds");
    groups.extend(request.texts("SecurityGroups"));
    let mut networks = Vec::new();
    let interfaces = request.list("NetworkInterfaces").into_iter().flatten();
    for (index, item) in interfaces.enumerate() {
        let port = text(item).or_else(|| item.get("NetworkInterfaceId").and_then(text));
        networks.push(ServerNetwork {
            name: format!("nic-{index}"),
            port: Some(port.ok_or_else(|| {
                Error::at(format!("NetworkInterfaces[{index}]"), "names no interface")
            })?),
            ..ServerNetwork::default()
        });
    }
    if networks.is_empty()
        && let Some(subnet) = request.text("SubnetId")
    {
        networks.push(ServerNetwork {
            name: "nic-0".to_owned(),
            network: Some(reference(&network_of(request, &subnet)?)),
            security_groups: (!groups.is_empty()).then_some(groups),
            ..ServerNetwork::default()
        });
    }
    let tags = pairs(request, "Tags").into_iter();
    let hints = pairs(request, "NovaSchedulerHints");
    let spec = ServerSpec {
        flavor: Some(request.required("InstanceType")?),
        image: reference(&request.required("ImageId")?),
        networks,
        key_pairs: request.text("KeyName").into_iter().collect(),
        metadata: tags
            .filter_map(|(key, value)| Some((key.into(), text(&value)?)))
            .collect(),
        placement: placement_constraints(request.text("AvailabilityZone"), Some(&hints))?,
        ..ServerSpec::default()
    };
    with_user_data(request, spec, &request.text("UserData").unwrap_or_default())
}

fn instance_attributes(server: &Value, _: FindObject<'_>) -> Map {
    let interfaces = server["status"]["addresses"]
        .as_array()
        .into_iter()
        .flatten();
    let address = interfaces
        .filter_map(|interface| interface["ips"].as_array()?.first())
        .find_map(text)
        .unwrap_or_default();
    let zone = &server["spec"]["placement"]["availabilityZone"];
    let name = server["metadata"]["name"].clone();
    let mut attributes = Map::new();
    attributes.insert("PrivateIp", Value::from(address.clone()));
    attributes.insert("PublicIp", Value::from(address));
    attributes.insert("PrivateDnsName", name.clone());
    attributes.insert("PublicDnsName", name);
    attributes.insert("AvailabilityZone", zone.clone());
    attributes
}

/// The network that a subnet belongs to.
fn network_of(request: &MappingInput<'_>, subnet: &str) -> Result<String> {
    let found = (request.find)("Subnet", subnet);
    let network = found.and_then(|subnet| text(&subnet["spec"]["network"]));
    network.ok_or_else(|| Error::at("SubnetId", format!("there is no Subnet `{subnet}`")))
}

fn network_interface(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let subnet = request.required("SubnetId")?;
    let spec = PortSpec {
        network: reference(&network_of(request, &subnet)?),
        fixed_ips: vec![FixedIp {
            name: "ip-0".to_owned(),
            subnet: Some(subnet),
            address: request.text("PrivateIpAddress"),
        }],
        security_groups: request.list("GroupSet").map(|_| request.texts("GroupSet")),
        ..PortSpec::default()
    };
    neutron::make_port(request, &spec)
}

fn network_interface_attributes(port: &Value, _: FindObject<'_>) -> Map {
    let address = port["status"]["fixedIPs"][0]["address"].clone();
    let mut attributes = Map::new();
    attributes.insert("PrivateIpAddress", address);
    attributes
}

fn security_group(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let mut rules = Vec::new();
    for (name, direction) in [
        ("SecurityGroupIngress", Direction::Ingress),
        ("SecurityGroupEgress", Direction::Egress),
    ] {
        for (index, item) in request.list(name).into_iter().flatten().enumerate() {
            let rule = rule(item, direction).map_err(|e| e.below(&format!("{name}[{index}]")))?;
            rules.push(NamedRule {
                name: kubernetes_name(&format!("{direction:?}-{index}")),
                rule,
            });
        }
    }
    neutron::group_of(request, request.text("GroupDescription"), rules)
}

fn rule(item: &Value, direction: Direction) -> Result<SecurityRule> {
    let get = |key: &str| item.get(key).and_then(text).filter(|text| !text.is_empty());
    let port = |key: &str| {
        let number = get(key).map(|text| text.parse::<i32>()).transpose();
        let number = number.map_err(|_| Error::at(key, "is no port"))?;
        // Amazon's word for every port.
        Ok(number.filter(|number| *number >= 0))
    };
    let cidr = get("CidrIp");
    let six = cidr.as_ref().is_some_and(|cidr| cidr.contains(':'));
    Ok(SecurityRule {
        direction,
        ether_type: if six {
            EtherType::IPv6
        } else {
            EtherType::IPv4
        },
        // Amazon's word for every protocol.
        protocol: get("IpProtocol").filter(|protocol| protocol != "-1"),
        port_range_min: port("FromPort")?,
        port_range_max: port("ToPort")?,
        remote_cidr: cidr,
        remote_group: get("SourceSecurityGroupId").or_else(|| get("SourceSecurityGroupName")),
    })
}

fn subnet(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let spec = SubnetSpec {
        network: request.required("VpcId")?,
        cidr: request.required("CidrBlock")?,
        ..SubnetSpec::default()
    };
    let claim = format!("Network/{}/{}", spec.network, spec.cidr);
    Ok(MappedObjects {
        claims: [claim].into(),
        objects: vec![request.object("Subnet", request.name, &spec)?],
    })
}

fn vpc(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let network = request.object("Network", request.name, &NetworkSpec::default())?;
    Ok(MappedObjects {
        objects: vec![network],
        ..MappedObjects::default()
    })
}
