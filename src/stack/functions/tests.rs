#![allow(clippy::unwrap_used, reason = "tests")]
use serde_json::json;

use super::*;

fn evaluate(version: Version, value: &Value) -> Result<Value> {
    let parameters = json!({"env": "prod", "map": {"a": [1, 2]}});
    let conditions = json!({"prod": {"equals": [{"get_param": "env"}, "prod"]}, "x": {"not": "y"}, "y": {"not": "x"}});
    let mut resources = BTreeMap::new();
    let attributes = json!({"ips": {"net": ["10.0.0.5"]}, "show": {}});
    resources.insert(
        "web".to_owned(),
        Known {
            refid: json!("web-id"),
            attributes: attributes.as_object().unwrap().clone(),
            open: false,
        },
    );
    Scope {
        version,
        parameters: parameters.as_object().unwrap(),
        resources: &resources,
        existing: None,
        files: &crate::stack::files::Files::default(),
        mappings: &Map::new(),
        conditions: conditions.as_object().unwrap(),
        facade: &Map::new(),
        left: BUDGET.into(),
    }
    .evaluate(value)
}

#[test]
fn references_are_followed() {
    let run = |value| evaluate(Version::Rocky, &value).unwrap();
    assert_eq!(run(json!({"get_param": ["map", "a", 1]})), json!(2));
    assert_eq!(run(json!({"get_resource": "web"})), json!("web-id"));
    assert_eq!(
        run(json!({"get_attr": ["web", "ips", "net", 0]})),
        json!("10.0.0.5")
    );
    assert_eq!(
        run(json!({"get_attr": ["web"]})),
        json!({"ips": {"net": ["10.0.0.5"]}})
    );
}

#[test]
fn what_str_replace_puts_in_is_not_replaced_again() {
    let value =
        json!({"str_replace": {"template": "a ab b", "params": {"a": "b", "ab": "X", "b": "a"}}});
    assert_eq!(evaluate(Version::Rocky, &value).unwrap(), json!("b X a"));
}

#[test]
fn strict_replacement_wants_every_key() {
    let value = json!({"str_replace_strict": {"template": "a", "params": {"b": "1"}}});
    assert!(evaluate(Version::Rocky, &value).is_err());
}

#[test]
fn repeat_makes_every_combination() {
    let value =
        json!({"repeat": {"for_each": {"%a%": [1, 2], "%b%": ["x"]}, "template": "%a%%b%"}});
    assert_eq!(
        evaluate(Version::Rocky, &value).unwrap(),
        json!(["1x", "2x"])
    );
}

#[test]
fn repeat_refuses_to_explode() {
    let list: Vec<usize> = (0..200).collect();
    let value =
        json!({"repeat": {"for_each": {"a": list, "b": list, "c": list}, "template": "abc"}});
    assert!(evaluate(Version::Rocky, &value).is_err());
}

#[test]
fn an_if_without_else_leaves_its_place_empty() {
    let value =
        json!({"k": {"if": [false, 1]}, "l": [1, {"if": [false, 2]}], "p": {"if": ["prod", 3]}});
    assert_eq!(
        evaluate(Version::Wallaby, &value).unwrap(),
        json!({"l": [1], "p": 3})
    );
    assert!(evaluate(Version::Rocky, &value).is_err());
}

#[test]
fn circular_conditions_are_reported_with_their_path() {
    let error = evaluate(Version::Rocky, &json!({"if": ["x", 1, 2]})).unwrap_err();
    assert!(error.message.contains("x → y → x"), "{error}");
}

#[test]
fn a_function_of_a_later_version_is_a_plain_map() {
    let value = json!({"make_url": {"host": "h"}});
    assert_eq!(evaluate(Version::Ocata, &value).unwrap(), value);
    assert_eq!(evaluate(Version::Pike, &value).unwrap(), json!("//h"));
}

#[test]
fn yaql_is_a_function_and_a_condition() {
    let value = json!({"yaql": {"expression": "$.data.a.sum()", "data": {"a": {"get_param": ["map", "a"]}}}});
    assert_eq!(evaluate(Version::Rocky, &value).unwrap(), json!(3));
    let value = json!({"if": [{"yaql": {"expression": "$.data > 1", "data": 2}}, "yes", "no"]});
    assert_eq!(evaluate(Version::Rocky, &value).unwrap(), json!("yes"));
    let value = json!({"yaql": {"expression": "$.data.frob()", "data": {}}});
    let error = evaluate(Version::Rocky, &value).unwrap_err();
    assert!(error.to_string().contains("frob"), "{error}");
}

#[test]
fn functions_that_double_at_every_level_are_refused() {
    let mut value = json!("aaaaaaaa");
    for _ in 0..40 {
        value = json!({"str_replace": {"template": "xx", "params": {"x": value}}});
    }
    assert!(evaluate(Version::Rocky, &value).is_err());
    let mut value = json!(["a"]);
    for _ in 0..40 {
        value = json!({"repeat": {"template": ["%i%", "%i%"], "for_each": {"%i%": value}}});
    }
    assert!(evaluate(Version::Rocky, &value).is_err());
}
