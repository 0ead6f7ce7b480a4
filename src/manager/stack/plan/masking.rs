//! What must never be shown, and that nothing which a pass says holds it.
//!
//! Texts are found in what the Stack is made from, not in a finished look at it: a template
//! that cannot be evaluated tells of hidden values too. They are masked when they are noted,
//! since what is noted in the record is told long after the value that it names has changed.

use std::collections::BTreeSet;

use super::{Plan, Problem, Observed, Sources};
use pileus_api::Reason;
use pileus_stack::environment::Environment;
use pileus_stack::hide::{mask, mask_text, note, texts};
use pileus_stack::value::Value;
use pileus_stack::yaml;

/// Sections of an environment that give parameters their values.
const GIVEN: [&str; 2] = ["parameters", "parameter_defaults"];
/// Shorter words of a Secret that is no parameter are not masked: they are words of messages,
/// too. Its whole text always is.
const SHORTEST_WORD: usize = 6;

/// Finds what is secret, and masks it in everything that the pass says.
pub(super) fn conceal(observed: &Observed<'_>, plan: &mut Plan) {
    let given = observed.sources.as_ref().ok();
    for sources in given.into_iter().chain(observed.stored.values()) {
        secrets(sources, &mut plan.secrets);
    }
    if let (Some(problem), Some(sources)) = (&mut plan.problem, given) {
        without_words(problem, sources);
    }
    let secrets = &plan.secrets;
    if secrets.is_empty() {
        return;
    }
    let hide = |text: &mut String| {
        if !text.is_empty() {
            *text = mask_text(text, secrets);
        }
    };
    for entry in plan.record.entries.values_mut() {
        hide(&mut entry.reason);
    }
    hide(&mut plan.record.reason);
    plan.notes.iter_mut().for_each(hide);
    if let Some(problem) = &mut plan.problem {
        hide(&mut problem.message);
    }
    for output in plan.outputs.iter_mut().flatten() {
        if let Some(value) = &mut output.value {
            let mut own = Value::from(value.take());
            mask(&mut own, secrets);
            *value = own.into();
        }
        if let Some(error) = &mut output.error {
            hide(error);
        }
    }
}

/// The text without anything that is secret.
pub(super) fn masked(observed: &Observed<'_>, text: &str) -> String {
    let mut found = BTreeSet::new();
    if let Ok(sources) = &observed.sources {
        secrets(sources, &mut found);
    }
    mask_text(text, &found)
}

/// What is wrong with a template that came from a Secret is told without its words.
fn without_words(problem: &mut Problem, sources: &Sources) {
    if sources.hidden.template && problem.reason == Reason::InvalidTemplate {
        "the template is wrong; it comes from a Secret, so its words are not shown here: \
         `pileus stack validate` says more of it"
            .clone_into(&mut problem.message);
    }
}

/// The environments together. What is wrong with one that came from a Secret is told without
/// its words.
pub(super) fn environment(sources: &Sources) -> pileus_stack::Result<Environment> {
    let all = sources.environments.iter().map(String::as_str);
    Environment::parse(all).map_err(|error| {
        let mut hidden = sources.hidden.environments.iter();
        let wrong = hidden.find(|at| {
            let text = sources.environments.get(**at).map(String::as_str);
            Environment::parse(text).is_err()
        });
        wrong.map_or(error, |at| {
            pileus_stack::Error::at(
                format!("environments[{at}]"),
                "is no environment; it comes from a Secret, so its words are not shown",
            )
        })
    })
}

/// Names of the parameters whose values come from an environment in a Secret.
pub(super) fn named_by_secrets(sources: &Sources) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for at in &sources.hidden.environments {
        let text = sources.environments.get(*at).map_or("", String::as_str);
        let value = yaml::parse(text).unwrap_or_default();
        let sections = GIVEN
            .iter()
            .filter_map(|section| value[section].as_object());
        names.extend(sections.flat_map(|section| section.keys().map(ToString::to_string)));
    }
    names
}

