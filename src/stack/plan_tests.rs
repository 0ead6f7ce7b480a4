#![allow(clippy::unwrap_used, reason = "tests")]
use proptest::prelude::*;

use super::*;
use crate::value::{Value, json};

type Stack = BTreeMap<String, Declared>;

/// A resource of a stack, as a template would have it.
#[derive(Debug, Clone)]
struct Declared {
    resource_type: &'static str,
    properties: Map,
    references: BTreeMap<String, BTreeSet<String>>,
    depends_on: BTreeSet<String>,
}

fn change(_: &str, property: &str) -> Change {
    match property {
        "in_place" => Change::InPlace,
        _ => Change::Replace,
    }
}

/// Up to eight resources; each may refer to any before it.
fn stacks() -> impl Strategy<Value = Stack> {
    prop::collection::vec(
        (
            any::<bool>(),
            0..3u8,
            0..3u8,
            any::<u8>(),
            any::<u8>(),
            any::<bool>(),
        ),
        0..8,
    )
    .prop_map(|rows| {
        let mut stack = Stack::new();
        for (at, (there, in_place, other, links, waits, by_replacement)) in
            rows.into_iter().enumerate()
        {
            if !there {
                continue;
            }
            let before = |bits: u8| -> BTreeSet<String> {
                let names = (0..at).filter(|b| bits >> b & 1 == 1);
                let names = names.map(|b| format!("r{b}"));
                names.filter(|name| stack.contains_key(name)).collect()
            };
            let names = before(links);
            let depends_on = before(waits);
            let property = if by_replacement { "link" } else { "in_place" };
            let properties = json!({"in_place": [in_place, names], "other": other});
            let references = BTreeMap::from([(property.to_owned(), names)]);
            let resource = Declared {
                resource_type: "T",
                properties: properties.as_object().unwrap().clone(),
                references,
                depends_on,
            };
            stack.insert(format!("r{at}"), resource);
        }
        stack
    })
}

impl Declared {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            resource_type: self.resource_type,
            properties: Cow::Borrowed(&self.properties),
            references: &self.references,
        }
    }
}

fn graph(stack: &Stack) -> Graph {
    let requires = |resource: &Declared| {
        let referred = resource.references.values().flatten();
        referred.chain(&resource.depends_on).cloned().collect()
    };
    Graph {
        requires: stack
            .iter()
            .map(|(name, resource)| (name.clone(), requires(resource)))
            .collect(),
    }
}

fn planned(stack: &Stack, existing: &BTreeMap<Key, Existing>) -> Plan {
    let resources = stack.iter();
    let wanted = resources.map(|(name, resource)| (name.clone(), resource.wanted()));
    plan(&wanted.collect(), &graph(stack), existing, change).unwrap()
}

/// Unchanged resources use new incarnations from now on.
fn refresh(existing: &mut BTreeMap<Key, Existing>, plan: &Plan) {
    for (key, requires) in &plan.unchanged {
        existing.get_mut(key).unwrap().requires.clone_from(requires);
    }
}

/// Acts the first `count` steps; `failed` leaves the last one half done.
fn act(
    stack: &Stack,
    existing: &mut BTreeMap<Key, Existing>,
    plan: &Plan,
    count: usize,
    failed: bool,
) {
    for (at, step) in plan.steps.iter().take(count).enumerate() {
        assert!(step.after.iter().all(|before| *before < at));
        let complete = !(failed && at + 1 == count);
        if matches!(step.action, Action::Delete | Action::Release) {
            refresh(existing, plan);
        }
        match step.action {
            Action::Delete | Action::Release => {
                let (name, number) = &step.key;
                let mut others = existing.iter().filter(|(key, _)| **key != step.key);
                assert!(
                    others.all(|(_, have)| have.requires.get(name) != Some(number)),
                    "what goes is in use"
                );
                if complete {
                    existing.remove(&step.key);
                }
            }
            Action::Create | Action::Update => {
                for (name, number) in &step.requires {
                    assert!(
                        existing.contains_key(&(name.clone(), *number)),
                        "a requirement is missing"
                    );
                }
                let want = &stack[&step.key.0];
                let made = Existing {
                    resource_type: want.resource_type.to_owned(),
                    properties: want.properties.clone(),
                    requires: step.requires.clone(),
                    complete,
                    retain: false,
                };
                existing.insert(step.key.clone(), made);
            }
            Action::Check | Action::Suspend | Action::Resume => unreachable!("not in a plan"),
        }
    }
    if count >= plan.steps.len() {
        refresh(existing, plan);
    }
}

