//! Converts properties by their type's schema: types, defaults, older names of properties; and checks
//! constraints.

use std::collections::BTreeMap;

use super::functions::python::truthy;
use super::registry::{Property, PropertyType};
use super::{Error, Result, python_type};
use crate::value::{List, Map, Number, Text, Value};

/// The properties as Heat's plugins get them.
///
/// # Errors
/// When one that is required is missing, or a value is not of its type.
pub fn coerce(schema: &BTreeMap<Text, Property>, given: &Map) -> Result<Map> {
    all(schema, given, false)
}

/// Every problem that stands in the way of using `given`: names that are
/// unknown or not implemented, values out of bounds. A property whose name is
/// in `unknown_yet` refers to what is not there yet: only its shape is looked at.
///
/// # Errors
/// For the first problem, with its path.
pub fn check(
    schema: &BTreeMap<Text, Property>,
    given: &Map,
    unknown_yet: &dyn Fn(&str) -> bool,
) -> Result<()> {
    if let Some(name) = given
        .keys()
        .find(|name| !schema.contains_key(name.as_str()))
    {
        return Err(Error::at(name, unknown(schema, name)));
    }
    for (name, property) in schema {
        if property.unimplemented && given.contains_key(name) {
            return Err(Error::at(
                name,
                "Heat knows this property and does not implement it",
            ));
        }
        // Nothing to be kept, here or inside.
        if property.rules.is_empty() && property.inner.is_empty() || unknown_yet(name) {
            continue;
        }
        let value = one(name, property, given, None).map_err(|error| error.below(name))?;
        if value.is_null() {
            continue;
        }
        inside(property, given.get(name), &value).map_err(|error| error.below(name))?;
    }
    Ok(())
}

/// Constraints of a value and of what is in it.
fn inside(property: &Property, raw: Option<&Value>, value: &Value) -> Result<()> {
    for rule in &property.rules {
        if !rule.holds(value) {
            return Err(Error::new(rule.explain()));
        }
    }
    match (value, raw) {
        (Value::Array(_), Some(Value::Array(items))) => {
            let Some(item) = property.inner.get("*") else {
                return Ok(());
            };
            for (index, raw) in items.iter().enumerate() {
                let value = convert(item, Some(raw))?;
                inside(item, Some(raw), &value).map_err(|e| e.below(&format!("[{index}]")))?;
            }
            Ok(())
        }
        (Value::Object(_), Some(Value::Object(map))) if !property.inner.is_empty() => {
            check(&property.inner, map, &|_| false)
        }
        _ => Ok(()),
    }
}

fn unknown(schema: &BTreeMap<Text, Property>, name: &str) -> String {
    let near = schema.keys().find(|known| {
        known.eq_ignore_ascii_case(name)
            || known.as_str().replace('_', "") == name.replace(['_', '-'], "")
    });
    match near {
        Some(near) => format!("unknown property; is `{near}` meant?"),
        None => "unknown property".into(),
    }
}

/// What is not given and has no default is null with `nulls`, and left out without.
fn all(schema: &BTreeMap<Text, Property>, given: &Map, nulls: bool) -> Result<Map> {
    // Older names are removed after they were read.
    let replaced: Vec<&str> = schema.values().filter_map(|p| p.from.as_deref()).collect();
    let room = if nulls { schema.len() } else { given.len() };
    let mut result = Map::with_capacity(room);
    let mut joined = Vec::new();
    for (name, property) in schema {
        let value = if replaced.contains(&name.as_str()) {
            Value::Null
        } else {
            let top = (!nulls).then_some(schema);
            one(name, property, given, top).map_err(|error| error.below(name))?
        };
        match &property.joins {
            Some(join) if given.get(name).is_some_and(truthy) => joined.push((join, value)),
            _ if value.is_null() && !nulls => {}
            _ => result.push(name.clone(), value),
        }
    }
    for ((target, item), value) in joined {
        let own = given.get(target).filter(|own| own.is_array());
        let mut list = own.and_then(Value::as_array).cloned().unwrap_or_default();
        list.push(fill(item, &value));
        let list = Value::Array(list);
        let value = convert(&schema[target], Some(&list)).map_err(|e| e.below(target))?;
        result.insert(target.clone(), value);
    }
    Ok(result)
}

