//! Decides what an Instance needs next on its host. Pure: what was observed comes in, steps
//! and the progress to report go out.
//!
//! ```text
//!  absent ─ fetch image ─ make disk ─ define ─ start paused ─ ports installed ─ resume ─> running
//!     ^                                                                                    │
//!     └── undefine, remove disk <── power off <── shut down, wait <── delete or stop <─────┘
//! ```
//! Every pass starts from what is there, so a crash at any point costs nothing but the
//! step that it interrupted.

pub mod domain;
pub mod resources;
pub mod timing;

use pileus_api::instance::{ImportedImage, InstanceSpec, OnDeletion};
use pileus_api::server::{OnGuestShutdown, RunState};

/// After this many crashes in quick succession the guest is reported as a crash loop.
const QUICK_RESTARTS: u32 = 5;

/// What was observed on the host, by direct reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The Instance is being deleted.
    pub deleting: bool,
    /// Highest epoch recorded on this host for the Server's uid.
    pub highest_epoch: Option<i64>,
    /// That epoch's record is closed: all of it was removed from this host.
    pub epoch_closed: bool,
    /// Why the host has no capacity for it, with figures; `None` when it has, or that is unknown.
    pub no_capacity: Option<String>,
    /// The reported status is that it was stopped for a Server of higher priority.
    pub preempted: bool,
    /// The domain with the Instance's id.
    pub domain: Option<ObservedDomain>,
    /// The owner of the Instance's directory, when it exists.
    pub directory: Option<PlacementOwner>,
    /// The root disk exists.
    pub disk: bool,
    /// The config drive exists.
    pub config_drive: bool,
    /// The image's bytes on this host.
    pub image: ImageState,
    /// It was reported before that a domain or disk of this Instance was made here.
    pub realized: bool,
    /// It was reported that the guest shut itself down, and it stays off.
    pub guest_shutdown: bool,
    /// The reported power state is Running.
    pub was_running: bool,
    /// We have asked the guest to shut down since it was started.
    pub asked_to_stop: bool,
    /// The host has booted since the status was written.
    pub rebooted: bool,
    /// All ports have their flows installed; `None` when that is unknown now.
    pub ports_installed: Option<bool>,
    /// The wait for flows has timed out.
    pub ports_overdue: bool,
    /// The shutdown that was requested, if any.
    pub shutdown: Option<Shutdown>,
    /// Starts in quick succession that ended in a crash.
    pub crashes: u32,
    /// The last start was refused by the hypervisor.
    pub start_refused: bool,
    /// The pause after the last crash or refused start is not over.
    pub backing_off: bool,
}

/// Who made something on the host, and for which placement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacementOwner {
    /// uid of the cluster.
    pub cluster: String,
    /// Namespace of the Server.
    pub namespace: String,
    /// Name of the Server.
    pub name: String,
    /// uid of the Server.
    pub uid: String,
    /// Epoch of the placement.
    pub epoch: i64,
}

/// A domain as libvirt shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedDomain {
    /// Its owner; `None` for a domain that is not ours.
    pub owner: Option<PlacementOwner>,
    /// Its state.
    pub state: DomainState,
}

/// State of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// Running.
    Running,
    /// Its processors are paused.
    Paused,
    /// The guest is shutting down.
    ShuttingDown,
    /// Off, because the guest shut itself down.
    ShutDown,
    /// Off, because it crashed, was killed, the host rebooted, or for a reason unknown.
    Off,
    /// The guest crashed; its QEMU still runs.
    Crashed,
}

/// The image's bytes on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageState {
    /// Not on this host.
    #[default]
    Absent,
    /// Being fetched in the background.
    Fetching,
    /// On this host, checked.
    Cached(ImportedImage),
    /// Could not be fetched, and it is not yet time to try again.
    Failed,
}

/// A shutdown that was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// The guest still has time to shut down.
    Waiting,
    /// The guest did not shut down in time.
    Overdue,
}

