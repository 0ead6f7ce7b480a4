//! Decides what a Server needs. Pure: what was seen comes in, steps and a standing go out.

mod build;
mod change;
mod delete;
mod ports;
mod problems;
pub mod refused;

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use pileus_api::common::Claim;
use pileus_api::conditions::{self, ConditionType};
use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::{Flavor, Image, Instance, KeyPair, Network, Port, Reason, Server, Subnet};
use pileus_kube_ext::finalize;
use pileus_values::ClusterId;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// The Flavor named, if it exists.
    pub flavor: Option<Flavor>,
    /// The Image named, if it exists.
    pub image: Option<Image>,
    /// The KeyPairs named, those that exist.
    pub key_pairs: BTreeMap<String, Option<KeyPair>>,
    /// Interfaces.
    pub nics: Vec<NicSeen>,
    /// User data.
    pub user_data: UserData,
    /// The Instances: the placed one, or all when the Server is being deleted.
    pub instances: Vec<Instance>,
    /// Instances that their hosts had refused when the scheduler took the placement back.
    pub taken_back: Vec<Instance>,
    /// The Ports made for it; only looked for when it is being deleted.
    pub owned_ports: Vec<Port>,
    /// Why its host counts as lost, if so.
    pub host_lost: Option<String>,
    /// It is being deleted only because the kind itself is: nobody has asked for that.
    pub kind_lost: bool,
}

/// What was seen of an interface.
#[derive(Clone, Debug, Default)]
pub struct NicSeen {
    /// Name of the interface.
    pub name: String,
    /// Name of its Port.
    pub port_name: String,
    /// The Port is made for the Server.
    pub made: bool,
    /// The Port, if it exists.
    pub port: Option<Port>,
    /// The Network, if it exists.
    pub network: Option<Network>,
    /// Subnets of the Port's addresses.
    pub subnets: Vec<Subnet>,
    /// Another Server that uses the Port.
    pub used_by: Option<String>,
}

/// User data, as far as it is needed now.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum UserData {
    /// None asked for, or not needed now.
    #[default]
    NotNeeded,
    /// The bytes.
    Is(Vec<u8>),
    /// The Secret does not exist.
    NoSecret(String),
    /// The Secret has no such key.
    NoKey(String, String),
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNeeded => f.write_str("NotNeeded"),
            Self::Is(bytes) => write!(f, "Is({} bytes)", bytes.len()),
            Self::NoSecret(name) => write!(f, "NoSecret({name})"),
            Self::NoKey(name, key) => write!(f, "NoKey({name}, {key})"),
        }
    }
}

/// One small, repeatable effect.
#[derive(Clone, Debug)]
pub enum Step {
    /// Keep the Server until its host has let it go.
    AddFinalizer,
    /// Make a Port for an inline network.
    CreatePort(Box<Port>),
    /// Write what the guest is told.
    CreateGuestData(Box<Secret>),
    /// Make the Instance.
    CreateInstance(Box<Instance>),
    /// Change the Instance.
    UpdateInstance(Box<Instance>),
    /// Delete an Instance.
    DeleteInstance {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
        /// Its version, when it may only go as it was seen.
        version: Option<String>,
    },
    /// Delete what the guest was told.
    DeleteGuestData {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Delete a Port that was made for the Server.
    DeletePort {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Let the Server go.
    RemoveFinalizer,
}

impl fmt::Display for Step {
    /// Names the step without what is in it, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddFinalizer => f.write_str("add finalizer"),
            Self::CreatePort(port) => write!(f, "create port {}", port.name_any()),
            Self::CreateGuestData(secret) => write!(f, "create guest data {}", secret.name_any()),
            Self::CreateInstance(i) => write!(f, "create instance {}", i.name_any()),
            Self::UpdateInstance(i) => write!(f, "update instance {}", i.name_any()),
            Self::DeleteInstance { name, .. } => write!(f, "delete instance {name}"),
            Self::DeleteGuestData { name, .. } => write!(f, "delete guest data {name}"),
            Self::DeletePort { name, .. } => write!(f, "delete port {name}"),
            Self::RemoveFinalizer => f.write_str("remove finalizer"),
        }
    }
}

/// Something that keeps a Server from being built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// For machines.
    pub reason: Reason,
    /// Names the field, the value, the culprit and the way out.
    pub message: String,
    /// Only a change of the spec can help.
    pub terminal: bool,
}

