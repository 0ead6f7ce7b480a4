//! `OS::Nova`: Servers, ServerGroups, KeyPairs, Flavors.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{
    FindObject, MappedObjects, Mapping, MappingInput, SupportedType, as_texts, display_name,
    kubernetes_name, reference, text,
};
use crate::value::{List, Map, Value, json};
use crate::{Error, Result};
use pileus_api::names::host_name;
use pileus_api::server::{ConfigDrive, PlacementConstraints, RunState, ServerNetwork};
use pileus_api::server_group::GroupPolicy;
use pileus_api::{FlavorSpec, KeyPairSpec, SecretKey, ServerGroupSpec, ServerSpec, Sharing};

/// Key of the user data in the Secret that is made for it.
const USER_DATA_KEY: &str = "userData";

pub(super) const TYPES: &[SupportedType] = &[
    SupportedType {
        name: "OS::Nova::Server",
        mapping: Mapping::Objects {
            kind: "Server",
            map: server,
            attributes: server_attributes,
        },
        properties: &[
            "availability_zone",
            "config_drive",
            "flavor",
            "image",
            "key_name",
            "metadata",
            "name",
            "networks",
            "scheduler_hints",
            "security_groups",
            "user_data",
            "user_data_format",
            "user_data_update_policy",
        ],
        ignored: &[
            "diskConfig",
            "flavor_update_policy",
            "image_update_policy",
            "software_config_transport",
            "tags",
        ],
        // Resizing, rebuilding and hot-plugging are not there yet.
        replaced_on_change: &["flavor", "image", "networks", "user_data"],
        by_account: false,
    },
    SupportedType {
        name: "OS::Nova::KeyPair",
        mapping: Mapping::Objects {
            kind: "KeyPair",
            map: key_pair,
            attributes: key_pair_attributes,
        },
        properties: &["name", "public_key", "type"],
        ignored: &[],
        replaced_on_change: &[],
        by_account: false,
    },
    SupportedType {
        name: "OS::Nova::ServerGroup",
        mapping: Mapping::Objects {
            kind: "ServerGroup",
            map: server_group,
            attributes: |_, _| Map::new(),
        },
        properties: &["policies", "rules"],
        ignored: &["name"],
        replaced_on_change: &[],
        by_account: false,
    },
    SupportedType {
        name: "OS::Nova::Flavor",
        mapping: Mapping::Objects {
            kind: "Flavor",
            map: flavor,
            attributes: flavor_attributes,
        },
        properties: &[
            "disk",
            "extra_specs",
            "is_public",
            "name",
            "ram",
            "tenants",
            "vcpus",
        ],
        ignored: &["flavorid", "rxtx_factor"],
        replaced_on_change: &["extra_specs", "tenants"],
        by_account: true,
    },
];

fn server(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let groups = request
        .list("security_groups")
        .filter(|groups| !groups.is_empty());
    let groups = groups.map(|_| request.texts("security_groups"));
    let mut networks = Vec::new();
    for (index, item) in request.list("networks").into_iter().flatten().enumerate() {
        let network = interface(index, item, groups.as_ref())
            .map_err(|error| error.below(&format!("networks[{index}]")))?;
        networks.extend(network);
    }
    let image = request.text("image").ok_or_else(|| {
        Error::at(
            "image",
            "is needed: starting from a volume is not there yet",
        )
    })?;
    let spec = ServerSpec {
        flavor: Some(request.required("flavor")?),
        image: reference(&image),
        networks,
        key_pairs: request.text("key_name").into_iter().collect(),
        hostname: request.text("name").map(|name| host_name(&name)),
        metadata: as_texts(request.get("metadata")),
        config_drive: match request.flag("config_drive") {
            Some(false) => ConfigDrive::Disabled,
            _ => ConfigDrive::Enabled,
        },
        placement: placement(request)?,
        ..ServerSpec::default()
    };
    let data = request.text("user_data").unwrap_or_default();
    with_user_data(request, spec, &data)
}