fn finish(stack: &Stack, existing: &mut BTreeMap<Key, Existing>) {
    let plan = planned(stack, existing);
    act(stack, existing, &plan, usize::MAX, false);
}

fn end(existing: &BTreeMap<Key, Existing>) -> Vec<(&String, &Map, Vec<&String>)> {
    existing
        .iter()
        .map(|((name, _), have)| (name, &have.properties, have.requires.keys().collect()))
        .collect()
}

proptest! {
    #[test]
    fn planning_again_after_acting_yields_no_steps(first in stacks(), second in stacks()) {
        let mut existing = BTreeMap::new();
        finish(&first, &mut existing);
        prop_assert!(planned(&first, &existing).steps.is_empty());
        finish(&second, &mut existing);
        prop_assert!(planned(&second, &existing).steps.is_empty());
        prop_assert_eq!(existing.len(), second.len());
    }

    #[test]
    fn delete_is_create_in_reverse(stack in stacks()) {
        let mut existing = BTreeMap::new();
        finish(&stack, &mut existing);
        let delete = planned(&Stack::new(), &existing);
        let at: BTreeMap<_, _> = delete.steps.iter().enumerate().map(|(at, step)| (step.key.0.clone(), at)).collect();
        prop_assert_eq!(at.len(), stack.len());
        for (name, requires) in graph(&stack).requires {
            for required in requires {
                prop_assert!(delete.steps[at[&required]].after.contains(&at[&name]));
            }
        }
    }

    #[test]
    fn an_update_never_touches_what_is_unchanged(first in stacks(), second in stacks()) {
        let mut existing = BTreeMap::new();
        finish(&first, &mut existing);
        let update = planned(&second, &existing);
        for step in &update.steps {
            prop_assert!(!update.unchanged.contains_key(&step.key));
        }
    }

    #[test]
    fn an_interrupted_update_reaches_the_same_end(
        first in stacks(), second in stacks(), count in 0..20usize, failed: bool,
    ) {
        let mut straight = BTreeMap::new();
        finish(&first, &mut straight);
        let mut broken = straight.clone();
        finish(&second, &mut straight);
        let plan = planned(&second, &broken);
        act(&second, &mut broken, &plan, count, failed);
        finish(&second, &mut broken);
        prop_assert_eq!(end(&straight), end(&broken));
    }

    #[test]
    fn an_update_over_unfinished_updates_ends_with_what_it_wants(
        last: bool, stacks in prop::collection::vec((stacks(), 0..20usize, any::<bool>()), 1..5),
    ) {
        let mut existing = BTreeMap::new();
        for (stack, count, failed) in &stacks {
            let plan = planned(stack, &existing);
            act(stack, &mut existing, &plan, *count, *failed);
        }
        // On, or back to the first of them.
        let wanted = if last { stacks.last() } else { stacks.first() };
        let wanted = &wanted.unwrap().0;
        let mut straight = BTreeMap::new();
        finish(wanted, &mut straight);
        finish(wanted, &mut existing);
        prop_assert_eq!(end(&straight), end(&existing));
        finish(&Stack::new(), &mut existing);
        prop_assert!(existing.is_empty());
    }

    #[test]
    fn a_rollback_from_anywhere_restores_the_old_stack(
        first in stacks(), second in stacks(), count in 0..20usize, failed: bool,
    ) {
        let mut existing = BTreeMap::new();
        finish(&first, &mut existing);
        let before = existing.clone();
        let plan = planned(&second, &existing);
        act(&second, &mut existing, &plan, count, failed);
        finish(&first, &mut existing);
        prop_assert_eq!(end(&before), end(&existing));
    }
}

