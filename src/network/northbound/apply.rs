//! Writes the desired rows in one transaction; when the database refuses it, finds out whose rows
//! are the cause, and writes the rest.
//!
//! A transaction happens as a whole or not at all, so that one row that the database refuses, or at
//! which it drops the connection, would stop the network of everybody. Then the owners with
//! changes are halved until the culprits stand alone; what is found good on the way is committed.
//! Culprits are remembered ([`Refusals`]): they are left out of the transaction of all, and tried
//! again alone, when they have changed or after a pause.
//!
//! What belongs to the cluster itself goes with every part: no port is ever without the group that
//! drops what no rule allows.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ApplyError;
use super::diff::{Diff, NotApplied, Scope, diff_within};
use super::refusals::Refusals;
use super::rows::Desired;
use super::token::Token;
use crate::ovsdb::{Client, Error, View};
use pileus_values::Owner;

/// How long the search for culprits may take in one call; the rest is left to the next.
const SEARCH_TIME: Duration = Duration::from_secs(15);
/// How many owners that were refused before are tried again in one call.
const RETRIES: usize = 4;
/// How long a connection that broke may take to come back before that counts as an outage.
const RECONNECT_TIME: Duration = Duration::from_secs(5);
/// The pause before the next call when a search was not finished.
const CONTINUE_AFTER: Duration = Duration::from_millis(50);

/// One call of [`NorthboundDb::apply`](super::NorthboundDb::apply).
pub(super) struct Apply<'a> {
    pub(super) client: &'a Client,
    pub(super) token: &'a Token,
    pub(super) desired: &'a Desired,
    pub(super) deleted: &'a BTreeSet<String>,
    pub(super) refusals: &'a Mutex<Refusals>,
}

/// The outcome of a transaction that is not an error of the call.
enum Outcome {
    Committed(Diff),
    /// Something in it may be what the database does not take.
    Refused(Error),
}

