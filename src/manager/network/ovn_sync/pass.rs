//! One pass: observe, decide, act, report.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};

use super::act::{self, Kind, Reported, Taken};
use super::decision::{Fate, Verdict};
use super::overlay::Overlay;
use super::plan::{self, Plan, Snapshot};
use super::{NetworkError, Outcome, hints};
use crate::crd_deletion;
use crate::network::caches::NetworkCaches;
use crate::network::port::plan::port_id;
use crate::network::security_group::default_group;
use crate::network::subnet::ledger::{Holder, subnet_uid};
use pileus_api::conditions::{Observation, is_true};
use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::{
    ConditionType, IPAllocation, Network, Port, Reason, SecurityGroup, SecurityGroupRule, Subnet,
};
use pileus_kube_ext::{ApiError, Context, chain, finalize};
use pileus_network::northbound::token::Token;
use pileus_network::northbound::{ApplyError, Conflict, Diff, Northbound, NorthboundDb};
use pileus_network::ovsdb::ConnectionState;

/// Name in metrics.
const NAME: &str = "network";

pub(super) struct Worker {
    context: Context,
    northbound: Northbound,
    token: Token,
    claimed: bool,
    max_mtu: i32,
    /// Namespaces that have been seen to have, or to have had, their `default` group.
    tenants: BTreeSet<String>,
    networks: Overlay<Network>,
    subnets: Overlay<Subnet>,
    ports: Overlay<Port>,
    allocations: Overlay<IPAllocation>,
    groups: Overlay<SecurityGroup>,
    rules: Overlay<SecurityGroupRule>,
}