/// A Server, and the Secret with its user data before it: user data is where passwords are
/// written, and whoever may read a Server is not meant to see them.
pub(super) fn with_user_data(
    request: &MappingInput<'_>,
    mut spec: ServerSpec,
    data: &str,
) -> Result<MappedObjects> {
    let mut makes = MappedObjects {
        claims: spec.networks.iter().filter_map(port_claim).collect(),
        ..MappedObjects::default()
    };
    // The schema's default; the type's own is no time at all.
    spec.shutdown_timeout_seconds = 60;
    if request.suspended {
        spec.run_state = RunState::Stopped;
    }
    // The name of a software configuration stands for its text.
    let data = request.configs.get(data).map_or(data, String::as_str);
    if !data.is_empty() {
        let name = format!("{}-user-data", request.name);
        makes.objects.push(json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "data": {USER_DATA_KEY: STANDARD.encode(data)},
        }));
        spec.user_data_from = Some(SecretKey {
            name,
            key: USER_DATA_KEY.to_owned(),
        });
    }
    makes
        .objects
        .push(request.object("Server", request.name, &spec)?);
    Ok(makes)
}

/// Two Servers cannot have one Port.
fn port_claim(network: &ServerNetwork) -> Option<String> {
    network.port.as_ref().map(|port| format!("Port/{port}"))
}

/// One interface; none for `allocate_network: none`.
fn interface(
    index: usize,
    item: &Value,
    groups: Option<&Vec<String>>,
) -> Result<Option<ServerNetwork>> {
    let get = |key: &str| item.get(key).and_then(text).filter(|text| !text.is_empty());
    match get("allocate_network").as_deref() {
        None => {}
        Some("none") => return Ok(None),
        Some(_) => {
            return Err(Error::at(
                "allocate_network",
                "only none can be had; name a network or a port",
            ));
        }
    }
    for key in ["floating_ip", "port_extra_properties", "subnet", "tag"] {
        let given = item
            .get(key)
            .is_some_and(|value| !super::check::is_empty(value));
        if given {
            return Err(Error::at(
                key,
                "a Server's interface cannot have this yet; make an OS::Neutron::Port and name it \
                 in `port`",
            ));
        }
    }
    let mut network = ServerNetwork {
        name: format!("nic-{index}"),
        ..ServerNetwork::default()
    };
    match (get("port"), get("network")) {
        (Some(port), _) => network.port = Some(port),
        (None, Some(name)) => {
            network.network = Some(reference(&name));
            network.fixed_ip = get("fixed_ip");
            network.security_groups = groups.cloned();
        }
        (None, None) => return Err(Error::new("needs a network or a port")),
    }
    Ok(Some(network))
}

fn placement(request: &MappingInput<'_>) -> Result<Option<PlacementConstraints>> {
    let hints = request.get("scheduler_hints").and_then(Value::as_object);
    placement_constraints(request.text("availability_zone"), hints)
}

/// Constraints on the host, from Nova's hints.
pub(super) fn placement_constraints(
    zone: Option<String>,
    hints: Option<&Map>,
) -> Result<Option<PlacementConstraints>> {
    let mut constraints = PlacementConstraints {
        availability_zone: zone,
        ..PlacementConstraints::default()
    };
    let names = |value: &Value| match value {
        Value::Array(items) => items.iter().filter_map(text).collect(),
        other => text(other).into_iter().collect::<Vec<_>>(),
    };
    for (hint, value) in hints.into_iter().flatten() {
        match hint.as_str() {
            "group" => constraints.server_group = text(value),
            "same_host" => constraints.same_host = names(value),
            "different_host" => constraints.different_host = names(value),
            "query" => constraints.query = text(value).or_else(|| Some(value.to_string())),
            _ => {
                return Err(Error::at(
                    format!("scheduler_hints.{hint}"),
                    "is no hint that is known; there are group, same_host, different_host and query",
                ));
            }
        }
    }
    Ok((constraints != PlacementConstraints::default()).then_some(constraints))
}

