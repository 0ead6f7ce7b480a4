//! Decides what a Server needs. Pure: observations come in, steps and progress go out.

mod build;
mod change;
pub mod claim;
mod delete;
mod ports;
mod problems;
pub mod refused;

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use pileus_api::common::{Claim, Resolved};
use pileus_api::conditions::{self, ConditionType};
use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::{Flavor, Image, Instance, KeyPair, Network, Port, Reason, Server, Subnet};
use pileus_kube_ext::finalize;
use pileus_values::ClusterId;

/// Everything that a decision is made from.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// The Flavor named, if it exists.
    pub flavor: Option<Flavor>,
    /// The Image named, if it exists.
    pub image: Option<Image>,
    /// The KeyPairs named, those that exist.
    pub key_pairs: BTreeMap<String, Option<KeyPair>>,
    /// Interfaces.
    pub nics: Vec<ObservedNic>,
    /// User data.
    pub user_data: UserData,
    /// The Instances: the placed one, or all when the Server is being deleted.
    pub instances: Vec<Instance>,
    /// Instances that their hosts had refused when the scheduler withdrew the placement.
    pub withdrawn: Vec<Instance>,
    /// All of its Instances, by a direct read; only when it has Ports that it does not need.
    pub all_instances: Option<Vec<Instance>>,
    /// The Ports that name it as their holder.
    pub held_ports: Vec<Port>,
    /// The Ports created for it; only listed when it is being deleted.
    pub owned_ports: Vec<Port>,
    /// Why its host counts as lost, if so.
    pub host_lost: Option<String>,
    /// It is being deleted only because its CustomResourceDefinition is: nobody has asked for
    /// that.
    pub crd_deleting: bool,
}

/// What an interface refers to.
#[derive(Clone, Debug, Default)]
pub struct ObservedNic {
    /// Name of the interface.
    pub name: String,
    /// Name of its Port.
    pub port_name: String,
    /// The Port is created for the Server, and not by a user.
    pub made: bool,
    /// The Port, if it exists.
    pub port: Option<Port>,
    /// The Network, if it exists.
    pub network: Option<Network>,
    /// Subnets of the Port's addresses.
    pub subnets: Vec<Subnet>,
    /// Another Server that exists and has the Port: by the Port's own word, because the Port
    /// was made for it, or because its Instance is plugged in.
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
    /// The namespace does not let the manager read its Secrets.
    NotAllowed,
    /// The Secret has no such key.
    NoKey(String, String),
    /// The Secret is one that no guest is given, and why.
    Refused(String, String),
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNeeded => f.write_str("NotNeeded"),
            Self::Is(bytes) => write!(f, "Is({} bytes)", bytes.len()),
            Self::NoSecret(name) => write!(f, "NoSecret({name})"),
            Self::NotAllowed => f.write_str("NotAllowed"),
            Self::NoKey(name, key) => write!(f, "NoKey({name}, {key})"),
            Self::Refused(name, why) => write!(f, "Refused({name}, {why})"),
        }
    }
}

/// One small, repeatable effect.
#[derive(Clone, Debug)]
pub enum Step {
    /// Keep the Server until its host has released it.
    AddFinalizer,
    /// Create a Port for an inline network.
    CreatePort(Box<Port>),
    /// Change a Port that was created for the Server.
    UpdatePort(Box<Port>),
    /// Make the Server the holder of a Port, if that is as it was observed.
    ClaimPort {
        /// The Port.
        port: Box<Port>,
        /// Its holder so far, which has to be gone.
        from: Option<Resolved>,
    },
    /// Let others have a Port, if it is as it was observed.
    ReleasePort(Box<Port>),
    /// Go on only if the Server is still as it was observed and has these Ports, by name and uid.
    ConfirmPorts(Vec<(String, String)>),
    /// Write the guest's data.
    CreateGuestData(Box<Secret>),
    /// Create the Instance.
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
        /// Its version, when it may only be deleted as it was observed.
        version: Option<String>,
    },
    /// Delete the guest's data.
    DeleteGuestData {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Delete a Port that was created for the Server.
    DeletePort {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Release the Server.
    RemoveFinalizer,
}

impl fmt::Display for Step {
    /// Names the step without its content, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddFinalizer => f.write_str("add finalizer"),
            Self::CreatePort(port) => write!(f, "create port {}", port.name_any()),
            Self::UpdatePort(port) => write!(f, "update port {}", port.name_any()),
            Self::ClaimPort { port, .. } => write!(f, "claim port {}", port.name_any()),
            Self::ReleasePort(port) => write!(f, "release port {}", port.name_any()),
            Self::ConfirmPorts(ports) => {
                let names: Vec<_> = ports.iter().map(|(name, _)| name.as_str()).collect();
                write!(f, "confirm ports {}", names.join(", "))
            }
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

/// How far a Server is after the steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something it needs is missing or wrong.
    Problems(Vec<Problem>),
    /// The scheduler has not placed it yet.
    Unplaced,
    /// Its Ports have no addresses yet.
    AwaitingPorts(Vec<String>),
    /// Its state is that of its Instance.
    Realised,
    /// Its Instance has been created, and its host has not reported on it yet.
    Building,
    /// It is being deleted; what it waits for.
    Deleting(String),
}

impl Progress {
    /// Whether it is normal, and expected to be over soon.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unplaced | Self::AwaitingPorts(_) | Self::Building
        )
    }

    /// Whether it waits for a Secret to appear or change, which is not watched.
    #[must_use]
    pub fn waits_for_secret(&self) -> bool {
        let Self::Problems(problems) = self else {
            return false;
        };
        problems.iter().any(|p| match p.reason {
            Reason::SecretNotFound
            | Reason::SecretKeyNotFound
            | Reason::SecretNotAllowed
            | Reason::NotOptedIn => true,
            Reason::UserDataTooLarge => !p.terminal,
            _ => false,
        })
    }
}

