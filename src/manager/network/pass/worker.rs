//! One pass: observe, plan, act, report.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::kind::{Overlays, retry_later};
use super::{METRICS_NAME, NetworkError, Outcome, allocations};
use crate::network::caches::NetworkCaches;
use crate::network::kinds::{Decisions, Observed};
use crate::network::ovn_addresses;
use crate::network::plan::{Plan, plan};
use crate::network::security_group::default_group::DefaultGroups;
use pileus_api::{IPAllocation, Reason};
use pileus_kube_ext::{Context, chain};
use pileus_network::northbound::token::{Holder, Token};
use pileus_network::northbound::{ApplyError, Desired, Diff, Northbound, NorthboundDb, NotApplied};
use pileus_network::ovsdb::ConnectionState;

pub(super) struct Worker {
    context: Context,
    northbound: Northbound,
    token: Token,
    /// Whether the token was written since the database was connected or replaced.
    token_claimed: bool,
    max_mtu: i32,
    default_groups: DefaultGroups,
    overlays: Overlays,
    /// What OVN's rows were brought to by the last pass, if it succeeded.
    applied: Option<(Desired, BTreeSet<String>)>,
}

/// The outcome of a pass for OVN's rows.
enum Rows {
    Committed(Diff),
    /// The reason, for people.
    Unavailable(String),
}

impl Worker {
    pub(super) fn new(
        context: Context,
        northbound: Northbound,
        token: Token,
        max_mtu: i32,
    ) -> Self {
        Self {
            context,
            northbound,
            token,
            token_claimed: false,
            max_mtu,
            default_groups: DefaultGroups::default(),
            overlays: Overlays::default(),
            applied: None,
        }
    }

    /// Whether OVN's rows are still what the last pass made of them, so that a change of them is
    /// only the echo of our own.
    pub(super) fn rows_are_as_applied(&self) -> bool {
        self.applied.as_ref().is_some_and(|(desired, deleted)| {
            self.northbound.is_applied(&self.token, desired, deleted)
        })
    }

    pub(super) fn record_duration(&self, took: Duration, failed: bool) {
        self.context.metrics.reconciled(METRICS_NAME, took, failed);
    }

    pub(super) async fn pass(&mut self, caches: &NetworkCaches) -> Result<Outcome, NetworkError> {
        self.applied = None;
        let mut outcome = Outcome::default();
        let before = self.overlays.observe(caches);
        if self.release_lost(&before, &mut outcome).await {
            // Kinds of the network are being removed; OVN keeps what it has.
            return Ok(outcome);
        }
        self.prepare(&before, &mut outcome).await;
        let observed = self.overlays.observe(caches);
        let cluster = &self.context.cluster;
        let ovn = ovn_addresses::read(&self.northbound.view().replica, cluster);
        let mut plan = plan(cluster, self.max_mtu, &observed, &ovn);
        if !self.allocate(&mut plan, &mut outcome).await {
            // The plan used an address that is not free: plan again before OVN is written.
            outcome.again = true;
            return Ok(outcome);
        }
        match self.write_rows(&mut plan).await? {
            Rows::Committed(diff) => {
                outcome.retry_after = diff.retry_after;
                self.complete_deletions(&mut plan, &observed, &diff, &mut outcome)
                    .await;
            }
            Rows::Unavailable(reason) => {
                outcome.failed = true;
                for decided in plan.decisions.each() {
                    decided.report_ovn_unavailable(&reason);
                }
            }
        }
        let mut kinds = self.overlays.each(&observed, &plan.decisions);
        kinds.sort_by_key(|kind| !kind.is_reported_first());
        for mut kind in kinds {
            kind.report(&self.context, &mut outcome).await;
        }
        if !outcome.failed {
            self.applied = Some((plan.desired, plan.deleted));
        }
        Ok(outcome)
    }

    /// See [`KindInPass::release_lost`](super::kind::KindInPass::release_lost).
    async fn release_lost(&mut self, observed: &Observed, outcome: &mut Outcome) -> bool {
        let mut found = false;
        let nothing = Decisions::default();
        for mut kind in self.overlays.each(observed, &nothing) {
            found |= kind.release_lost(&self.context.client, outcome).await;
        }
        found
    }

    /// Adds finalizers, before rows or addresses exist for an object, and `default` groups.
    async fn prepare(&mut self, observed: &Observed, outcome: &mut Outcome) {
        let client = &self.context.client;
        let nothing = Decisions::default();
        for mut kind in self.overlays.each(observed, &nothing) {
            kind.add_finalizers(client, outcome).await;
        }
        let (created, errors) = self.default_groups.create_missing(client, observed).await;
        for group in created {
            self.overlays.groups.created(group);
        }
        retry_later(errors, outcome);
    }

    /// Allocates the addresses; false if one of them is held by another.
    async fn allocate(&mut self, plan: &mut Plan, outcome: &mut Outcome) -> bool {
        let overlay = &mut self.overlays.allocations;
        let done =
            allocations::allocate_all(&self.context.client, overlay, &plan.allocations).await;
        if !done.failures.is_empty() {
            outcome.failed = true;
            for decided in plan.decisions.each() {
                decided.report_failed_allocations(
                    &self.context.cluster,
                    &done.failures,
                    &mut plan.desired,
                );
            }
        }
        !done.conflict
    }

