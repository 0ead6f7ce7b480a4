//! Every field of a Server's spec: a change of it reaches the guest, or is reported in `UpToDate`.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::*;
use pileus_api::names::server_port_name;

/// What becomes of a changed field.
enum Effect {
    /// The Instance gets it at once.
    Applied,
    /// `UpToDate` is false, and says this.
    Reported(&'static str),
    /// Another controller reads it as it is now.
    Live,
}
use Effect::{Applied, Live, Reported};

/// Each field, a pointer to what is changed, another value, and what becomes of it.
#[allow(clippy::too_many_lines, reason = "a table")]
fn table() -> Vec<(&'static str, &'static str, Value, Effect)> {
    let size = json!({"vcpus": 2, "memory": "128Mi", "disk": "2Gi"});
    let spread = json!({"set": "web", "over": [{"name": "rack", "maxSkew": 2}]});
    let placed = |field: &'static str| match field {
        "hostSelector" => "placement.hostSelector ({\"disk\":\"fast\"} asked for; placed by none)",
        "availabilityZone" => "placement.availabilityZone (z2 asked for; placed by none)",
        "serverGroup" => "placement.serverGroup (g asked for; placed by none)",
        "sameHost" => "placement.sameHost ([\"db\"] asked for; placed by none)",
        "differentHost" => "placement.differentHost ([\"db\"] asked for; placed by none)",
        "hostCIDR" => "placement.hostCIDR (10.0.0.0/8 asked for; placed by none)",
        "query" => "placement.query ([\">\", \"$vcpus\", 1] asked for; placed by none)",
        "tolerations" => "placement.tolerations (",
        _ => "placement.spread (",
    };
    vec![
        (
            "flavor",
            "/flavor",
            json!("big"),
            Reported("flavor (big asked for, small built: spec.flavor: there is no Flavor `big`"),
        ),
        (
            "resources.vcpus",
            "/resources",
            size.clone(),
            Reported("size (2 vCPUs, 128 MiB, 2 GiB asked for; 1 vCPUs, 64 MiB, 1 GiB built)"),
        ),
        (
            "resources.memory",
            "/resources",
            size.clone(),
            Reported("size ("),
        ),
        ("resources.disk", "/resources", size, Reported("size (")),
        (
            "image.name",
            "/image/name",
            json!("other"),
            Reported("image (demo/other asked for, demo/tiny built)"),
        ),
        (
            "image.namespace",
            "/image/namespace",
            json!("else"),
            Reported("image (else/tiny asked for, demo/tiny built)"),
        ),
        (
            "networks[].name",
            "/networks/0/name",
            json!("b"),
            Reported("networks (b on Port web-b asked for; a on Port web-a built)"),
        ),
        (
            "networks[].network.name",
            "/networks/0/network/name",
            json!("m"),
            Reported("networks[a] (demo/m asked for, demo/n built)"),
        ),
        (
            "networks[].network.namespace",
            "/networks/0/network/namespace",
            json!("else"),
            Reported("networks[a] (else/n asked for, demo/n built)"),
        ),
        (
            "networks[].port",
            "/networks/0",
            json!({"name": "a", "port": "own"}),
            Reported("networks (a on Port own asked for; a on Port web-a built)"),
        ),
        (
            "networks[].fixedIP",
            "/networks/0/fixedIP",
            json!("10.0.0.9"),
            Reported("networks[a] (demo/n 10.0.0.9 asked for, demo/n built)"),
        ),
        (
            "networks[].securityGroups",
            "/networks/0/securityGroups",
            json!(["web"]),
            Live,
        ),
        (
            "keyPairs",
            "/keyPairs",
            json!(["alice"]),
            Reported("keyPairs (alice asked for; none given"),
        ),
        (
            "userData",
            "/userData",
            json!("x"),
            Reported("userData (changed"),
        ),
        (
            "userDataFrom.name",
            "/userDataFrom",
            json!({"name": "s", "key": "k"}),
            Reported("userData (changed"),
        ),
        (
            "userDataFrom.key",
            "/userDataFrom",
            json!({"name": "s", "key": "k"}),
            Reported("userData (changed"),
        ),
        (
            "hostname",
            "/hostname",
            json!("front"),
            Reported("hostname (front asked for; none given"),
        ),
        (
            "metadata",
            "/metadata",
            json!({"role": "front"}),
            Reported("metadata (changed"),
        ),
        (
            "configDrive",
            "/configDrive",
            json!("Disabled"),
            Reported("configDrive (Disabled asked for, Enabled built)"),
        ),
        ("runState", "/runState", json!("Stopped"), Applied),
        (
            "onGuestShutdown",
            "/onGuestShutdown",
            json!("Restart"),
            Applied,
        ),
        (
            "shutdownTimeoutSeconds",
            "/shutdownTimeoutSeconds",
            json!(7),
            Applied,
        ),
        (
            "placement.hostSelector",
            "/placement",
            json!({"hostSelector": {"disk": "fast"}}),
            Reported(placed("hostSelector")),
        ),
        (
            "placement.availabilityZone",
            "/placement",
            json!({"availabilityZone": "z2"}),
            Reported(placed("availabilityZone")),
        ),
        (
            "placement.serverGroup",
            "/placement",
            json!({"serverGroup": "g"}),
            Reported(placed("serverGroup")),
        ),
        (
            "placement.sameHost",
            "/placement",
            json!({"sameHost": ["db"]}),
            Reported(placed("sameHost")),
        ),
        (
            "placement.differentHost",
            "/placement",
            json!({"differentHost": ["db"]}),
            Reported(placed("differentHost")),
        ),
        (
            "placement.hostCIDR",
            "/placement",
            json!({"hostCIDR": "10.0.0.0/8"}),
            Reported(placed("hostCIDR")),
        ),
        (
            "placement.query",
            "/placement",
            json!({"query": "[\">\", \"$vcpus\", 1]"}),
            Reported(placed("query")),
        ),
        (
            "placement.tolerations[].name",
            "/placement",
            json!({"tolerations": [{"name": "t"}]}),
            Reported(placed("tolerations")),
        ),
        (
            "placement.tolerations[].value",
            "/placement",
            json!({"tolerations": [{"name": "t", "value": "v"}]}),
            Reported(placed("tolerations")),
        ),
        (
            "placement.spread.set",
            "/placement",
            json!({"spread": spread.clone()}),
            Reported(placed("spread")),
        ),
        (
            "placement.spread.over[].name",
            "/placement",
            json!({"spread": spread.clone()}),
            Reported(placed("spread")),
        ),
        (
            "placement.spread.over[].maxSkew",
            "/placement",
            json!({"spread": spread}),
            Reported(placed("spread")),
        ),
        (
            "placement.priorityClass",
            "/placement",
            json!({"priorityClass": "high"}),
            Live,
        ),
    ]
}

