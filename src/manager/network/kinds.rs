//! The kinds of the network: the one list of them, what each kind implements, and the state of
//! planning that its planner reads and extends.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::object::HasStatus;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::address_pool::AddressPool;
use super::decision::{Decision, Deletion};
use super::ovn_addresses::OvnAddresses;
use pileus_api::conditions::{Observation, is_true};
use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::{ConditionType, IPAllocation, Reason};
use pileus_network::northbound::Desired;
use pileus_network::topology::{Key, Problem, Topology};
use pileus_values::{ClusterId, Owner};

/// The one list of kinds. Calls a macro with it.
///
/// `reconciled`: kinds that have a planner, in the order of planning: a kind comes after those
/// whose decisions its planner needs. `written`: kinds that a pass writes and others own. `read`:
/// kinds that are only read. The names are those of [`NetworkCaches`](super::caches::NetworkCaches).
macro_rules! network_kinds {
    ($callback:ident) => {
        $callback! {
            reconciled {
                networks: pileus_api::Network,
                subnets: pileus_api::Subnet,
                ports: pileus_api::Port,
                groups: pileus_api::SecurityGroup,
                rules: pileus_api::SecurityGroupRule,
            }
            written {
                allocations: pileus_api::IPAllocation,
            }
            read {
                servers: pileus_api::Server,
                instances: pileus_api::Instance,
                hosts: pileus_api::Host,
            }
        }
    };
}
pub(super) use network_kinds;

/// A kind whose status has a generation and conditions; every kind of the list.
pub trait HasConditions: HasStatus {
    /// The conditions of an object.
    fn conditions(&self) -> &[Condition];
    /// Sets generation and conditions of a status.
    fn set_conditions(
        status: &mut Self::Status,
        generation: Option<i64>,
        conditions: Vec<Condition>,
    );
}

/// Objects of one kind with what was decided about each.
pub type Decided<K> = Vec<(Arc<K>, Decision<<K as HasStatus>::Status>)>;

/// A kind of the network that a pass reconciles.
pub trait NetworkKind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + HasConditions<Status: Clone + PartialEq + Serialize + Send + Sync>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
    /// Whether objects get our finalizer, before rows or addresses exist for them.
    const FINALIZER: bool = true;
    /// Whether its statuses are written ahead of those of other kinds, since others wait for
    /// them.
    const REPORTED_FIRST: bool = false;

    /// Adds what uses which object, as far as it follows from the objects: for all kinds, before
    /// any planner runs.
    fn add_users(_cluster: &ClusterId, _observed: &Observed, _users: &mut Users) {}

    /// Decides about all objects of the kind, and adds them to the compiler's input.
    fn plan(planning: &mut Planning<'_>) -> Decided<Self>;

    /// Completes decisions by what could not be parsed or compiled.
    fn apply_problems(decided: &mut Decided<Self>, _observed: &Observed, problems: &Problems) {
        for (object, decision) in decided {
            if decision.ready.status == Some(true)
                && let Some(messages) = problems.of(&**object)
            {
                decision.ready = Observation::no(
                    ConditionType::Ready,
                    Reason::InvalidSpec,
                    messages.join("; "),
                );
            }
        }
    }

    /// Reverts the decision about an object whose addresses could not be allocated, and removes
    /// its rows from the desired ones.
    fn revert(
        _cluster: &ClusterId,
        _object: &Self,
        _decision: &mut Decision<Self::Status>,
        _desired: &mut Desired,
    ) {
    }
}

/// The decisions about one kind, whichever it is.
pub trait AnyDecided {
    /// See [`NetworkKind::apply_problems`].
    fn apply_problems(&mut self, observed: &Observed, problems: &Problems);
    /// The objects whose deletion may be completed.
    fn deleted(&self, cluster: &ClusterId) -> Vec<Owner>;
    /// Reports those whose addresses could not be allocated, by uid with the reason.
    fn report_failed_allocations(
        &mut self,
        cluster: &ClusterId,
        failures: &HashMap<String, String>,
        desired: &mut Desired,
    );
    /// Reports why rows could not be applied, by the owner's uid; the owner's deletion waits.
    fn report_not_applied(&mut self, reasons: &HashMap<String, (Reason, String)>);
    /// While OVN is not available, objects that are not in force yet report it; those that are in
    /// force still work and keep their condition. No deletion is completed.
    fn report_ovn_unavailable(&mut self, reason: &str);
}

