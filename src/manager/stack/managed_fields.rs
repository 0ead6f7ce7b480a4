//! Field ownership (`metadata.managedFields`) of objects that the manager and others write.

use pileus_api::names::MANAGER;
use pileus_stack::value::{Value, json};

/// The managed fields in which everything that the manager's create request (`Update`) owns
/// belongs to its server-side apply; `None` when there is nothing to migrate.
pub(super) fn migrated_fields(fields: &Value) -> Option<Value> {
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
            merge_fields(&mut entries[at]["fieldsV1"], made["fieldsV1"].take());
        }
        Some(_) => {}
    }
    Some(Value::from(entries))
}

/// Adds a set of fields, which is a tree of maps.
fn merge_fields(fields: &mut Value, more: Value) {
    if let (Value::Object(fields), Value::Object(more)) = (fields, more) {
        for (name, more) in more {
            merge_fields(fields.or_insert_with(&name, || json!({})), more);
        }
    }
}

/// `wanted` with the metadata of `live` that the Stack does not define, for a replace request.
pub(super) fn replacement(wanted: &Value, live: &Value) -> Value {
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