/// One small, repeatable effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Persist the Instance's epoch, before anything of it is made.
    RecordEpoch,
    /// Put this Server's uid and epoch on the domain and directory that an earlier
    /// incarnation of the same name left.
    Adopt,
    /// Fetch the image in the background.
    FetchImage,
    /// Make the directory with its metadata and the root disk, or check the disk that is there.
    MakeDisk,
    /// Write the config drive.
    WriteConfigDrive,
    /// Define the domain.
    Define,
    /// Start the domain with its processors paused.
    StartPaused,
    /// Resume the processors.
    Resume,
    /// Ask the guest to shut down.
    ShutDown,
    /// Cut the power.
    PowerOff,
    /// Remove the domain's definition.
    Undefine,
    /// Remove what libvirt may have left of it in Open vSwitch.
    RemovePorts,
    /// Remove the directory with its disks.
    RemoveFiles,
    /// Close the epoch's record: nothing is left, so it need not be kept for ever.
    CloseEpoch,
    /// Remove the finalizer, so that the Instance can be deleted.
    DropFinalizer,
}

/// How far the Instance is after the steps; what is reported of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// In the run state that the spec asks for.
    Complete,
    /// The image is being fetched.
    Fetching,
    /// The image could not be fetched.
    ImageFailed,
    /// The digest must be confirmed by the manager.
    AwaitingDigest,
    /// The bytes are not those that the manager confirmed; the one found.
    WrongDigest(String),
    /// Being made or started.
    Building,
    /// Waiting for the ports' flows.
    AwaitingPorts,
    /// The ports' flows did not come in time; the guest stays paused.
    PortsOverdue,
    /// Shutting down.
    Stopping,
    /// The guest shut itself down, and stays so.
    GuestShutdown,
    /// The hypervisor refused to start it; tried again after a pause.
    StartRefused,
    /// The guest dies again and again; started again after a pause.
    CrashLoop,
    /// A newer placement is recorded on this host; nothing is touched.
    Stale(i64),
    /// This very placement has ended here, and all of it was removed: the Instance was made
    /// again from an outdated decision.
    Ended,
    /// A domain or directory of that id belongs to somebody else.
    Foreign,
    /// The host has no capacity for it, with the figures; nothing of it was made here.
    NoCapacity(String),
    /// It was stopped for another Server, and the host has no capacity for it yet; with the
    /// figures.
    AwaitingCapacity(String),
    /// It ran here before, and its disk is gone: no new one is made in its place.
    DiskMissing,
    /// Being removed.
    Removing,
}

/// What to do and what to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Effects, in order; the first that fails ends the pass.
    pub steps: Vec<Step>,
    /// How far the Instance is then.
    pub progress: Progress,
}

impl Plan {
    fn new(steps: Vec<Step>, progress: Progress) -> Self {
        Self { steps, progress }
    }

    pub(super) fn nothing(progress: Progress) -> Self {
        Self::new(Vec::new(), progress)
    }
}

