//! Stacks that live by their plans: what a plan says is taken as done, step by step, and what
//! must hold at every moment is checked.

use std::collections::{BTreeMap, BTreeSet};

use pileus::stack::expand::Tree;
use pileus::stack::graph::Graph;
use pileus::stack::plan::{self, Action, Existing, Key, Plan, Wanted};

/// What was done to a resource that holds no stack of its own.
#[derive(Debug, Clone)]
pub struct Call {
    pub action: Action,
    /// Names from the outermost stack on; of a stack inside with its incarnation.
    pub path: String,
    pub kind: String,
}

/// What exists, by the path of its stack; the outermost has none.
#[derive(Debug, Clone, Default)]
pub struct World {
    pub stacks: BTreeMap<String, BTreeMap<Key, Existing>>,
    pub calls: Vec<Call>,
}

fn planned(
    wanted: &BTreeMap<String, Wanted<'_>>,
    tree: Option<&Tree>,
    existing: &BTreeMap<Key, Existing>,
) -> Plan {
    let graph = tree.map_or_else(Graph::default, |tree| tree.stack.graph.clone());
    plan::plan(wanted, &graph, existing, plan::change).unwrap()
}

/// What stays has what is new from now on.
fn refresh(existing: &mut BTreeMap<Key, Existing>, plan: &Plan) {
    for (name, requires) in &plan.unchanged {
        let mut own = existing.iter_mut().rev();
        let (_, have) = own.find(|(key, _)| key.0 == *name).unwrap();
        have.requires.clone_from(requires);
    }
}

impl World {
    /// Makes the stack at `path` what `tree` wants, and nothing without one.
    pub fn become_like(&mut self, path: &str, tree: Option<&Tree>) {
        let mut existing = self.stacks.remove(path).unwrap_or_default();
        let wanted = tree.map_or_else(BTreeMap::new, |tree| plan::wanted(&tree.stack));
        let plan = planned(&wanted, tree, &existing);
        for (at, step) in plan.steps.iter().enumerate() {
            assert!(step.after.iter().all(|before| *before < at), "{path}");
            let (name, number) = &step.key;
            let (leaf, inside) = (format!("{path}/{name}"), format!("{path}/{name}#{number}"));
            let nested = tree.and_then(|tree| tree.nested.get(name));
            match step.action {
                Action::Create | Action::Update => {
                    for required in &step.requires {
                        let key = (required.0.clone(), *required.1);
                        assert!(existing.contains_key(&key), "{leaf} before {key:?}");
                    }
                    let want = &wanted[name];
                    match nested {
                        Some(nested) => self.become_like(&inside, Some(nested)),
                        None => self.call(step.action, leaf, want.kind),
                    }
                    let made = Existing {
                        kind: want.kind.to_owned(),
                        properties: want.properties.clone().into_owned(),
                        requires: step.requires.clone(),
                        complete: true,
                        retain: tree.is_some_and(|tree| {
                            tree.stack.resources[name].deletion_policy == "Retain"
                        }),
                    };
                    existing.insert(step.key.clone(), made);
                }
                Action::Delete | Action::Release => {
                    refresh(&mut existing, &plan);
                    let gone = existing.remove(&step.key).unwrap();
                    let users = existing.values();
                    let mut users = users.map(|user| user.requires.get(name));
                    assert!(users.all(|used| used != Some(number)), "{leaf} is in use");
                    if step.action == Action::Release {
                        self.stacks.remove(&inside);
                    } else if self.stacks.contains_key(&inside) {
                        self.become_like(&inside, None);
                    } else {
                        self.call(Action::Delete, leaf, &gone.kind);
                    }
                }
            }
        }
        refresh(&mut existing, &plan);
        // What is inside decides for itself.
        for name in plan.unchanged.keys() {
            let number = existing.keys().rev().find(|key| key.0 == *name).unwrap().1;
            if let Some(nested) = tree.and_then(|tree| tree.nested.get(name)) {
                self.become_like(&format!("{path}/{name}#{number}"), Some(nested));
            }
        }
        let again = planned(&wanted, tree, &existing);
        assert!(again.steps.is_empty(), "{path}: {:?}", again.steps);
        if tree.is_some() {
            self.stacks.insert(path.to_owned(), existing);
        }
    }

    fn call(&mut self, action: Action, path: String, kind: &str) {
        let kind = kind.to_owned();
        self.calls.push(Call { action, path, kind });
    }

    /// Names of resources of the outermost stack.
    pub fn names(&self) -> BTreeSet<&str> {
        let outermost = self.stacks.get("").into_iter().flatten();
        outermost.map(|((name, _), _)| name.as_str()).collect()
    }
}
