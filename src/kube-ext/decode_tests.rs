use std::fmt::Write as _;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DynamicObject, ObjectList, WatchEvent};
use pileus_api::{Network, Server};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// JSON that is nested so deep.
fn nested(depth: usize) -> String {
    format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth))
}

fn network(name: &str, spec: &str, managed: &str) -> String {
    format!(
        r#"{{"apiVersion":"pileus.dev/v1alpha1","kind":"Network","metadata":{{"name":"{name}",
        "namespace":"n","uid":"u-{name}","resourceVersion":"7","managedFields":{managed}}},
        "spec":{spec}}}"#
    )
}

fn decoded(text: &str) -> Decoded<Network> {
    serde_json::from_str(text).unwrap()
}

#[test]
fn one_object_that_cannot_be_decoded_spoils_neither_list_nor_watch() {
    let good = network("good", "{}", "[]");
    let bad = [
        network("deep", &format!(r#"{{"mtu":{}}}"#, nested(5_000)), "[]"),
        network("big", r#"{"mtu":3000000000}"#, "[]"),
        network("type", r#"{"mtu":"many"}"#, "[]"),
        r#"{"metadata":{"name":"labels","labels":{"a":{}}},"spec":{}}"#.to_owned(),
    ];
    let items = [&bad[..], std::slice::from_ref(&good)].concat().join(",");
    let list = format!(
        r#"{{"apiVersion":"pileus.dev/v1alpha1","kind":"NetworkList",
        "metadata":{{"resourceVersion":"9"}},"items":[{items}]}}"#
    );
    let list: ObjectList<Decoded<Network>> = serde_json::from_str(&list).unwrap();
    let names: Vec<_> = list
        .iter()
        .map(|object| (object.meta().name.as_deref().unwrap(), object.0.is_ok()))
        .collect();
    let expected = [
        ("deep", false),
        ("big", false),
        ("type", false),
        ("labels", false),
        ("good", true),
    ];
    assert_eq!(names, expected);
    for text in bad.iter().chain([&good]) {
        let event = format!(r#"{{"type":"ADDED","object":{text}}}"#);
        let event: WatchEvent<Decoded<Network>> = serde_json::from_str(&event).unwrap();
        assert!(matches!(event, WatchEvent::Added(o) if o.meta().name.is_some()));
    }
}

#[test]
fn the_message_names_the_field_and_the_way_out_and_quotes_no_text() {
    let problem = |text: &str| decoded(text).0.unwrap_err().problem;
    let big = problem(&network("big", r#"{"mtu":3000000000}"#, "[]"));
    assert!(
        big.starts_with("spec.mtu cannot be read: invalid value: integer `3000000000`"),
        "{big}"
    );
    assert!(
        big.contains("correct or remove that field") && !big.contains(" line "),
        "{big}"
    );
    let text = problem(&network(
        "text",
        r#"{"mtu":"my, expected \"secret\""}"#,
        "[]",
    ));
    assert!(
        text.starts_with("spec.mtu cannot be read: invalid type: string, expected"),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
    let deep = problem(&network(
        "deep",
        &format!(r#"{{"mtu":{}}}"#, nested(500)),
        "[]",
    ));
    assert!(deep.chars().count() < 500, "{deep}");
    let unknown = json!({"metadata": {"name": "s"}, "spec": {"runState": "Dreaming"}});
    let server: Decoded<Server> = serde_json::from_str(&unknown.to_string()).unwrap();
    let unknown = server.0.unwrap_err().problem;
    assert!(
        unknown.contains("runState") && unknown.contains("Dreaming"),
        "{unknown}"
    );
    // What is no object at all.
    for text in [
        "7",
        "null",
        r#"{"metadata":7,"spec":{}}"#,
        r#"{"metadata":null}"#,
    ] {
        assert!(
            serde_json::from_str::<Decoded<Network>>(text)
                .unwrap()
                .0
                .is_err()
        );
    }
}

#[test]
fn managed_fields_are_never_decoded_but_for_our_own_statuses() {
    let entry = |manager: &str, sub: &str, fields: &str| {
        format!(
            r#"{{"manager":"{manager}","operation":"Apply","subresource":"{sub}","fieldsV1":{fields}}}"#
        )
    };
    let managed = [
        entry("kubectl", "", &nested(50_000)),
        entry("pileus-manager", "", &nested(3)),
        entry("pileus-manager", "status", r#"{"f:status":{"f:phase":{}}}"#),
        entry("pileus-imposter", "status", &nested(50_000)),
        "7".to_owned(),
    ];
    let text = network("a", "{}", &format!("[{}]", managed.join(",")));
    let network = decoded(&text).0.unwrap();
    let kept = network.metadata.managed_fields.unwrap();
    let kept: Vec<_> = kept.iter().map(|e| (&e.manager, &e.subresource)).collect();
    let own = (
        &Some("pileus-manager".to_owned()),
        &Some("status".to_owned()),
    );
    assert_eq!(kept, [own]);
}

/// Any JSON.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let key = prop_oneof![".*", "metadata", "name", "data", "managedFields"];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_can_be_decoded_is_decoded_as_serde_would(value in value(), good in any::<bool>()) {
        let mut value = value;
        if good {
            let data: std::collections::BTreeMap<String, String> =
                [("k".to_owned(), value.to_string())].into();
            value = json!({"metadata": {"name": value.to_string()}, "data": data});
        }
        let text = value.to_string();
        if let Some(map) = value.as_object_mut()
            && let Some(Value::Object(metadata)) = map.get_mut("metadata")
        {
            metadata.shift_remove("managedFields");
        }
        let plain = serde_json::from_value::<ConfigMap>(value.clone());
        let ours: Decoded<ConfigMap> = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(plain.ok(), ours.0.ok());
        if value.get("metadata").is_some_and(Value::is_object) {
            let dynamic: Result<DynamicObject, _> = serde_json::from_value(value);
            let ours: Decoded<DynamicObject> = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(dynamic.ok().map(|o| o.data), ours.0.ok().map(|o| o.data));
        }
    }

    #[test]
    fn the_depth_is_that_of_brackets_outside_of_texts(value in value()) {
        fn deep(value: &Value) -> usize {
            match value {
                Value::Array(items) => 1 + items.iter().map(deep).max().unwrap_or(0),
                Value::Object(map) => 1 + map.values().map(deep).max().unwrap_or(0),
                _ => 0,
            }
        }
        prop_assert_eq!(depth(&value.to_string()), deep(&value));
    }
}

#[test]
fn a_big_list_of_deep_objects_takes_no_stack() {
    let mut items = String::new();
    for n in 0..200 {
        let spec = format!(r#"{{"mtu":{}}}"#, nested(10_000));
        let _ = write!(
            items,
            "{}{}",
            if n == 0 { "" } else { "," },
            network("a", &spec, "[]")
        );
    }
    let list: Vec<Decoded<Network>> = serde_json::from_str(&format!("[{items}]")).unwrap();
    assert!(list.iter().all(|object| object.0.is_err()));
}
