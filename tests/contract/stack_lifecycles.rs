//! Compares the lifecycle of stacks by the engine's plans with Heat: created, updated, rolled back,
//! suspended, checked and deleted, with the failures in the cases. For the folder of the cases see
//! `stack_heat.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use pileus_stack::cases;
use pileus_stack::expand::{self, Tree};
use pileus_stack::plan::{self, Action, Change};
use pileus_stack::value::Value;

use pileus_tests::heat_cases::{Results, cases_of, folder, short};
use pileus_tests::stack_lifecycle::{Call, Course, World, name_in_cases};

/// Types that Heat's engine creates itself, without requests to a cloud.
fn is_inner(resource_type: &str) -> bool {
    const INNER: [&str; 12] = [
        "OS::Heat::SoftwareConfig",
        "OS::Heat::StructuredConfig",
        "OS::Heat::SoftwareComponent",
        "OS::Heat::CloudConfig",
        "OS::Heat::MultipartMime",
        "OS::Heat::RandomString",
        "OS::Heat::TestResource",
        "OS::Heat::ScalingPolicy",
        "OS::Heat::Value",
        "OS::Heat::None",
        "OS::Heat::ResourceGroup",
        "OS::Heat::ResourceChain",
    ];
    INNER.contains(&resource_type)
}

fn counted(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

fn last(path: &str) -> String {
    name_in_cases(path.rsplit('/').next().unwrap())
}

/// The tree of a step of a case, or the error in it.
fn tree_of(case: &Value, step: &Value) -> Result<Tree, String> {
    let mut input = step.clone();
    input["stack_name"] = case["stack_name"].clone();
    cases::input(input)
        .map_err(|error| error.to_string())
        .and_then(|input| expand::expand(&input).map_err(|stop| stop.error.to_string()))
}

/// The names of an action in the cases.
fn words(action: Action) -> &'static [&'static str] {
    match action {
        Action::Create => &["CREATE"],
        Action::Update => &["UPDATE"],
        Action::Delete | Action::Release => &["DELETE", "SNAPSHOT_DELETE"],
        Action::Check => &["CHECK"],
        Action::Suspend => &["SUSPEND"],
        Action::Resume => &["RESUME"],
    }
}

/// All actions on resources.
const ACTIONS: [Action; 6] = [
    Action::Create,
    Action::Update,
    Action::Delete,
    Action::Check,
    Action::Suspend,
    Action::Resume,
];

/// How often Heat called each action in a step, by action and name.
fn asked(heat: &Value) -> BTreeMap<(Action, String), usize> {
    let mut counts = BTreeMap::new();
    for call in heat["calls"].as_array().into_iter().flatten() {
        let word = call[0].as_str().unwrap();
        let action = ACTIONS.into_iter().find(|a| words(*a).contains(&word));
        let Some(action) = action else { continue };
        let name = name_in_cases(call[2].as_str().unwrap());
        *counts.entry((action, name)).or_default() += 1;
    }
    counts
}

/// Types of inner resources for which Heat made calls.
fn types_called(heat: &Value) -> BTreeSet<String> {
    let named = |call: &Value| Some((call[1].as_str()?.to_owned(), call[2].as_str()?.to_owned()));
    let calls = heat["calls"].as_array().into_iter().flatten();
    let made: BTreeSet<_> = calls
        .filter(|call| call[0] == "CREATE")
        .filter_map(named)
        .collect();
    let rows = heat["resources"].as_array().into_iter().flatten();
    let rows = rows.filter_map(|row| {
        let place = (
            row["stack"].as_str()?.to_owned(),
            row["name"].as_str()?.to_owned(),
        );
        let resource_type = row["type"]
            .as_str()
            .filter(|resource_type| is_inner(resource_type))?;
        made.contains(&place).then(|| resource_type.to_owned())
    });
    rows.collect()
}

/// The action on a resource that a name in Heat's cases means.
fn action_of(word: &Value) -> Option<Action> {
    let word = word.as_str()?;
    ACTIONS.into_iter().find(|a| words(*a).contains(&word))
}