/// What OVN came to in a pass.
enum Rows {
    Committed(Diff),
    /// Why not, for people.
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
            claimed: false,
            max_mtu,
            tenants: BTreeSet::new(),
            networks: Overlay::default(),
            subnets: Overlay::default(),
            ports: Overlay::default(),
            allocations: Overlay::default(),
            groups: Overlay::default(),
            rules: Overlay::default(),
        }
    }

    pub(super) fn measured(&self, took: Duration, failed: bool) {
        self.context.metrics.reconciled(NAME, took, failed);
    }

    fn snapshot(&mut self, stores: &NetworkCaches) -> Snapshot {
        Snapshot {
            networks: self.networks.view(&stores.networks),
            subnets: self.subnets.view(&stores.subnets),
            ports: self.ports.view(&stores.ports),
            allocations: self.allocations.view(&stores.allocations),
            groups: self.groups.view(&stores.groups),
            rules: self.rules.view(&stores.rules),
            servers: stores.servers.state(),
            instances: stores.instances.state(),
        }
    }

    pub(super) async fn pass(&mut self, stores: &NetworkCaches) -> Result<Outcome, NetworkError> {
        let mut outcome = Outcome::default();
        let before = self.snapshot(stores);
        if self.let_lost_go(&before, &mut outcome).await {
            // What is known of the network is falling apart; OVN keeps what it has.
            return Ok(outcome);
        }
        self.prepare(&before, &mut outcome).await;
        let snapshot = self.snapshot(stores);
        let view = self.northbound.view();
        let hints = hints::read(&view.replica, &self.context.cluster);
        let mut plan = plan::plan(&self.context.cluster, self.max_mtu, &snapshot, &hints);
        if !self.take_addresses(&mut plan, &mut outcome).await {
            // Decided from what was not so: decide again before anything is told to OVN.
            outcome.again = true;
            return Ok(outcome);
        }
        let rows = self.rows(&mut plan).await?;
        match &rows {
            Rows::Committed(diff) => self.release(&mut plan, diff, &mut outcome).await,
            Rows::Unavailable(why) => {
                outcome.failed = true;
                unavailable(&mut plan, why);
            }
        }
        self.report(plan, &mut outcome).await;
        Ok(outcome)
    }

    /// Lets objects go that are deleted only because the definition of their kind is, without
    /// taking anything from OVN. True if there are any, or if that cannot be told now.
    async fn let_lost_go(&mut self, snapshot: &Snapshot, outcome: &mut Outcome) -> bool {
        let client = &self.context.client;
        let found = [
            lost(client, &mut self.networks, &snapshot.networks, outcome).await,
            lost(client, &mut self.subnets, &snapshot.subnets, outcome).await,
            lost(client, &mut self.ports, &snapshot.ports, outcome).await,
            lost(client, &mut self.groups, &snapshot.groups, outcome).await,
        ];
        found.contains(&true)
    }

    /// Finalizers, before anything is made for an object, and `default` groups.
    async fn prepare(&mut self, snapshot: &Snapshot, outcome: &mut Outcome) {
        let client = &self.context.client;
        mark(client, &mut self.networks, &snapshot.networks, outcome).await;
        mark(client, &mut self.subnets, &snapshot.subnets, outcome).await;
        mark(client, &mut self.groups, &snapshot.groups, outcome).await;
        mark(client, &mut self.ports, &snapshot.ports, outcome).await;
        let tenants = plan::tenant_namespaces(snapshot);
        // A namespace that is left and made again is a new one.
        self.tenants.retain(|namespace| tenants.contains(namespace));
        let new: Vec<String> = tenants.difference(&self.tenants).cloned().collect();
        let ensure = |namespace: String| async move {
            let made = default_group::ensure(client, &namespace).await?;
            Ok((namespace, made))
        };
        let (done, errors) = act::all(new.into_iter().map(ensure).collect()).await;
        for (namespace, made) in done {
            if let Some(group) = made {
                self.groups.made(group);
            }
            self.tenants.insert(namespace);
        }
        note(errors, outcome);
    }

    /// Takes the addresses; false if one of them turned out to be another's. What cannot be
    /// taken now waits for the next pass with its Port or Subnet, and nobody else with it.
    async fn take_addresses(&mut self, plan: &mut Plan, outcome: &mut Outcome) -> bool {
        let client = &self.context.client;
        let stale = plan.stale.iter().cloned().map(|allocation| async move {
            let name = allocation.name_any();
            Ok((name, act::give_up_stale(client, allocation).await))
        });
        let mut failed: HashMap<String, String> = HashMap::new();
        for (name, done) in act::all(stale.collect()).await.0 {
            match done {
                Ok(uid) => uid.iter().for_each(|uid| self.allocations.gone(uid)),
                Err(error) => {
                    failed.insert(name, chain(&error));
                }
            }
        }
        let mut all_ours = true;
        let wanted = plan
            .create
            .iter()
            .filter(|a| !failed.contains_key(&a.name_any()));
        let creates = wanted.cloned().map(|allocation| async move {
            let done = act::take(client, allocation.clone()).await;
            Ok((allocation, done))
        });
        for (wanted, done) in act::all(creates.collect()).await.0 {
            match done {
                Ok(Taken::Made(made)) => self.allocations.made(made),
                Ok(Taken::Found(found)) => {
                    all_ours &= Holder::of(&wanted) == Holder::of(&found);
                    self.allocations.made(found);
                }
                Err(error) => {
                    failed.insert(wanted.name_any(), chain(&error));
                }
            }
        }
        if !failed.is_empty() {
            outcome.failed = true;
            wait_for_addresses(&self.context.cluster, plan, &failed);
        }
        all_ours
    }

    /// Brings OVN's rows into force.
    async fn rows(&mut self, plan: &mut Plan) -> Result<Rows, NetworkError> {
        if let ConnectionState::Disconnected { reason } = self.northbound.view().state {
            return Ok(Rows::Unavailable(reason));
        }
        if !self.claimed {
            match self.northbound.claim(&self.token).await {
                Ok(()) => self.claimed = true,
                Err(error) => return Ok(Rows::Unavailable(chain(&error))),
            }
        }
        let mut diff = match self.apply(plan).await? {
            Rows::Committed(diff) => diff,
            unavailable @ Rows::Unavailable(_) => return Ok(unavailable),
        };
        // Rows that still have the marks of an earlier object of the same name.
        let names = released_names(plan);
        let earlier: BTreeSet<String> = diff
            .orphans
            .iter()
            .filter(|orphan| {
                let owner = &orphan.owner;
                names.contains(&(
                    owner.kind.clone(),
                    owner.namespace.clone(),
                    owner.name.clone(),
                ))
            })
            .map(|orphan| orphan.owner.uid.clone())
            .collect();
        if !earlier.is_empty() {
            plan.removed.extend(earlier);
            match self.apply(plan).await? {
                Rows::Committed(second) => diff = second,
                unavailable @ Rows::Unavailable(_) => return Ok(unavailable),
            }
        }
        Ok(Rows::Committed(diff))
    }

    async fn apply(&mut self, plan: &Plan) -> Result<Rows, NetworkError> {
        let done = self
            .northbound
            .apply(&self.token, &plan.desired, &plan.removed)
            .await;
        match done {
            Ok(diff) => Ok(Rows::Committed(diff)),
            Err(ApplyError::Fenced { holder: None }) => {
                // Nobody holds the token: the database was made anew.
                self.claimed = false;
                Ok(Rows::Unavailable("the database was replaced".to_owned()))
            }
            Err(ApplyError::Fenced { holder }) => Err(NetworkError::Fenced { holder }),
            Err(error) => Ok(Rows::Unavailable(chain(&error))),
        }
    }

    /// Gives up what deleted objects held, now that OVN has forgotten them, then their
    /// finalizers.
    async fn release(&mut self, plan: &mut Plan, diff: &Diff, outcome: &mut Outcome) {
        let client = &self.context.client;
        let held = conflicts(diff);
        hold(&mut plan.networks, &held);
        hold(&mut plan.subnets, &held);
        hold(&mut plan.ports, &held);
        hold(&mut plan.groups, &held);
        let releases = plan.release.iter().cloned();
        let (gone, errors) = act::all(releases.map(|a| act::give_up(client, a)).collect()).await;
        for uid in gone {
            self.allocations.gone(&uid);
        }
        if !errors.is_empty() {
            // A finalizer must not go before what its object held.
            note(errors, outcome);
            return;
        }
        unmark(client, &mut self.ports, &plan.ports, outcome).await;
        unmark(client, &mut self.subnets, &plan.subnets, outcome).await;
        unmark(client, &mut self.networks, &plan.networks, outcome).await;
        unmark(client, &mut self.groups, &plan.groups, outcome).await;
    }

    async fn report(&mut self, plan: Plan, outcome: &mut Outcome) {
        let context = &self.context;
        // Ports first: Servers wait for them.
        report(context, &mut self.ports, plan.ports, outcome).await;
        report(context, &mut self.networks, plan.networks, outcome).await;
        report(context, &mut self.subnets, plan.subnets, outcome).await;
        report(context, &mut self.groups, plan.groups, outcome).await;
        report(context, &mut self.rules, plan.rules, outcome).await;
    }
}