fn server_attributes(server: &Value, find: FindObject<'_>) -> Map {
    let mut attributes = Map::new();
    let status = &server["status"];
    let mut addresses: Map = Map::new();
    let mut networks: Map = Map::new();
    let mut first = String::new();
    for interface in status["addresses"].as_array().into_iter().flatten() {
        let names = network_names(server, interface, find);
        let ips = interface["ips"].as_array().cloned().unwrap_or_default();
        if first.is_empty() {
            first = ips.first().and_then(text).unwrap_or_default();
        }
        let detailed = ips.iter().map(|ip| {
            let version = if ip.as_str().unwrap_or_default().contains(':') {
                6
            } else {
                4
            };
            json!({
                "addr": ip,
                "version": version,
                "OS-EXT-IPS:type": "fixed",
                "OS-EXT-IPS-MAC:mac_addr": interface["macAddress"],
                "port": interface["port"],
            })
        });
        let detailed: List = detailed.collect();
        // As in Heat, by name and by id.
        for network in names {
            extend(&mut addresses, &network, detailed.clone());
            extend(&mut networks, &network, ips.clone());
        }
    }
    let mut put = |name: &str, value: Value| attributes.insert(name.to_owned(), value);
    put("first_address", Value::from(first));
    put("addresses", Value::Object(addresses));
    put("networks", Value::Object(networks));
    put("name", display_name(server));
    put("instance_name", server["metadata"]["name"].clone());
    put("accessIPv4", Value::from(""));
    put("accessIPv6", Value::from(""));
    put("tags", json!([]));
    put(
        "show",
        json!({
            "id": status["instanceID"],
            "name": display_name(server),
            "status": status["phase"],
            "metadata": server["spec"]["metadata"],
        }),
    );
    attributes
}

fn extend(map: &mut Map, key: &str, more: List) {
    let list = map.or_insert_with(key, || json!([]));
    if let Value::Array(list) = list {
        list.extend(more);
    }
}

/// What the network is called that an interface is in: the name that its template gives, if it
/// does, and its object's.
fn network_names(server: &Value, interface: &Value, find: FindObject<'_>) -> BTreeSet<String> {
    let object = network_of(server, interface, find);
    let given = find("Network", &object).and_then(|network| text(&display_name(&network)));
    given.into_iter().chain([object]).collect()
}

/// The network that an interface is in, by the Server's own words or its Port's.
fn network_of(server: &Value, interface: &Value, find: FindObject<'_>) -> String {
    let interfaces = server["spec"]["networks"].as_array().into_iter().flatten();
    let own = interfaces
        .filter(|own| own["name"] == interface["name"])
        .find_map(|own| own["network"]["name"].as_str().map(str::to_owned));
    own.or_else(|| {
        let port = find("Port", interface["port"].as_str()?)?;
        port["spec"]["network"]["name"].as_str().map(str::to_owned)
    })
    .or_else(|| interface["name"].as_str().map(str::to_owned))
    .unwrap_or_default()
}

fn key_pair(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let public_key = request.text("public_key").ok_or_else(|| {
        Error::at(
            "public_key",
            "is needed: making a key is not there yet; give the public part of one",
        )
    })?;
    if request.text("type").is_some_and(|kind| kind != "ssh") {
        return Err(Error::at("type", "only ssh keys can be had"));
    }
    // Its name is its reference id, and what servers elsewhere know it by.
    let name = kubernetes_name(&request.required("name")?);
    let spec = KeyPairSpec { public_key };
    Ok(MappedObjects {
        claims: BTreeSet::from([format!("KeyPair/{name}")]),
        objects: vec![request.object("KeyPair", &name, &spec)?],
    })
}

