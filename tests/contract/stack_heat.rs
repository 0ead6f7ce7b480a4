//! Compares the stack engine with results of Heat's engine: cases in the folder that
//! `PILEUS_HEAT_CASES` names, or in `shared/heat` beside the repository. Without a folder nothing is
//! compared, and a message says so. Known differences: `tests/heat-differences.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
use std::collections::BTreeSet;

use pileus_stack::cases;
use pileus_stack::parameters::Schema;
use pileus_stack::value::{Map, Value};
use pileus_stack::version::Version;

use pileus_tests::heat_cases::{DIFFERENCES, Results, cases_of, short};

/// Python's equality: 1 and 1.0 are equal.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// Whether the list says that the case does not contain everything that its result depends on.
fn is_not_in_case(name: &str) -> bool {
    let (_, functions) = DIFFERENCES.split_once("## Functions").unwrap_or_default();
    let functions = functions.split("\n## ").next().unwrap_or_default();
    let mut entries = functions.split("\n- ").skip(1);
    entries.any(|entry| entry.contains("(not in the case)") && entry.contains(&format!("`{name}`")))
}

#[test]
fn functions_give_what_heat_gives() {
    let Some(cases) = cases_of("unit.jsonl") else {
        return;
    };
    let mut results = Results::default();
    for case in &cases {
        let got = cases::function(case);
        let fine = match (got.get("result"), case.get("error")) {
            (Some(value), None) => same(value, &case["result"]),
            (None, Some(_)) => true,
            _ => false,
        };
        let group = case["snippet"]
            .as_object()
            .and_then(|map| map.keys().next());
        let name = case["test"].as_str().unwrap();
        // Such cases cannot be compared, and are not counted.
        if !fine && is_not_in_case(name) {
            println!("not in the case: {name}");
            continue;
        }
        let miss = (!fine).then(|| format!("{} got {}", short(&case["snippet"]), short(&got)));
        results.count(group.map_or("other", |name| name.as_str()), name, miss);
    }
    results.require("functions", 98);
}

/// Some schemas have the keys of CloudFormation and the constraints of HOT, as Heat stores them; this
/// converts them to HOT.
fn in_its_language(schema: &Value, version: Version) -> (Value, Version) {
    let Some(constraints) = schema.get("Constraints") else {
        return (schema.clone(), version);
    };
    let resource_type = match schema["Type"].as_str() {
        Some("CommaDelimitedList") => "comma_delimited_list".to_owned(),
        other => other.unwrap_or_default().to_lowercase(),
    };
    let schema = Value::from(serde_json::json!({
        "type": resource_type, "default": schema["Default"], "constraints": constraints,
    }));
    (schema, Version::Rocky)
}

#[test]
fn parameters_are_read_as_heat_reads_them() {
    let Some(cases) = cases_of("params.jsonl") else {
        return;
    };
    let mut results = Results::default();
    for case in &cases {
        let class = case["class"].as_str().unwrap_or_default();
        let version = match class {
            "HOTParamSchema" => Version::Newton,
            "HOTParamSchema20170224" => Version::Ocata,
            class if class.starts_with("HOTParamSchema") => Version::Rocky,
            _ => Version::Cfn2010,
        };
        let (schema, version) = in_its_language(&case["schema"], version);
        let got = Schema::parse(&schema, version).and_then(|schema| {
            let given = Some(&case["value"]).filter(|value| !value.is_null());
            let value = given
                .or(Some(&case["default"]).filter(|value| !value.is_null()))
                .or(schema.default.as_ref())
                .unwrap_or(&Value::Null);
            // Some values were not converted.
            if case["validate_value"] == false {
                schema.coerce(value)
            } else {
                schema.check(value)
            }
        });
        let wrong = case.get("error").is_some() || case.get("value_error").is_some();
        let fine = got
            .as_ref()
            .map_or(wrong, |value| !wrong && same(value, &case["result"]));
        let miss = (!fine).then(|| format!("{} got {got:?}", short(case)));
        results.count(class, case["name"].as_str().unwrap_or_default(), miss);
    }
    results.require("parameters", 98);
}