/// Takes back what was decided for those whose addresses could not be taken, by the names
/// of the `IPAllocation`s.
fn wait_for_addresses(
    cluster: &pileus_values::ClusterId,
    plan: &mut Plan,
    failed: &HashMap<String, String>,
) {
    let mut ports: HashMap<String, &String> = HashMap::new();
    let mut subnets: HashMap<String, &String> = HashMap::new();
    for allocation in &plan.create {
        if let Some(why) = failed.get(&allocation.name_any()) {
            match &allocation.spec.port_uid {
                Some(uid) => ports.insert(uid.clone(), why),
                None => subnets.insert(subnet_uid(allocation).to_owned(), why),
            };
        }
    }
    let retrying = |why: &str| {
        let message = format!("an address could not be taken, which is tried again: {why}");
        Observation::no(ConditionType::Ready, Reason::Retrying, message)
    };
    for (port, verdict) in &mut plan.ports {
        let Some(why) = port.uid().and_then(|uid| ports.get(&uid)) else {
            continue;
        };
        verdict.observation = retrying(why);
        if port.status.as_ref().is_none_or(|s| s.mac_address.is_none()) {
            verdict.status = port.status.clone().unwrap_or_default();
            let id = port_id(cluster, port);
            plan.desired.ports.remove(&id);
            for group in plan.desired.port_groups.values_mut() {
                group.ports.remove(&id);
            }
        }
    }
    for (subnet, verdict) in &mut plan.subnets {
        if let Some(why) = subnet.uid().and_then(|uid| subnets.get(&uid)) {
            verdict.observation = retrying(why);
        }
    }
}

