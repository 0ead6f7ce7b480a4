//! The stack engine beside cases made by Heat's own, read in place from the
//! folder that `PILEUS_HEAT_CASES` names, or `shared/heat` beside the
//! repository; without one there is nothing to compare, which is said.
//! Known differences: `tests/heat-differences.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pileus::stack::cases;
use pileus::stack::expand::{self, Tree};
use pileus::stack::parameters::Schema;
use pileus::stack::plan::{self, Action, Existing, Key};
use pileus::stack::version::Version;
use serde_json::{Map, Value};

/// What is known to differ, and why.
const DIFFERENCES: &str = include_str!("heat-differences.md");

/// The cases of `file`, or nothing (said aloud) when the folder is not there.
fn cases_of(file: &str) -> Option<Vec<Value>> {
    let folder = std::env::var_os("PILEUS_HEAT_CASES").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/heat");
    let Some(folder) = folder.or_else(|| beside.is_dir().then_some(beside)) else {
        println!("no cases: PILEUS_HEAT_CASES is not set; {file} is not compared");
        return None;
    };
    let text = std::fs::read_to_string(folder.join(file)).expect("the cases can be read");
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    Some(lines.collect())
}

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

/// Figures by group.
#[derive(Default)]
struct Figures {
    groups: BTreeMap<String, (usize, usize)>,
    /// Misses that are not in the list of differences.
    new: Vec<String>,
}

impl Figures {
    fn count(&mut self, group: &str, name: &str, miss: Option<String>) {
        let (passed, total) = self.groups.entry(group.to_owned()).or_default();
        *total += 1;
        match miss {
            None => *passed += 1,
            Some(miss) if !DIFFERENCES.contains(name) => self.new.push(format!("{name}: {miss}")),
            Some(_) => {}
        }
    }

    /// Prints the figures; fails below `least` per cent.
    fn judge(&self, what: &str, least: usize) {
        for (group, (passed, total)) in &self.groups {
            println!("{what}: {group:<28} {passed:>5} of {total:>5}");
        }
        for miss in &self.new {
            println!("MISS {what} {miss}");
        }
        let (passed, total) = self
            .groups
            .values()
            .fold((0, 0), |sum, group| (sum.0 + group.0, sum.1 + group.1));
        println!("{what}: {passed} of {total}, at least {least} % required");
        assert!(passed * 100 >= least * total, "{what}: {passed} of {total}");
    }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}

/// Whether the list says that the case does not tell what its result comes from.
fn not_told(name: &str) -> bool {
    let (_, functions) = DIFFERENCES.split_once("## Functions").unwrap_or_default();
    let functions = functions.split("\n## ").next().unwrap_or_default();
    let mut entries = functions.split("\n- ").skip(1);
    entries.any(|entry| entry.contains("(not told)") && entry.contains(&format!("`{name}`")))
}

#[test]
fn functions_give_what_heat_gives() {
    let Some(cases) = cases_of("unit.jsonl") else {
        return;
    };
    let mut figures = Figures::default();
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
        // What a case does not tell cannot be found out: such cases do not count.
        if !fine && not_told(name) {
            println!("not told: {name}");
            continue;
        }
        let miss = (!fine).then(|| format!("{} got {}", short(&case["snippet"]), short(&got)));
        figures.count(group.map_or("other", String::as_str), name, miss);
    }
    figures.judge("functions", 98);
}

/// Some schemas are written in CloudFormation's words with HOT's constraints,
/// as Heat keeps them inside; they are put into HOT's words.
fn in_its_language(schema: &Value, version: Version) -> (Value, Version) {
    let Some(constraints) = schema.get("Constraints") else {
        return (schema.clone(), version);
    };
    let kind = match schema["Type"].as_str() {
        Some("CommaDelimitedList") => "comma_delimited_list".to_owned(),
        other => other.unwrap_or_default().to_lowercase(),
    };
    let schema = serde_json::json!({
        "type": kind, "default": schema["Default"], "constraints": constraints,
    });
    (schema, Version::Rocky)
}