/// Paths of all fields that have no fields of their own.
fn leaves(schema: &JSONSchemaProps, path: &str, found: &mut BTreeSet<String>) {
    if let Some(properties) = schema.properties.as_ref().filter(|p| !p.is_empty()) {
        for (name, below) in properties {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            leaves(below, &path, found);
        }
        return;
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items
        && item.properties.is_some()
    {
        leaves(item, &format!("{path}[]"), found);
        return;
    }
    found.insert(path.to_owned());
}

#[test]
fn no_field_of_the_spec_is_forgotten() {
    let crd = Server::crd();
    let schema = crd.spec.versions[0].schema.as_ref().unwrap();
    let schema = schema.open_api_v3_schema.as_ref().unwrap();
    let mut all = BTreeSet::new();
    leaves(&schema.properties.as_ref().unwrap()["spec"], "", &mut all);
    let known: BTreeSet<String> = table()
        .iter()
        .map(|(field, ..)| (*field).to_owned())
        .collect();
    let missing: Vec<_> = all.symmetric_difference(&known).collect();
    assert!(
        missing.is_empty(),
        "say what becomes of a change of {missing:?}"
    );
}

#[test]
fn each_changed_field_is_applied_or_told() {
    for (field, pointer, value, fate) in table() {
        let (mut server, mut observed) = built();
        let mut spec = serde_json::to_value(&server.spec).unwrap();
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        match spec.pointer_mut(parent).unwrap() {
            Value::Object(map) => drop(map.insert(last.to_owned(), value)),
            Value::Array(items) => items[last.parse::<usize>().unwrap()] = value,
            other => panic!("{field}: {other}"),
        }
        if spec.get("resources").is_some() {
            spec.as_object_mut().unwrap().shift_remove("flavor");
        }
        server.spec = serde_json::from_value(spec).unwrap();
        if field == "flavor" {
            observed.flavor = None;
        }
        for (nic, wanted) in observed.nics.iter_mut().zip(&server.spec.networks) {
            nic.name.clone_from(&wanted.name);
            nic.made = wanted.port.is_none();
            let made = || server_port_name("web", &wanted.name);
            nic.port_name = wanted.port.clone().unwrap_or_else(made);
        }
        let plan = plan(&server, &observed);
        let reported = plan.outdated.join("; ");
        let now = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let status = status(&server, &observed, &plan, now);
        let up_to_date = conditions::find(&status.conditions, ConditionType::UpToDate).unwrap();
        match fate {
            Applied => {
                assert!(
                    matches!(plan.steps[..], [Step::UpdateInstance(_)]),
                    "{field}"
                );
                assert_eq!(up_to_date.status, "True", "{field}: {reported}");
            }
            Reported(what) => {
                assert!(reported.contains(what), "{field}: {reported}");
                assert_eq!(up_to_date.status, "False", "{field}");
                assert!(up_to_date.message.contains(what), "{field}");
                let reason = if field == "flavor" {
                    Reason::FlavorNotFound
                } else {
                    Reason::RebuildRequired
                };
                assert_eq!(up_to_date.reason, reason.as_str(), "{field}");
            }
            Live => assert!(!reported.contains("placement"), "{field}: {reported}"),
        }
    }
}

#[test]
fn a_flavor_that_was_deleted_later_is_no_change() {
    let (server, mut observed) = built();
    observed.flavor = None;
    assert!(plan(&server, &observed).outdated.is_empty());
}