/// The item with `$` for the value.
fn fill(item: &Value, value: &Value) -> Value {
    match item {
        Value::String(text) if text == "$" => value.clone(),
        Value::Object(map) => map
            .iter()
            .map(|(key, item)| (key.clone(), fill(item, value)))
            .collect(),
        other => other.clone(),
    }
}

/// One property's value; `top` is the schema that it stands in, unless that is inside of another.
fn one(
    name: &str,
    property: &Property,
    given: &Map,
    top: Option<&BTreeMap<Text, Property>>,
) -> Result<Value> {
    let own = given.get(name);
    let from = property.from.as_deref();
    let old = from.and_then(|from| given.get(from));
    if let (Some(Value::Null), Some(schema)) = (old, top.zip(from).and_then(|(t, f)| t.get(f))) {
        // Null for the older name is the empty value of its type.
        return convert(property, Some(&convert(schema, None)?));
    }
    let old = old.filter(|value| !value.is_null());
    if let (Some(old), Some(from)) = (old, &property.from) {
        if own.is_some_and(truthy) && truthy(old) {
            return Err(Error::new(format!("give either `{name}` or `{from}`")));
        }
        return convert(property, Some(old));
    }
    match own {
        Some(value) => convert_to(kind(property, given), property, Some(value)),
        None if property.default.is_some() => convert(property, None),
        None if property.required => Err(Error::new("is required and not given")),
        None => Ok(Value::Null),
    }
}

/// What a property's value is made into, which another property may say.
fn kind(property: &Property, given: &Map) -> PropertyType {
    let told = property.told_by.as_ref().and_then(|by| given.get(by));
    match told.and_then(Value::as_str) {
        Some("string") => PropertyType::String,
        Some("number") => PropertyType::Number,
        Some("comma_delimited_list") => PropertyType::List,
        Some("json") => PropertyType::Map,
        Some("boolean") => PropertyType::Boolean,
        _ => property.value_type,
    }
}

/// The value as its type; nothing gives the default or the type's empty value.
pub(super) fn convert(property: &Property, value: Option<&Value>) -> Result<Value> {
    convert_to(property.value_type, property, value)
}

fn convert_to(kind: PropertyType, property: &Property, value: Option<&Value>) -> Result<Value> {
    let value = value.filter(|value| !value.is_null());
    // Some defaults are empty, and of another type.
    let default = property.default.as_ref();
    let value = value.or(default.filter(|value| kind == PropertyType::Map || truthy(value)));
    let wrong = |wanted: &str| {
        let kind = value.map_or("nothing", python_type);
        Err(Error::new(format!("must be {wanted}, is {kind}")))
    };
    match (kind, value) {
        (PropertyType::Any, value) => Ok(value.cloned().unwrap_or_default()),
        (PropertyType::String, None) => Ok(Value::from("")),
        (PropertyType::String, Some(Value::String(_))) => Ok(value.cloned().unwrap_or_default()),
        (PropertyType::String, Some(Value::Bool(true))) => Ok(Value::from("True")),
        (PropertyType::String, Some(Value::Bool(false))) => Ok(Value::from("False")),
        (PropertyType::String, Some(Value::Number(number))) if !number.is_f64() => {
            Ok(Value::from(number.to_string()))
        }
        (PropertyType::String, _) => wrong("a string"),
        (PropertyType::Integer | PropertyType::Number, None) => Ok(Value::from(0)),
        (PropertyType::Integer, Some(value)) => match integer(value) {
            Some(number) => Ok(Value::Number(number)),
            None => wrong("a whole number"),
        },
        // In Heat a boolean is a number, and is not converted.
        (PropertyType::Number, Some(value @ (Value::Number(_) | Value::Bool(_)))) => {
            Ok(value.clone())
        }
        (PropertyType::Number, Some(Value::String(text))) => super::parameters::number(text)
            .map_or_else(|| wrong("a number"), |n| Ok(Value::Number(n))),
        (PropertyType::Number, _) => wrong("a number"),
        (PropertyType::Boolean, None) => Ok(Value::Bool(false)),
        (PropertyType::Boolean, Some(Value::Bool(flag))) => Ok(Value::Bool(*flag)),
        (PropertyType::Boolean, Some(Value::String(text))) => match text.to_lowercase().as_str() {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => wrong("true or false"),
        },
        (PropertyType::Boolean, _) => wrong("true or false"),
        (PropertyType::List, value) => list(property, value),
        (PropertyType::Map, value) => map(property, value),
    }
}

