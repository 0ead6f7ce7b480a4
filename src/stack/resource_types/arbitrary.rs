//! Tests that mappings return objects or an error for arbitrary properties. A panic would stop every
//! pass over the Stack.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use proptest::prelude::*;
use proptest::strategy::{BoxedStrategy, Union};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::constraint::Rule;
use crate::registry::{Property, PropertyType};
use crate::typed;
use crate::value::Text;

/// Texts that some mapping handles, and others.
const WORDS: &[&str] = &[
    "",
    "a",
    "net",
    "sub",
    "config-1",
    "other/net",
    "/",
    "10.0.0.5",
    "10.0.0.0/24",
    "0.0.0.0/0",
    "fd00::/64",
    "::",
    "tcp",
    "icmp",
    "ingress",
    "egress",
    "IPv4",
    "IPv6",
    "1",
    "0",
    "-1",
    "65536",
    "99999999999999999999",
    "true",
    "auto",
    "none",
    "affinity",
    "RAW",
    "qcow2",
    "é\u{0}\n",
    "%index%",
    "ssh-rsa AAAA",
    "aa:bb:cc:dd:ee:ff",
    "http://example.com/x",
    "10.0.0.9,10.0.0.2",
    "{\"a\": 1}",
];

fn word() -> BoxedStrategy<Value> {
    prop_oneof![
        proptest::sample::select(WORDS).prop_map(Value::from),
        ".{0,80}".prop_map(Value::from),
    ]
    .boxed()
}

/// Any value, three levels deep.
fn anything() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word(),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let key = prop_oneof![proptest::sample::select(KEYS), Just("x")];
        let map = proptest::collection::vec((key, inner.clone()), 0..4);
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            map.prop_map(|entries| {
                entries
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect::<Value>()
            }),
        ]
    })
    .boxed()
}

/// Keys that mappings read in maps.
const KEYS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "namespace",
    "spec",
    "port",
    "network",
    "fixed_ip",
    "subnet",
    "subnet_id",
    "ip_address",
    "group",
    "different_host",
    "same_host",
    "start",
    "end",
    "nexthop",
    "destination",
    "config",
    "filename",
    "type",
    "labels",
    "annotations",
    "status",
];

/// A value as the type's schema has it.
fn shaped(property: &Property) -> BoxedStrategy<Value> {
    let allowed = property.rules.iter().find_map(|rule| match rule {
        Rule::Allowed(values) if !values.is_empty() => Some(values.clone()),
        _ => None,
    });
    if let Some(allowed) = allowed {
        return proptest::sample::select(allowed).boxed();
    }
    let inner = &property.inner;
    match property.value_type {
        PropertyType::String => word(),
        PropertyType::Integer => prop_oneof![-1i64..70_000, any::<i64>()]
            .prop_map(Value::from)
            .boxed(),
        PropertyType::Number => prop_oneof![0.0..1000.0, any::<f64>()]
            .prop_map(Value::from)
            .boxed(),
        PropertyType::Boolean => any::<bool>().prop_map(Value::from).boxed(),
        PropertyType::List => {
            let item = inner.get("*").map_or_else(word, shaped);
            proptest::collection::vec(item, 0..4)
                .prop_map(Value::from)
                .boxed()
        }
        PropertyType::Map if inner.is_empty() => prop_oneof![
            anything().prop_map(|value| json!({"a": value, "name": "n"})),
            anything().prop_map(|value| {
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"},
                    "data": value})
            }),
        ]
        .boxed(),
        PropertyType::Map => all_of(inner, 0.4).prop_map(Value::Object).boxed(),
        PropertyType::Any => anything(),
    }
}

/// Some of these properties, and those that must be given.
fn all_of(properties: &BTreeMap<Text, Property>, often: f64) -> BoxedStrategy<Map> {
    let mut each: Vec<BoxedStrategy<Option<(Text, Value)>>> = Vec::new();
    for (name, property) in properties {
        let chance = if property.required { 0.97 } else { often };
        let named = name.clone();
        let value = shaped(property).prop_map(move |value| (named.clone(), value));
        each.push(proptest::option::weighted(chance, value).boxed());
    }
    each.prop_map(|given| given.into_iter().flatten().collect())
        .boxed()
}