/// Decides for one Instance. `own` is the owner that this Instance records on what it makes.
#[must_use]
pub fn plan(spec: &InstanceSpec, own: &PlacementOwner, observed: &Observed) -> Plan {
    if observed.deleting && spec.on_deletion == OnDeletion::Release {
        // The Server was not deleted: the Instance was lost, and its domain and disk are
        // adopted by the next one.
        return Plan::new(vec![Step::DropFinalizer], Progress::Removing);
    }
    if let Some(highest) = observed.highest_epoch
        && highest > own.epoch
    {
        // An older incarnation touches nothing. When it is deleted, what it left (if
        // anything) is the newer one's or an orphan.
        return match observed.deleting {
            true if !holds_own(own, observed) => {
                Plan::new(vec![Step::DropFinalizer], Progress::Removing)
            }
            true => remove(observed),
            false => Plan::nothing(Progress::Stale(highest)),
        };
    }
    match ownership(own, observed) {
        Ownership::Foreign if observed.deleting => Plan::new(
            vec![Step::CloseEpoch, Step::DropFinalizer],
            Progress::Removing,
        ),
        Ownership::Foreign => Plan::nothing(Progress::Foreign),
        _ if observed.deleting => remove(observed),
        Ownership::Own if is_ended(own, observed) => Plan::nothing(Progress::Ended),
        ownership => {
            let mut steps = Vec::new();
            if observed.highest_epoch != Some(own.epoch) || observed.epoch_closed {
                steps.push(Step::RecordEpoch);
            }
            if ownership == Ownership::Earlier {
                steps.push(Step::Adopt);
            }
            let progress = realise(spec, observed, &mut steps);
            Plan::new(steps, progress)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    /// There is nothing, or all of it was made by this very incarnation.
    Own,
    /// Made for the same Server by name, by an earlier incarnation.
    Earlier,
    /// Somebody else's.
    Foreign,
}

fn ownership(own: &PlacementOwner, observed: &Observed) -> Ownership {
    let domain = observed.domain.as_ref().map(|domain| domain.owner.as_ref());
    let directory = observed.directory.as_ref().map(Some);
    let mut answer = Ownership::Own;
    for owner in [domain, directory].into_iter().flatten() {
        let Some(owner) = owner else {
            return Ownership::Foreign;
        };
        let named = (&owner.cluster, &owner.namespace, &owner.name)
            == (&own.cluster, &own.namespace, &own.name);
        // For one uid the epoch only grows; a new uid means that the objects were lost and
        // applied again, and the scheduler has bound it above the recorded epoch.
        if !named || owner.epoch > own.epoch {
            return Ownership::Foreign;
        }
        if owner != own {
            answer = Ownership::Earlier;
        }
    }
    answer
}

fn is_ended(own: &PlacementOwner, observed: &Observed) -> bool {
    observed.highest_epoch == Some(own.epoch)
        && observed.epoch_closed
        && observed.domain.is_none()
        && observed.directory.is_none()
}

fn holds_own(own: &PlacementOwner, observed: &Observed) -> bool {
    let domain = observed
        .domain
        .as_ref()
        .and_then(|domain| domain.owner.as_ref());
    domain == Some(own) || observed.directory.as_ref() == Some(own)
}

fn remove(observed: &Observed) -> Plan {
    let mut steps = Vec::new();
    if let Some(domain) = &observed.domain {
        // A deleted Server is not shut down gracefully: Nova cuts its power too.
        if !matches!(domain.state, DomainState::Off | DomainState::ShutDown) {
            steps.push(Step::PowerOff);
        }
        steps.push(Step::Undefine);
    }
    // Also without a domain: the agent may have died since it removed that.
    steps.push(Step::RemovePorts);
    if observed.directory.is_some() {
        steps.push(Step::RemoveFiles);
    }
    steps.extend([Step::CloseEpoch, Step::DropFinalizer]);
    Plan::new(steps, Progress::Removing)
}

fn realise(spec: &InstanceSpec, observed: &Observed, steps: &mut Vec<Step>) -> Progress {
    let state = observed.domain.as_ref().map(|domain| domain.state);
    match (spec.run_state_in_force(), state) {
        (RunState::Running, Some(DomainState::Running)) => Progress::Complete,
        (RunState::Running, Some(DomainState::Paused)) => resume(observed, steps),
        // Asked to stop and then to run again before it was off: let it finish first.
        (RunState::Running, Some(DomainState::ShuttingDown)) => Progress::Building,
        (RunState::Running, Some(DomainState::Crashed)) => {
            steps.push(Step::PowerOff);
            start(observed, steps)
        }
        (RunState::Running, Some(off @ (DomainState::ShutDown | DomainState::Off))) => {
            if stays_off(spec, observed, off) {
                return Progress::GuestShutdown;
            }
            if !observed.disk {
                return Progress::DiskMissing;
            }
            // A guest that has run here has its capacity, unless it was given to another.
            if observed.preempted
                && let Some(why) = &observed.no_capacity
            {
                return Progress::AwaitingCapacity(why.clone());
            }
            start(observed, steps)
        }
        (RunState::Stopped, Some(DomainState::Running | DomainState::ShuttingDown)) => {
            match observed.shutdown {
                None => steps.push(Step::ShutDown),
                Some(Shutdown::Waiting) => {}
                Some(Shutdown::Overdue) => {
                    steps.push(Step::PowerOff);
                    return Progress::Complete;
                }
            }
            Progress::Stopping
        }
        (RunState::Stopped, Some(DomainState::Paused | DomainState::Crashed)) => {
            steps.push(Step::PowerOff);
            Progress::Complete
        }
        (RunState::Stopped, Some(DomainState::ShutDown | DomainState::Off)) => Progress::Complete,
        (_, None) => make(spec, observed, steps),
    }
}

/// Whether the guest shut itself down, and the policy is to leave it so. A guest that went
/// down with its host, or because we asked, did not. One that is off for an unknown reason
/// is started: its owner asks for it to run, and a crash that was mistaken for a shutdown would
/// leave it off for ever.
fn stays_off(spec: &InstanceSpec, observed: &Observed, state: DomainState) -> bool {
    let by_itself = state == DomainState::ShutDown
        && observed.was_running
        && !observed.asked_to_stop
        && !observed.rebooted;
    spec.on_guest_shutdown == OnGuestShutdown::Stop && (observed.guest_shutdown || by_itself)
}

fn make(spec: &InstanceSpec, observed: &Observed, steps: &mut Vec<Step>) -> Progress {
    if !observed.disk && observed.realized {
        return Progress::DiskMissing;
    }
    // An Instance with a disk here has its capacity; only a new one is refused.
    if !observed.disk
        && let Some(why) = &observed.no_capacity
    {
        return Progress::NoCapacity(why.clone());
    }
    // Also for a disk that exists: it is of no use without its backing image, which must be
    // verified before a guest gets the disk.
    match &observed.image {
        ImageState::Absent => {
            steps.push(Step::FetchImage);
            return Progress::Fetching;
        }
        ImageState::Fetching => return Progress::Fetching,
        ImageState::Failed => return Progress::ImageFailed,
        ImageState::Cached(image) => match confirmed(spec, image) {
            Confirmed::Yes => steps.push(Step::MakeDisk),
            Confirmed::NotYet => return Progress::AwaitingDigest,
            Confirmed::No(found) => return Progress::WrongDigest(found),
        },
    }
    if !observed.config_drive {
        steps.push(Step::WriteConfigDrive);
    }
    steps.push(Step::Define);
    match spec.run_state_in_force() {
        RunState::Stopped => Progress::Complete,
        RunState::Running if stays_off(spec, observed, DomainState::Off) => Progress::GuestShutdown,
        RunState::Running => start(observed, steps),
    }
}

enum Confirmed {
    Yes,
    NotYet,
    No(String),
}

/// Whether the bytes here are those that the manager fixed for every host.
fn confirmed(spec: &InstanceSpec, image: &ImportedImage) -> Confirmed {
    let parts = [
        (Some(&spec.image.disk), Some(&image.digest)),
        (spec.image.kernel.as_ref(), image.kernel_digest.as_ref()),
        (spec.image.initrd.as_ref(), image.initrd_digest.as_ref()),
    ];
    for (wanted, found) in parts {
        let Some(wanted) = wanted else { continue };
        match (&wanted.digest, found) {
            (Some(digest), Some(found)) if digest == found => {}
            (Some(_), Some(found)) => return Confirmed::No(found.clone()),
            _ => return Confirmed::NotYet,
        }
    }
    Confirmed::Yes
}

fn start(observed: &Observed, steps: &mut Vec<Step>) -> Progress {
    if observed.backing_off && (observed.start_refused || observed.crashes > 0) {
        steps.clear();
        return if observed.start_refused {
            Progress::StartRefused
        } else if observed.crashes >= QUICK_RESTARTS {
            Progress::CrashLoop
        } else {
            Progress::Building
        };
    }
    steps.push(Step::StartPaused);
    Progress::AwaitingPorts
}

fn resume(observed: &Observed, steps: &mut Vec<Step>) -> Progress {
    match observed.ports_installed {
        Some(true) => {
            steps.push(Step::Resume);
            Progress::Complete
        }
        _ if observed.ports_overdue => Progress::PortsOverdue,
        _ => Progress::AwaitingPorts,
    }
}