fn list(property: &Property, value: Option<&Value>) -> Result<Value> {
    let split;
    let items = match value {
        None => return Ok(Value::Array(List::new())),
        Some(Value::Array(items)) => items,
        Some(Value::String(text)) if property.converts => {
            split = comma_list(text);
            &split
        }
        Some(other) => {
            return Err(Error::new(format!(
                "must be a list, is {}",
                python_type(other)
            )));
        }
    };
    let Some(item) = property.inner.get("*") else {
        return Ok(Value::Array(items.clone()));
    };
    let items = items.iter().enumerate().map(|(index, value)| {
        convert(item, Some(value)).map_err(|error| error.below(&format!("[{index}]")))
    });
    items.collect()
}

/// The items of text with commas; empty text has none.
pub(super) fn comma_list(text: &str) -> List {
    if text.is_empty() {
        return List::new();
    }
    // Blanks belong to the items, as in parameters.
    text.split(',').map(Value::from).collect()
}

fn map(property: &Property, value: Option<&Value>) -> Result<Value> {
    let empty = Map::new();
    let map = match value {
        None => &empty,
        Some(Value::Object(map)) => map,
        Some(text @ Value::String(_)) if property.converts => return Ok(text.clone()),
        Some(items @ Value::Array(_)) if property.converts => {
            return Ok(Value::from(super::functions::python_json(items, false)));
        }
        Some(other) => {
            return Err(Error::new(format!(
                "must be a map, is {}",
                python_type(other)
            )));
        }
    };
    if property.inner.is_empty() {
        return Ok(Value::Object(map.clone()));
    }
    all(&property.inner, map, true).map(Value::Object)
}