#[test]
fn a_replacement_is_created_before_the_old_one_is_deleted() {
    let wanted = |value: u8| {
        let properties = json!({"other": value}).as_object().unwrap().clone();
        Stack::from([(
            "a".into(),
            Declared {
                resource_type: "T",
                properties,
                references: BTreeMap::new(),
                depends_on: BTreeSet::new(),
            },
        )])
    };
    let mut existing = BTreeMap::new();
    finish(&wanted(1), &mut existing);
    let update = planned(&wanted(2), &existing);
    assert_eq!(update.steps[0].action, Action::Create);
    assert_eq!(update.steps[1].action, Action::Delete);
    assert_eq!(update.steps[1].after, BTreeSet::from([0]));
}

#[test]
fn every_type_handles_changes_as_its_table_says() {
    for resource_type in registry::names() {
        let found = registry::find(resource_type).unwrap();
        for (property, schema) in &found.properties {
            let stack = |value: &str| {
                let properties = json!({property: value}).as_object().unwrap().clone();
                let resource = Declared {
                    resource_type,
                    properties,
                    references: BTreeMap::new(),
                    depends_on: BTreeSet::new(),
                };
                Stack::from([("a".to_owned(), resource)])
            };
            let plan_of = |stack: &Stack, existing: &BTreeMap<Key, Existing>| {
                let wanted = BTreeMap::from([("a".to_owned(), stack["a"].wanted())]);
                plan(&wanted, &graph(stack), existing, super::change)
            };
            let (old, new) = (stack("old"), stack("new"));
            let mut existing = BTreeMap::new();
            let create = plan_of(&old, &existing).unwrap();
            act(&old, &mut existing, &create, usize::MAX, false);
            let Ok(update) = plan_of(&new, &existing) else {
                assert!(schema.immutable, "{resource_type}.{property}");
                continue;
            };
            let actions: Vec<Action> = update.steps.iter().map(|step| step.action).collect();
            // A server is replaced for other user data, unless its policy says otherwise.
            let anew = resource_type == "OS::Nova::Server" && property == "user_data";
            let wanted = if schema.update && !anew {
                vec![Action::Update]
            } else {
                vec![Action::Create, Action::Delete]
            };
            assert_eq!(actions, wanted, "{resource_type}.{property}");
            assert!(!schema.immutable, "{resource_type}.{property}");
        }
    }
}

#[test]
fn a_rollback_uses_a_replaced_resource_again_and_an_update_does_not() {
    let resource = |other: u8| Declared {
        resource_type: "T",
        properties: json!({"other": other}).as_object().unwrap().clone(),
        references: BTreeMap::new(),
        depends_on: BTreeSet::new(),
    };
    let (old, new) = (
        Stack::from([("r0".to_owned(), resource(1))]),
        Stack::from([("r0".to_owned(), resource(2))]),
    );
    let mut existing = BTreeMap::new();
    let first = planned(&old, &existing);
    act(&old, &mut existing, &first, 1, false);
    // The new one is made and fails; the old one is there yet.
    let update = planned(&new, &existing);
    act(&new, &mut existing, &update, 1, true);
    assert_eq!(existing.len(), 2);
    let wanted = old.iter().map(|(name, r)| (name.clone(), r.wanted()));
    let back = plan_rollback(&wanted.collect(), &graph(&old), &existing, change).unwrap();
    let steps: Vec<_> = back.steps.iter().map(|s| (s.action, s.key.1)).collect();
    assert_eq!(steps, [(Action::Delete, 2)]);
    assert!(back.unchanged.contains_key(&("r0".to_owned(), 1)));
    let again = planned(&old, &existing);
    let steps: Vec<_> = again.steps.iter().map(|s| (s.action, s.key.1)).collect();
    assert_eq!(
        steps,
        [
            (Action::Create, 3),
            (Action::Delete, 1),
            (Action::Delete, 2)
        ]
    );
}