impl Apply<'_> {
    pub(super) async fn run(&self) -> Result<Diff, ApplyError> {
        self.refusals().keep_only_of(self.desired, self.deleted);
        let due = self
            .refusals()
            .due(self.desired, self.deleted, Instant::now());
        let mut diff = match self.commit(&self.all_but_refused()).await? {
            Outcome::Committed(diff) => diff,
            Outcome::Refused(error) => self.search(error).await?,
        };
        for owner in due.iter().take(RETRIES) {
            match self.commit_alone(owner).await? {
                None => {
                    self.refusals().accepted(&owner.uid);
                    diff.retry_after = Some(CONTINUE_AFTER);
                }
                Some(error) => self.remember(owner, &error),
            }
        }
        let left = due.len() > RETRIES;
        let refusals = self.refusals();
        let wait = if left {
            Some(CONTINUE_AFTER)
        } else {
            refusals.next(Instant::now())
        };
        diff.retry_after = diff.retry_after.into_iter().chain(wait).min();
        diff.not_applied
            .extend(refusals.all().map(|(owner, message)| NotApplied::Refused {
                owner: owner.clone(),
                message: message.to_owned(),
            }));
        Ok(diff)
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_but_refused(&self) -> Scope {
        Scope::without(self.refusals().uids())
    }

    fn remember(&self, owner: &Owner, error: &Error) {
        let message = in_words(error);
        tracing::warn!(
            kind = owner.kind,
            namespace = owner.namespace,
            name = owner.name,
            error = message,
            "OVN refuses the rows of one object, which is left out"
        );
        let now = Instant::now();
        self.refusals()
            .refused(owner, message, self.desired, self.deleted, now);
    }

    fn diff(&self, scope: &Scope) -> Diff {
        let replica = self.client.view().replica;
        diff_within(
            &replica,
            &self.token.cluster,
            self.desired,
            self.deleted,
            scope,
        )
    }

    /// Makes the changes of a scope in one transaction.
    async fn commit(&self, scope: &Scope) -> Result<Outcome, ApplyError> {
        let diff = self.diff(scope);
        if diff.operations.is_empty() {
            return Ok(Outcome::Committed(diff));
        }
        let mut operations = Vec::with_capacity(diff.operations.len() + 1);
        operations.push(self.token.guard());
        operations.extend(diff.operations.iter().cloned());
        match self.client.transact(operations).await {
            Ok(_) => Ok(Outcome::Committed(diff)),
            Err(error) => self.failed(error).await.map(Outcome::Refused),
        }
    }

    /// What a failed transaction means: an error that its content may have caused, or that of the
    /// call.
    async fn failed(&self, error: Error) -> Result<Error, ApplyError> {
        if let Error::WaitFailed { index: 0 } = error {
            return Err(ApplyError::Fenced {
                holder: self.token.holder(&self.client.view().replica),
            });
        }
        if !error.may_be_about_content() {
            return Err(error.into());
        }
        if error == Error::Disconnected {
            let mut views = self.client.watch();
            let back = views.wait_for(View::is_connected);
            let back = tokio::time::timeout(RECONNECT_TIME, back).await.is_ok();
            if !back {
                return Err(error.into());
            }
        }
        Ok(error)
    }

    /// Makes the changes of one owner, and of the cluster. Returns the error if they are the cause
    /// of it.
    async fn commit_alone(&self, owner: &Owner) -> Result<Option<Error>, ApplyError> {
        let scope = self.part(std::slice::from_ref(owner));
        let Outcome::Refused(mut error) = self.commit(&scope).await? else {
            return Ok(None);
        };
        if error == Error::Disconnected {
            // The server may have been restarted at this very moment.
            match self.commit(&scope).await? {
                Outcome::Committed(_) => return Ok(None),
                Outcome::Refused(again) => error = again,
            }
        }
        // Without this owner, the database takes what is sent to it.
        match self.commit_guard().await? {
            None => Ok(Some(error)),
            Some(error) => Err(error.into()),
        }
    }

    /// Makes the changes of the cluster alone, or none.
    async fn commit_guard(&self) -> Result<Option<Error>, ApplyError> {
        let mut operations = vec![self.token.guard()];
        operations.extend(self.diff(&self.part(&[])).operations);
        match self.client.transact(operations).await {
            Ok(_) => Ok(None),
            Err(error) => self.failed(error).await.map(Some),
        }
    }

    fn part(&self, owners: &[Owner]) -> Scope {
        let uids = owners.iter().map(|owner| owner.uid.clone());
        Scope::only(uids.chain([self.token.cluster.0.clone()]))
    }

    /// Commits all but what the database refuses.
    async fn search(&self, first: Error) -> Result<Diff, ApplyError> {
        if let Some(error) = self.commit_guard().await? {
            return Err(error.into());
        }
        tracing::warn!(error = %first, "OVN's database refuses a transaction: its culprit is looked for");
        let until = Instant::now() + SEARCH_TIME;
        let mut last = first;
        loop {
            let scope = self.all_but_refused();
            let diff = self.diff(&scope);
            let mut owners: Vec<Owner> = diff.changed.values().cloned().collect();
            owners.retain(|owner| owner.uid != self.token.cluster.0);
            owners.sort_by_key(rank);
            let found = self.halve(owners, until).await?;
            if Instant::now() >= until {
                return Ok(self.unfinished(&last));
            }
            match self.commit(&scope_after(&scope, &found)).await? {
                Outcome::Committed(diff) => return Ok(diff),
                // What depended on others could not be tried before they were there.
                Outcome::Refused(error) if !found.is_empty() => last = error,
                Outcome::Refused(error) => return Err(error.into()),
            }
        }
    }

    /// Halves owners until each part is committed or is one culprit; returns the culprits.
    async fn halve(&self, owners: Vec<Owner>, until: Instant) -> Result<Vec<Owner>, ApplyError> {
        let mut found = Vec::new();
        let mut parts = vec![owners];
        while let Some(mut part) = parts.pop() {
            if Instant::now() >= until {
                break;
            }
            if let [owner] = part.as_slice() {
                if let Some(error) = self.commit_alone(owner).await? {
                    self.remember(owner, &error);
                    found.push(owner.clone());
                }
                continue;
            }
            if part.is_empty() {
                continue;
            }
            if let Outcome::Refused(_) = self.commit(&self.part(&part)).await? {
                let second = part.split_off(part.len() / 2);
                parts.push(second);
                parts.push(part);
            }
        }
        Ok(found)
    }

    /// What is left when the time is over: all that was not committed is reported.
    fn unfinished(&self, error: &Error) -> Diff {
        let mut diff = self.diff(&self.all_but_refused());
        let message = format!(
            "OVN refused it together with others, and whose fault that is has yet to be found: {}",
            in_words(error)
        );
        let waiting = diff.changed.values().map(|owner| NotApplied::Refused {
            owner: owner.clone(),
            message: message.clone(),
        });
        diff.not_applied.extend(waiting);
        diff.operations.clear();
        diff.retry_after = Some(CONTINUE_AFTER);
        diff
    }
}

fn scope_after(scope: &Scope, found: &[Owner]) -> Scope {
    let mut scope = scope.clone();
    for owner in found {
        scope.leave_out(owner.uid.clone());
    }
    scope
}

/// What others refer to comes before them.
fn rank(owner: &Owner) -> u8 {
    match owner.kind.as_str() {
        "Network" => 0,
        "Subnet" => 1,
        "SecurityGroup" => 2,
        "Port" => 4,
        _ => 3,
    }
}

/// An error about one object, in the database's words.
fn in_words(error: &Error) -> String {
    match error {
        Error::Refused {
            operation,
            error,
            details,
            ..
        } => format!("{operation}: {error}: {details}"),
        Error::Disconnected => "the database drops the connection when this is sent".to_owned(),
        other => other.to_string(),
    }
}
