//! The `CustomResourceDefinition`s and their samples: what users see first.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use pileus_api::{crd, validation};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Biggest definition, in bytes of JSON, so that `kubectl apply` can keep its annotation.
const BIGGEST_CRD: usize = 250 * 1024;

fn repository(path: &str) -> PathBuf {
    pileus_tests::program::root().join(path)
}

fn definitions() -> Vec<Value> {
    crd::all()
        .iter()
        .map(|c| crd::to_json(c).unwrap())
        .collect()
}

/// Calls `look` with each schema and the path to it.
fn each_schema(schema: &Value, path: &str, look: &mut impl FnMut(&str, &Value)) {
    look(path, schema);
    if let Some(properties) = schema["properties"].as_object() {
        for (name, inner) in properties {
            each_schema(inner, &format!("{path}.{name}"), look);
        }
    }
    for (key, sign) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[key].is_object() {
            each_schema(&schema[key], &format!("{path}{sign}"), look);
        }
    }
}

fn each_definition(mut look: impl FnMut(&str, &Value)) {
    for crd in definitions() {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        each_schema(schema, kind, &mut look);
    }
}

#[test]
fn the_definitions_in_the_repository_are_those_of_the_types() {
    let mut text = String::new();
    for value in definitions() {
        write!(text, "---\n{}", serde_saphyr::to_string(&value).unwrap()).unwrap();
    }
    let written = fs::read_to_string(repository("crds/pileus.yaml")).unwrap_or_default();
    assert!(
        written == text,
        "crds/pileus.yaml is old: run hack/generate"
    );
}

#[test]
fn definitions_stay_small() {
    for crd in definitions() {
        let size = crd.to_string().len();
        assert!(size < BIGGEST_CRD, "{}: {size}", crd["metadata"]["name"]);
    }
}

#[test]
fn every_field_is_described() {
    each_definition(|path, schema| {
        let depth = path.matches('.').count();
        let is_item = path.ends_with(['}', ']']);
        if depth > 0 && !is_item && !path.ends_with(".metadata") {
            assert!(
                schema["description"].is_string(),
                "{path} has no description"
            );
        }
    });
}

#[test]
fn no_word_of_an_enum_is_a_boolean_in_yaml() {
    const BOOLEANS: [&str; 8] = ["y", "n", "yes", "no", "on", "off", "true", "false"];
    each_definition(|path, schema| {
        for word in schema["enum"].as_array().into_iter().flatten() {
            let word = word.as_str().unwrap_or_default().to_lowercase();
            assert!(!BOOLEANS.contains(&word.as_str()), "{path}: {word}");
        }
    });
}

#[test]
fn lists_of_objects_in_specs_are_merged_by_key() {
    each_definition(|path, schema| {
        if path.contains(".spec.") && schema["items"]["type"] == "object" {
            assert_eq!(schema["x-kubernetes-list-type"], "map", "{path}");
        }
    });
}

/// Fields that take anything, each with the reason why no schema bounds it.
const FREE_FORM: [(&str, &str); 1] = [(
    "Stack.spec.parameters{}",
    "the template says the types of its parameters; their number is bounded here, their size with \
     that of all sources",
)];

#[test]
fn every_field_that_people_write_is_bounded() {
    each_definition(|path, schema| {
        let (is_spec, is_ours) = (path.contains(".spec"), path.contains(".status"));
        if schema["type"] == "integer" && (is_spec || is_ours) {
            assert!(schema["minimum"].is_number(), "{path} has no minimum");
            assert!(schema["maximum"].is_number(), "{path} has no maximum");
        }
        if !is_spec {
            return;
        }
        match schema["type"].as_str() {
            Some("string") => {
                let bounded = ["maxLength", "enum", "format"];
                let bounded = bounded.iter().any(|word| !schema[*word].is_null());
                assert!(bounded, "{path} has no maxLength");
            }
            Some("array") => assert!(schema["maxItems"].is_u64(), "{path} has no maxItems"),
            Some("object") if schema["additionalProperties"].is_object() => {
                assert!(
                    schema["maxProperties"].is_u64(),
                    "{path} has no maxProperties"
                );
            }
            None | Some("object") if schema["x-kubernetes-preserve-unknown-fields"] == true => {
                let known = FREE_FORM.iter().any(|(known, _)| *known == path);
                assert!(known, "{path} takes anything, and no reason is given");
            }
            _ => {}
        }
    });
}