/// Adds every text of `sources` that is secret.
fn secrets(sources: &Sources, found: &mut BTreeSet<String>) {
    let mut names = sources.secret.clone();
    names.extend(named_by_secrets(sources));
    let templates = sources.files.values().chain([&sources.template]);
    for text in templates {
        hidden_parameters(text, &mut names, found);
    }
    for (name, value) in &sources.parameters {
        if names.contains(name.as_str()) {
            given(value, found);
        }
    }
    for (at, text) in sources.environments.iter().enumerate() {
        if sources.hidden.environments.contains(&at) {
            // Its sections have the names that every environment has.
            words(text, false, found);
        }
        if names.is_empty() {
            continue;
        }
        let value = yaml::parse(text).unwrap_or_default();
        let sections = GIVEN
            .iter()
            .filter_map(|section| value[section].as_object());
        for (name, value) in sections.flatten() {
            if names.contains(name.as_str()) {
                given(value, found);
            }
        }
    }
    for name in &sources.hidden.files {
        if let Some(text) = sources.files.get(name) {
            words(text, !is_template(text), found);
        }
    }
    if sources.hidden.template {
        words(&sources.template, !is_template(&sources.template), found);
    }
}

/// Adds names and defaults of the parameters that a template says are hidden.
fn hidden_parameters(text: &str, names: &mut BTreeSet<String>, found: &mut BTreeSet<String>) {
    // Most have none, and need not be read for it.
    if !text.contains("hidden") && !text.contains("NoEcho") {
        return;
    }
    let template = yaml::parse(text).unwrap_or_default();
    let sections = [
        ("parameters", "hidden", "default"),
        ("Parameters", "NoEcho", "Default"),
    ];
    for (section, hidden, default) in sections {
        for (name, schema) in template[section].as_object().into_iter().flatten() {
            let is_hidden = pileus_stack::parameters::boolean(&schema[hidden]);
            if is_hidden == Some(true) {
                names.insert(name.to_string());
                given(&schema[default], found);
            }
        }
    }
}

/// Adds a parameter's value, as it was given and as its type may take it.
fn given(value: &Value, found: &mut BTreeSet<String>) {
    texts(value, found);
    let Value::String(text) = value else { return };
    if let Ok(value @ (Value::Array(_) | Value::Object(_))) = serde_json::from_str(text) {
        texts(&value, found);
    }
    let parts = text.split(',').filter(|part| part.len() != text.len());
    parts.for_each(|part| note(part, found));
}

fn is_template(text: &str) -> bool {
    let value = yaml::parse(text).unwrap_or_default();
    ["heat_template_version", "AWSTemplateFormatVersion"]
        .iter()
        .any(|key| value.get(key).is_some())
}

/// Adds the text of a Secret, and its words: the values in it where it is YAML or JSON, and
/// the names too when `with_names`; otherwise its lines.
fn words(text: &str, with_names: bool, found: &mut BTreeSet<String>) {
    note(text, found);
    let mut own = BTreeSet::new();
    match yaml::parse(text) {
        Ok(value @ (Value::Object(_) | Value::Array(_))) => leaves(&value, with_names, &mut own),
        _ => text.lines().for_each(|line| note(line, &mut own)),
    }
    found.extend(own.into_iter().filter(|word| word.len() >= SHORTEST_WORD));
}

/// Adds the texts and numbers in `value`, and the names too when `with_names`. Types of
/// resources and parameters, versions and descriptions are a template's, and no secret.
fn leaves(value: &Value, with_names: bool, found: &mut BTreeSet<String>) {
    const PLAIN: [&str; 8] = [
        "type",
        "Type",
        "description",
        "Description",
        "heat_template_version",
        "AWSTemplateFormatVersion",
        "get_param",
        "get_resource",
    ];
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if with_names {
                    note(name, found);
                } else if PLAIN.contains(&name.as_str()) && value.is_string() {
                    continue;
                }
                leaves(value, with_names, found);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| leaves(item, with_names, found)),
        plain => texts(plain, found),
    }
}
