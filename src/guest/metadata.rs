//! `meta_data.json`, as Nova's metadata service gives it.

use serde_json::{Value, json};

use super::data::GuestData;
use pileus_api::names::host_name;

/// The document.
#[must_use]
pub fn meta_data(data: &GuestData) -> Value {
    let keys: Vec<_> = data
        .ssh_keys
        .iter()
        .map(|(name, key)| json!({"name": name, "type": "ssh", "data": key.trim()}))
        .collect();
    json!({
        "uuid": data.instance_id,
        "name": data.name,
        "hostname": data.hostname.clone().unwrap_or_else(|| host_name(&data.name)),
        "availability_zone": data.availability_zone.as_deref().unwrap_or("nova"),
        "project_id": data.namespace,
        "launch_index": 0,
        "public_keys": data.ssh_keys.iter().map(|(n, k)| (n.clone(), k.trim().to_owned()))
            .collect::<std::collections::BTreeMap<_, _>>(),
        "keys": keys,
        "meta": data.metadata,
        "devices": [],
    })
}