#[test]
fn parameters_are_read_as_heat_reads_them() {
    let Some(cases) = cases_of("params.jsonl") else {
        return;
    };
    let mut figures = Figures::default();
    for case in &cases {
        let class = case["class"].as_str().unwrap_or_default();
        let version = if class == "HOTParamSchema" {
            Version::Rocky
        } else {
            Version::Cfn2010
        };
        let (schema, version) = in_its_language(&case["schema"], version);
        let got = Schema::parse(&schema, version).and_then(|schema| {
            let given = Some(&case["value"]).filter(|value| !value.is_null());
            let value = given
                .or(Some(&case["default"]).filter(|value| !value.is_null()))
                .or(schema.default.as_ref())
                .unwrap_or(&Value::Null);
            schema.check(value)
        });
        let wrong = case.get("error").is_some() || case.get("value_error").is_some();
        let fine = got
            .as_ref()
            .map_or(wrong, |value| !wrong && same(value, &case["result"]));
        let miss = (!fine).then(|| format!("{} got {got:?}", short(case)));
        figures.count(class, case["name"].as_str().unwrap_or_default(), miss);
    }
    figures.judge("parameters", 98);
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
            .collect::<Vec<_>>()
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
            let failed = wanted.get(format!("{key}_error")).is_some();
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

/// Whether one order of creation keeps what Heat's dependencies say.
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

#[test]
fn templates_render_as_heat_renders_them() {
    let Some(cases) = cases_of("golden.jsonl") else {
        return;
    };
    let (mut figures, mut typed) = (Figures::default(), Figures::default());
    for case in &cases {
        let (want, got) = (&case["expected"], cases::render(case));
        let name = case["case"]["name"].as_str().unwrap();
        let group = name.split(['/', '#']).next().unwrap();
        figures.count(group, name, difference(want, &got));
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
    typed.judge("typed properties", 95);
    figures.judge("templates", 95);
}

/// Types that Heat's engine makes by itself, without asking a cloud.
fn is_inner(kind: &str) -> bool {
    const INNER: [&str; 13] = [
        "OS::Heat::SoftwareConfig",
        "OS::Heat::StructuredConfig",
        "OS::Heat::SoftwareComponent",
        "OS::Heat::CloudConfig",
        "OS::Heat::MultipartMime",
        "OS::Heat::RandomString",
        "OS::Heat::TestResource",
        "OS::Heat::ScalingPolicy",
        "AWS::AutoScaling::ScalingPolicy",
        "OS::Heat::Value",
        "OS::Heat::None",
        "OS::Heat::ResourceGroup",
        "OS::Heat::ResourceChain",
    ];
    INNER.contains(&kind)
}

/// Members of scaling groups have random names.
fn plain_name(name: &str) -> &str {
    let random = name.len() == 12 && name.chars().all(|c| matches!(c, 'a'..='z' | '2'..='7'));
    let member = !name.is_empty() && name.chars().all(|c| c.is_ascii_digit());
    if random || member { "*" } else { name }
}

/// Runs the plans of a tree, first to make it, then to remove it; what is done
/// to leaves, in order, with the path of each.
fn simulate(tree: &Tree, path: &str, made: &mut Vec<(String, String)>, gone: &mut Vec<String>) {
    let wanted = plan::wanted(&tree.stack);
    let mut existing: BTreeMap<Key, Existing> = BTreeMap::new();
    let create = plan::plan(&wanted, &tree.stack.graph, &existing, plan::change).unwrap();
    let mut done = BTreeSet::new();
    for (index, step) in create.steps.iter().enumerate() {
        assert!(step.action == Action::Create && step.after.iter().all(|a| done.contains(a)));
        done.insert(index);
        let name = &step.key.0;
        let want = &wanted[name];
        let inner = format!("{path}/{name}");
        match tree.nested.get(name) {
            Some(nested) => simulate(nested, &inner, made, &mut Vec::new()),
            None => made.push((inner, want.kind.to_owned())),
        }
        existing.insert(
            step.key.clone(),
            Existing {
                kind: want.kind.to_owned(),
                properties: want.properties.clone().into_owned(),
                requires: step.requires.clone(),
                complete: true,
                retain: tree.stack.resources[name].deletion_policy == "Retain",
            },
        );
    }
    // A second plan finds nothing to do.
    let again = plan::plan(&wanted, &tree.stack.graph, &existing, plan::change).unwrap();
    assert!(again.steps.is_empty(), "{path}: {:?}", again.steps);
    let delete = plan::plan(
        &BTreeMap::new(),
        &Default::default(),
        &existing,
        plan::change,
    );
    for step in delete.unwrap().steps {
        if step.action != Action::Delete {
            continue;
        }
        let inner = format!("{path}/{}", step.key.0);
        match tree.nested.get(&step.key.0) {
            Some(nested) => simulate(nested, &inner, &mut Vec::new(), gone),
            None => gone.push(inner),
        }
    }
}

fn counted<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// The names of what `action` was done to, as Heat did it.
fn calls<'a>(step: &'a Value, action: &str) -> Vec<&'a str> {
    let calls = step["calls"].as_array().into_iter().flatten();
    calls
        .filter(|call| call[0] == action)
        .map(|call| plain_name(call[2].as_str().unwrap()))
        .collect()
}

