//! Whose the fields of an object are, where the manager and others write the same one.

use pileus_api::names::MANAGER;
use pileus_stack::value::{Value, json};

/// The managed fields with what the manager's POST owns given to its apply; nothing when
/// there is no such thing.
pub(super) fn handed_over(fields: &Value) -> Option<Value> {
    let mut entries = fields.as_array()?.to_vec();
    let position = |entries: &[Value], operation: &str| {
        entries.iter().position(|entry| {
            entry["manager"] == MANAGER
                && entry["operation"] == operation
                && entry["subresource"].as_str().is_none_or(str::is_empty)
        })
    };
    let mut made = entries.remove(position(&entries, "Update")?);
    match position(&entries, "Apply") {
        None => {
            made["operation"] = Value::from("Apply");
            entries.push(made);
        }
        // Fields of another version have other names.
        Some(at) if entries[at]["apiVersion"] == made["apiVersion"] => {
            unite(&mut entries[at]["fieldsV1"], made["fieldsV1"].take());
        }
        Some(_) => {}
    }
    Some(Value::from(entries))
}

/// Adds a set of fields, which is a tree of maps.
fn unite(fields: &mut Value, more: Value) {
    if let (Value::Object(fields), Value::Object(more)) = (fields, more) {
        for (name, more) in more {
            unite(fields.or_insert_with(&name, || json!({})), more);
        }
    }
}

/// `wanted`, with what `live` has that is not the Stack's to say.
pub(super) fn replaced(wanted: &Value, live: &Value) -> Value {
    let mut object = wanted.clone();
    let mut metadata = live["metadata"].clone();
    if let Some(map) = metadata.as_object_mut() {
        map.shift_remove("managedFields");
    }
    for key in ["labels", "annotations"] {
        for (name, value) in wanted["metadata"][key].as_object().into_iter().flatten() {
            if !metadata[key].is_object() {
                metadata[key] = json!({});
            }
            metadata[key][name] = value.clone();
        }
    }
    object["metadata"] = metadata;
    object
}
