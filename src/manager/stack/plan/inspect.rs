//! Outputs, previews and checks, which change nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::forward::Walk;
use super::resource_state::{self, Progress};
use super::{Action, Entry, Key, Pass, Problem, Reference, Sources, StackRecord, State};
use pileus_api::stack::{StackOutput, StackPreview};
use pileus_stack::graph::Graph;
use pileus_stack::plan::{self as engine, Existing, Wanted};
use pileus_stack::resource_types;
use pileus_stack::tree::{self, Flat, Leaf};
use pileus_stack::value::{Map, Value};

/// Outputs as the status reports them.
pub(super) fn outputs(flat: &Flat) -> Vec<StackOutput> {
    let one = |(name, output): (&String, &pileus_stack::tree::Output)| {
        let mut reported = StackOutput {
            name: name.clone(),
            description: (!output.description.is_empty()).then(|| output.description.clone()),
            ..StackOutput::default()
        };
        match &output.value {
            Ok(Value::Null) => {}
            Ok(value) => reported.value = Some(value.clone().into()),
            Err(error) => reported.error = Some(flat.masked(&error.to_string())),
        }
        reported
    };
    flat.outputs.iter().map(one).collect()
}

impl Pass<'_> {
    /// Sets the outputs, evaluated with the existing objects.
    pub(super) fn set_outputs(&mut self, target: &Sources) {
        let flat = Walk::new(self, true).walk(target);
        match flat {
            Ok(flat) => {
                self.plan.outputs = Some(outputs(&flat));
                self.plan.secrets = flat.secrets;
            }
            Err(error) => self.plan.problem = Some(Problem::template(&error)),
        }
    }

    /// Compares every resource with the template, and ends the action.
    pub(super) fn check(&mut self, target: &Sources) {
        let now = self.observed.now;
        let mut walk = Walk::new(self, true);
        let flat = walk.walk(target);
        let wanted = std::mem::take(&mut walk.manifests);
        let flat = match flat {
            Ok(flat) => flat,
            Err(error) => {
                self.plan.record.end(State::Failed, error.to_string());
                return;
            }
        };
        self.plan.outputs = Some(outputs(&flat));
        // Resources that were never started are missing, too.
        let missing = flat.leaves.keys().chain(&flat.unexpanded);
        let record = &self.plan.record;
        let missing = missing.filter(|path| {
            let made = record.incarnations(path).next().is_some();
            !(made || flat.unexpanded.contains(*path) && has_started(record, path))
        });
        let mut wrong: Vec<String> = missing.cloned().collect();
        self.plan.secrets = flat.secrets;
        for (key, entry) in &mut self.plan.record.entries {
            if entry.external || entry.action == Action::Delete {
                continue;
            }
            if entry.objects.is_empty() && entry.state != State::Complete {
                // It was never created, and keeps the reason of that failure.
                wrong.push(key.0.clone());
                continue;
            }
            let manifests = wanted.get(key).map(Vec::as_slice).unwrap_or_default();
            let failure = check_objects(entry, manifests, &self.observed.objects);
            entry.reapply = matches!(failure, Some(CheckFailure::NotReady(_)));
            match failure {
                Some(CheckFailure::Differs(why) | CheckFailure::NotReady(why)) => {
                    wrong.push(key.0.clone());
                    entry.set_state(Action::Check, State::Failed, why, now);
                }
                None => entry.set_state(Action::Check, State::Complete, "", now),
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
            let names = crate::list_some(wrong);
            (
                State::Failed,
                format!(
                    "not as the template says: {names}; set spec.healRequestedAt to replace what is \
                     missing, changed or broken"
                ),
            )
        };
        self.plan.record.end(state, reason);
    }

    /// What applying `sources` would do, as far as that is known before.
    pub(super) fn preview(&mut self, sources: &Sources) {
        let before = self.plan.record.clone();
        // As an update does when it begins.
        if before.action.is_some() {
            self.mark_for_replacement();
        }
        match Walk::new(self, true).walk(sources) {
            Ok(flat) => {
                self.plan.preview = Some(preview(self, &flat));
                self.plan.secrets = flat.secrets;
            }
            Err(error) => self.plan.problem = Some(Problem::template(&error)),
        }
        self.plan.record = before;
    }
}

