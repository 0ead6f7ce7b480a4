//! The data of the Server's guest, from what was resolved. Pure.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::plan::{Observed, ObservedNic, UserData};
use pileus_api::server::PlacementConstraints;
use pileus_api::subnet::Dhcp;
use pileus_api::{Server, Subnet};
use pileus_guest::{GuestData, Link, LinkNetwork, Route};
use pileus_values::stable_id;

use kube::ResourceExt;

/// The guest's data. Addresses that do not parse are left out: they were given by the
/// controller of Ports, which parsed them.
#[must_use]
pub fn guest_data(server: &Server, observed: &Observed) -> GuestData {
    let namespace = server.namespace().unwrap_or_default();
    GuestData {
        instance_id: stable_id(&observed.cluster, "Server", &namespace, &server.name_any()),
        name: server.name_any(),
        hostname: server.spec.hostname.clone(),
        namespace,
        availability_zone: None,
        ssh_keys: observed
            .key_pairs
            .iter()
            .filter_map(|(name, pair)| Some((name.clone(), pair.as_ref()?.spec.public_key.clone())))
            .collect(),
        metadata: server.spec.metadata.clone(),
        user_data: match &observed.user_data {
            UserData::Is(bytes) => Some(bytes.clone()),
            _ => None,
        },
        links: observed.nics.iter().filter_map(link).collect(),
    }
}

fn link(nic: &ObservedNic) -> Option<Link> {
    let network = nic.network.as_ref()?;
    let status = nic.port.as_ref()?.status.as_ref()?;
    let networks = status
        .fixed_ips
        .iter()
        .filter_map(|ip| {
            let subnet = nic.subnets.iter().find(|s| s.name_any() == ip.subnet)?;
            link_network(
                network.uid().unwrap_or_default(),
                ip.address.parse().ok()?,
                subnet,
            )
        })
        .collect();
    Some(Link {
        id: status.port_id.clone()?,
        mac: status.mac_address.as_ref()?.parse().ok()?,
        mtu: network.status.as_ref()?.mtu?,
        networks,
    })
}

fn link_network(
    network_id: String,
    address: std::net::IpAddr,
    subnet: &Subnet,
) -> Option<LinkNetwork> {
    let gateway = subnet.status.as_ref().and_then(|s| s.gateway_ip.as_ref());
    Some(LinkNetwork {
        network_id,
        address,
        cidr: subnet.spec.cidr.parse().ok()?,
        dhcp: subnet.spec.dhcp == Dhcp::Enabled,
        gateway: gateway.and_then(|g| g.parse().ok()),
        dns: subnet
            .spec
            .dns_servers
            .iter()
            .filter_map(|d| d.parse().ok())
            .collect(),
        routes: subnet
            .spec
            .host_routes
            .iter()
            .filter_map(|r| {
                Some(Route {
                    destination: r.destination.parse().ok()?,
                    next_hop: r.next_hop.parse().ok()?,
                })
            })
            .collect(),
    })
}

/// The parts of a spec that only reach a guest at its first boot, as they were then: shows
/// later which of them were changed. Holds no user data and no metadata, only their hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuiltFrom {
    user_data: String,
    key_pairs: Vec<String>,
    metadata: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    /// Empty when the size was given inline; absent in older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    flavor: Option<String>,
    /// Absent in older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    placement: Option<PlacementConstraints>,
}

impl BuiltFrom {
    /// What a guest that is built now is built from.
    #[must_use]
    pub fn of(server: &Server) -> Self {
        let spec = &server.spec;
        Self {
            user_data: hash(serde_json::json!([spec.user_data, spec.user_data_from])),
            key_pairs: spec.key_pairs.clone(),
            metadata: hash(serde_json::json!(spec.metadata)),
            hostname: spec.hostname.clone(),
            flavor: Some(spec.flavor.clone().unwrap_or_default()),
            // The priority counts as it is now, in the scheduler.
            placement: Some(PlacementConstraints {
                priority_class: None,
                ..spec.placement.clone().unwrap_or_default()
            }),
        }
    }

    /// The flavor that is asked for `now` and the one it was built from, if they differ.
    #[must_use]
    pub fn other_flavor(&self, now: &Self) -> Option<(String, String)> {
        let (was, now) = (self.flavor.as_ref()?, now.flavor.as_ref()?);
        let word = |name: &String| match name.as_str() {
            "" => "none".to_owned(),
            name => name.to_owned(),
        };
        (was != now).then(|| (word(now), word(was)))
    }

    /// The fields that differ `now`; user data and metadata without their values.
    #[must_use]
    pub fn changes(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.user_data != now.user_data {
            found.push("userData (changed, but fixed at first boot)".to_owned());
        }
        if self.key_pairs != now.key_pairs {
            found.push(format!(
                "keyPairs ({} asked for; {} given, fixed at first boot)",
                names(&now.key_pairs),
                names(&self.key_pairs)
            ));
        }
        if self.metadata != now.metadata {
            found.push("metadata (changed, but fixed at first boot)".to_owned());
        }
        if self.hostname != now.hostname {
            let word = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
            found.push(format!(
                "hostname ({} asked for; {} given, fixed at first boot)",
                word(&now.hostname),
                word(&self.hostname)
            ));
        }
        if let (Some(was), Some(now)) = (&self.placement, &now.placement) {
            found.extend(other_placement(was, now));
        }
        found
    }
}

/// How constraints on the host differ from those that it was placed by.
fn other_placement(was: &PlacementConstraints, now: &PlacementConstraints) -> Vec<String> {
    let fields = |constraints: &PlacementConstraints| match serde_json::to_value(constraints) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (was, now) = (fields(was), fields(now));
    let names: std::collections::BTreeSet<&String> = was.keys().chain(now.keys()).collect();
    let word = |value: Option<&serde_json::Value>| {
        let text = match value {
            None => return "none".to_owned(),
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        match text.char_indices().nth(100) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    };
    let changed = names
        .into_iter()
        .filter(|name| was.get(*name) != now.get(*name));
    changed
        .map(|name| {
            format!(
                "placement.{name} ({} asked for; placed by {})",
                word(now.get(name)),
                word(was.get(name))
            )
        })
        .collect()
}

fn names(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// The same for equal values, whatever the order of their maps: it is compared over restarts
/// and versions of the manager.
fn hash(mut value: serde_json::Value) -> String {
    value.sort_all_objects();
    hex::encode(&Sha256::digest(value.to_string().as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Digest, Sha256, hash};

    #[test]
    fn hashes_that_are_kept_do_not_depend_on_the_order_of_fields() {
        let other = hash(json!([null, {"name": "n", "key": "k"}]));
        assert_eq!(other, hash(json!([null, {"key": "k", "name": "n"}])));
        // Of the text that a manager has kept so far.
        let text = r#"[null,{"key":"k","name":"n"}]"#;
        let kept = Sha256::digest(text.as_bytes());
        assert_eq!(other, hex::encode(&kept[..16]));
    }
}