impl<K: NetworkKind> AnyDecided for Vec<(Arc<K>, Decision<K::Status>)> {
    fn apply_problems(&mut self, observed: &Observed, problems: &Problems) {
        K::apply_problems(self, observed, problems);
    }

    fn deleted(&self, cluster: &ClusterId) -> Vec<Owner> {
        self.iter()
            .filter(|(_, decision)| !decision.stays())
            .map(|(object, _)| owner(cluster, &**object))
            .collect()
    }

    fn report_failed_allocations(
        &mut self,
        cluster: &ClusterId,
        failures: &HashMap<String, String>,
        desired: &mut Desired,
    ) {
        for (object, decision) in self {
            let Some(error) = object.uid().and_then(|uid| failures.get(&uid)) else {
                continue;
            };
            decision.ready = Observation::no(
                ConditionType::Ready,
                Reason::Retrying,
                format!("an address could not be allocated, which is tried again: {error}"),
            );
            K::revert(cluster, object, decision, desired);
        }
    }

    fn report_not_applied(&mut self, reasons: &HashMap<String, (Reason, String)>) {
        for (object, decision) in self {
            let Some((reason, message)) = object.uid().and_then(|uid| reasons.get(&uid)) else {
                continue;
            };
            if decision.deletion == Deletion::Allowed {
                decision.deletion = Deletion::Blocked;
            }
            decision.ready = Observation::no(ConditionType::Ready, *reason, message.clone());
        }
    }

    fn report_ovn_unavailable(&mut self, reason: &str) {
        for (object, decision) in self {
            if decision.deletion == Deletion::Allowed {
                decision.deletion = Deletion::Blocked;
            } else if decision.ready.status != Some(true) || is_in_force(&**object) {
                continue;
            }
            decision.ready = Observation::no(
                ConditionType::Ready,
                Reason::NetworkUnavailable,
                format!(
                    "OVN's Northbound database cannot be written, which is tried again: {reason}"
                ),
            );
        }
    }
}

fn is_in_force<K: NetworkKind>(object: &K) -> bool {
    let conditions = object.conditions();
    is_true(conditions, ConditionType::Ready)
        && conditions
            .iter()
            .all(|c| c.observed_generation == object.meta().generation)
}