/// What to do, and how far the Server is then.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Effects, in order; the first that fails ends the pass.
    pub steps: Vec<Step>,
    /// How far the Server is then.
    pub progress: Progress,
    /// Size that the spec asks for now.
    pub claim: Option<Claim>,
    /// What differs from the spec until a rebuild.
    pub outdated: Vec<String>,
    /// Why, for machines.
    pub outdated_reason: Reason,
}

/// Decides for one Server.
#[must_use]
pub fn plan(server: &Server, observed: &Observed) -> Plan {
    let claim = problems::claim(server, observed);
    let image = observed.image.as_ref().and_then(|i| i.status.as_ref());
    let virtual_size = image.and_then(|status| status.virtual_size);
    let made = |steps, progress| Plan {
        steps,
        progress,
        claim: claim.as_ref().ok().map(|c| c.with_image(virtual_size)),
        outdated: vec![],
        outdated_reason: Reason::RebuildRequired,
    };
    if finalize::is_deleting(server) {
        let (steps, waiting) = delete::delete(server, observed);
        return made(steps, Progress::Deleting(waiting));
    }
    let mut steps = Vec::new();
    if !finalize::has(server, MANAGER_FINALIZER) {
        steps.push(Step::AddFinalizer);
    }
    steps.extend(refused::clear(server, observed));
    steps.extend(claim::releases(server, observed));
    let changed = observed.nics.iter();
    let changed = changed.filter_map(|nic| ports::changed(server, nic));
    steps.extend(changed.map(|port| Step::UpdatePort(Box::new(port))));
    if let Some(instance) = observed.instances.first() {
        let progress = if has_report(instance) || observed.host_lost.is_some() {
            Progress::Realised
        } else {
            Progress::Building
        };
        let mut plan = made(steps, progress);
        let claims = claim::missing_claims(server, &observed.nics, instance);
        plan.steps.extend(claims);
        if let Some(changed) = change::changed_instance(server, observed, instance) {
            let drive_made = changed.spec.guest_data.is_none();
            if let Some(name) = instance.spec.guest_data.clone().filter(|_| drive_made) {
                let namespace = instance.namespace().unwrap_or_default();
                plan.steps.push(Step::DeleteGuestData { namespace, name });
            }
            plan.steps.push(Step::UpdateInstance(Box::new(changed)));
        }
        plan.outdated = change::outdated(server, observed, instance, &claim);
        plan.outdated_reason = change::outdated_reason(server, instance, &claim);
        return plan;
    }
    for nic in observed
        .nics
        .iter()
        .filter(|nic| ports::needs_recreation(server, nic))
    {
        steps.extend(nic.port.as_ref().map(|port| Step::DeletePort {
            name: port.name_any(),
            uid: port.uid().unwrap_or_default(),
        }));
    }
    let problems = problems::problems(server, observed, &claim);
    if !problems.is_empty() {
        // Nothing is created for what cannot be built; what was created stays. Ports that are not
        // ready yet are waited for by whoever was first.
        if problems.iter().all(|p| p.reason == Reason::PortNotReady) {
            steps.extend(claim::claims(server, &observed.nics));
        }
        return made(steps, Progress::Problems(problems));
    }
    for nic in observed
        .nics
        .iter()
        .filter(|nic| nic.made && nic.port.is_none())
    {
        steps.push(Step::CreatePort(Box::new(ports::port(server, nic))));
    }
    steps.extend(claim::claims(server, &observed.nics));
    let placement = server.status.as_ref().and_then(|s| s.placement.as_ref());
    let Some(placement) = placement else {
        return made(steps, Progress::Unplaced);
    };
    let waiting: Vec<_> = observed
        .nics
        .iter()
        .filter(|nic| {
            let is_known = ports::is_port_ready(nic) && ports::are_subnets_known(nic);
            !is_known || !claim::is_own(server, nic)
        })
        .map(|nic| nic.port_name.clone())
        .collect();
    if !waiting.is_empty() {
        return made(steps, Progress::AwaitingPorts(waiting));
    }
    let Some(image) = &observed.image else {
        return made(steps, Progress::Unplaced);
    };
    let (secret, instance) = build::instance(server, observed, image, placement);
    steps.push(Step::CreateGuestData(Box::new(secret)));
    steps.extend(claim::confirmation(&observed.nics));
    steps.push(Step::CreateInstance(Box::new(instance)));
    made(steps, Progress::Building)
}

/// Whether its host has reported on the Instance yet.
fn has_report(instance: &Instance) -> bool {
    instance
        .status
        .as_ref()
        .and_then(|s| conditions::find(&s.conditions, ConditionType::Ready))
        .is_some_and(|ready| ready.reason != Reason::Pending.as_str())
}