/// An object as it might stand in the API server.
fn found() -> BoxedStrategy<Option<Value>> {
    let object = (anything(), anything(), anything()).prop_map(|(spec, status, metadata)| {
        json!({"apiVersion": "pileus.dev/v1alpha1", "kind": "Port", "metadata": metadata,
            "spec": spec, "status": status})
    });
    let subnet = Just(json!({"metadata": {"name": "sub"}, "spec": {"network": "net"}}));
    proptest::option::of(Union::new([object.boxed(), subnet.boxed(), anything()])).boxed()
}

/// What one round works with.
type Round = (Map, Value, Option<Value>, bool);

/// Whether the mapping gave something.
fn map(supported: &SupportedType, (properties, metadata, object, suspended): &Round) -> bool {
    let configs = BTreeMap::from([("config-1".to_owned(), "#!/bin/sh".to_owned())]);
    let find = |_: &str, _: &str| object.clone();
    let request = MappingInput {
        name: "stack-it-0123456789",
        namespace: "demo",
        properties,
        metadata,
        suspended: *suspended,
        configs: &configs,
        find: &find,
        seed: &[7; 32],
    };
    match supported.mapping {
        Mapping::Objects { map, .. } => {
            if let Some(object) = object {
                let _ = known(supported.name, object, &find);
            }
            map(&request).is_ok_and(|makes| {
                for object in &makes.objects {
                    let _ = known(supported.name, object, &find);
                }
                !makes.objects.is_empty()
            })
        }
        Mapping::Values(map) => map(&request).is_ok(),
    }
}

/// Rounds of one type; every machine goes through the same ones.
fn rounds(count: u32, strategy: &BoxedStrategy<Round>, mut check: impl FnMut(&Round)) {
    let config = Config {
        failure_persistence: None,
        ..Config::with_cases(count)
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    for _ in 0..count {
        let round = strategy.new_tree(&mut runner).unwrap();
        check(&proptest::strategy::ValueTree::current(&round));
    }
}

#[test]
fn no_mapping_panics_for_arbitrary_properties() {
    for supported in all() {
        let schema = &registry::find(supported.name).unwrap().properties;
        let taken: BTreeMap<Text, Property> = (schema.iter())
            .filter(|(name, property)| {
                property.required || supported.properties.contains(&name.as_str())
            })
            .map(|(name, property)| (name.clone(), property.clone()))
            .collect();
        let rest = || (anything(), found(), any::<bool>());
        let fitting = (all_of(&taken, 0.3), rest());
        let fitting = fitting.prop_map(|(given, (metadata, object, suspended))| {
            (given, metadata, object, suspended)
        });
        let (mut reached, mut made) = (0, 0);
        rounds(
            150,
            &fitting.boxed(),
            |(given, metadata, object, suspended)| {
                let Ok(typed) = typed::coerce(schema, given) else {
                    return;
                };
                if check::refuse(supported, &typed).is_err() {
                    return;
                }
                reached += 1;
                let round = (typed, metadata.clone(), object.clone(), *suspended);
                made += u32::from(map(supported, &round));
            },
        );
        assert!(
            reached > 10 && made > 0,
            "{}: {reached} {made}",
            supported.name
        );
        // What is resolved need not be what the schema says: attributes of others are anything.
        let names: Vec<Text> = schema.keys().cloned().collect();
        let each = names.into_iter().map(|name| {
            proptest::option::of(anything()).prop_map(move |value| Some((name.clone(), value?)))
        });
        let wild = (each.collect::<Vec<_>>(), rest());
        let wild = wild.prop_map(|(given, (metadata, object, suspended))| {
            let given = given.into_iter().flatten().collect();
            (given, metadata, object, suspended)
        });
        rounds(80, &wild.boxed(), |round| {
            let _ = check::refuse(supported, &round.0);
            map(supported, round);
        });
    }
}