/// The failures in a step: those that the step defines, and those in Heat's events and table.
fn failures(op: &str, step: &Value, heat: &Value, stack: &Value) -> BTreeSet<(Action, String)> {
    let mut fails = BTreeSet::new();
    for (word, names) in step["fail"].as_object().into_iter().flatten() {
        let action = action_of(&Value::from(word.clone()));
        let names = names.as_array().into_iter().flatten();
        for name in names.filter_map(Value::as_str) {
            fails.extend(action.map(|action| (action, name_in_cases(name))));
        }
    }
    let asked = asked(heat);
    // An action without a call has not failed.
    fails.retain(|key| asked.contains_key(key));
    let rows = heat["resources"].as_array().into_iter().flatten();
    // Failures of earlier steps are repeated in the table.
    let rows = rows.filter(|row| {
        let key = action_of(&row["action"]).zip(row["name"].as_str().map(name_in_cases));
        op == "create" || key.is_some_and(|key| asked.contains_key(&key))
    });
    let rows = rows.map(|row| (&row["name"], row));
    let begins = format!("Stack {} started", op.to_uppercase());
    let events = heat["events"].as_array().into_iter().flatten();
    // The newest first.
    let events = events.take_while(|event| {
        let reason = event["reason"].as_str().unwrap_or_default();
        event["resource"] != *stack || !reason.starts_with(&begins)
    });
    let events = events.map(|event| (&event["resource"], event));
    for (name, row) in events.chain(rows) {
        let action = action_of(&row["action"]).filter(|_| row["status"] == "FAILED");
        let own = own_words(op).contains(&row["action"].as_str().unwrap_or_default());
        if let (Some(name), Some(action), true) = (name.as_str(), action, own) {
            fails.insert((action, name_in_cases(name)));
        }
    }
    fails
}

/// Names of actions that belong to a step itself, not to an earlier one.
fn own_words(op: &str) -> &'static [&'static str] {
    match op {
        "create" => &["CREATE"],
        "update" => &["CREATE", "UPDATE", "DELETE"],
        "delete" => &["DELETE"],
        "suspend" => &["SUSPEND"],
        "resume" => &["RESUME"],
        _ => &["CHECK"],
    }
}

/// The handlers of types, from the table beside the cases.
fn handlers() -> BTreeMap<String, BTreeSet<String>> {
    let text = folder().map(|folder| std::fs::read_to_string(folder.join("resource_types.json")));
    let types: Value = match text {
        Some(Ok(text)) => serde_json::from_str(&text).unwrap(),
        _ => Value::Null,
    };
    let types = types.as_object().into_iter().flatten();
    let types = types.map(|(resource_type, row)| (resource_type.clone(), row["handlers"].clone()));
    names_of(&Value::Object(types.collect()))
}

/// Lists of texts by name.
fn names_of(lists: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let names = |list: &Value| {
        let names = list.as_array().into_iter().flatten();
        names
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect()
    };
    let lists = lists.as_object().into_iter().flatten();
    lists
        .map(|(name, list)| (name.to_string(), names(list)))
        .collect()
}

/// The state while a case is compared: what exists, and the last template.
struct Life<'a> {
    case: &'a Value,
    handlers: &'a BTreeMap<String, BTreeSet<String>>,
    world: World,
    tree: Option<Tree>,
    table: Value,
    /// Inner types for which the case has calls all the same.
    called: BTreeSet<String>,
    /// Resources that only one of the two has updated; these are reported separately.
    updates: Vec<String>,
}

