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
use pileus::stack::plan::{self, Action, Change};
use pileus::stack::version::Version;
use serde_json::{Map, Value};

#[path = "support/stack_life.rs"]
mod stack_life;
use stack_life::{Call, World};

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
            // Some values were taken as they are.
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
        let (want, got) = (&case["expected"], cases::render(case["case"].clone()));
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

/// The tree of a step of a case, or why there is none.
fn tree_of(case: &Value, step: &Value) -> Result<Tree, String> {
    let mut input = step.clone();
    input["stack_name"] = case["stack_name"].clone();
    cases::input(input)
        .map_err(|error| error.to_string())
        .and_then(|input| expand::expand(&input).map_err(|stop| stop.error.to_string()))
}

fn lifecycle_differs(case: &Value) -> Option<String> {
    let (case, expected) = (&case["case"], case["expected"].as_array().unwrap());
    let mut world = World::default();
    let mut called: BTreeSet<&str> = BTreeSet::new();
    let mut table = &Value::Null;
    for (step, heat) in case["steps"].as_array().unwrap().iter().zip(expected) {
        let tree = match step["op"].as_str() {
            Some("create" | "update") => Some(tree_of(case, step)),
            Some("delete") => None,
            // Nothing is made or removed.
            _ => continue,
        };
        let tree = match (tree, heat.get("error").is_some()) {
            (None, _) => None,
            (Some(Ok(tree)), false) => Some(tree),
            (Some(Err(_)), true) => continue,
            (Some(Ok(_)), true) => return Some(format!("not refused: {}", short(&heat["error"]))),
            (Some(Err(error)), false) => return Some(format!("refused: {error}")),
        };
        let before = world.calls.len();
        world.become_like("", tree.as_ref());
        let ours = &world.calls[before..];
        // Removed are those that were told of when they were made.
        if let Some(resources) = heat.get("resources").filter(|_| tree.is_some()) {
            table = resources;
        }
        called.extend(calls(heat, "CREATE"));
        let outer = |call: &&Call| !is_inner(&call.kind) || called.contains(last(&call.path));
        let failed = heat["stack"]["status"] == "FAILED" || heat["stack"]["action"] == "ROLLBACK";
        for (action, words) in [
            (Action::Create, &["CREATE"][..]),
            (Action::Update, &["UPDATE"]),
            (Action::Delete, &["DELETE", "SNAPSHOT_DELETE"]),
        ] {
            let ours = ours.iter().filter(|call| call.action == action);
            let ours = counted(ours.filter(outer).map(|call| last(&call.path)));
            let heats = counted(words.iter().flat_map(|word| calls(heat, word)));
            // What had been done when it failed is a part of what would be done.
            let part = |(name, count)| ours.get(name).is_some_and(|own| own >= count);
            let fine = ours == heats || failed && heats.iter().all(part);
            if !fine {
                return Some(format!("{action:?}: {ours:?}, Heat {heats:?}"));
            }
        }
        if failed {
            return None;
        }
        if let Some(wrong) = out_of_order(&case["stack_name"], table, ours) {
            return Some(wrong);
        }
    }
    None
}

/// Something that was made before what Heat says it requires, or removed after it.
fn out_of_order(stack: &Value, table: &Value, calls: &[Call]) -> Option<String> {
    let at = |action: Action, name: &str| {
        let mut calls = calls.iter();
        calls.position(|call| call.action == action && call.path == format!("/{name}"))
    };
    for resource in table.as_array().into_iter().flatten() {
        let name = resource["name"].as_str().unwrap();
        for user in resource["required_by"].as_array().into_iter().flatten() {
            let user = user.as_str().unwrap();
            let made = at(Action::Create, name) > at(Action::Create, user)
                && at(Action::Create, user).is_some();
            let gone = at(Action::Delete, name) < at(Action::Delete, user)
                && at(Action::Delete, name).is_some();
            if (made || gone) && resource["stack"] == *stack {
                return Some(format!("{user} and {name} in the wrong order"));
            }
        }
    }
    None
}

/// The same step without the last of its resources and without outputs, which may show it.
fn with_less(case: &Value, step: &Value, tree: &Tree) -> Option<(String, Tree)> {
    let last = tree.stack.order.as_ref().unwrap().last()?.clone();
    let mut step = step.clone();
    let template = step["template"].as_object_mut().unwrap();
    template.shift_remove("outputs");
    template.shift_remove("Outputs");
    for key in ["resources", "Resources"] {
        if let Some(resources) = template.get_mut(key) {
            resources.as_object_mut().unwrap().shift_remove(&last);
        }
    }
    tree_of(case, &step).ok().map(|tree| (last, tree))
}

/// Every template of the cases is made, loses a resource, gets it back as a rollback would, has
/// each of its resources changed, and goes.
#[test]
fn updates_of_heats_templates_keep_the_order_and_come_back() {
    let Some(cases) = cases_of("lifecycle.jsonl") else {
        return;
    };
    let (mut updated, mut changed) = (0, 0);
    for case in &cases {
        let case = &case["case"];
        let step = &case["steps"][0];
        let Ok(tree) = tree_of(case, step) else {
            continue;
        };
        let mut world = World::default();
        world.become_like("", Some(&tree));
        let all = world.clone();
        if let Some((last, less)) = with_less(case, step, &tree) {
            world.become_like("", Some(&less));
            assert!(!world.names().contains(last.as_str()));
            world.become_like("", Some(&tree));
            assert_eq!(world.names(), all.names(), "{}", case["name"]);
            updated += 1;
        }
        for key in all.stacks[""].keys() {
            let mut world = all.clone();
            let existing = world.stacks.get_mut("").unwrap();
            let Some(property) = existing[key].properties.keys().next().cloned() else {
                continue;
            };
            if plan::change(&existing[key].kind, &property) == Change::Refuse {
                continue;
            }
            existing
                .get_mut(key)
                .unwrap()
                .properties
                .shift_remove(&property);
            world.become_like("", Some(&tree));
            assert_eq!(world.names(), all.names(), "{}", case["name"]);
            changed += 1;
        }
        world.become_like("", None);
        assert!(world.stacks.is_empty(), "{}: {world:?}", case["name"]);
    }
    println!("{updated} templates lost a resource and got it back; {changed} resources changed");
    assert!(updated > 0 && changed > 0);
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
