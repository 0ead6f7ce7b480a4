//! Bounds of every field that does not set its own: what is stored must be read back by every role,
//! and no object may be out of proportion.
//!
//! A field that needs more, or less, says so itself (`schemars(length, range, regex)`).

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

/// Longest name that Kubernetes knows; most texts of specs are names.
const MAX_LENGTH: i64 = 253;
/// Longest value in a map: extra specs, properties, labels.
const MAX_VALUE_LENGTH: i64 = 1024;
/// Most items of a list.
const MAX_ITEMS: i64 = 256;
/// Most entries of a map.
const MAX_PROPERTIES: i64 = 256;
/// Integers beyond this are not exact in JSON.
const MAX_INTEGER: f64 = 9_007_199_254_740_991.0;

/// Texts end up in OVN's database, in libvirt's XML and in JSON: without control characters, of
/// which those cannot carry all.
const ONE_LINE: &str = r"^[^\x00-\x1f\x7f]*$";
/// The same for texts of several lines.
const LINES: &str = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$";
/// Fields with texts of several lines.
const WITH_LINES: [&str; 5] = [
    "description",
    "metadata",
    "properties",
    "publicKey",
    "query",
];
/// Fields whose text is passed on as it is, whatever it is.
const ANY_TEXT: [&str; 4] = ["files", "template", "text", "userData"];

/// Sets the bounds of a spec.
pub(crate) fn bound_spec(spec: &mut JSONSchemaProps) {
    walk(spec, "", &mut |schema, name| {
        bound_integer(schema);
        match schema.type_.as_deref() {
            Some("string") if schema.enum_.is_none() && schema.format.is_none() => {
                schema.max_length.get_or_insert(MAX_LENGTH);
                if schema.pattern.is_none() && !ANY_TEXT.contains(&name) {
                    let lines = WITH_LINES.contains(&name);
                    schema.pattern = Some(if lines { LINES } else { ONE_LINE }.to_owned());
                }
            }
            Some("array") => drop(schema.max_items.get_or_insert(MAX_ITEMS)),
            Some("object") => {
                if let Some(JSONSchemaPropsOrBool::Schema(values)) =
                    &mut schema.additional_properties
                {
                    if values.type_.as_deref() == Some("string") {
                        values.max_length.get_or_insert(MAX_VALUE_LENGTH);
                    }
                    schema.max_properties.get_or_insert(MAX_PROPERTIES);
                }
            }
            _ => {}
        }
    });
}

/// Sets the bounds of what roles read of a status: its integers. What is in it was written by
/// Pileus, but perhaps by a host that lies.
pub(crate) fn bound_status(status: &mut JSONSchemaProps) {
    walk(status, "", &mut |schema, _| bound_integer(schema));
}

fn bound_integer(schema: &mut JSONSchemaProps) {
    if schema.type_.as_deref() != Some("integer") {
        return;
    }
    let (least, most) = match schema.format.as_deref() {
        Some("int32") => (f64::from(i32::MIN), f64::from(i32::MAX)),
        _ => (-MAX_INTEGER, MAX_INTEGER),
    };
    schema.minimum.get_or_insert(least);
    schema.maximum.get_or_insert(most);
}

/// Calls `change` with each schema and the name of the field that it is of, outer ones first. Items
/// and values have the name of their list or map.
fn walk(
    schema: &mut JSONSchemaProps,
    name: &str,
    change: &mut dyn FnMut(&mut JSONSchemaProps, &str),
) {
    change(schema, name);
    for (name, inner) in schema.properties.iter_mut().flat_map(BTreeMap::iter_mut) {
        walk(inner, name, change);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        walk(items, name, change);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        walk(values, name, change);
    }
}
