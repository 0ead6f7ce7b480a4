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

use kube::core::cel::{validate_cel, validate_cel_update};
use pileus_api::{crd, validation};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Biggest definition, in bytes of JSON, so that `kubectl apply` can keep its annotation.
const BIGGEST_CRD: usize = 250 * 1024;

fn repository(path: &str) -> PathBuf {
    pileus_tests::program::root().join(path)
}

fn definitions() -> Vec<Value> {
    crd::all()
        .iter()
        .map(|c| crd::to_json(c, true).unwrap())
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

#[test]
fn old_api_servers_get_no_cel() {
    for crd in crd::all() {
        let text = crd::to_json(&crd, false).unwrap().to_string();
        assert!(!text.contains("x-kubernetes-validations"));
    }
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
                validate_cel(&object).unwrap();
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
            "ServerGroup" => valid!(ServerGroup, validation::server_group),
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

fn object<K: DeserializeOwned>(kind: &str, spec: &Value) -> K {
    serde_json::from_value(json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": kind,
        "metadata": {"name": "x", "namespace": "demo"}, "spec": spec,
    }))
    .unwrap()
}

#[test]
fn cel_and_the_repetition_in_rust_agree() {
    let image = json!({"name": "i"});
    let size = json!({"vcpus": 1, "memory": "1Gi"});
    let server = |more: Value| {
        let mut spec = json!({"image": image, "flavor": "f"});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        spec
    };
    let nic = |nic: Value| server(json!({"networks": [nic]}));
    for (spec, good) in [
        (server(json!({})), true),
        (json!({"image": image, "resources": size}), true),
        (json!({"image": image}), false),
        (server(json!({"resources": size})), false),
        (server(json!({"userData": "a"})), true),
        (
            server(json!({"userData": "a", "userDataFrom": {"name": "s"}})),
            false,
        ),
        (nic(json!({"name": "a", "network": {"name": "n"}})), true),
        (nic(json!({"name": "a", "port": "p"})), true),
        (nic(json!({"name": "a"})), false),
        (
            nic(json!({"name": "a", "port": "p", "network": {"name": "n"}})),
            false,
        ),
        (
            nic(json!({"name": "a", "port": "p", "fixedIP": "10.0.0.1"})),
            false,
        ),
        (
            nic(json!({"name": "a", "port": "p", "securityGroups": []})),
            false,
        ),
    ] {
        let server: pileus_api::Server = object("Server", &spec);
        assert_eq!(validate_cel(&server).is_ok(), good, "CEL: {spec}");
        assert_eq!(
            validation::server(&server.spec).is_ok(),
            good,
            "Rust: {spec}"
        );
    }
    let url = "https://example.org/a";
    let checksum = format!("sha256:{}", "a".repeat(64));
    for (spec, good) in [
        (json!({"source": {"url": url}}), true),
        (json!({"source": {"url": "http://example.org/a"}}), false),
        (
            json!({"source": {"url": "http://example.org/a", "checksum": checksum}}),
            true,
        ),
        (
            json!({"source": {"url": url}, "initrd": {"url": url}}),
            false,
        ),
        (
            json!({"source": {"url": url}, "kernelCommandLine": "quiet"}),
            false,
        ),
        (
            json!({"source": {"url": url}, "kernel": {"url": url}, "initrd": {"url": url}, "kernelCommandLine": "quiet"}),
            true,
        ),
    ] {
        let image: pileus_api::Image = object("Image", &spec);
        assert_eq!(validate_cel(&image).is_ok(), good, "CEL: {spec}");
        assert_eq!(validation::image(&image.spec).is_ok(), good, "Rust: {spec}");
    }
}

#[test]
fn what_others_were_built_by_cannot_be_changed() {
    fn changed<K>(kind: &str, old: &Value, new: &Value) -> bool
    where
        K: DeserializeOwned + Serialize + kube::CustomResourceExt,
    {
        let (old_object, new_object): (K, K) = (object(kind, old), object(kind, new));
        validate_cel_update(&old_object, &old_object).expect("no change is always possible");
        validate_cel_update(&new_object, &old_object).is_ok()
    }
    let flavor = |memory: &str| json!({"vcpus": 1, "memory": memory});
    assert!(!changed::<pileus_api::Flavor>(
        "Flavor",
        &flavor("1Gi"),
        &flavor("2Gi")
    ));
    let image = |url: &str, min: &str| json!({"source": {"url": url}, "minDisk": min});
    assert!(!changed::<pileus_api::Image>(
        "Image",
        &image("https://a.org/1", "1Gi"),
        &image("https://a.org/2", "1Gi")
    ));
    assert!(changed::<pileus_api::Image>(
        "Image",
        &image("https://a.org/1", "1Gi"),
        &image("https://a.org/1", "2Gi")
    ));
    let key = |key: &str| json!({"publicKey": key});
    assert!(!changed::<pileus_api::KeyPair>(
        "KeyPair",
        &key("ssh-ed25519 A"),
        &key("ssh-ed25519 B")
    ));
    let subnet = |cidr: &str, dns: &str| json!({"network": "n", "cidr": cidr, "dnsServers": [dns]});
    assert!(!changed::<pileus_api::Subnet>(
        "Subnet",
        &subnet("10.0.0.0/24", "192.0.2.1"),
        &subnet("10.0.1.0/24", "192.0.2.1")
    ));
    assert!(changed::<pileus_api::Subnet>(
        "Subnet",
        &subnet("10.0.0.0/24", "192.0.2.1"),
        &subnet("10.0.0.0/24", "192.0.2.2")
    ));
    let port =
        |network: &str, mac: Option<&str>| json!({"network": {"name": network}, "macAddress": mac});
    assert!(!changed::<pileus_api::Port>(
        "Port",
        &port("a", None),
        &port("b", None)
    ));
    let mac = "52:54:00:00:00:01";
    assert!(changed::<pileus_api::Port>(
        "Port",
        &port("a", None),
        &port("a", Some(mac))
    ));
    assert!(!changed::<pileus_api::Port>(
        "Port",
        &port("a", Some(mac)),
        &port("a", None)
    ));
    let address = |a: &str| json!({"address": a, "subnet": "s"});
    assert!(!changed::<pileus_api::IPAllocation>(
        "IPAllocation",
        &address("10.0.0.1"),
        &address("10.0.0.2")
    ));
}
