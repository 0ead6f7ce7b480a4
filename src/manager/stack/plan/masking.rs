//! Finds hidden values, and masks them in everything that a plan reports.
//!
//! Hidden values are searched for in the sources of the Stack, not in an evaluated template,
//! because errors of a template that cannot be evaluated may contain hidden values, too. Messages
//! are masked before the record is written: they stay there after the hidden value has changed.

use std::collections::BTreeSet;

use super::{Observed, Plan, Problem, Sources};
use pileus_api::Reason;
use pileus_stack::environment::Environment;
use pileus_stack::masking::{add_text, add_texts, mask, mask_text};
use pileus_stack::value::Value;
use pileus_stack::yaml;

/// Sections of an environment with values of parameters.
const PARAMETER_SECTIONS: [&str; 2] = ["parameters", "parameter_defaults"];
/// Shorter parts of a Secret's text are not masked, because messages contain the same words. Values
/// of parameters and the whole text of a Secret are always masked.
const MIN_MASKED_LENGTH: usize = 6;

/// Finds secrets, and masks them in everything that the plan reports.
pub(super) fn mask_secrets(observed: &Observed<'_>, plan: &mut Plan) {
    let given = observed.sources.as_ref().ok();
    for sources in given.into_iter().chain(observed.stored.values()) {
        add_secrets(sources, &mut plan.secrets);
    }
    if let (Some(problem), Some(sources)) = (&mut plan.problem, given) {
        hide_template_text(problem, sources);
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

/// A message with every secret masked.
pub(super) fn mask_message(observed: &Observed<'_>, text: &str) -> String {
    let mut found = BTreeSet::new();
    if let Ok(sources) = &observed.sources {
        add_secrets(sources, &mut found);
    }
    mask_text(text, &found)
}

/// Replaces the message of an error in a template from a Secret: it may quote the template.
fn hide_template_text(problem: &mut Problem, sources: &Sources) {
    if sources.hidden.template && problem.reason == Reason::InvalidTemplate {
        "the template is wrong; it comes from a Secret, so the error is not shown here: run \
         `pileus stack validate` to see it"
            .clone_into(&mut problem.message);
    }
}

/// All environments, merged. The error of one that comes from a Secret does not quote it.
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
                "is not a valid environment; it comes from a Secret, so the error is not shown",
            )
        })
    })
}

/// Names of the parameters whose values come from an environment in a Secret.
pub(super) fn parameters_from_secrets(sources: &Sources) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for at in &sources.hidden.environments {
        let text = sources.environments.get(*at).map_or("", String::as_str);
        let value = yaml::parse(text).unwrap_or_default();
        let sections = PARAMETER_SECTIONS
            .iter()
            .filter_map(|section| value[section].as_object());
        names.extend(sections.flat_map(|section| section.keys().map(ToString::to_string)));
    }
    names
}

/// Adds every secret text of `sources`.
fn add_secrets(sources: &Sources, found: &mut BTreeSet<String>) {
    let mut names = sources.secret.clone();
    names.extend(parameters_from_secrets(sources));
    let templates = sources.files.values().chain([&sources.template]);
    for text in templates {
        add_hidden_parameters(text, &mut names, found);
    }
    for (name, value) in &sources.parameters {
        if names.contains(name.as_str()) {
            add_parameter_value(value, found);
        }
    }
    for (at, text) in sources.environments.iter().enumerate() {
        if sources.hidden.environments.contains(&at) {
            // Names in environments are public: every environment has the same sections.
            add_document(text, false, found);
        }
        if names.is_empty() {
            continue;
        }
        let value = yaml::parse(text).unwrap_or_default();
        let sections = PARAMETER_SECTIONS
            .iter()
            .filter_map(|section| value[section].as_object());
        for (name, value) in sections.flatten() {
            if names.contains(name.as_str()) {
                add_parameter_value(value, found);
            }
        }
    }
    for name in &sources.hidden.files {
        if let Some(text) = sources.files.get(name) {
            add_document(text, !is_template(text), found);
        }
    }
    if sources.hidden.template {
        add_document(&sources.template, !is_template(&sources.template), found);
    }
}

/// Adds names and defaults of the parameters that a template calls hidden.
fn add_hidden_parameters(text: &str, names: &mut BTreeSet<String>, found: &mut BTreeSet<String>) {
    // Most templates have none, and need not be parsed.
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
                add_parameter_value(&schema[default], found);
            }
        }
    }
}

/// Adds a parameter's value: as given, and as its type may convert it.
fn add_parameter_value(value: &Value, found: &mut BTreeSet<String>) {
    add_texts(value, found);
    let Value::String(text) = value else { return };
    if let Ok(value @ (Value::Array(_) | Value::Object(_))) = serde_json::from_str(text) {
        add_texts(&value, found);
    }
    let parts = text.split(',').filter(|part| part.len() != text.len());
    parts.for_each(|part| add_text(part, found));
}

fn is_template(text: &str) -> bool {
    let value = yaml::parse(text).unwrap_or_default();
    ["heat_template_version", "AWSTemplateFormatVersion"]
        .iter()
        .any(|key| value.get(key).is_some())
}

/// Adds the whole text of a Secret and its parts: for YAML or JSON the values in it, and the names
/// if `with_names`; otherwise its lines.
fn add_document(text: &str, with_names: bool, found: &mut BTreeSet<String>) {
    add_text(text, found);
    let mut own = BTreeSet::new();
    match yaml::parse(text) {
        Ok(value @ (Value::Object(_) | Value::Array(_))) => {
            add_values(&value, with_names, &mut own);
        }
        _ => text.lines().for_each(|line| add_text(line, &mut own)),
    }
    found.extend(
        own.into_iter()
            .filter(|part| part.len() >= MIN_MASKED_LENGTH),
    );
}

/// Adds the texts and numbers in `value`, and the names if `with_names`. Without names it is a
/// template or an environment, whose types, versions and descriptions are no secrets.
fn add_values(value: &Value, with_names: bool, found: &mut BTreeSet<String>) {
    const PUBLIC_KEYS: [&str; 8] = [
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
                    add_text(name, found);
                } else if PUBLIC_KEYS.contains(&name.as_str()) && value.is_string() {
                    continue;
                }
                add_values(value, with_names, found);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| add_values(item, with_names, found)),
        plain => add_texts(plain, found),
    }
}