/// Why a result differs from what Heat rendered.
fn difference(want: &Value, got: &Value) -> Option<String> {
    if want.get("error").is_some() != got.get("error").is_some() {
        return Some(format!("error: got {}", short(&got["error"])));
    }
    if want.get("error").is_some() {
        return None;
    }
    let empty = Value::Object(Map::new());
    let part = |value: &Value, key: &str| value.get(key).cloned().unwrap_or_else(|| empty.clone());
    if !same(&part(want, "parameters"), &part(got, "parameters")) {
        return Some("parameters".into());
    }
    let (resources, ours) = (part(want, "resources"), part(got, "resources"));
    let names = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<BTreeSet<_>>()
    };
    if names(&resources) != names(&ours) {
        return Some("resources".into());
    }
    for (name, wanted) in resources.as_object().unwrap() {
        let mine = &ours[name];
        let keys = [
            "type",
            "metadata",
            "deletion_policy",
            "update_policy",
            "condition",
            "external_id",
            "properties",
            "requires",
        ];
        for key in keys {
            let failed = wanted.get(&format!("{key}_error")).is_some();
            let differs = if failed {
                key == "properties" && mine.get("properties_error").is_none()
            } else {
                !same(&wanted[key], &mine[key])
            };
            if differs {
                let (wanted, mine) = (short(&wanted[key]), short(&mine[key]));
                return Some(format!("{name}.{key}: wanted {wanted}, got {mine}"));
            }
        }
    }
    let (outputs, ours) = (part(want, "outputs"), part(got, "outputs"));
    if names(&outputs) != names(&ours) {
        return Some("outputs".into());
    }
    for (name, wanted) in outputs.as_object().unwrap() {
        let mine = &ours[name];
        if wanted.get("error").is_some() != mine.get("error").is_some()
            || !same(&wanted["value"], &mine["value"])
        {
            return Some(format!("output {name}: got {}", short(mine)));
        }
    }
    order_differs(want, got)
}

/// Whether an order of creation follows Heat's dependencies.
fn order_differs(want: &Value, got: &Value) -> Option<String> {
    let Some(wanted) = want.get("order").and_then(Value::as_array) else {
        return (want.get("order_error").is_some() && got.get("order_error").is_none())
            .then(|| "order_error".into());
    };
    let order = got["order"].as_array().cloned().unwrap_or_default();
    let at = |name: &Value| order.iter().position(|other| other == name);
    if order.len() != wanted.len() || wanted.iter().any(|name| at(name).is_none()) {
        return Some("order: not the same resources".into());
    }
    for (name, resource) in want["resources"].as_object().unwrap() {
        for required in resource["requires"].as_array().into_iter().flatten() {
            if at(required) > at(&Value::from(name.clone())) {
                return Some(format!("order: {name} before {required}"));
            }
        }
    }
    None
}

/// The engine's result of a case, as JSON.
fn rendered(case: &Value) -> Value {
    let made = match cases::render(case.clone()) {
        Ok(stack) => serde_json::to_value(&stack),
        Err(stop) => serde_json::to_value(&stop),
    };
    made.unwrap().into()
}

#[test]
fn templates_render_as_heat_renders_them() {
    let Some(cases) = cases_of("golden.jsonl") else {
        return;
    };
    let (mut results, mut typed) = (Results::default(), Results::default());
    for case in &cases {
        let (want, got) = (&case["expected"], rendered(&case["case"]));
        let name = case["case"]["name"].as_str().unwrap();
        let group = name.split(['/', '#']).next().unwrap();
        results.count(group, name, difference(want, &got));
        if want.get("error").is_some() || got.get("error").is_some() {
            continue;
        }
        for (resource, wanted) in want["resources"].as_object().into_iter().flatten() {
            let Some(wanted) = wanted.get("typed_properties") else {
                continue;
            };
            let mine = &got["resources"][resource]["typed_properties"];
            let miss = (!same(wanted, mine)).then(|| format!("{resource}: {}", short(mine)));
            typed.count(group, name, miss);
        }
    }
    typed.require("typed properties", 95);
    results.require("templates", 95);
}