/// Python's `int()`: text is parsed, a fraction is cut off.
pub(super) fn integer(value: &Value) -> Option<Number> {
    match value {
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64()?.trunc();
            // What is beyond 64 bits is no number of this kind.
            #[allow(clippy::cast_possible_truncation, reason = "bounds are checked")]
            (whole.abs() < 9e18).then(|| Number::from(whole as i64))
        }
        Value::Number(number) => Some(number.clone()),
        Value::Bool(flag) => Some(Number::from(i32::from(*flag))),
        Value::String(text) => {
            let text = text.trim().replace('_', "");
            let digits = text.strip_prefix('+').unwrap_or(&text);
            digits.parse::<i64>().ok().map(Number::from)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use crate::value::json;

    use super::super::registry::find;
    use super::*;

    fn typed(kind: &str, given: &Value) -> Result<Map> {
        coerce(&find(kind).unwrap().properties, given.as_object().unwrap())
    }

    #[test]
    fn values_are_converted_and_defaults_are_filled() {
        let volume = typed("OS::Cinder::Volume", &json!({"size": "3", "imageRef": "i"})).unwrap();
        assert_eq!(volume["size"], 3);
        assert_eq!(volume["image"], "i");
        assert!(!volume.contains_key("imageRef"));
    }

    #[test]
    fn the_type_of_a_value_is_in_the_property_beside_it() {
        let value = |kind: &str, value: Value| {
            let given = json!({"type": kind, "value": value});
            typed("OS::Heat::Value", &given).map(|typed| typed["value"].clone())
        };
        assert_eq!(value("number", json!("3")).unwrap(), 3);
        assert_eq!(value("string", json!(3)).unwrap(), "3");
        assert_eq!(value("boolean", json!("TRUE")).unwrap(), true);
        assert_eq!(
            value("comma_delimited_list", Value::Null).unwrap(),
            json!([])
        );
        assert_eq!(value("json", json!({"a": 1})).unwrap(), json!({"a": 1}));
        assert_eq!(value("other", json!("3")).unwrap(), "3");
        assert!(value("number", json!("three")).is_err());
        assert!(value("comma_delimited_list", json!("a,b")).is_err());
    }

    #[test]
    fn an_error_in_an_unknown_property_is_ignored() {
        let case = json!({"template": {"heat_template_version": "pike", "resources": {
            "n": {"type": "OS::Heat::None", "properties": {"x": {"list_concat": "text"}}}}}});
        let result = &super::super::cases::rendered(case)["resources"]["n"];
        assert!(result.get("properties_error").is_some(), "{result}");
        assert_eq!(result["typed_properties"], json!({}));
        let wrong = json!({"list_concat": "text"});
        let typed = |property: &str| {
            let case = json!({"template": {"heat_template_version": "pike", "resources": {
                "n": {"type": "OS::Heat::RandomString", "properties": {"length": "5", property: wrong}}}}});
            super::super::cases::rendered(case)["resources"]["n"].clone()
        };
        assert_eq!(typed("other")["typed_properties"]["length"], 5);
        assert!(typed("salt").get("typed_properties").is_none());
    }

    #[test]
    fn missing_and_wrong_properties_are_named() {
        let error = typed("OS::Nova::Server", &json!({})).unwrap_err();
        assert_eq!(error.path, "flavor");
        let error = typed("OS::Nova::Server", &json!({"flavor": "f", "networks": "n"}));
        assert_eq!(error.unwrap_err().path, "networks");
    }

    #[test]
    fn constraints_are_checked_at_any_depth() {
        let schema = &find("OS::Neutron::Port").unwrap().properties;
        let given = json!({"network": "n", "fixed_ips": [{"subnet": "s", "adress": "x"}]});
        let error = check(schema, given.as_object().unwrap(), &|_| false).unwrap_err();
        assert_eq!(error.path, "fixed_ips.[0].adress");
        let given = json!({"network": "n", "binding:vnic_type": "fast"});
        assert!(check(schema, given.as_object().unwrap(), &|_| false).is_err());
        assert!(check(schema, given.as_object().unwrap(), &|_| true).is_ok());
    }

    #[test]
    fn null_for_an_older_name_is_the_empty_value() {
        let given = json!({"network": "a", "network_id": null});
        assert_eq!(typed("OS::Neutron::Subnet", &given).unwrap()["network"], "");
        let router = typed("OS::Neutron::Router", &json!({"l3_agent_id": null})).unwrap();
        assert_eq!(router["l3_agent_id"], "");
        let gateway = json!({"devices": []});
        let gateway = typed("OS::Neutron::NetworkGateway", &gateway).unwrap();
        assert_eq!(gateway["connections"], json!([]));
    }

    #[test]
    fn a_boolean_is_a_number() {
        let given = json!({"wait_secs": true});
        assert_eq!(
            typed("OS::Heat::TestResource", &given).unwrap()["wait_secs"],
            true
        );
    }

    #[test]
    fn the_description_of_a_resource_is_used_as_its_property() {
        let case = |properties: Value| {
            let resource = json!({"type": "OS::Neutron::SecurityGroup", "description": "own", "properties": properties});
            json!({"template": {"heat_template_version": "rocky", "resources": {"g": resource}}})
        };
        let said = |properties| {
            let result = super::super::cases::rendered(case(properties));
            result["resources"]["g"]["typed_properties"]["description"].clone()
        };
        assert_eq!(said(json!({})), "own");
        assert_eq!(said(json!({"description": "other"})), "other");
    }

    #[test]
    fn two_names_of_one_property_cannot_be_combined() {
        let given = json!({"network": "a", "network_id": "b"});
        assert!(typed("OS::Neutron::Port", &given).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_fits_or_is_refused(text in "\\PC{0,40}") {
            for kind in super::super::registry::names() {
                let schema = &find(kind).unwrap().properties;
                let given: Map =
                    schema.keys().map(|name| (name.clone(), Value::from(text.clone()))).collect();
                let _ = coerce(schema, &given);
                let _ = check(schema, &given, &|_| false);
            }
        }
    }
}
