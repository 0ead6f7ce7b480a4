//! Outputs, previews and checks: nothing is touched.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::forward::Walk;
use super::leaf::{self, Progress};
use super::{Action, Pass, Problem, Sources, State};
use crate::api::stack::{StackOutput, StackPreview};
use crate::stack::graph::Graph;
use crate::stack::kinds;
use crate::stack::plan::{self as engine, Existing, Wanted};
use crate::stack::tree::{Flat, Leaf};

/// Outputs as they are told.
pub(super) fn told(flat: &Flat) -> Vec<StackOutput> {
    let one = |(name, output): (&String, &crate::stack::tree::Output)| {
        let mut told = StackOutput {
            name: name.clone(),
            description: (!output.description.is_empty()).then(|| output.description.clone()),
            ..StackOutput::default()
        };
        match &output.value {
            Ok(Value::Null) => {}
            Ok(value) => told.value = Some(value.clone()),
            Err(error) => told.error = Some(flat.masked(&error.to_string())),
        }
        told
    };
    flat.outputs.iter().map(one).collect()
}

impl Pass<'_> {
    /// Outputs by what exists now.
    pub(super) fn outputs(&mut self, goal: &Sources) {
        let flat = Walk::new(self, true).walk(goal);
        match flat {
            Ok(flat) => {
                self.plan.outputs = Some(told(&flat));
                self.plan.secrets = flat.secrets;
            }
            Err(error) => self.plan.problem = Some(Problem::template(&error)),
        }
    }

    /// Looks at every resource, and ends the action.
    pub(super) fn check(&mut self, goal: &Sources) {
        let now = self.seen.now;
        let mut walk = Walk::new(self, true);
        let flat = walk.walk(goal);
        let wanted = std::mem::take(&mut walk.wanted);
        if let Ok(flat) = flat {
            self.plan.outputs = Some(told(&flat));
            self.plan.secrets = flat.secrets;
        }
        let mut wrong = Vec::new();
        for (key, entry) in &mut self.plan.ledger.entries {
            if entry.external || entry.action == Action::Delete {
                continue;
            }
            let mut found = None;
            for (index, object) in entry.objects.iter().enumerate() {
                let Some(live) = self.seen.objects.get(object) else {
                    found = Some(format!("{} {} is gone", object.kind, object.name));
                    break;
                };
                if let Some(manifest) = wanted.get(key).and_then(|objects| objects.get(index))
                    && let Some(field) = leaf::difference(&live["spec"], &manifest["spec"], "spec")
                {
                    found = Some(format!(
                        "{} {}: {field} has been changed",
                        object.kind, object.name
                    ));
                    break;
                }
                if let Progress::Failed(why) | Progress::Pending(why) = leaf::progress(live, None) {
                    found = Some(why);
                }
            }
            match found {
                Some(why) => {
                    wrong.push(key.0.clone());
                    entry.set(Action::Check, State::Failed, why, now);
                }
                None => entry.set(Action::Check, State::Complete, "", now),
            }
        }
        let (state, reason) = if wrong.is_empty() {
            (
                State::Complete,
                "Stack CHECK completed successfully".to_owned(),
            )
        } else {
            let names = crate::controllers::name_some(wrong);
            (
                State::Failed,
                format!(
                    "not as they should be: {names}; set spec.healRequestedAt to have them made anew"
                ),
            )
        };
        self.plan.ledger.end(state, reason);
    }

    /// What applying `sources` would do, as far as it can be known without doing it.
    pub(super) fn preview(&mut self, sources: &Sources) {
        let flat = match Walk::new(self, true).walk(sources) {
            Ok(flat) => flat,
            Err(error) => {
                self.plan.problem = Some(Problem::template(&error));
                return;
            }
        };
        self.plan.preview = Some(preview(self, &flat));
        self.plan.secrets = flat.secrets;
    }
}

fn preview(pass: &Pass<'_>, flat: &Flat) -> StackPreview {
    let ledger = &pass.plan.ledger;
    let texts = |digests: &BTreeMap<String, String>| -> Map<String, Value> {
        let texts = digests.iter().filter(|(name, _)| *name != kinds::IDENTITY);
        texts
            .map(|(name, text)| (name.clone(), Value::from(text.clone())))
            .collect()
    };
    let mut wanted: BTreeMap<String, Wanted<'_>> = BTreeMap::new();
    for (path, leaf) in &flat.leaves {
        let properties = leaf.properties.clone().unwrap_or_default();
        let want = Wanted {
            kind: &leaf.kind,
            properties: Cow::Owned(texts(&leaf::digests(&properties, &ledger.seed, None))),
            references: &leaf.references,
        };
        wanted.insert(path.clone(), want);
    }
    let requires = |leaf: &Leaf| -> BTreeSet<String> {
        let there = leaf
            .requires
            .iter()
            .filter(|path| flat.leaves.contains_key(*path));
        there.cloned().collect()
    };
    let graph = Graph {
        requires: flat
            .leaves
            .iter()
            .map(|(path, leaf)| (path.clone(), requires(leaf)))
            .collect(),
    };
    let existing = ledger.entries.iter().map(|(key, entry)| {
        let existing = Existing {
            kind: entry.kind.clone(),
            properties: texts(&entry.properties),
            requires: entry.requires.clone(),
            complete: entry.state != State::Failed,
            retain: entry.retain,
        };
        (key.clone(), existing)
    });
    let existing: BTreeMap<_, _> = existing.collect();
    let mut preview = StackPreview::default();
    let Ok(plan) = engine::plan(&wanted, &graph, &existing, kinds::change) else {
        return preview;
    };
    preview.unchanged = i64::try_from(plan.unchanged.len()).unwrap_or(i64::MAX);
    for step in plan.steps {
        let path = step.key.0;
        let is_new = existing.keys().all(|(other, _)| *other != path);
        match step.action {
            engine::Action::Create if is_new => preview.added.push(path),
            engine::Action::Create => preview.replaced.push(path),
            engine::Action::Update => {
                let changed: Vec<String> = step.changed.into_iter().collect();
                preview
                    .updated
                    .push(format!("{path} ({})", changed.join(", ")));
            }
            engine::Action::Delete | engine::Action::Release => {
                if !wanted.contains_key(&path) {
                    preview.deleted.push(path);
                }
            }
        }
    }
    // What holds a stack is looked into once what it is made from is known.
    let later = flat.unexpanded.iter();
    preview.added.extend(later.map(|path| format!("{path}/…")));
    preview
}