fn last(path: &str) -> &str {
    plain_name(path.rsplit('/').next().unwrap())
}

fn lifecycle_differs(case: &Value) -> Option<String> {
    let step = &case["case"]["steps"][0];
    let (create, delete) = (&case["expected"][0], &case["expected"][1]);
    let mut input = step.clone();
    input["stack_name"] = case["case"]["stack_name"].clone();
    let tree = cases::input(&input)
        .map_err(|error| error.to_string())
        .and_then(|input| expand::expand(&input).map_err(|stop| stop.error.to_string()));
    let refused = create.get("error").is_some();
    let tree = match (tree, refused) {
        (Ok(tree), false) => tree,
        (Err(_), true) => return None,
        (Ok(_), true) => return Some(format!("not refused: {}", short(&create["error"]))),
        (Err(error), false) => return Some(format!("refused: {error}")),
    };
    let (mut made, mut gone) = (Vec::new(), Vec::new());
    simulate(&tree, "", &mut made, &mut gone);
    // What runs without a cloud is not among the calls, unless Heat called it.
    let called: BTreeSet<&str> = calls(create, "CREATE").into_iter().collect();
    let inner: BTreeSet<&str> = made
        .iter()
        .filter(|(path, kind)| is_inner(kind) && !called.contains(last(path)))
        .map(|(path, _)| path.as_str())
        .collect();
    let outer = |path: &&str| !inner.contains(path);
    let ours = counted(made.iter().map(|(p, _)| p.as_str()).filter(outer).map(last));
    let heats = counted(calls(create, "CREATE").into_iter());
    if create["stack"]["status"] == "FAILED" {
        // What had been made when it failed is a part of what would be made.
        return heats
            .iter()
            .any(|(name, count)| ours.get(name).is_none_or(|own| own < count))
            .then(|| format!("made {heats:?}, not among {ours:?}"));
    }
    if ours != heats {
        return Some(format!("makes {ours:?}, Heat made {heats:?}"));
    }
    let removed = counted(gone.iter().map(String::as_str).filter(outer).map(last));
    let snapshots = calls(delete, "SNAPSHOT_DELETE");
    let heats = counted(calls(delete, "DELETE").into_iter().chain(snapshots));
    if removed != heats {
        return Some(format!("removes {removed:?}, Heat removed {heats:?}"));
    }
    let at = |name: &str| {
        made.iter()
            .position(|(path, _)| path == &format!("/{name}"))
    };
    for resource in create["resources"].as_array().into_iter().flatten() {
        let name = resource["name"].as_str().unwrap();
        for user in resource["required_by"].as_array().into_iter().flatten() {
            let (Some(first), Some(then)) = (at(name), at(user.as_str().unwrap())) else {
                continue;
            };
            if first > then && resource["stack"] == case["case"]["stack_name"] {
                return Some(format!("{user} before {name}"));
            }
        }
    }
    None
}

#[test]
fn stacks_live_as_heats_do() {
    let Some(cases) = cases_of("lifecycle.jsonl") else {
        return;
    };
    let mut figures = Figures::default();
    for case in &cases {
        let name = case["case"]["name"].as_str().unwrap();
        let group = name.split(['/', '#']).next().unwrap();
        figures.count(group, name, lifecycle_differs(case));
    }
    figures.judge("lifecycle", 85);
}