    /// Brings OVN's rows into the desired state.
    async fn write_rows(&mut self, plan: &mut Plan) -> Result<Rows, NetworkError> {
        if let ConnectionState::Disconnected { reason } = self.northbound.view().state {
            return Ok(Rows::Unavailable(reason));
        }
        if !self.token_claimed {
            match self.northbound.claim(&self.token).await {
                Ok(()) => self.token_claimed = true,
                Err(ApplyError::Fenced {
                    holder: Some(holder),
                }) => return Err(self.fenced(holder)),
                Err(error) => return Ok(Rows::Unavailable(chain(&error))),
            }
        }
        let diff = match self.apply(plan).await? {
            Rows::Committed(diff) => diff,
            unavailable @ Rows::Unavailable(_) => return Ok(unavailable),
        };
        // Rows may still have the uid of an earlier object of the same name.
        let deleted: HashSet<_> = plan
            .decisions
            .each()
            .iter()
            .flat_map(|decided| decided.deleted(&self.context.cluster))
            .chain(plan.unplugged.iter().cloned())
            .map(|owner| (owner.kind, owner.namespace, owner.name))
            .collect();
        let count = plan.deleted.len();
        plan.deleted.extend(
            diff.orphans
                .iter()
                .map(|orphan| orphan.owner.clone())
                .filter(|o| {
                    deleted.contains(&(o.kind.clone(), o.namespace.clone(), o.name.clone()))
                })
                .map(|owner| owner.uid),
        );
        if plan.deleted.len() == count {
            return Ok(Rows::Committed(diff));
        }
        self.apply(plan).await
    }

    fn fenced(&self, holder: Holder) -> NetworkError {
        NetworkError::Fenced {
            holder,
            key: self.token.key(),
        }
    }

    async fn apply(&mut self, plan: &Plan) -> Result<Rows, NetworkError> {
        let done = self
            .northbound
            .apply(&self.token, &plan.desired, &plan.deleted)
            .await;
        match done {
            Ok(diff) => Ok(Rows::Committed(diff)),
            Err(ApplyError::Fenced {
                holder: Some(holder),
            }) if holder.generation >= self.token.generation => Err(self.fenced(holder)),
            Err(ApplyError::Fenced { .. }) => {
                // Nobody holds the token, or an earlier leader: the database was replaced by a new
                // one or by a copy.
                self.token_claimed = false;
                Ok(Rows::Unavailable("the database was replaced".to_owned()))
            }
            Err(error) => Ok(Rows::Unavailable(chain(&error))),
        }
    }

    /// Releases the addresses of deleted objects, now that their rows are removed from OVN, then
    /// removes their finalizers. What fails for one object holds nobody else up.
    async fn complete_deletions(
        &mut self,
        plan: &mut Plan,
        observed: &Observed,
        diff: &Diff,
        outcome: &mut Outcome,
    ) {
        let client = &self.context.client;
        let reasons = not_applied(diff);
        for decided in plan.decisions.each() {
            decided.report_not_applied(&reasons);
        }
        // Rows that stay may still have the addresses.
        let holders = |allocation: &IPAllocation| allocations::needed_by(allocation).to_owned();
        let releases = &mut plan.allocations.release;
        releases.retain(|allocation| !reasons.contains_key(&holders(allocation)));
        let overlay = &mut self.overlays.allocations;
        let failed = allocations::release_all(client, overlay, &plan.allocations).await;
        if !failed.is_empty() {
            // A finalizer must not be removed before the addresses of its object are released.
            outcome.failed = true;
            let reasons = failed.into_iter().map(|(uid, error)| {
                let message =
                    format!("an address could not be released, which is tried again: {error}");
                (uid, (Reason::Retrying, message))
            });
            let reasons = reasons.collect();
            for decided in plan.decisions.each() {
                decided.report_not_applied(&reasons);
            }
        }
        // Users before what they use.
        let kinds = self.overlays.each(observed, &plan.decisions);
        for mut kind in kinds.into_iter().rev() {
            kind.remove_finalizers(client, outcome).await;
        }
    }
}

/// Why rows could not be applied, by the owner's uid: what its own rows met comes before what
/// others lack.
fn not_applied(diff: &Diff) -> HashMap<String, (Reason, String)> {
    let mut reasons = HashMap::new();
    let (dependent, own): (Vec<_>, Vec<_>) = diff.not_applied.iter().partition(|entry| {
        matches!(
            entry,
            NotApplied::MissingSwitch { .. } | NotApplied::MissingGroup { .. }
        )
    });
    for entry in dependent.into_iter().chain(own) {
        reasons.insert(entry.owner().uid.clone(), reason(entry));
    }
    reasons
}

fn reason(entry: &NotApplied) -> (Reason, String) {
    let message = match entry {
        NotApplied::NameInUse { table, name, .. } => format!(
            "a row of somebody else in OVN's table {table} has the name {name}; remove or rename it"
        ),
        NotApplied::HoldsOtherRows { table, rows, .. } => format!(
            "its row in OVN's table {table} holds {rows} rows that are not ours to remove; remove \
             them by hand"
        ),
        NotApplied::MissingSwitch { port, .. } => format!(
            "the logical port {port} has no logical switch in OVN; see the conditions of its Network"
        ),
        NotApplied::MissingGroup { group, .. } => format!(
            "SecurityGroup {} is not in OVN; see its conditions",
            group.name
        ),
        NotApplied::Refused { message, .. } => {
            let message = format!("OVN does not take it, and what it had there stays: {message}");
            return (Reason::RefusedByOVN, message);
        }
    };
    (Reason::NetworkUnavailable, message)
}