impl Life<'_> {
    /// The difference in a step, if there is one.
    fn step(&mut self, step: &Value, heat: &Value) -> Option<String> {
        let op = step["op"].as_str().unwrap_or_default();
        let tree = match op {
            "create" | "update" => Some(tree_of(self.case, step)),
            "delete" | "suspend" | "resume" | "check" => None,
            _ => return Some(format!("the step {op} is not known")),
        };
        let tree = match (tree, heat.get("error")) {
            (None, None) => None,
            // Nothing exists.
            (None, Some(_)) if self.world.stacks.is_empty() => return None,
            (None, Some(error)) => return Some(format!("not refused: {}", short(error))),
            (Some(Ok(tree)), None) => Some(tree),
            (Some(Err(_)), Some(_)) => return None,
            (Some(Ok(_)), Some(error)) => return Some(format!("not refused: {}", short(error))),
            (Some(Err(error)), None) => return Some(format!("refused: {error}")),
        };
        let before = self.world.calls.len();
        let handlers = self.handlers;
        let silent = |action: Action, resource_type: &str| match action {
            Action::Suspend | Action::Resume | Action::Check => {
                let name = format!("handle_{}", words(action)[0].to_lowercase());
                is_inner(resource_type)
                    || handlers
                        .get(resource_type)
                        .is_none_or(|own| !own.contains(&name))
            }
            _ => is_inner(resource_type),
        };
        let mut course = Course {
            fails: failures(op, step, heat, &self.case["stack_name"]),
            begun: asked(heat),
            idle: idle(op, heat),
            back: false,
            silent: &silent,
        };
        let goes_back = heat["stack"]["action"] == "ROLLBACK" || step["rollback"] == true;
        let word = match op {
            "suspend" => Action::Suspend,
            "resume" => Action::Resume,
            "check" => Action::Check,
            "delete" => Action::Delete,
            "update" => Action::Update,
            _ => Action::Create,
        };
        let (mut word, mut fine) = match word {
            Action::Suspend | Action::Resume | Action::Check => {
                (words(word)[0], self.world.through("", word, &mut course))
            }
            _ => (
                words(word)[0],
                self.world.go("", tree.as_ref(), &mut course),
            ),
        };
        if !fine && goes_back && matches!(op, "create" | "update") {
            let target = if op == "create" {
                None
            } else {
                self.tree.as_ref()
            };
            course.back = true;
            // Failures of the update are not failures of its rollback, unless the case says so.
            let last = heat["stack"]["status"] == "FAILED";
            course.fails.retain(|_| last);
            fine = self.world.go("", target, &mut course);
            word = "ROLLBACK";
        } else if tree.is_some() {
            self.tree = tree;
        }
        if let Some(expected) = heat.get("stack") {
            let status = if fine { "COMPLETE" } else { "FAILED" };
            if expected["action"] != word || expected["status"] != status {
                let (action, state) = (&expected["action"], &expected["status"]);
                return Some(format!("{word}_{status}, Heat {action}_{state}"));
            }
        }
        self.compare(op, heat, before, &silent)
    }

    /// Compares the calls of a step with Heat's.
    fn compare(
        &mut self,
        op: &str,
        heat: &Value,
        before: usize,
        silent: &dyn Fn(Action, &str) -> bool,
    ) -> Option<String> {
        let ours = &self.world.calls[before..];
        // Deletions are compared only for resources whose creation is in the case.
        if let Some(resources) = heat.get("resources").filter(|_| op != "delete") {
            self.table = resources.clone();
        }
        let theirs = asked(heat);
        self.called.extend(types_called(heat));
        let called = &self.called;
        let outer = |call: &&Call| {
            !silent(call.action, &call.resource_type)
                || called.contains(call.resource_type.as_str())
        };
        for action in ACTIONS {
            let ours = ours.iter().filter(|call| call.action == action);
            let ours = counted(ours.filter(outer).map(|call| last(&call.path)));
            let theirs = theirs.iter().filter(|((other, _), _)| *other == action);
            let theirs: BTreeMap<String, usize> = theirs
                .map(|((_, name), count)| (name.clone(), *count))
                .collect();
            if ours == theirs {
                continue;
            }
            let difference = format!("{op}: {action:?}: {ours:?}, Heat {theirs:?}");
            if action != Action::Update {
                return Some(difference);
            }
            self.updates.push(difference);
        }
        out_of_order(&self.case["stack_name"], &self.table, ours)
    }
}