/// Why a check of a resource fails.
enum CheckFailure {
    /// An object is missing, has been changed, or is stalled.
    Differs(String),
    /// An object is not ready now: a Server that reboots, or whose host does not report.
    NotReady(String),
}

/// Compares the objects of an entry with their manifests; `None` if they are as they should be.
fn check_objects(
    entry: &Entry,
    manifests: &[Value],
    objects: &BTreeMap<Reference, Value>,
) -> Option<CheckFailure> {
    let mut failure = None;
    for (index, object) in entry.objects.iter().enumerate() {
        let Some(live) = objects.get(object) else {
            let why = format!("{} {} is missing", object.kind, object.name);
            return Some(CheckFailure::Differs(why));
        };
        // The API server may normalize specs of other kinds: `1024Mi` becomes `1Gi`.
        let is_verbatim = object.api_version.starts_with(pileus_api::GROUP);
        if let Some(manifest) = manifests.get(index).filter(|_| is_verbatim)
            && let Some(field) =
                resource_state::difference(&live["spec"], &manifest["spec"], "spec")
        {
            let (kind, name) = (&object.kind, &object.name);
            let why = format!("{kind} {name}: {field} has been changed");
            return Some(CheckFailure::Differs(why));
        }
        match resource_state::progress(live, None) {
            Progress::Ready => {}
            Progress::Pending(why) => failure = Some(CheckFailure::NotReady(why)),
            Progress::Failed(why) => failure = Some(CheckFailure::Differs(why)),
        }
    }
    failure
}

/// Whether any resource inside of a nested stack or group was started.
fn has_started(record: &StackRecord, holder: &str) -> bool {
    let prefix = format!("{holder}{}", tree::SEPARATOR);
    let mut entries = record.entries.keys();
    entries.any(|(path, _)| path.starts_with(&prefix))
}

fn preview(pass: &Pass<'_>, flat: &Flat) -> StackPreview {
    let record = &pass.plan.record;
    let texts = |digests: &BTreeMap<String, String>| -> Map {
        let texts = digests
            .iter()
            .filter(|(name, _)| *name != resource_types::IDENTITY);
        texts
            .map(|(name, text)| (name.clone(), Value::from(text.clone())))
            .collect()
    };
    let mut wanted: BTreeMap<String, Wanted<'_>> = BTreeMap::new();
    for (path, leaf) in &flat.leaves {
        let properties = leaf.properties.clone().unwrap_or_default();
        let want = Wanted {
            resource_type: &leaf.resource_type,
            properties: Cow::Owned(texts(&resource_state::digests(
                leaf,
                &properties,
                &record.seed,
                None,
            ))),
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
    let existing = record.entries.iter().map(|(key, entry)| {
        let existing = Existing {
            resource_type: entry.resource_type.clone(),
            properties: texts(&entry.properties),
            requires: all_requirements(record, entry),
            complete: super::decide::is_usable(entry, &entry.resource_type),
            retain: entry.retain,
        };
        (key.clone(), existing)
    });
    let existing: BTreeMap<_, _> = existing.collect();
    let mut preview = StackPreview::default();
    // As `decide`: an older incarnation that still exists and fits is used again.
    let Ok(plan) = engine::plan_rollback(&wanted, &graph, &existing, resource_types::change) else {
        return preview;
    };
    let reapplied = |key: &&Key| record.entries.get(*key).is_some_and(|entry| entry.reapply);
    let reapplied: Vec<&Key> = plan.unchanged.keys().filter(reapplied).collect();
    preview.unchanged = i64::try_from(plan.unchanged.len() - reapplied.len()).unwrap_or(i64::MAX);
    let reapplied = reapplied
        .into_iter()
        .map(|(path, _)| format!("{path} (again)"));
    preview.updated.extend(reapplied);
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
    // Nested stacks whose inputs are not known yet.
    let unexpanded = flat.unexpanded.iter();
    preview
        .added
        .extend(unexpanded.map(|path| format!("{path}/…")));
    preview
}

/// The requirements of an entry, with those of a whole group written out.
fn all_requirements(record: &StackRecord, entry: &Entry) -> BTreeMap<String, u32> {
    let inside = |holder: &str| {
        let keys = record.entries.keys();
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
}