fn key_pair_attributes(pair: &Value, _: FindObject<'_>) -> Map {
    let mut attributes = Map::new();
    attributes.insert("public_key", pair["spec"]["publicKey"].clone());
    attributes.insert("private_key", Value::from(""));
    attributes
}

/// How many members are placed together or not at all. Heat has no word for it, so it stands
/// in the resource's metadata, where a template stays one that Heat reads.
fn min_members(metadata: &Value) -> Result<Option<i32>> {
    let asked = &metadata["min_members"];
    if asked.is_null() {
        return Ok(None);
    }
    let count = asked.as_i64().and_then(|n| i32::try_from(n).ok());
    match count.filter(|n| (2..=1000).contains(n)) {
        Some(count) => Ok(Some(count)),
        None => Err(Error::at(
            "metadata.min_members",
            format!("is a whole number from 2 to 1000, not {asked}"),
        )),
    }
}

fn server_group(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let policies = request.texts("policies");
    let [policy] = policies.as_slice() else {
        let given = policies.join(", ");
        return Err(Error::at(
            "policies",
            format!("names one policy, as Nova has it; there are `{given}`"),
        ));
    };
    let policy = match policy.as_str() {
        "affinity" => GroupPolicy::Affinity,
        "soft-affinity" => GroupPolicy::SoftAffinity,
        "soft-anti-affinity" => GroupPolicy::SoftAntiAffinity,
        // The type's schema lets nothing else through.
        _ => GroupPolicy::AntiAffinity,
    };
    let rules = request.get("rules").and_then(Value::as_object);
    let most = rules.and_then(|r| r.get("max_server_per_host"));
    let most = most.filter(|most| !most.is_null());
    let max_servers_per_host = most.map(|most| {
        let count = most.as_i64().and_then(|n| i32::try_from(n).ok());
        let count = count.filter(|n| (1..=10_000).contains(n));
        count.ok_or_else(|| {
            let path = "rules.max_server_per_host";
            Error::at(
                path,
                format!("is a whole number from 1 to 10000, not {most}"),
            )
        })
    });
    if most.is_some() && policy != GroupPolicy::AntiAffinity {
        let path = "rules.max_server_per_host";
        return Err(Error::at(path, "belongs to the policy anti-affinity"));
    }
    let spec = ServerGroupSpec {
        policy,
        max_servers_per_host: max_servers_per_host.transpose()?,
        min_members: min_members(request.metadata)?,
    };
    Ok(MappedObjects {
        claims: BTreeSet::new(),
        objects: vec![request.object("ServerGroup", request.name, &spec)?],
    })
}

fn flavor(request: &MappingInput<'_>) -> Result<MappedObjects> {
    let vcpus = i32::try_from(request.integer("vcpus"));
    let tenants = request.texts("tenants");
    let access = if request.flag("is_public") == Some(false) || !tenants.is_empty() {
        let mut namespaces = tenants;
        namespaces.push(request.namespace.to_owned());
        Some(Sharing { namespaces })
    } else {
        None
    };
    let spec = FlavorSpec {
        vcpus: vcpus.map_err(|_| Error::at("vcpus", "is too big"))?,
        memory: format!("{}Mi", request.integer("ram")),
        disk: format!("{}Gi", request.integer("disk")),
        extra_specs: as_texts(request.get("extra_specs")),
        access,
    };
    let given = request.text("name").map(|name| kubernetes_name(&name));
    let name = given.unwrap_or_else(|| request.name.to_owned());
    Ok(MappedObjects {
        claims: BTreeSet::from([format!("Flavor/{name}")]),
        objects: vec![request.object("Flavor", &name, &spec)?],
    })
}

fn flavor_attributes(flavor: &Value, _: FindObject<'_>) -> Map {
    let mut attributes = Map::new();
    attributes.insert("extra_specs", flavor["spec"]["extraSpecs"].clone());
    attributes.insert("is_public", flavor["spec"]["access"].is_null().into());
    attributes
}