/// Errors of single requests: a conflict only says that the object has changed.
fn note(errors: Vec<ApiError>, outcome: &mut Outcome) {
    for error in errors {
        if error.is_conflict() || error.is_gone() {
            tracing::debug!(error = %chain(&error), "the object has changed");
            outcome.failed = true;
        } else {
            tracing::warn!(error = %chain(&error), "will be tried again");
            outcome.failed = true;
        }
    }
}

async fn mark<K: Kind>(
    client: &kube::Client,
    overlay: &mut Overlay<K>,
    objects: &[Arc<K>],
    outcome: &mut Outcome,
) {
    let objects = plan::unmarked(objects);
    let (done, errors) = act::all(
        objects
            .iter()
            .map(|object| act::set_finalizer(client, &**object, true))
            .collect(),
    )
    .await;
    note(errors, outcome);
    for object in done.into_iter().flatten() {
        overlay.changed(object);
    }
}

/// Takes our finalizer from objects that go with their kind. True if there are any, or if
/// that cannot be told now.
async fn lost<K: Kind>(
    client: &kube::Client,
    overlay: &mut Overlay<K>,
    objects: &[Arc<K>],
    outcome: &mut Outcome,
) -> bool {
    let going: Vec<_> = objects
        .iter()
        .filter(|o| finalize::is_deleting(&***o) && finalize::has(&***o, MANAGER_FINALIZER))
        .collect();
    if going.is_empty() {
        return false;
    }
    match crd_deletion::is_crd_deleting::<K>(client).await {
        Ok(false) => return false,
        Ok(true) => {}
        Err(error) => {
            note(vec![error], outcome);
            return true;
        }
    }
    let kind = K::kind(&());
    tracing::warn!(%kind, count = going.len(), "the kind's definition is being deleted: its objects are let go, and OVN keeps their rows");
    let drops = going
        .into_iter()
        .map(|object| act::set_finalizer(client, &**object, false));
    let (done, errors) = act::all(drops.collect()).await;
    note(errors, outcome);
    for object in done.into_iter().flatten() {
        overlay.gone(&object.uid().unwrap_or_default());
    }
    outcome.failed = true;
    true
}

async fn unmark<K: Kind>(
    client: &kube::Client,
    overlay: &mut Overlay<K>,
    verdicts: &[(Arc<K>, Verdict<K::Status>)],
    outcome: &mut Outcome,
) {
    let released = verdicts
        .iter()
        .filter(|(_, verdict)| verdict.fate == Fate::Release);
    let (done, errors) = act::all(
        released
            .map(|(object, _)| act::set_finalizer(client, &**object, false))
            .collect(),
    )
    .await;
    note(errors, outcome);
    for object in done.into_iter().flatten() {
        if object.finalizers().is_empty() {
            overlay.gone(&object.uid().unwrap_or_default());
        } else {
            overlay.changed(object);
        }
    }
}

async fn report<K: Kind>(
    context: &Context,
    overlay: &mut Overlay<K>,
    verdicts: Vec<(Arc<K>, Verdict<K::Status>)>,
    outcome: &mut Outcome,
) {
    let now = Timestamp::now();
    outcome.blocked |= verdicts.iter().any(|(_, v)| v.fate == Fate::Blocked);
    let writes: Vec<_> = verdicts
        .iter()
        .filter(|(_, verdict)| verdict.fate != Fate::Release)
        .filter_map(|(object, verdict)| {
            Some((
                object,
                act::status_to_write(&**object, verdict, now)?,
                verdict,
            ))
        })
        .collect();
    for (object, _, verdict) in &writes {
        tell(context, &***object, &verdict.observation);
    }
    let (done, errors) = act::all(
        writes
            .iter()
            .map(|(object, status, _)| act::write_status(&context.client, &***object, status))
            .collect(),
    )
    .await;
    note(errors, outcome);
    for object in done {
        context.metrics.status_written(NAME);
        overlay.changed(object);
    }
}

