//! How often Pileus writes until a Server is Active.

use std::time::Instant;

use serde_json::Value;

use super::lab::{NAMESPACE, ready};
use super::record::Entry;

/// Writes for one Server.
#[derive(Debug, Default)]
pub struct Writes {
    /// On the Server, after the user's own, and on its Instance.
    pub server_and_instance: usize,
    /// On its Port, and its address.
    pub port_and_address: usize,
    /// One line a write, for people.
    pub lines: Vec<String>,
}

/// Counts from the creation of Server `name` until it was Active.
pub fn count(entries: &[Entry], name: &str, created: Instant) -> Writes {
    let mut writes = Writes::default();
    let port = format!("{name}-eth0");
    let mut port_uid = Value::Null;
    let mut before: Vec<(String, Value)> = Vec::new();
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by_key(|e| e.at);
    for entry in sorted {
        let object = &entry.object;
        let here = object["metadata"]["namespace"] == NAMESPACE;
        let counter = match entry.kind.as_str() {
            "Server" if here && entry.name() == name => {
                // The user's own write.
                if entry.action == "ADDED" {
                    before.push((entry.key() + "Server", object.clone()));
                    continue;
                }
                &mut writes.server_and_instance
            }
            "Instance"
                if object["spec"]["server"]["name"] == name
                    && object["spec"]["server"]["namespace"] == NAMESPACE =>
            {
                &mut writes.server_and_instance
            }
            "Port" if here && entry.name() == port => {
                port_uid = object["metadata"]["uid"].clone();
                &mut writes.port_and_address
            }
            "IPAllocation" if names(object, &port_uid, &port) => &mut writes.port_and_address,
            _ => continue,
        };
        *counter += 1;
        let key = entry.key() + &entry.kind;
        let old = before.iter().rposition(|(k, _)| *k == key);
        let changed = changes(old.map_or(&Value::Null, |i| &before[i].1), object);
        writes.lines.push(format!(
            "+{:5.0} ms  {:12} {:8}  {}",
            entry.at.saturating_duration_since(created).as_secs_f64() * 1000.0,
            entry.kind,
            entry.action,
            changed.join(" "),
        ));
        before.push((key, object.clone()));
        if entry.kind == "Server" && ready(object) {
            break;
        }
    }
    writes
}

/// Whether an `IPAllocation` belongs to the Port.
fn names(allocation: &Value, port_uid: &Value, port: &str) -> bool {
    let spec = allocation["spec"].to_string();
    port_uid.as_str().is_some_and(|uid| spec.contains(uid)) && spec.contains(port)
}

/// The conditions that a write changed, as they are now.
fn said(old: &Value, new: &Value) -> Vec<String> {
    let all = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let before = all(old);
    let changed = all(new).into_iter().filter(|c| !before.contains(c));
    let line = |condition: Value| {
        let word = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        let (kind, status) = (word("type"), word("status"));
        let generation = &condition["observedGeneration"];
        format!(
            "({kind}={status} {}: {:?} of {generation})",
            word("reason"),
            word("message")
        )
    };
    changed.map(line).collect()
}

/// The fields that a write changed, two levels deep, and what its conditions say.
fn changes(old: &Value, new: &Value) -> Vec<String> {
    const NOISE: [&str; 5] = [
        "managedFields",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "uid",
    ];
    let mut changed = Vec::new();
    for part in ["metadata", "spec", "status"] {
        let Some(fields) = new[part].as_object() else {
            continue;
        };
        for (field, value) in fields {
            if NOISE.contains(&field.as_str()) || old[part][field] == *value {
                continue;
            }
            changed.push(format!("{part}.{field}"));
            if field == "conditions" {
                changed.extend(said(&old[part][field], value));
            }
        }
    }
    changed
}
