//! Parses, renders, expands, validates and plans templates. Lines of `%%%` separate the parts of the
//! input: the template, an environment, the file `inner.yaml`.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use engine::environment::Environment;
use engine::functions::Known;
use engine::render::{self, Input};
use engine::value::{Map, Value};
use engine::{cases, plan, tree, validate, yaml};
use libfuzzer_sys::fuzz_target;

/// Evaluates the tree with every resource ready at once.
fn flatten(input: &Input) {
    let mut resolve = |path: &str, _: &tree::Leaf| {
        Some(Known {
            refid: Value::from(path),
            attributes: Map::new(),
            open: true,
        })
    };
    let _ = tree::flatten(input, &mut resolve);
}

/// Checks that the steps of a plan are complete and ordered.
fn check_plan(stack: &render::Stack) {
    let wanted = plan::wanted(stack);
    let Ok(made) = plan::plan(&wanted, &stack.graph, &BTreeMap::new(), plan::change) else {
        return;
    };
    assert_eq!(made.steps.len(), wanted.len());
    let mut done = BTreeSet::new();
    for (at, step) in made.steps.iter().enumerate() {
        assert!(step.after.iter().all(|before| done.contains(before)));
        done.insert(at);
    }
}

fuzz_target!(|text: &str| {
    let mut parts = text.split("\n%%%\n");
    let Ok(template) = yaml::parse(parts.next().unwrap_or_default()) else {
        return;
    };
    let mut environment = Environment::default();
    if let Some(Ok(value)) = parts.next().map(yaml::parse) {
        let _ = environment.merge(&value);
    }
    let inner = parts.next().unwrap_or_default().to_owned();
    let files = [("inner.yaml".to_owned(), inner)].into_iter().collect();
    let input = Input {
        template: template.into(),
        files,
        environment,
        identity: cases::identity("fuzz"),
        ..Input::default()
    };
    let Ok(stack) = render::stack(&input) else {
        return;
    };
    if stack.order.is_ok() {
        check_plan(&stack);
    }
    let _ = serde_json::to_string(&stack);
    let _ = validate::report(&input);
    flatten(&input);
});
