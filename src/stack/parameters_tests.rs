#![allow(clippy::unwrap_used, reason = "tests")]
use serde_json::json;

use super::*;

fn hot(schema: &Value) -> Result<Schema> {
    Schema::parse(schema, Version::Rocky)
}

#[test]
fn text_becomes_the_type() {
    let check =
        |kind: &str, value: Value| hot(&json!({"type": kind})).unwrap().check(&value).unwrap();
    assert_eq!(check("number", json!("3")), json!(3));
    assert_eq!(check("boolean", json!("off")), json!(false));
    assert_eq!(
        check("comma_delimited_list", json!("a, b")),
        json!(["a", "b"])
    );
    assert_eq!(check("json", json!("{\"a\": 1}")), json!({"a": 1}));
}

#[test]
fn a_broken_constraint_says_what_its_author_wrote() {
    let schema = hot(&json!({"type": "string", "constraints": [
        {"length": {"min": 6}, "description": "six or more"}]}))
    .unwrap();
    assert_eq!(
        schema.check(&json!("abc")).unwrap_err().message,
        "six or more"
    );
}

#[test]
fn a_pattern_matches_the_whole_value() {
    let schema =
        hot(&json!({"type": "string", "constraints": [{"allowed_pattern": "[a-z]+"}]})).unwrap();
    assert!(schema.check(&json!("abc")).is_ok());
    assert!(schema.check(&json!("abc1")).is_err());
}

#[test]
fn a_hidden_value_is_never_shown() {
    let schemas = json!({"p": {"type": "string", "hidden": true}});
    let given = json!({"p": "secret"});
    let parameters = Parameters::resolve(
        schemas.as_object().unwrap(),
        Version::Rocky,
        given.as_object().unwrap(),
        &Map::new(),
        &Identity::default(),
    )
    .unwrap();
    assert_eq!(parameters.masked()["p"], "******");
    assert_eq!(parameters.values["p"], "secret");
}

#[test]
fn values_are_in_the_order_of_the_template_and_maps_in_their_own() {
    let schemas = json!({
        "zone": {"type": "json", "default": "{\"z\": 1, \"a\": 2}"},
        "area": {"type": "json"},
    });
    let given = json!({"area": {"y": 1, "b": 2}});
    let found = Parameters::resolve(
        schemas.as_object().unwrap(),
        Version::Rocky,
        given.as_object().unwrap(),
        &Map::new(),
        &Identity::default(),
    );
    let values = found.unwrap().values.into_iter();
    let own = values.filter(|(name, _)| !name.starts_with("OS::"));
    let own = Value::Object(own.collect()).to_string();
    assert_eq!(own, r#"{"zone":{"z":1,"a":2},"area":{"y":1,"b":2}}"#);
}