#[test]
fn texts_that_leave_kubernetes_have_no_control_characters() {
    let free = ["files{}", "template", "text", "userData"];
    each_definition(|path, schema| {
        let free = free.iter().any(|name| path.ends_with(&format!(".{name}")));
        if path.contains(".spec.")
            && schema["type"] == "string"
            && schema["enum"].is_null()
            && !free
        {
            let pattern = schema["pattern"].as_str().unwrap_or_default();
            // Either says which characters there are, or which there are not.
            let excludes = pattern.contains(r"[^\x00-");
            let includes = ["^[a-z0-9]", "^[0-9a-fA-F]", "^(sha256:"];
            let includes = includes.iter().any(|start| pattern.starts_with(start));
            assert!(excludes || includes, "{path}: `{pattern}`");
        }
    });
}

/// Reads the object; a field that the type does not know or that is lost is a fault.
fn read<K: DeserializeOwned + Serialize>(value: &Value) -> K {
    fn lost(given: &Value, kept: &Value, path: &str, found: &mut Vec<String>) {
        match (given, kept) {
            (Value::Object(given), Value::Object(kept)) => {
                for (key, value) in given {
                    match kept.get(key) {
                        Some(other) => lost(value, other, &format!("{path}.{key}"), found),
                        None => found.push(format!("{path}.{key}")),
                    }
                }
            }
            (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => {
                for (a, b) in given.iter().zip(kept) {
                    lost(a, b, path, found);
                }
            }
            (a, b) if a == b => {}
            _ => found.push(path.to_owned()),
        }
    }
    let object: K = serde_json::from_value(value.clone()).unwrap();
    let mut found = Vec::new();
    lost(
        value,
        &serde_json::to_value(&object).unwrap(),
        "",
        &mut found,
    );
    assert!(found.is_empty(), "not kept: {found:?}");
    object
}

#[test]
fn every_kind_that_people_write_has_a_sample_that_is_valid() {
    let mut seen = BTreeSet::new();
    let samples = fs::read_dir(repository("config/samples"))
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            let is_yaml = path.extension().is_some_and(|e| e == "yaml");
            let text = if is_yaml {
                fs::read_to_string(&path).unwrap()
            } else {
                String::new()
            };
            let values: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
            values.into_iter().map(move |value| (path.clone(), value))
        });
    for (path, value) in samples {
        assert_eq!(
            value["apiVersion"],
            "pileus.dev/v1alpha1",
            "{}",
            path.display()
        );
        let kind = value["kind"].as_str().unwrap().to_owned();
        macro_rules! valid {
            ($type:ident, $check:expr) => {{
                let object: pileus_api::$type = read(&value);
                let check: fn(&_) -> Result<(), String> = $check;
                check(&object.spec).unwrap();
            }};
        }
        match kind.as_str() {
            "Server" => valid!(Server, validation::server),
            "Flavor" => valid!(Flavor, validation::flavor),
            "Image" => valid!(Image, validation::image),
            "Host" => valid!(Host, validation::host),
            "HostAggregate" => valid!(HostAggregate, validation::host_aggregate),
            "ServerGroup" => valid!(ServerGroup, |_| Ok(())),
            "SchedulerPolicy" => valid!(SchedulerPolicy, |spec| {
                let policy = pileus_scheduler::placement::policy::Policy::new(spec);
                policy.map(drop).map_err(|e| e.to_string())
            }),
            "Port" => valid!(Port, validation::port),
            "Subnet" => valid!(Subnet, validation::subnet),
            "KeyPair" => valid!(KeyPair, |_| Ok(())),
            "Network" => valid!(Network, |_| Ok(())),
            "SecurityGroup" => valid!(SecurityGroup, |_| Ok(())),
            "SecurityGroupRule" => valid!(SecurityGroupRule, |_| Ok(())),
            "Stack" => valid!(Stack, validation::stack),
            other => panic!("{}: kind {other} is not known", path.display()),
        }
        // The quick start has several objects, of kinds that have samples of their own.
        let alone = !path.ends_with("quickstart.yaml");
        assert!(
            !alone || seen.insert(kind),
            "two samples of one kind: {}",
            path.display()
        );
    }
    let all: BTreeSet<String> = definitions()
        .iter()
        .map(|c| c["spec"]["names"]["kind"].as_str().unwrap().to_owned())
        // Made by Pileus itself; people look only.
        .filter(|kind| !matches!(kind.as_str(), "Instance" | "IPAllocation"))
        .collect();
    assert_eq!(seen, all);
}
