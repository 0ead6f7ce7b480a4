#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::value::json;

fn hot(schema: &Value) -> Result<Schema> {
    Schema::parse(schema, Version::Rocky)
}

#[test]
fn text_is_converted_to_the_type() {
    let check =
        |kind: &str, value: Value| hot(&json!({"type": kind})).unwrap().check(&value).unwrap();
    assert_eq!(check("number", json!("3")), json!(3));
    assert_eq!(check("boolean", json!("off")), json!(false));
    assert_eq!(
        check("comma_delimited_list", json!("a, b")),
        json!(["a", " b"])
    );
    assert_eq!(check("json", json!("{\"a\": 1}")), json!({"a": 1}));
}

#[test]
fn a_violated_constraint_reports_its_description() {
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
fn values_keep_the_order_of_the_template_and_maps_their_own() {
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

#[test]
fn values_are_converted_as_in_python() {
    let check = |kind: &str, value: Value| hot(&json!({"type": kind})).unwrap().check(&value);
    for (kind, value, given) in [
        ("string", json!(["a", null]), json!("['a', None]")),
        ("string", json!(1e16), json!("1e+16")),
        ("number", json!(true), json!(true)),
        ("number", json!(" 1_0 "), json!(10)),
        (
            "comma_delimited_list",
            json!([1, true, null]),
            json!(["1", "True", "None"]),
        ),
        ("json", json!("5"), json!(5)),
        ("json", json!(""), json!("")),
        ("boolean", json!(1), json!(true)),
    ] {
        assert_eq!(check(kind, value).unwrap(), given);
    }
    assert!(check("json", json!("{")).is_err() && check("number", json!([1])).is_err());
}

#[test]
fn a_default_of_another_type_is_an_error_where_it_is_used() {
    let schema = hot(&json!({"type": "number", "default": "many"})).unwrap();
    assert_eq!(schema.check(&json!(3)).unwrap(), json!(3));
    assert!(schema.check(schema.default.as_ref().unwrap()).is_err());
    let wrong = json!({"type": "number", "default": 5, "constraints": [{"range": {"max": 4}}]});
    assert!(hot(&wrong).is_err());
}

#[test]
fn constraints_check_the_given_value() {
    let with = |kind: &str, constraint: Value, value: Value| {
        let schema = hot(&json!({"type": kind, "constraints": [constraint]})).unwrap();
        schema.check(&value).is_ok()
    };
    // Numbers have no length; what is allowed is of the type, but for lists.
    assert!(!with("string", json!({"length": {"max": 3}}), json!(5)));
    assert!(with(
        "number",
        json!({"allowed_values": ["1", 2]}),
        json!("2")
    ));
    assert!(!with(
        "string",
        json!({"allowed_values": [true]}),
        json!("true")
    ));
    assert!(!with(
        "comma_delimited_list",
        json!({"allowed_values": [1]}),
        json!("1")
    ));
    // The first that matches must be the whole.
    assert!(!with(
        "string",
        json!({"allowed_pattern": "a|ab"}),
        json!("ab")
    ));
    assert!(with(
        "string",
        json!({"allowed_pattern": "ab|a"}),
        json!("ab")
    ));
}

#[test]
fn malformed_constraints_are_refused() {
    for (kind, constraint) in [
        ("string", json!({"length": {"min": 1.0}})),
        ("string", json!({"length": {"min": null}})),
        ("number", json!({"modulo": {"step": 1.5, "offset": 0}})),
        ("json", json!({"custom_constraint": "nova.flavor"})),
        ("string", json!({"description": "alone"})),
    ] {
        let schema = json!({"type": kind, "constraints": [constraint]});
        assert!(hot(&schema).is_err(), "{schema}");
    }
    // Of several the first that Heat looks for is taken.
    let two = json!({"type": "number", "constraints": [
        {"allowed_values": [9], "range": {"max": 4}}]});
    assert!(hot(&two).unwrap().check(&json!(3)).is_ok());
    let modulo = json!({"type": "number", "constraints": [{"modulo": {"step": 2, "offset": 0}}]});
    assert!(Schema::parse(&modulo, Version::Ocata).is_ok());
    assert!(Schema::parse(&modulo, Version::Newton).is_err());
    let tags = json!({"type": "string", "tags": ["a"]});
    assert!(Schema::parse(&tags, Version::Queens).is_ok());
    assert!(Schema::parse(&tags, Version::Pike).is_err());
}

#[test]
fn large_patterns_are_limited_once_they_are_matched() {
    let resolve = |value: &str| {
        let schema = |at: usize| {
            let pattern = format!("{at}?[\\w.-]{{1,63}}");
            let schema = json!({"type": "string", "constraints": [{"allowed_pattern": pattern}]});
            (format!("p{at:02}"), schema)
        };
        let schemas: Map = (0..=MAX_LARGE_PATTERNS).map(schema).collect();
        let given = |name: &Text| (name.clone(), Value::from(value));
        let given: Map = schemas.keys().map(given).collect();
        let identity = Identity::default();
        Parameters::resolve(&schemas, Version::Pike, &given, &Map::new(), &identity)
    };
    assert!(resolve("word").is_ok());
    let error = resolve("wörd").unwrap_err();
    assert!(error.message.contains("large ones"), "{error}");
    assert_eq!(error.path, format!("parameters.p{MAX_LARGE_PATTERNS:02}"));
}
