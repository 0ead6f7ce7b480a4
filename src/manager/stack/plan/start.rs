//! Which action begins.

use std::time::Duration;

use kube::ResourceExt;

use super::{Action, Pass, Problem, State, resource_state};
use crate::stack::record::Sources;
use pileus_api::Reason;
use pileus_api::stack::OnFailure;
use pileus_stack::expand::{self, Tree};
use pileus_stack::kinds::check;
use pileus_stack::parameters::Schema;
use pileus_stack::template::Template;
use pileus_stack::value::Value;

impl Pass<'_> {
    /// Begins the action that is due, if one is.
    pub(super) fn turn(&mut self) {
        let record = &self.plan.record;
        if record.is_busy() {
            // A new template takes over from the one before it at once, as in Heat; what else
            // is under way comes to its end first.
            if matches!(record.action, Some(Action::Create | Action::Update)) {
                self.follow_spec();
            }
            return;
        }
        if let Some((action, goal)) = self.undo() {
            self.mark();
            self.plan.record.begin(action, goal, self.observed.now);
            return;
        }
        let spec = &self.stack.spec;
        // What is stopped is started before anything else is done with it.
        if self.plan.record.suspended && !spec.suspend {
            self.mark_again();
            let record = &mut self.plan.record;
            record.suspended = false;
            record.begin(Action::Resume, record.goal.clone(), self.observed.now);
            return;
        }
        if self.follow_spec() {
            return;
        }
        let record = &mut self.plan.record;
        if record.action.is_none() || record.goal.is_none() || self.plan.problem.is_some() {
            return;
        }
        let goal = record.goal.clone();
        if spec.suspend != record.suspended {
            record.suspended = spec.suspend;
            record.begin(Action::Suspend, goal, self.observed.now);
        } else if spec.check_requested_at != record.checked {
            record.checked.clone_from(&spec.check_requested_at);
            if spec.check_requested_at.is_some() {
                record.begin(Action::Check, goal, self.observed.now);
            }
        }
    }

    /// What an action that has failed is followed by: as the spec says when it fails. What it
    /// says later is for the next failure.
    pub(super) fn undo(&self) -> Option<(Action, Option<String>)> {
        if !self.is_undoable() || self.plan.record.kept {
            return None;
        }
        let record = &self.plan.record;
        match self.stack.spec.on_failure {
            OnFailure::Keep => None,
            OnFailure::Rollback => Some((Action::Rollback, record.good.clone())),
            OnFailure::Delete => Some((Action::Delete, None)),
        }
    }

    /// A failure that is not undone now never is.
    pub(super) fn settle_undo(&mut self) {
        if !self.is_undoable() {
            return;
        }
        if self.undo().is_some() {
            self.again_in(Duration::ZERO);
        } else {
            self.plan.record.kept = true;
        }
    }

    fn is_undoable(&self) -> bool {
        let record = &self.plan.record;
        let action = matches!(record.action, Some(Action::Create | Action::Update));
        action && record.state == State::Failed
    }

    /// Begins to create or update when the spec says something new; whether it did.
    fn follow_spec(&mut self) -> bool {
        let sources = match &self.observed.sources {
            Ok(sources) => sources.clone(),
            Err(problem) => {
                self.plan.problem = Some(problem.clone());
                return false;
            }
        };
        let digest = sources.digest();
        let spec = &self.stack.spec;
        let record = &self.plan.record;
        let heal = spec.heal_requested_at != record.healed
            && spec.heal_requested_at.is_some()
            && record.action.is_some();
        let tree = match self.accept(&sources) {
            Ok(tree) => tree,
            Err(problem) => {
                self.plan.problem = Some(problem);
                return false;
            }
        };
        self.plan.notes = check::notes(&tree);
        if spec.preview {
            self.preview(&sources);
            return false;
        }
        if self.plan.record.wanted == digest && !heal {
            return false;
        }
        if self.plan.record.suspended {
            self.plan.problem = Some(Problem {
                reason: Reason::Suspended,
                message: "a suspended stack is not updated; set spec.suspend to false first"
                    .to_owned(),
            });
            return false;
        }
        self.mark();
        let record = &mut self.plan.record;
        let action = match record.action {
            None => Action::Create,
            // Nothing had been made to the end: what is made now is still the first.
            Some(Action::Create) if record.is_busy() => Action::Create,
            Some(_) => Action::Update,
        };
        if record.action.is_none() {
            record.checked.clone_from(&spec.check_requested_at);
        }
        record.wanted.clone_from(&digest);
        record.healed.clone_from(&spec.heal_requested_at);
        record.begin(action, Some(digest), self.observed.now);
        self.plan.store = Some(sources);
        true
    }

    /// Whether a stack can be made of `sources`: everything that Heat would refuse before it
    /// makes anything, and what cannot be made here.
    fn accept(&self, sources: &Sources) -> Result<Tree, Problem> {
        let wrong = |error| Problem::template(&error);
        let input = super::input(self.stack, sources).map_err(wrong)?;
        pileus_stack::hooks::check(&input.environment.registry).map_err(wrong)?;
        let tree = expand::expand(&input).map_err(|stop| wrong(stop.error))?;
        let has_account = self.stack.spec.service_account_name.is_some();
        check::tree(&tree, has_account).map_err(wrong)?;
        let namespace = self.stack.namespace().unwrap_or_default();
        super::conflicts::distinct(&tree, &namespace).map_err(wrong)?;
        self.unchangeable(sources, &tree).map_err(wrong)?;
        Ok(tree)
    }

    /// Parameters that the template says may not change have not.
    fn unchangeable(&self, sources: &Sources, tree: &Tree) -> pileus_stack::Result<()> {
        let Some(before) = self.goal() else {
            return Ok(());
        };
        if before == *sources {
            return Ok(());
        }
        let Ok(input) = super::input(self.stack, &before) else {
            return Ok(());
        };
        let Ok(old) = pileus_stack::render::stack(&input) else {
            return Ok(());
        };
        let Template {
            version,
            parameters,
            ..
        } = &*tree.stack.template;
        for (name, schema) in parameters {
            let schema = Schema::parse(schema, *version)?;
            let (was, is) = (
                old.parameters.values.get(name),
                tree.stack.parameters.values.get(name),
            );
            if schema.immutable && was.is_some() && was != is {
                return Err(pileus_stack::Error::at(
                    format!("parameters.{name}"),
                    "is immutable and has another value than before",
                ));
            }
        }
        Ok(())
    }

    /// What the action that begins now makes anew: what somebody has deleted, and what has
    /// failed and only another can take the place of. As in Heat (`needs_replace_failed`) a
    /// failure alone is no reason to destroy what works.
    pub(super) fn mark(&mut self) {
        for entry in self.plan.record.entries.values_mut() {
            let live = entry
                .objects
                .last()
                .map(|object| self.observed.objects.get(object));
            let lost = live.is_some_and(|live| live.is_none_or(is_beyond_help));
            match (entry.state, entry.action) {
                (State::Complete, _) => entry.replace |= live == Some(None),
                (State::InProgress, _) => {}
                // It was only not ready when it was checked.
                (State::Failed, Action::Check) if entry.again && !lost => {
                    entry.set(Action::Check, State::Complete, "", self.observed.now);
                    entry.again = false;
                }
                // Heat replaces whatever has failed a check; what was never made to the end
                // is worth nothing yet.
                (State::Failed, Action::Create | Action::Check | Action::Delete) => {
                    (entry.replace, entry.again) = (true, false);
                }
                (State::Failed, _) => {
                    entry.replace |= lost || live.is_none();
                    entry.again = !entry.replace;
                }
            }
        }
    }

    /// Before what was stopped is started: what could not be stopped or started is tried again.
    fn mark_again(&mut self) {
        for entry in self.plan.record.entries.values_mut() {
            let tried = matches!(entry.action, Action::Suspend | Action::Resume);
            entry.again |= tried && entry.state == State::Failed;
        }
    }
}

/// Whether an object says that nothing becomes of it, as Nova's `ERROR` does, or goes.
fn is_beyond_help(live: &Value) -> bool {
    let stalled = resource_state::condition(live, "Stalled");
    !live["metadata"]["deletionTimestamp"].is_null()
        || stalled.is_some_and(|stalled| stalled["status"] == "True")
}
