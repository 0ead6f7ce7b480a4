//! Simulates the lifecycle of stacks by their plans: each step of a plan is taken as done, or as failed
//! if the case says so, and invariants are checked after every step.

use std::collections::{BTreeMap, BTreeSet};

use pileus_stack::expand::Tree;
use pileus_stack::graph::Graph;
use pileus_stack::plan::{self, Action, Existing, Key, Plan, Wanted};
use pileus_stack::value::Value;

/// An action on a resource that is not a nested stack.
#[derive(Debug, Clone)]
pub struct Call {
    pub action: Action,
    /// Names from the outermost stack on; a nested stack with its incarnation.
    pub path: String,
    pub resource_type: String,
}

/// The outcome of a step as far as the cloud decides it: failures and timing.
pub struct Course<'a> {
    /// Resources that fail, by action and name.
    pub fails: BTreeSet<(Action, String)>,
    /// In a step that fails: how often each action is started, by action and name. After a failure
    /// nothing more is started, so this depends on timing.
    pub begun: BTreeMap<(Action, String), usize>,
    /// Names of resources that are not started; those without requests to a cloud are not in `begun`.
    pub idle: BTreeSet<String>,
    /// The step is a rollback.
    pub back: bool,
    /// Whether this action on a resource of this type makes no request to a cloud.
    pub silent: &'a dyn Fn(Action, &str) -> bool,
}

impl Default for Course<'_> {
    fn default() -> Self {
        Self {
            fails: BTreeSet::new(),
            begun: BTreeMap::new(),
            idle: BTreeSet::new(),
            back: false,
            silent: &|_, _| false,
        }
    }
}

/// Everything that exists, by the path of its stack; that of the outermost stack is empty.
#[derive(Debug, Clone, Default)]
pub struct World {
    pub stacks: BTreeMap<String, BTreeMap<Key, Existing>>,
    pub calls: Vec<Call>,
}

/// The name as cases contain it: all members of groups and scaling groups have the same.
pub fn name_in_cases(name: &str) -> String {
    let random = name.len() == 12 && name.chars().all(|c| matches!(c, 'a'..='z' | '2'..='7'));
    let member = !name.is_empty() && name.chars().all(|c| c.is_ascii_digit());
    if random || member { "*" } else { name }.to_owned()
}

fn planned(
    wanted: &BTreeMap<String, Wanted<'_>>,
    tree: Option<&Tree>,
    existing: &BTreeMap<Key, Existing>,
    back: bool,
) -> pileus_stack::Result<Plan> {
    let graph = tree.map_or_else(Graph::default, |tree| tree.stack.graph.clone());
    // Attributes do not change in cases, only ids do.
    let ids: BTreeMap<&String, _> = wanted
        .keys()
        .map(|name| (name, by_id(tree, name)))
        .collect();
    let wanted: BTreeMap<String, Wanted<'_>> = (wanted.iter())
        .map(|(name, want)| {
            let references = &ids[name];
            let want = Wanted {
                references,
                ..want.clone()
            };
            (name.clone(), want)
        })
        .collect();
    let wanted = &wanted;
    if back {
        plan::plan_rollback(wanted, &graph, existing, plan::change)
    } else {
        plan::plan(wanted, &graph, existing, plan::change)
    }
}

/// By property: the resources whose ids it has.
fn by_id(tree: Option<&Tree>, name: &str) -> BTreeMap<String, BTreeSet<String>> {
    let raw = tree.and_then(|tree| tree.stack.template.resources.get(name));
    let raw = raw.and_then(|raw| raw.properties.as_object());
    let each = raw.into_iter().flatten().map(|(property, value)| {
        let mut names = BTreeSet::new();
        ids(value, &mut names);
        (property.to_string(), names)
    });
    each.filter(|(_, names)| !names.is_empty()).collect()
}

fn ids(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| ids(item, names)),
        Value::Object(map) => {
            for (key, value) in map {
                match value
                    .as_str()
                    .filter(|_| key == "get_resource" || key == "Ref")
                {
                    Some(name) => drop(names.insert(name.to_owned())),
                    None => ids(value, names),
                }
            }
        }
        _ => {}
    }
}

/// Ids of resources of an outer stack that a nested stack uses: by parameter, or in a group by the
/// property of its members (`member/property` if each has its own).
#[derive(Debug, Default)]
struct Outside {
    names: BTreeMap<String, String>,
    group: bool,
}

