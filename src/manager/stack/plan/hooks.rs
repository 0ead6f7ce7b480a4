//! Resources that wait at a hook of the environment until a user clears it, as in Heat.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::forward::Walk;
use super::{Action, Entry, Key, Pass, State};
use crate::stack::record::PRE_CREATE;
use pileus_api::names::CLEAR_HOOKS_ANNOTATION;
use pileus_stack::hooks;
use pileus_stack::tree::Leaf;

/// Records that an entry waits at a hook.
fn wait_at_hook(entry: &mut Entry, action: Action, hook: &str, now: Timestamp) {
    let why = format!("{} paused until Hook {hook} is cleared", action.heat_name());
    entry.hook_reached = Some(hook.to_owned());
    entry.set_state(action, State::InProgress, why, now);
}

impl Pass<'_> {
    /// Clears the hooks that the Stack's annotation names and at which resources wait.
    pub(super) fn clear_hooks(&mut self) {
        let Some(text) = self.stack.annotations().get(CLEAR_HOOKS_ANNOTATION) else {
            return;
        };
        let patterns = text.split([',', ' ']).filter(|text| !text.is_empty());
        let patterns: Vec<_> = patterns
            .map(|text| text.rsplit_once(':').unwrap_or((text, "*")))
            .collect();
        for ((path, _), entry) in &mut self.plan.record.entries {
            let named = |hook: &String| {
                let mut patterns = patterns.iter();
                patterns.any(|(name, of_hook)| {
                    hooks::matches(name, path) && hooks::matches(of_hook, hook)
                })
            };
            // A hook that was cleared before is still in the annotation until that is removed.
            self.plan.hooks_cleared |= entry.hooks_cleared.iter().any(named);
            if let Some(hook) = entry.hook_reached.clone().filter(named)
                && entry.hooks_cleared.insert(hook)
            {
                self.plan.hooks_cleared = true;
            }
        }
    }

    /// Whether a resource waits at a hook before or after its deletion.
    pub(super) fn waits_at_delete_hook(&mut self, key: &Key, hook: &str) -> bool {
        let now = self.observed.now;
        let Some(entry) = self.plan.record.entries.get_mut(key) else {
            return false;
        };
        // An entry that waits before its creation has nothing to delete.
        let exists = entry.hook_reached.as_deref() != Some(PRE_CREATE) && !entry.external;
        let waits = exists && entry.hooks.contains(hook) && !entry.hooks_cleared.contains(hook);
        if waits {
            wait_at_hook(entry, Action::Delete, hook, now);
        }
        waits
    }
}

impl Walk<'_, '_> {
    /// Whether hooks let a resource be created or updated now. At a replacement the old incarnation
    /// waits at `pre-update` first.
    pub(super) fn passes_hooks(
        &mut self,
        path: &str,
        number: u32,
        leaf: &Leaf,
        makes: bool,
    ) -> bool {
        let hooks = hooks::of(&self.registry, path).hooks;
        if hooks.is_empty() {
            return true;
        }
        let record = &self.pass.plan.record;
        let before = record.incarnations(path).find(|(other, entry)| {
            let exists = entry.action != Action::Delete && !entry.external && !entry.replace;
            exists
                && entry.hook_reached.as_deref() != Some(PRE_CREATE)
                && (!makes || *other != number)
        });
        let before = before.map(|(other, _)| other);
        let before = before.map(|other| (other, Action::Update, "pre-update"));
        let new = makes.then_some((number, Action::Create, PRE_CREATE));
        let stops = before.into_iter().chain(new);
        for (number, action, hook) in stops.filter(|(.., hook)| hooks.contains(*hook)) {
            let now = self.pass.observed.now;
            let entry = self.entry((path.to_owned(), number));
            if !entry.hooks_cleared.contains(hook) {
                entry.resource_type.clone_from(&leaf.resource_type);
                wait_at_hook(entry, action, hook, now);
                return false;
            }
            if entry.hook_reached.take().is_some() && action == Action::Update {
                entry.set_state(action, State::Complete, "", now);
            }
        }
        true
    }

    /// Records that a resource is complete, or that it waits at its hook before that.
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
        if hooks.contains(hook) && !entry.hooks_cleared.contains(hook) {
            wait_at_hook(entry, entry.action, hook, now);
        } else {
            entry.hook_reached = None;
            entry.set_state(entry.action, State::Complete, "", now);
        }
    }
}
