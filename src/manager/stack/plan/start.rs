//! Decides which action begins.

use std::time::Duration;

use kube::ResourceExt;

use super::{Action, Pass, Problem, State, resource_state};
use crate::stack::record::Sources;
use pileus_api::Reason;
use pileus_api::stack::OnFailure;
use pileus_stack::expand::{self, Tree};
use pileus_stack::parameters::Schema;
use pileus_stack::resource_types::check;
use pileus_stack::template::Template;
use pileus_stack::value::Value;

/// When it is looked again whether what an update names is there: it is not watched for the Stack.
const MISSING_RETRY: Duration = Duration::from_secs(3);

impl Pass<'_> {
    /// Begins the action that is due, if one is.
    pub(super) fn start_action(&mut self) {
        let record = &self.plan.record;
        if record.is_busy() {
            // A new template replaces that of a running create or update at once, as in Heat.
            // Other actions finish first.
            if matches!(record.action, Some(Action::Create | Action::Update)) {
                self.start_from_spec();
            }
            return;
        }
        if let Some((action, target)) = self.action_after_failure() {
            self.mark_for_replacement();
            self.plan.record.begin(action, target, self.observed.now);
            return;
        }
        let spec = &self.stack.spec;
        // A suspended stack is resumed before any other action.
        if self.plan.record.suspended && !spec.suspend {
            self.mark_for_reapply();
            let record = &mut self.plan.record;
            record.suspended = false;
            record.begin(
                Action::Resume,
                record.target_digest.clone(),
                self.observed.now,
            );
            return;
        }
        if self.start_from_spec() {
            return;
        }
        let record = &mut self.plan.record;
        if record.action.is_none() || record.target_digest.is_none() || self.plan.problem.is_some()
        {
            return;
        }
        let target = record.target_digest.clone();
        if spec.suspend != record.suspended {
            record.suspended = spec.suspend;
            record.begin(Action::Suspend, target, self.observed.now);
        } else if spec.check_requested_at != record.handled_check_request {
            record
                .handled_check_request
                .clone_from(&spec.check_requested_at);
            if spec.check_requested_at.is_some() {
                record.begin(Action::Check, target, self.observed.now);
            }
        }
    }

    /// The action that follows a failed create or update: what `spec.onFailure` says when it fails.
    /// A later change of that field is for the next failure.
    pub(super) fn action_after_failure(&self) -> Option<(Action, Option<String>)> {
        if !self.may_undo() || self.plan.record.failure_kept {
            return None;
        }
        let record = &self.plan.record;
        match self.stack.spec.on_failure {
            OnFailure::Keep => None,
            OnFailure::Rollback => Some((Action::Rollback, record.last_good_digest.clone())),
            OnFailure::Delete => Some((Action::Delete, None)),
        }
    }

    /// MappedObjects sure that a failed action is either undone in the next pass or never.
    pub(super) fn apply_on_failure(&mut self) {
        if !self.may_undo() {
            return;
        }
        if self.action_after_failure().is_some() {
            self.requeue_in(Duration::ZERO);
        } else {
            self.plan.record.failure_kept = true;
        }
    }

    fn may_undo(&self) -> bool {
        let record = &self.plan.record;
        let action = matches!(record.action, Some(Action::Create | Action::Update));
        action && record.state == State::Failed
    }

    /// Begins to create or update if the spec's sources have changed; whether it did.
    fn start_from_spec(&mut self) -> bool {
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
        let heal = spec.heal_requested_at != record.handled_heal_request
            && spec.heal_requested_at.is_some()
            && record.action.is_some();
        let tree = match self.validate(&sources) {
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
        if self.plan.record.spec_digest == digest && !heal {
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
        // A creation has nothing to lose, and waits for what is missing.
        if self.plan.record.last_good_digest.is_some()
            && let Some(problem) = self.missing_reference(&sources)
        {
            self.plan.problem = Some(problem);
            self.requeue_in(MISSING_RETRY);
            return false;
        }
        self.mark_for_replacement();
        let record = &mut self.plan.record;
        let action = match record.action {
            None => Action::Create,
            // The first create was not complete: this is still the creation.
            Some(Action::Create) if record.is_busy() => Action::Create,
            Some(_) => Action::Update,
        };
        if record.action.is_none() {
            record
                .handled_check_request
                .clone_from(&spec.check_requested_at);
        }
        record.spec_digest.clone_from(&digest);
        record
            .handled_heal_request
            .clone_from(&spec.heal_requested_at);
        record.begin(action, Some(digest), self.observed.now);
        self.plan.new_sources = Some(sources);
        true
    }

    /// Validates `sources`: everything that Heat would refuse before it creates anything, and
    /// resources that Pileus does not support.
    fn validate(&self, sources: &Sources) -> Result<Tree, Problem> {
        let wrong = |error| Problem::template(&error);
        let input = super::input(self.stack, sources, &self.observed.stop).map_err(wrong)?;
        pileus_stack::hooks::check(&input.environment.registry).map_err(wrong)?;
        let tree = expand::expand(&input).map_err(|stop| wrong(stop.error))?;
        let has_account = self.stack.spec.service_account_name.is_some();
        check::tree(&tree, has_account).map_err(wrong)?;
        let namespace = self.stack.namespace().unwrap_or_default();
        super::conflicts::check_unique_objects(&tree, &namespace).map_err(wrong)?;
        self.check_immutable_parameters(sources, &tree)
            .map_err(wrong)?;
        Ok(tree)
    }

    /// Refuses changes of parameters that the template calls immutable.
    fn check_immutable_parameters(
        &self,
        sources: &Sources,
        tree: &Tree,
    ) -> pileus_stack::Result<()> {
        let Some(before) = self.target() else {
            return Ok(());
        };
        if before == *sources {
            return Ok(());
        }
        let Ok(input) = super::input(self.stack, &before, &self.observed.stop) else {
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

    /// Marks what the action that begins now replaces: objects that somebody has deleted, and failed
    /// resources that an update cannot repair. As in Heat (`needs_replace_failed`), a failure alone
    /// is no reason to replace an object that works.
    pub(super) fn mark_for_replacement(&mut self) {
        for entry in self.plan.record.entries.values_mut() {
            let live = entry
                .objects
                .last()
                .map(|object| self.observed.objects.get(object));
            let lost = live.is_some_and(|live| live.is_none_or(is_stalled_or_deleting));
            match (entry.state, entry.action) {
                (State::Complete, _) => entry.replace |= live == Some(None),
                (State::InProgress, _) => {}
                // The last check found it not ready, no more.
                (State::Failed, Action::Check) if entry.reapply && !lost => {
                    entry.set_state(Action::Check, State::Complete, "", self.observed.now);
                    entry.reapply = false;
                }
                // Heat replaces whatever has failed a check. A resource that was never created
                // completely can be replaced without loss.
                (State::Failed, Action::Create | Action::Check | Action::Delete) => {
                    (entry.replace, entry.reapply) = (true, false);
                }
                (State::Failed, _) => {
                    entry.replace |= lost || live.is_none();
                    entry.reapply = !entry.replace;
                }
            }
        }
    }

    /// Marks Servers that could not be stopped or started, so that a resume tries it again.
    fn mark_for_reapply(&mut self) {
        for entry in self.plan.record.entries.values_mut() {
            let tried = matches!(entry.action, Action::Suspend | Action::Resume);
            entry.reapply |= tried && entry.state == State::Failed;
        }
    }
}

/// Whether an object is stalled, as a server in Nova's state `ERROR` is, or is being deleted.
fn is_stalled_or_deleting(live: &Value) -> bool {
    let stalled = resource_state::condition(live, "Stalled");
    !live["metadata"]["deletionTimestamp"].is_null()
        || stalled.is_some_and(|stalled| stalled["status"] == "True")
}