impl Outside {
    /// The incarnations whose ids a value contains.
    fn label(&self, value: &Value, requires: &BTreeMap<String, u32>, labels: &mut String) {
        match value {
            Value::Array(items) => items
                .iter()
                .for_each(|item| self.label(item, requires, labels)),
            Value::Object(map) => {
                for (key, value) in map {
                    let first = value.as_array().and_then(|path| path.first());
                    let name = first.unwrap_or(value).as_str();
                    match (key.as_str(), name) {
                        ("get_resource" | "Ref", Some(name)) if requires.contains_key(name) => {
                            labels.extend([name, "#", &requires[name].to_string(), " "]);
                        }
                        ("get_param" | "Ref", Some(name)) => {
                            let known = self.names.get(name).filter(|_| !self.group);
                            *labels += known.map_or("", String::as_str);
                        }
                        _ => self.label(value, requires, labels),
                    }
                }
            }
            _ => {}
        }
    }

    /// The properties of `name` that have such ids.
    fn of(&self, tree: &Tree, name: &str) -> BTreeMap<String, String> {
        let raw = tree.stack.template.resources.get(name);
        let raw = raw.and_then(|raw| raw.properties.as_object());
        let own = raw.into_iter().flatten().map(|(property, value)| {
            let mut labels = String::new();
            self.label(value, &BTreeMap::new(), &mut labels);
            (property.to_string(), labels)
        });
        let names = self.names.iter().filter(|_| self.group);
        let given = names.filter_map(|(key, labels)| {
            let (member, property) = key.split_once('/').unwrap_or((name, key));
            (member == name).then(|| (property.to_owned(), labels.clone()))
        });
        own.chain(given)
            .filter(|(_, labels)| !labels.is_empty())
            .collect()
    }

    /// The ids that the nested stack of `name` gets.
    fn inside(&self, tree: &Tree, name: &str, requires: &BTreeMap<String, u32>) -> Self {
        let raw = tree.stack.template.resources.get(name);
        let raw = raw.map(|raw| raw.properties.clone()).unwrap_or_default();
        let resource_type = tree.stack.resources[name].resource_type.as_str();
        let (passed, group) = match resource_type {
            "OS::Heat::ResourceGroup" => (&raw["resource_def"]["properties"], true),
            "OS::Heat::AutoScalingGroup" => (&raw["resource"]["properties"], true),
            "OS::Heat::ResourceChain" => (&raw["resource_properties"], true),
            "OS::Heat::Stack" => (&raw["parameters"], false),
            _ => (&raw, resource_type.ends_with("DeploymentGroup")),
        };
        let mut all: Vec<(String, &Value)> = Vec::new();
        for (property, value) in passed.as_object().into_iter().flatten() {
            match value.as_object().filter(|_| group && property == "servers") {
                Some(servers) => {
                    all.extend(
                        servers
                            .iter()
                            .map(|(at, one)| (format!("{at}/server"), one)),
                    );
                }
                None => all.push((property.to_string(), value)),
            }
        }
        let mut names = if group {
            BTreeMap::new()
        } else {
            self.of(tree, name)
        };
        for (property, value) in all {
            let mut labels = String::new();
            self.label(value, requires, &mut labels);
            if !labels.is_empty() {
                names.insert(property, labels);
            }
        }
        Self { names, group }
    }

    /// The resources that a stack wants, with these ids in their properties.
    fn wanted<'t>(&self, tree: &'t Tree) -> BTreeMap<String, Wanted<'t>> {
        let mut wanted = plan::wanted(&tree.stack);
        for (name, want) in &mut wanted {
            if self.names.is_empty() || tree.nested.contains_key(name) {
                continue;
            }
            for (property, labels) in self.of(tree, name) {
                let value = want.properties.get(property.as_str()).cloned();
                let value = Value::Array(
                    [value.unwrap_or_default(), labels.into()]
                        .into_iter()
                        .collect(),
                );
                want.properties.to_mut().insert(property.as_str(), value);
            }
        }
        wanted
    }
}

/// Unchanged resources use new incarnations from now on.
fn refresh(existing: &mut BTreeMap<Key, Existing>, plan: &Plan) {
    for (key, requires) in &plan.unchanged {
        existing.get_mut(key).unwrap().requires.clone_from(requires);
    }
}

impl World {
    /// Updates the stack at `path` to `tree`; deletes it if that is `None`.
    pub fn become_like(&mut self, path: &str, tree: Option<&Tree>) {
        assert!(self.go(path, tree, &mut Course::default()), "{path}");
    }