/// An event when something goes wrong in a new way.
fn tell<K: Kind>(context: &Context, object: &K, seen: &Observation) {
    let word = pileus_api::conditions::status_text(seen.status);
    let known = object.status().is_some_and(|s| {
        s.conditions()
            .iter()
            .any(|c| c.status == word && c.reason == seen.reason.as_str())
    });
    if !known && seen.status != Some(true) {
        context
            .events
            .warning(object, seen.reason, "Reconcile", seen.message.clone());
    }
}

/// While OVN is away, what is not in force yet says so; what is in force works on and keeps
/// its word. Nothing is released.
fn unavailable(plan: &mut Plan, why: &str) {
    fn change<K: Kind>(verdicts: &mut [(Arc<K>, Verdict<K::Status>)], why: &str) {
        for (object, verdict) in verdicts {
            let released = verdict.fate == Fate::Release;
            if released {
                verdict.fate = Fate::Blocked;
            } else if verdict.observation.status != Some(true) || in_force(&**object) {
                continue;
            }
            verdict.observation = Observation::no(
                ConditionType::Ready,
                Reason::NetworkUnavailable,
                format!("OVN's Northbound database cannot be written, which is tried again: {why}"),
            );
        }
    }
    change(&mut plan.networks, why);
    change(&mut plan.subnets, why);
    change(&mut plan.ports, why);
    change(&mut plan.groups, why);
    change(&mut plan.rules, why);
}

fn in_force<K: Kind>(object: &K) -> bool {
    object.status().is_some_and(|status| {
        is_true(status.conditions(), ConditionType::Ready)
            && status
                .conditions()
                .iter()
                .all(|c| c.observed_generation == object.meta().generation)
    })
}

fn released_names(plan: &Plan) -> HashSet<(String, String, String)> {
    fn names<K: Resource<DynamicType = ()>, S>(
        verdicts: &[(Arc<K>, Verdict<S>)],
    ) -> impl Iterator<Item = (String, String, String)> + '_ {
        verdicts
            .iter()
            .filter(|(_, verdict)| verdict.fate == Fate::Release)
            .map(|(object, _)| {
                (
                    K::kind(&()).into_owned(),
                    object.namespace().unwrap_or_default(),
                    object.name_any(),
                )
            })
    }
    names(&plan.networks)
        .chain(names(&plan.subnets))
        .chain(names(&plan.ports))
        .chain(names(&plan.groups))
        .collect()
}

/// What stands in OVN's way, by the owner's uid.
fn conflicts(diff: &Diff) -> HashMap<String, String> {
    diff.conflicts
        .iter()
        .map(|conflict| match conflict {
            Conflict::NameTaken { table, name, owner } => (
                owner.uid.clone(),
                format!(
                    "a row of somebody else in OVN's table {table} has the name {name}; remove or \
                     rename it"
                ),
            ),
            Conflict::Occupied { table, owner, rows } => (
                owner.uid.clone(),
                format!(
                    "its row in OVN's table {table} holds {rows} rows that are not ours to remove; \
                     remove them by hand"
                ),
            ),
            Conflict::NoSwitch { port, owner } => (
                owner.uid.clone(),
                format!("the logical port {port} has no logical switch"),
            ),
        })
        .collect()
}

fn hold<K: Kind>(verdicts: &mut [(Arc<K>, Verdict<K::Status>)], held: &HashMap<String, String>) {
    if held.is_empty() {
        return;
    }
    for (object, verdict) in verdicts {
        let Some(why) = object.uid().and_then(|uid| held.get(&uid)) else {
            continue;
        };
        if verdict.fate == Fate::Release {
            verdict.fate = Fate::Blocked;
        }
        verdict.observation = Observation::no(
            ConditionType::Ready,
            Reason::NetworkUnavailable,
            why.clone(),
        );
    }
}
