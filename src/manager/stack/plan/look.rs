//! Outputs, previews and checks: nothing is touched.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::forward::Walk;
use super::leaf::{self, Progress};
use super::{Action, Entry, Key, Ledger, Pass, Problem, Reference, Sources, State};
use pileus_api::stack::{StackOutput, StackPreview};
use pileus_stack::graph::Graph;
use pileus_stack::kinds;
use pileus_stack::plan::{self as engine, Existing, Wanted};
use pileus_stack::tree::{self, Flat, Leaf};
use pileus_stack::value::{Map, Value};

/// Outputs as they are told.
pub(super) fn told(flat: &Flat) -> Vec<StackOutput> {
    let one = |(name, output): (&String, &pileus_stack::tree::Output)| {
        let mut told = StackOutput {
            name: name.clone(),
            description: (!output.description.is_empty()).then(|| output.description.clone()),
            ..StackOutput::default()
        };
        match &output.value {
            Ok(Value::Null) => {}
            Ok(value) => told.value = Some(value.clone().into()),
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
        let flat = match flat {
            Ok(flat) => flat,
            Err(error) => {
                self.plan.ledger.end(State::Failed, error.to_string());
                return;
            }
        };
        self.plan.outputs = Some(told(&flat));
        // What was never begun is not there.
        let missing = flat.leaves.keys().chain(&flat.unexpanded);
        let ledger = &self.plan.ledger;
        let missing = missing.filter(|path| {
            let made = ledger.incarnations(path).next().is_some();
            !(made || flat.unexpanded.contains(*path) && is_begun(ledger, path))
        });
        let mut wrong: Vec<String> = missing.cloned().collect();
        self.plan.secrets = flat.secrets;
        for (key, entry) in &mut self.plan.ledger.entries {
            if entry.external || entry.action == Action::Delete {
                continue;
            }
            if entry.objects.is_empty() && entry.state != State::Complete {
                // It was never made: that stays its failure.
                wrong.push(key.0.clone());
                continue;
            }
            let manifests = wanted.get(key).map(Vec::as_slice).unwrap_or_default();
            let found = fault(entry, manifests, &self.seen.objects);
            entry.again = matches!(found, Some(Fault::NotReady(_)));
            match found {
                Some(Fault::Wrong(why) | Fault::NotReady(why)) => {
                    wrong.push(key.0.clone());
                    entry.set(Action::Check, State::Failed, why, now);
                }
                None => entry.set(Action::Check, State::Complete, "", now),
            }
        }
        wrong.sort();
        wrong.dedup();
        let (state, reason) = if wrong.is_empty() {
            (
                State::Complete,
                "Stack CHECK completed successfully".to_owned(),
            )
        } else {
            let names = crate::list_names(wrong);
            (
                State::Failed,
                format!(
                    "not as they should be: {names}; set spec.healRequestedAt to have what is gone, \
                     changed or broken made anew"
                ),
            )
        };
        self.plan.ledger.end(state, reason);
    }

    /// What applying `sources` would do, as far as it can be known without doing it.
    pub(super) fn preview(&mut self, sources: &Sources) {
        let before = self.plan.ledger.clone();
        // What an update would begin with: what it makes anew and what it applies again.
        if before.action.is_some() {
            self.mark();
        }
        match Walk::new(self, true).walk(sources) {
            Ok(flat) => {
                self.plan.preview = Some(preview(self, &flat));
                self.plan.secrets = flat.secrets;
            }
            Err(error) => self.plan.problem = Some(Problem::template(&error)),
        }
        self.plan.ledger = before;
    }
}

/// What a check finds.
enum Fault {
    /// It is gone, has been changed, or says that nothing becomes of it.
    Wrong(String),
    /// It is not ready now: a Server that reboots, or whose host is not heard from.
    NotReady(String),
}

/// What is wrong with what an entry has made, if anything is.
fn fault(
    entry: &Entry,
    manifests: &[Value],
    objects: &BTreeMap<Reference, Value>,
) -> Option<Fault> {
    let mut found = None;
    for (index, object) in entry.objects.iter().enumerate() {
        let Some(live) = objects.get(object) else {
            let why = format!("{} {} is gone", object.kind, object.name);
            return Some(Fault::Wrong(why));
        };
        // Specs of other kinds are not kept as they were written: `1024Mi` becomes `1Gi`.
        let kept_as_written = object.api_version.starts_with(pileus_api::GROUP);
        if let Some(manifest) = manifests.get(index).filter(|_| kept_as_written)
            && let Some(field) = leaf::difference(&live["spec"], &manifest["spec"], "spec")
        {
            let (kind, name) = (&object.kind, &object.name);
            let why = format!("{kind} {name}: {field} has been changed");
            return Some(Fault::Wrong(why));
        }
        match leaf::progress(live, None) {
            Progress::Ready => {}
            Progress::Pending(why) => found = Some(Fault::NotReady(why)),
            Progress::Failed(why) => found = Some(Fault::Wrong(why)),
        }
    }
    found
}

/// Whether something was begun inside of what holds a stack.
fn is_begun(ledger: &Ledger, holder: &str) -> bool {
    let prefix = format!("{holder}{}", tree::SEPARATOR);
    let mut entries = ledger.entries.keys();
    entries.any(|(path, _)| path.starts_with(&prefix))
}

fn preview(pass: &Pass<'_>, flat: &Flat) -> StackPreview {
    let ledger = &pass.plan.ledger;
    let texts = |digests: &BTreeMap<String, String>| -> Map {
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
            properties: Cow::Owned(texts(&leaf::digests(leaf, &properties, &ledger.seed, None))),
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
    let in_full = |entry: &Entry| -> BTreeMap<String, u32> {
        let inside = |holder: &str| {
            let keys = ledger.entries.keys();
            let inside = keys.filter(|(path, _)| path.starts_with(holder));
            inside.cloned().collect()
        };
        let each = entry.requires.iter().flat_map(|(name, number)| {
            if name.ends_with(tree::SEPARATOR) {
                inside(name)
            } else {
                vec![(name.clone(), *number)]
            }
        });
        each.collect()
    };
    let existing = ledger.entries.iter().map(|(key, entry)| {
        let existing = Existing {
            kind: entry.kind.clone(),
            properties: texts(&entry.properties),
            requires: in_full(entry),
            complete: super::decide::is_usable(entry, &entry.kind),
            retain: entry.retain,
        };
        (key.clone(), existing)
    });
    let existing: BTreeMap<_, _> = existing.collect();
    let mut preview = StackPreview::default();
    // As `decide`: what is there yet and is what is wanted is taken back.
    let Ok(plan) = engine::plan_back(&wanted, &graph, &existing, kinds::change) else {
        return preview;
    };
    let again = |key: &&Key| ledger.entries.get(*key).is_some_and(|entry| entry.again);
    let again: Vec<&Key> = plan.unchanged.keys().filter(again).collect();
    preview.unchanged = i64::try_from(plan.unchanged.len() - again.len()).unwrap_or(i64::MAX);
    let again = again.into_iter().map(|(path, _)| format!("{path} (again)"));
    preview.updated.extend(again);
    for step in plan.steps {
        let path = step.key.0;
        let is_new = existing.keys().all(|(other, _)| *other != path);
        match step.action {
            engine::Action::Create if is_new => preview.added.push(path),
            engine::Action::Create => preview.replaced.push(path),
            engine::Action::Update => {
                let changed = step.changed.iter();
                let changed: Vec<&str> = changed.map(|name| name.trim_start_matches('@')).collect();
                preview
                    .updated
                    .push(format!("{path} ({})", changed.join(", ")));
            }
            engine::Action::Delete | engine::Action::Release => {
                if !wanted.contains_key(&path) {
                    preview.deleted.push(path);
                }
            }
            engine::Action::Check | engine::Action::Suspend | engine::Action::Resume => {}
        }
    }
    // What holds a stack is looked into once what it is made from is known.
    let later = flat.unexpanded.iter();
    preview.added.extend(later.map(|path| format!("{path}/…")));
    preview
}