    /// The same with a given outcome; whether it was complete.
    pub fn go(&mut self, path: &str, tree: Option<&Tree>, course: &mut Course<'_>) -> bool {
        self.live(path, tree, course, &Outside::default())
    }

    fn live(
        &mut self,
        path: &str,
        tree: Option<&Tree>,
        course: &mut Course<'_>,
        outside: &Outside,
    ) -> bool {
        let mut existing = self.stacks.remove(path).unwrap_or_default();
        let wanted = tree.map_or_else(BTreeMap::new, |tree| outside.wanted(tree));
        let Ok(plan) = planned(&wanted, tree, &existing, course.back) else {
            self.stacks.insert(path.to_owned(), existing);
            return false;
        };
        let mut done: BTreeSet<usize> = BTreeSet::new();
        let mut ready: BTreeSet<String> = BTreeSet::new();
        let order = tree.and_then(|tree| tree.stack.order.as_ref().ok());
        for name in order.into_iter().flatten() {
            let mut steps = plan.steps.iter().enumerate();
            let step = steps.find(|(_, step)| {
                step.key.0 == *name && matches!(step.action, Action::Create | Action::Update)
            });
            let requires = tree.unwrap().stack.graph.requires.get(name);
            let mut requires = requires.into_iter().flatten();
            if !requires.all(|other| ready.contains(other) || !wanted.contains_key(other)) {
                continue;
            }
            let (number, requires) = if let Some((at, step)) = step {
                assert!(step.after.iter().all(|before| *before < at), "{path}");
                if !step.after.is_subset(&done) {
                    continue;
                }
                (step.key.1, &step.requires)
            } else {
                let mut unchanged = plan.unchanged.iter();
                let (key, requires) = unchanged.find(|(key, _)| key.0 == *name).unwrap();
                (key.1, requires)
            };
            let inside = format!("{path}/{name}#{number}");
            let nested = tree.and_then(|tree| tree.nested.get(name));
            // What is inside of what stays decides for itself.
            let (begun, fine) = match (nested, step) {
                (Some(nested), _) => {
                    let idle = step.is_some() && course.idle.contains(name);
                    let action = step.map_or(Action::Update, |(_, step)| step.action);
                    // It can fail by itself once everything in it is there.
                    let given = outside.inside(tree.unwrap(), name, requires);
                    let fine = !idle && self.live(&inside, Some(nested), course, &given);
                    (
                        !idle,
                        fine && !course.fails.contains(&(action, name_in_cases(name))),
                    )
                }
                (None, Some((_, step))) => {
                    let path = format!("{path}/{name}");
                    self.call(step.action, path, wanted[name].resource_type, course)
                }
                (None, None) => (true, true),
            };
            if let Some((at, step)) = step.filter(|_| begun) {
                let mut made = existing_of(&wanted[name], step, tree, name);
                // What holds a stack is never made anew for what failed inside.
                made.complete = fine || nested.is_some();
                existing.insert(step.key.clone(), made);
                if fine {
                    done.insert(at);
                }
            }
            if fine {
                ready.insert(name.clone());
            }
        }
        for (key, have) in &mut existing {
            if let Some(tree) = tree.filter(|_| plan.unchanged.contains_key(key)) {
                have.retain = retains(tree, &key.0);
            }
        }
        let fine = self.remove(path, &plan, &mut existing, &mut done, course);
        let fine = fine && done.len() == plan.steps.len() && ready.len() == wanted.len();
        if fine {
            refresh(&mut existing, &plan);
            let again = planned(&wanted, tree, &existing, course.back).unwrap();
            assert!(again.steps.is_empty(), "{path}: {:?}", again.steps);
        }
        if tree.is_some() || !existing.is_empty() {
            self.stacks.insert(path.to_owned(), existing);
        }
        fine
    }

