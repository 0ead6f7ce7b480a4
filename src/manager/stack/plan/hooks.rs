//! Resources that wait at a hook of the environment's until somebody clears it, as in Heat.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::forward::Walk;
use super::{Action, Entry, Key, Pass, State};
use crate::stack::record::PRE_CREATE;
use pileus_api::names::CLEAR_HOOKS_ANNOTATION;
use pileus_stack::hooks;
use pileus_stack::tree::Leaf;

/// Waits at a hook from now on, or still.
fn wait(entry: &mut Entry, action: Action, hook: &str, now: Timestamp) {
    let why = format!("{} paused until Hook {hook} is cleared", action.word());
    entry.waits = Some(hook.to_owned());
    entry.set(action, State::InProgress, why, now);
}

impl Pass<'_> {
    /// Clears the hooks that the Stack's annotation names and that are waited at.
    pub(super) fn clear_hooks(&mut self) {
        let Some(text) = self.stack.annotations().get(CLEAR_HOOKS_ANNOTATION) else {
            return;
        };
        let words = text.split([',', ' ']).filter(|word| !word.is_empty());
        let words: Vec<_> = words
            .map(|word| word.rsplit_once(':').unwrap_or((word, "*")))
            .collect();
        for ((path, _), entry) in &mut self.plan.record.entries {
            let named = |hook: &String| {
                let mut words = words.iter();
                words.any(|(name, which)| hooks::matches(name, path) && hooks::matches(which, hook))
            };
            // One that was cleared just before stands there until it is taken away.
            self.plan.cleared |= entry.passed.iter().any(named);
            if let Some(hook) = entry.waits.clone().filter(named)
                && entry.passed.insert(hook)
            {
                self.plan.cleared = true;
            }
        }
    }

    /// Whether a resource that is to go waits before or after that.
    pub(super) fn waits_to_go(&mut self, key: &Key, hook: &str) -> bool {
        let now = self.observed.now;
        let Some(entry) = self.plan.record.entries.get_mut(key) else {
            return false;
        };
        // One that waits to be made has not been.
        let is_there = entry.waits.as_deref() != Some(PRE_CREATE) && !entry.external;
        let waits = is_there && entry.hooks.contains(hook) && !entry.passed.contains(hook);
        if waits {
            wait(entry, Action::Delete, hook, now);
        }
        waits
    }
}

impl Walk<'_, '_> {
    /// Whether a resource may be made or changed now, as far as hooks say. One that another
    /// takes the place of waits to be changed first.
    pub(super) fn may_pass(&mut self, path: &str, number: u32, leaf: &Leaf, makes: bool) -> bool {
        let hooks = hooks::of(&self.registry, path).hooks;
        if hooks.is_empty() {
            return true;
        }
        let record = &self.pass.plan.record;
        let before = record.incarnations(path).find(|(other, entry)| {
            let there = entry.action != Action::Delete && !entry.external && !entry.replace;
            there && entry.waits.as_deref() != Some(PRE_CREATE) && (!makes || *other != number)
        });
        let before = before.map(|(other, _)| other);
        let before = before.map(|other| (other, Action::Update, "pre-update"));
        let new = makes.then_some((number, Action::Create, PRE_CREATE));
        let stops = before.into_iter().chain(new);
        for (number, action, hook) in stops.filter(|(.., hook)| hooks.contains(*hook)) {
            let now = self.pass.observed.now;
            let entry = self.entry((path.to_owned(), number));
            if !entry.passed.contains(hook) {
                entry.kind.clone_from(&leaf.kind);
                wait(entry, action, hook, now);
                return false;
            }
            if entry.waits.take().is_some() && action == Action::Update {
                entry.set(action, State::Complete, "", now);
            }
        }
        true
    }

    /// Notes that a resource is as it should be, or that it waits to be called so.
    pub(super) fn complete(&mut self, key: &Key) {
        let now = self.pass.observed.now;
        let hooks = hooks::of(&self.registry, &key.0).hooks;
        let Some(entry) = self.pass.plan.record.entries.get_mut(key) else {
            return;
        };
        let hook = match entry.action {
            Action::Create => "post-create",
            Action::Update => "post-update",
            _ => "",
        };
        if hooks.contains(hook) && !entry.passed.contains(hook) {
            wait(entry, entry.action, hook, now);
        } else {
            entry.waits = None;
            entry.set(entry.action, State::Complete, "", now);
        }
    }
}