/// Where a Server stands after the steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Something it needs is missing or wrong.
    Problems(Vec<Problem>),
    /// The scheduler has not placed it yet.
    Unplaced,
    /// Its Ports have no addresses yet.
    AwaitingPorts(Vec<String>),
    /// Its Instance says how it is.
    Realised,
    /// Its Instance has been made, and its host has not said anything of it yet.
    Building,
    /// It is being deleted, and waits for these.
    Deleting(String),
}

impl Standing {
    /// Whether it is normal, and soon over.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unplaced | Self::AwaitingPorts(_) | Self::Building
        )
    }

    /// Whether a Secret may appear or change, which nothing tells.
    #[must_use]
    pub fn waits_for_secret(&self) -> bool {
        let Self::Problems(problems) = self else {
            return false;
        };
        problems.iter().any(|p| match p.reason {
            Reason::SecretNotFound | Reason::SecretKeyNotFound => true,
            Reason::UserDataTooLarge => !p.terminal,
            _ => false,
        })
    }
}

/// What to do, and where that leaves the Server.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Effects, in order; the first that fails ends the pass.
    pub steps: Vec<Step>,
    /// Where that leaves the Server.
    pub standing: Standing,
    /// Size that the spec asks for now.
    pub claim: Option<Claim>,
    /// What differs from the spec until a rebuild.
    pub outdated: Vec<String>,
}

/// Decides for one Server.
#[must_use]
pub fn plan(server: &Server, seen: &Seen) -> Plan {
    let claim = problems::claim(server, seen);
    let made = |steps, standing| Plan {
        steps,
        standing,
        claim: claim.as_ref().ok().copied(),
        outdated: vec![],
    };
    if finalize::is_deleting(server) {
        let (steps, waiting) = delete::delete(server, seen);
        return made(steps, Standing::Deleting(waiting));
    }
    let mut steps = Vec::new();
    if !finalize::has(server, MANAGER_FINALIZER) {
        steps.push(Step::AddFinalizer);
    }
    steps.extend(refused::clear(server, seen));
    if let Some(instance) = seen.instances.first() {
        let standing = if has_report(instance) || seen.host_lost.is_some() {
            Standing::Realised
        } else {
            Standing::Building
        };
        let mut plan = made(steps, standing);
        if let Some(changed) = change::changed_instance(server, seen, instance) {
            plan.steps.push(Step::UpdateInstance(Box::new(changed)));
        }
        plan.outdated = change::outdated(server, seen, instance, claim.as_ref().ok());
        return plan;
    }
    for nic in seen
        .nics
        .iter()
        .filter(|nic| ports::is_to_be_made_anew(server, nic))
    {
        steps.extend(nic.port.as_ref().map(|port| Step::DeletePort {
            name: port.name_any(),
            uid: port.uid().unwrap_or_default(),
        }));
    }
    let problems = problems::problems(server, seen, &claim);
    if !problems.is_empty() {
        // Nothing is made for what cannot be built; what was made stays.
        return made(steps, Standing::Problems(problems));
    }
    for nic in seen
        .nics
        .iter()
        .filter(|nic| nic.made && nic.port.is_none())
    {
        steps.push(Step::CreatePort(Box::new(ports::port(server, nic))));
    }
    let placement = server.status.as_ref().and_then(|s| s.placement.as_ref());
    let Some(placement) = placement else {
        return made(steps, Standing::Unplaced);
    };
    let waiting: Vec<_> = seen
        .nics
        .iter()
        .filter(|nic| !ports::is_port_ready(nic))
        .map(|nic| nic.port_name.clone())
        .collect();
    if !waiting.is_empty() {
        return made(steps, Standing::AwaitingPorts(waiting));
    }
    let Some(image) = &seen.image else {
        return made(steps, Standing::Unplaced);
    };
    let (secret, instance) = build::instance(server, seen, image, placement);
    steps.push(Step::CreateGuestData(Box::new(secret)));
    steps.push(Step::CreateInstance(Box::new(instance)));
    made(steps, Standing::Building)
}

/// Whether its host has said anything of the Instance yet.
fn has_report(instance: &Instance) -> bool {
    instance
        .status
        .as_ref()
        .and_then(|s| conditions::find(&s.conditions, ConditionType::Ready))
        .is_some_and(|ready| ready.reason != Reason::Pending.as_str())
}