    /// The plan's removals.
    fn remove(
        &mut self,
        path: &str,
        plan: &Plan,
        existing: &mut BTreeMap<Key, Existing>,
        done: &mut BTreeSet<usize>,
        course: &mut Course<'_>,
    ) -> bool {
        let mut fine = true;
        for (at, step) in plan.steps.iter().enumerate() {
            let removes = matches!(step.action, Action::Delete | Action::Release);
            if !removes || !step.after.is_subset(done) {
                continue;
            }
            let (name, number) = &step.key;
            let inside = format!("{path}/{name}#{number}");
            let (begun, gone) = if step.action == Action::Release {
                self.stacks.remove(&inside);
                (true, true)
            } else if self.stacks.contains_key(&inside) {
                (true, self.go(&inside, None, course))
            } else {
                let resource_type = existing[&step.key].resource_type.clone();
                self.call(
                    Action::Delete,
                    format!("{path}/{name}"),
                    &resource_type,
                    course,
                )
            };
            if gone {
                refresh_but(existing, plan);
                existing.remove(&step.key).unwrap();
                let mut users = existing.values().map(|user| user.requires.get(name));
                assert!(
                    users.all(|used| used != Some(number)),
                    "{path}/{name} is in use"
                );
                done.insert(at);
            } else if begun {
                // Whoever wants it again has another made, as in Heat.
                existing.get_mut(&step.key).unwrap().complete = false;
                fine = false;
            }
        }
        fine
    }

    /// Everything that exists goes through `action`.
    pub fn through(&mut self, path: &str, action: Action, course: &mut Course<'_>) -> bool {
        let plan = plan::plan_action(&self.stacks[path], action).unwrap();
        let mut done = BTreeSet::new();
        for (at, step) in plan.steps.iter().enumerate() {
            // A check looks at everything, whatever it finds.
            if action != Action::Check && !step.after.is_subset(&done) {
                continue;
            }
            let (name, number) = &step.key;
            let inside = format!("{path}/{name}#{number}");
            let fine = if self.stacks.contains_key(&inside) {
                self.through(&inside, action, course)
            } else {
                let resource_type = self.stacks[path][&step.key].resource_type.clone();
                let (begun, fine) =
                    self.call(action, format!("{path}/{name}"), &resource_type, course);
                // What has failed before and is found as it should be is fine again.
                if begun && (!fine || action == Action::Check) {
                    let stack = self.stacks.get_mut(path).unwrap();
                    stack.get_mut(&step.key).unwrap().complete = fine;
                }
                fine
            };
            if fine {
                done.insert(at);
            }
        }
        done.len() == plan.steps.len()
    }

    /// Asks for something; whether that was begun, and whether it came to its end.
    fn call(
        &mut self,
        action: Action,
        path: String,
        resource_type: &str,
        course: &mut Course<'_>,
    ) -> (bool, bool) {
        let name = name_in_cases(path.rsplit('/').next().unwrap());
        let failing = !course.fails.is_empty();
        let key = (action, name);
        if failing && course.fails.contains(&key) && !course.begun.contains_key(&key) {
            // It fails before anybody is asked.
            return (false, false);
        }
        if failing {
            let silent = (course.silent)(action, resource_type);
            match course.begun.get_mut(&key).filter(|_| !silent) {
                Some(left) if *left > 0 => *left -= 1,
                None if silent && !course.idle.contains(&key.1) => {}
                _ => return (false, false),
            }
        }
        let resource_type = resource_type.to_owned();
        self.calls.push(Call {
            action,
            path,
            resource_type,
        });
        (true, !course.fails.contains(&key))
    }

    /// Names of resources of the outermost stack.
    pub fn names(&self) -> BTreeSet<&str> {
        let outermost = self.stacks.get("").into_iter().flatten();
        outermost.map(|((name, _), _)| name.as_str()).collect()
    }
}

/// What stays has what is new, as far as that is there, and no more what it does not require.
fn refresh_but(existing: &mut BTreeMap<Key, Existing>, plan: &Plan) {
    for (key, requires) in &plan.unchanged {
        let there =
            |(name, number): &(&String, &u32)| existing.contains_key(&((*name).clone(), **number));
        let now: BTreeMap<String, u32> = (requires.iter().filter(there))
            .map(|(name, number)| (name.clone(), *number))
            .collect();
        let kept = existing.get_mut(key).unwrap();
        kept.requires.retain(|name, _| requires.contains_key(name));
        kept.requires.extend(now);
    }
}

fn existing_of(want: &Wanted<'_>, step: &plan::Step, tree: Option<&Tree>, name: &str) -> Existing {
    Existing {
        resource_type: want.resource_type.to_owned(),
        properties: want.properties.clone().into_owned(),
        requires: step.requires.clone(),
        complete: true,
        retain: tree.is_some_and(|tree| retains(tree, name)),
    }
}

fn retains(tree: &Tree, name: &str) -> bool {
    tree.stack.resources[name].deletion_policy == "Retain"
}