#[test]
fn users_are_suspended_first_and_resumed_last() {
    let existing = |requires: &[&str]| Existing {
        resource_type: "T".to_owned(),
        properties: Map::new(),
        requires: requires
            .iter()
            .map(|name| ((*name).to_owned(), 1))
            .collect(),
        complete: true,
        retain: false,
    };
    let all = BTreeMap::from([
        (("net".to_owned(), 1), existing(&[])),
        (("port".to_owned(), 1), existing(&["net"])),
        (("srv".to_owned(), 1), existing(&["net", "port"])),
    ]);
    let order = |action| -> Vec<String> {
        let plan = plan_action(&all, action).unwrap();
        for (at, step) in plan.steps.iter().enumerate() {
            assert!(step.after.iter().all(|before| *before < at));
        }
        plan.steps.into_iter().map(|step| step.key.0).collect()
    };
    assert_eq!(order(Action::Suspend), ["srv", "port", "net"]);
    assert_eq!(order(Action::Resume), ["net", "port", "srv"]);
    assert_eq!(order(Action::Check), ["net", "port", "srv"]);
}

#[test]
fn update_policies_of_a_server_decide_about_replacements() {
    let replaces = |property: &str, properties: Value| {
        super::replaces(
            "OS::Nova::Server",
            property,
            properties.as_object().unwrap(),
        )
    };
    assert!(replaces("user_data", json!({})));
    assert!(!replaces(
        "user_data",
        json!({"user_data_update_policy": "IGNORE"})
    ));
    assert!(!replaces("flavor", json!({})));
    assert!(replaces(
        "flavor",
        json!({"flavor_update_policy": "REPLACE"})
    ));
    assert!(!replaces(
        "image",
        json!({"flavor_update_policy": "REPLACE"})
    ));
    assert!(!replaces(
        "metadata",
        json!({"image_update_policy": "REPLACE"})
    ));
}

/// Steps and kinds of change from one template to another of the same engine.
fn between(old: &str, new: &str) -> Vec<(Action, String)> {
    let rendered = |resources: &str| {
        let text = format!("heat_template_version: newton\nresources:\n{resources}");
        let input = super::super::render::Input {
            template: super::super::yaml::parse(&text).unwrap().into(),
            ..Default::default()
        };
        super::super::render::stack(&input).ok().unwrap()
    };
    let (old, new) = (rendered(old), rendered(new));
    let existing = |(name, want): (&String, &Wanted<'_>)| {
        let existing = Existing {
            resource_type: want.resource_type.to_owned(),
            properties: want.properties.clone().into_owned(),
            requires: BTreeMap::new(),
            complete: true,
            retain: false,
        };
        ((name.clone(), 1), existing)
    };
    let existing = wanted(&old).iter().map(existing).collect();
    let plan = plan(&wanted(&new), &new.graph, &existing, super::change).unwrap();
    let steps = plan.steps.into_iter();
    steps.map(|step| (step.action, step.key.0)).collect()
}

#[test]
fn an_explicit_default_is_no_change() {
    let subnet = |more: &str| {
        format!(
            "  s: {{type: 'OS::Neutron::Subnet', properties: {{network: n, cidr: 10.0.0.0/24{more}}}}}\n"
        )
    };
    assert!(between(&subnet(""), &subnet(", ip_version: 4")).is_empty());
    let replaced = between(&subnet(""), &subnet(", ip_version: 6"));
    assert_eq!(replaced.len(), 2);
}

#[test]
fn placeholder_types_never_change() {
    for resource_type in ["OS::Heat::None", "OS::Heat::HARestarter"] {
        let resource =
            |value: u8| format!("  r: {{type: '{resource_type}', properties: {{p: {value}}}}}\n");
        assert!(
            between(&resource(1), &resource(2)).is_empty(),
            "{resource_type}"
        );
    }
}