macro_rules! containers {
    (
        reconciled { $($reconciled:ident: $kind:ty,)+ }
        written { $($written:ident: $written_kind:ty,)+ }
        read { $($read:ident: $read_kind:ty,)+ }
    ) => {
        /// All objects that a pass works with, as it observes them.
        #[derive(Clone, Debug, Default)]
        pub struct Observed {
            $(#[doc = concat!("Objects of ", stringify!($kind))] pub $reconciled: Vec<Arc<$kind>>,)+
            $(#[doc = concat!("Objects of ", stringify!($written_kind))] pub $written: Vec<Arc<$written_kind>>,)+
            $(#[doc = concat!("Objects of ", stringify!($read_kind))] pub $read: Vec<Arc<$read_kind>>,)+
        }

        /// What was decided about all objects.
        #[derive(Debug, Default)]
        pub struct Decisions {
            $(#[doc = concat!("About ", stringify!($kind))] pub $reconciled: Decided<$kind>,)+
        }

        impl Decisions {
            /// The decisions of each kind, in the order of the list.
            pub fn each(&mut self) -> Vec<&mut dyn AnyDecided> {
                vec![$(&mut self.$reconciled),+]
            }
        }

        /// Runs the planners of all kinds.
        pub(super) fn plan_each(planning: &mut Planning<'_>) {
            $(<$kind>::add_users(planning.cluster, planning.observed, &mut planning.users);)+
            $(planning.decisions.$reconciled = <$kind>::plan(planning);)+
        }

        $(
            impl HasConditions for $kind {
                fn conditions(&self) -> &[Condition] {
                    self.status.as_ref().map_or(&[], |status| &status.conditions)
                }

                fn set_conditions(
                    status: &mut Self::Status,
                    generation: Option<i64>,
                    conditions: Vec<Condition>,
                ) {
                    status.observed_generation = generation;
                    status.conditions = conditions;
                }
            }
        )+
    };
}
network_kinds!(containers);

/// What planners work with: what is known, and what they have decided so far.
#[derive(Debug)]
pub struct Planning<'a> {
    /// The cluster, from which ids are derived.
    pub cluster: &'a ClusterId,
    /// Largest packet of a guest, in bytes.
    pub max_mtu: i32,
    /// All objects.
    pub observed: &'a Observed,
    /// Addresses that OVN's rows have.
    pub ovn: &'a OvnAddresses,
    /// What uses which object.
    pub users: Users,
    /// Decisions of the kinds that come earlier in the list.
    pub decisions: Decisions,
    /// The accepted Subnets of each Network with their addresses, oldest first.
    pub pools: HashMap<Key, Vec<AddressPool>>,
    /// Addresses to allocate and to release.
    pub allocations: AllocationChanges,
    /// The compiler's input.
    pub topology: Topology,
    /// Objects that stay without the rows that they may have had.
    pub unplugged: Vec<Owner>,
    /// What could not be parsed.
    pub problems: Vec<Problem>,
}

impl<'a> Planning<'a> {
    /// Nothing is decided yet.
    #[must_use]
    pub fn new(
        cluster: &'a ClusterId,
        max_mtu: i32,
        observed: &'a Observed,
        ovn: &'a OvnAddresses,
    ) -> Self {
        Self {
            cluster,
            max_mtu,
            observed,
            ovn,
            users: Users::default(),
            decisions: Decisions::default(),
            pools: HashMap::new(),
            allocations: AllocationChanges::default(),
            topology: Topology {
                cluster: cluster.clone(),
                ..Topology::default()
            },
            unplugged: Vec::new(),
            problems: Vec::new(),
        }
    }
}

/// Changes of `IPAllocation`s.
#[derive(Debug, Default)]
pub struct AllocationChanges {
    /// To allocate, before OVN's rows are written.
    pub allocate: Vec<IPAllocation>,
    /// Of Ports that were replaced by one of the same name: to release before anything is
    /// allocated, once the API server confirms that the earlier Port is gone.
    pub replaced: Vec<Arc<IPAllocation>>,
    /// To release after OVN's rows have gone.
    pub release: Vec<Arc<IPAllocation>>,
}

/// What uses which object, for deletions that wait.
#[derive(Debug, Default)]
pub struct Users(HashMap<(String, Key), BTreeSet<String>>);

impl Users {
    /// Adds a user of the object of the kind `K`.
    pub fn add<K: Resource<DynamicType = ()>>(&mut self, object: Key, user: String) {
        let object = (K::kind(&()).into_owned(), object);
        self.0.entry(object).or_default().insert(user);
    }

    /// The users of an object, each once.
    #[must_use]
    pub fn of<K: Resource<DynamicType = ()>>(&self, object: &K) -> Vec<String> {
        let object = (K::kind(&()).into_owned(), key(object));
        self.0.get(&object).into_iter().flatten().cloned().collect()
    }
}

/// What could not be parsed or compiled, by the uid of the object that it is reported on.
#[derive(Debug, Default)]
pub struct Problems(HashMap<String, Vec<String>>);

impl Problems {
    /// The messages about an object, if there are any.
    pub fn of<K: Resource>(&self, object: &K) -> Option<&Vec<String>> {
        self.0.get(object.meta().uid.as_ref()?)
    }
}

impl FromIterator<Problem> for Problems {
    fn from_iter<I: IntoIterator<Item = Problem>>(problems: I) -> Self {
        let mut by_uid: HashMap<String, Vec<String>> = HashMap::new();
        for problem in problems {
            let messages = by_uid.entry(problem.owner.uid).or_default();
            messages.push(problem.message);
        }
        Self(by_uid)
    }
}

/// Namespace and name of an object.
#[must_use]
pub fn key<K: Resource>(object: &K) -> Key {
    Key {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

/// An object as the owner of rows in OVN.
#[must_use]
pub fn owner<K: Resource<DynamicType = ()>>(cluster: &ClusterId, object: &K) -> Owner {
    let Key { namespace, name } = key(object);
    Owner {
        cluster: cluster.clone(),
        kind: K::kind(&()).into_owned(),
        namespace,
        name,
        uid: object.uid().unwrap_or_default(),
    }
}

/// Whether an object has our finalizer: only then it is planned.
#[must_use]
pub fn has_finalizer<K: Resource>(object: &K) -> bool {
    object.finalizers().iter().any(|f| f == MANAGER_FINALIZER)
}

/// Whether an object is being deleted.
#[must_use]
pub fn is_deleting<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}