/// Resources that a failing step does not reach: their state is initial, or that of an earlier step.
fn idle(op: &str, heat: &Value) -> BTreeSet<String> {
    let rows = heat["resources"].as_array().into_iter().flatten();
    let idle = rows.filter(|row| {
        let action = row["action"].as_str().unwrap_or_default();
        match op {
            "create" | "update" => action == "INIT",
            _ => !own_words(op).contains(&action),
        }
    });
    idle.map(|row| name_in_cases(row["name"].as_str().unwrap()))
        .collect()
}

/// The difference in a case, and the resources that only one of the two has updated.
fn lifecycle_differs(
    case: &Value,
    handlers: &BTreeMap<String, BTreeSet<String>>,
) -> (Option<String>, Vec<String>) {
    let (own, expected) = (&case["case"], case["expected"].as_array().unwrap());
    let mut life = Life {
        case: own,
        handlers,
        world: World::default(),
        tree: None,
        table: Value::Null,
        called: BTreeSet::new(),
        updates: Vec::new(),
    };
    let steps = own["steps"].as_array().unwrap();
    if steps.len() != expected.len() {
        let difference = format!("{} steps, Heat {}", steps.len(), expected.len());
        return (Some(difference), life.updates);
    }
    for (at, (step, heat)) in steps.iter().zip(expected).enumerate() {
        if let Some(wrong) = life.step(step, heat) {
            return (Some(format!("step {at}: {wrong}")), life.updates);
        }
    }
    (None, life.updates)
}

/// A resource that was created before its requirements in Heat, or deleted after them.
fn out_of_order(stack: &Value, table: &Value, calls: &[Call]) -> Option<String> {
    // The simulation itself checks the order of several incarnations.
    let at = |action: Action, name: &str| {
        let calls = calls.iter().enumerate();
        let mut own =
            calls.filter(|(_, call)| call.action == action && call.path == format!("/{name}"));
        own.next()
            .filter(|_| own.next().is_none())
            .map(|(at, _)| at)
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

/// Every template of the cases is created, a resource is removed and restored as by a rollback, each
/// of its resources is updated, and everything is deleted.
#[test]
fn updates_of_heats_templates_keep_the_order_and_can_be_rolled_back() {
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
            if plan::change(&existing[key].resource_type, &property) == Change::Refuse {
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

/// Compares lifecycles case by case and step by step.
fn compare_lifecycles(cases: &[Value], least: usize) {
    let known = handlers();
    let mut results = Results::default();
    let (mut steps, mut exact) = (BTreeMap::<&str, usize>::new(), 0);
    for case in cases {
        let name = case["case"]["name"].as_str().unwrap();
        let group = name.split(['/', '#']).next().unwrap();
        let own = case["case"].get("handlers").map(names_of);
        let handlers = own.as_ref().unwrap_or(&known);
        // A violated invariant is a failure of one case only.
        let lived = catch_unwind(AssertUnwindSafe(|| lifecycle_differs(case, handlers)));
        let broken = |_| (Some("panicked, as printed above".to_owned()), Vec::new());
        let (miss, updates) = lived.unwrap_or_else(broken);
        exact += usize::from(miss.is_none() && updates.is_empty());
        for update in updates {
            println!("UPDATES {name}: {update}");
        }
        results.count(group, name, miss);
        for step in case["case"]["steps"].as_array().unwrap() {
            *steps.entry(step["op"].as_str().unwrap()).or_default() += 1;
        }
    }
    println!("lifecycle: steps {steps:?}; {exact} have the same updates, too");
    results.require("lifecycle", least);
}

#[test]
fn stack_lifecycles_are_as_in_heat() {
    if let Some(cases) = cases_of("lifecycle.jsonl") {
        compare_lifecycles(&cases, 85);
    }
}

/// Updates in place and by replacement, failures and rollbacks, suspend, resume and check of the
/// project's own templates, compared with Heat 27's engine.
#[test]
fn changes_and_failures_are_as_in_heat() {
    let text = include_str!("../heat/lifecycle.jsonl");
    let cases: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    compare_lifecycles(&cases, 95);
}
