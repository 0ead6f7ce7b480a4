//! Decides what an Instance needs next on its host. Pure: what was seen comes in, steps
//! and a report go out.
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

/// How often a guest that keeps dying is started again before only slow retries are left.
const QUICK_RESTARTS: u32 = 5;

/// What was seen on the host, by direct reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The Instance is being deleted.
    pub deleting: bool,
    /// Highest epoch this host has ever seen for the Server's uid.
    pub highest_epoch: Option<i64>,
    /// That epoch's record was closed: nothing of it was left here once.
    pub epoch_closed: bool,
    /// Why the host has no room for it, with figures; `None` when it has, or nobody can tell.
    pub no_room: Option<String>,
    /// The status said last that it was stopped for a Server of higher priority.
    pub preempted: bool,
    /// The domain with the Instance's id.
    pub domain: Option<SeenDomain>,
    /// The marks on the Instance's directory, when it exists.
    pub directory: Option<Mark>,
    /// The root disk exists.
    pub disk: bool,
    /// The config drive exists.
    pub config_drive: bool,
    /// The image's bytes on this host.
    pub image: SeenImage,
    /// The status said before that a domain or disk of this Instance was made here.
    pub realized: bool,
    /// The guest's own shutdown was recorded, and it stays off.
    pub guest_shutdown: bool,
    /// The status last said that it runs.
    pub was_running: bool,
    /// We have asked the guest to shut down since it was started.
    pub asked_to_stop: bool,
    /// The host has booted since the status was written.
    pub rebooted: bool,
    /// All ports have their flows installed; `None` when that cannot be told now.
    pub ports_installed: Option<bool>,
    /// The wait for flows has lasted as long as it may.
    pub ports_overdue: bool,
    /// When a shutdown has been asked for: whether its time is over.
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
pub struct Mark {
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
pub struct SeenDomain {
    /// Its marks; `None` for a domain that is not ours.
    pub mark: Option<Mark>,
    /// What it does.
    pub state: DomainState,
}

/// What a domain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// Running.
    Running,
    /// Its processors are held.
    Paused,
    /// The guest is shutting down.
    ShuttingDown,
    /// Off, because the guest shut itself down.
    ShutDown,
    /// Off, because it crashed, was killed, the host rebooted, or for a reason unknown.
    Off,
    /// Its QEMU is there but the guest crashed.
    Crashed,
}

/// The image's bytes on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SeenImage {
    /// Not here.
    #[default]
    Absent,
    /// Being fetched in the background.
    Fetching,
    /// Here, checked.
    Cached(ImportedImage),
    /// Could not be fetched, and it is not yet time to try again.
    Failed,
}

/// A shutdown that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// The guest still has time.
    Waiting,
    /// Its time is over.
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
    /// Make the directory with its marks and the root disk, or check the disk that is there.
    MakeDisk,
    /// Write the config drive.
    WriteConfigDrive,
    /// Define the domain.
    Define,
    /// Start the domain with its processors held.
    StartPaused,
    /// Let the processors run.
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
    /// Nothing is left: the epoch's record need not be kept for ever.
    CloseEpoch,
    /// Let the Instance go.
    DropFinalizer,
}

/// Where the Instance stands after the steps, for the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In the run state asked for.
    AsAsked,
    /// The image is on its way.
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
    /// Another placement has been seen here since; nothing is touched.
    Stale(i64),
    /// This very placement has ended here, and all of it is removed: who made the Instance
    /// again acts on what was.
    Ended,
    /// A domain or directory of that id belongs to somebody else.
    Foreign,
    /// The host has no room for it, with the figures; nothing of it was made here.
    NoRoom(String),
    /// It was stopped for another Server, and its room is not there yet; with the figures.
    AwaitingRoom(String),
    /// It ran here before, and its disk is gone: nothing is made up in its place.
    DiskMissing,
    /// Being removed.
    Removing,
}

/// What to do and what to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Effects, in order; the first that fails ends the pass.
    pub steps: Vec<Step>,
    /// Where that leaves the Instance.
    pub standing: Standing,
}

impl Plan {
    fn new(steps: Vec<Step>, standing: Standing) -> Self {
        Self { steps, standing }
    }

    pub(super) fn nothing(standing: Standing) -> Self {
        Self::new(Vec::new(), standing)
    }
}

/// Decides for one Instance. `own` is the mark that this Instance puts on what it makes.
#[must_use]
pub fn plan(spec: &InstanceSpec, own: &Mark, seen: &Seen) -> Plan {
    if seen.deleting && spec.on_deletion == OnDeletion::Release {
        // Nobody has deleted the Server: the Instance was lost, and what it stands for is
        // adopted by the next one.
        return Plan::new(vec![Step::DropFinalizer], Standing::Removing);
    }
    if let Some(highest) = seen.highest_epoch
        && highest > own.epoch
    {
        // An older incarnation touches nothing. When it is deleted, what it left (if
        // anything) is the newer one's or an orphan.
        return match seen.deleting {
            true if !holds_own(own, seen) => {
                Plan::new(vec![Step::DropFinalizer], Standing::Removing)
            }
            true => remove(seen),
            false => Plan::nothing(Standing::Stale(highest)),
        };
    }
    match ownership(own, seen) {
        Ownership::Foreign if seen.deleting => Plan::new(
            vec![Step::CloseEpoch, Step::DropFinalizer],
            Standing::Removing,
        ),
        Ownership::Foreign => Plan::nothing(Standing::Foreign),
        _ if seen.deleting => remove(seen),
        Ownership::Own if is_ended(own, seen) => Plan::nothing(Standing::Ended),
        ownership => {
            let mut steps = Vec::new();
            if seen.highest_epoch != Some(own.epoch) || seen.epoch_closed {
                steps.push(Step::RecordEpoch);
            }
            if ownership == Ownership::Earlier {
                steps.push(Step::Adopt);
            }
            let standing = realise(spec, seen, &mut steps);
            Plan::new(steps, standing)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    /// Nothing there, or all of it made by this very incarnation.
    Own,
    /// Made for the same Server by name, by an earlier incarnation.
    Earlier,
    /// Somebody else's.
    Foreign,
}

fn ownership(own: &Mark, seen: &Seen) -> Ownership {
    let domain = seen.domain.as_ref().map(|domain| domain.mark.as_ref());
    let directory = seen.directory.as_ref().map(Some);
    let mut answer = Ownership::Own;
    for mark in [domain, directory].into_iter().flatten() {
        let Some(mark) = mark else {
            return Ownership::Foreign;
        };
        let named = (&mark.cluster, &mark.namespace, &mark.name)
            == (&own.cluster, &own.namespace, &own.name);
        // For one uid the epoch only grows; a new uid means that the objects were lost and
        // applied again, and the scheduler has bound it above the epoch on the mark.
        if !named || mark.epoch > own.epoch {
            return Ownership::Foreign;
        }
        if mark != own {
            answer = Ownership::Earlier;
        }
    }
    answer
}

fn is_ended(own: &Mark, seen: &Seen) -> bool {
    seen.highest_epoch == Some(own.epoch)
        && seen.epoch_closed
        && seen.domain.is_none()
        && seen.directory.is_none()
}

fn holds_own(own: &Mark, seen: &Seen) -> bool {
    let domain = seen.domain.as_ref().and_then(|domain| domain.mark.as_ref());
    domain == Some(own) || seen.directory.as_ref() == Some(own)
}

fn remove(seen: &Seen) -> Plan {
    let mut steps = Vec::new();
    if let Some(domain) = &seen.domain {
        // A deleted Server is not shut down gracefully: Nova cuts its power too.
        if !matches!(domain.state, DomainState::Off | DomainState::ShutDown) {
            steps.push(Step::PowerOff);
        }
        steps.push(Step::Undefine);
    }
    // Also without a domain: the agent may have died since it removed that.
    steps.push(Step::RemovePorts);
    if seen.directory.is_some() {
        steps.push(Step::RemoveFiles);
    }
    steps.extend([Step::CloseEpoch, Step::DropFinalizer]);
    Plan::new(steps, Standing::Removing)
}

fn realise(spec: &InstanceSpec, seen: &Seen, steps: &mut Vec<Step>) -> Standing {
    let state = seen.domain.as_ref().map(|domain| domain.state);
    match (spec.run_state_in_force(), state) {
        (RunState::Running, Some(DomainState::Running)) => Standing::AsAsked,
        (RunState::Running, Some(DomainState::Paused)) => resume(seen, steps),
        // Asked to stop and then to run again before it was off: let it finish first.
        (RunState::Running, Some(DomainState::ShuttingDown)) => Standing::Building,
        (RunState::Running, Some(DomainState::Crashed)) => {
            steps.push(Step::PowerOff);
            start(seen, steps)
        }
        (RunState::Running, Some(off @ (DomainState::ShutDown | DomainState::Off))) => {
            if stays_off(spec, seen, off) {
                return Standing::GuestShutdown;
            }
            if !seen.disk {
                return Standing::DiskMissing;
            }
            // What has run here has its room, but for one whose room was given to another.
            if seen.preempted
                && let Some(why) = &seen.no_room
            {
                return Standing::AwaitingRoom(why.clone());
            }
            start(seen, steps)
        }
        (RunState::Stopped, Some(DomainState::Running | DomainState::ShuttingDown)) => {
            match seen.shutdown {
                None => steps.push(Step::ShutDown),
                Some(Shutdown::Waiting) => {}
                Some(Shutdown::Overdue) => {
                    steps.push(Step::PowerOff);
                    return Standing::AsAsked;
                }
            }
            Standing::Stopping
        }
        (RunState::Stopped, Some(DomainState::Paused | DomainState::Crashed)) => {
            steps.push(Step::PowerOff);
            Standing::AsAsked
        }
        (RunState::Stopped, Some(DomainState::ShutDown | DomainState::Off)) => Standing::AsAsked,
        (_, None) => make(spec, seen, steps),
    }
}

/// Whether the guest shut itself down, and the policy is to leave it so. A guest that went
/// down with its host, or because we asked, did not. One that is off for a reason that nobody
/// can tell is started: that it should run is what its owner said, and a crash that was taken
/// for a shutdown would be an outage without end.
fn stays_off(spec: &InstanceSpec, seen: &Seen, state: DomainState) -> bool {
    let by_itself =
        state == DomainState::ShutDown && seen.was_running && !seen.asked_to_stop && !seen.rebooted;
    spec.on_guest_shutdown == OnGuestShutdown::Stop && (seen.guest_shutdown || by_itself)
}

fn make(spec: &InstanceSpec, seen: &Seen, steps: &mut Vec<Step>) -> Standing {
    if !seen.disk && seen.realized {
        return Standing::DiskMissing;
    }
    // What has a disk here has its room; only what is new is turned away.
    if !seen.disk
        && let Some(why) = &seen.no_room
    {
        return Standing::NoRoom(why.clone());
    }
    // For a disk that is there too: it is of no use without the image below it, and what it
    // is said to lie over must be known before a guest gets it.
    match &seen.image {
        SeenImage::Absent => {
            steps.push(Step::FetchImage);
            return Standing::Fetching;
        }
        SeenImage::Fetching => return Standing::Fetching,
        SeenImage::Failed => return Standing::ImageFailed,
        SeenImage::Cached(image) => match confirmed(spec, image) {
            Confirmed::Yes => steps.push(Step::MakeDisk),
            Confirmed::NotYet => return Standing::AwaitingDigest,
            Confirmed::No(found) => return Standing::WrongDigest(found),
        },
    }
    if !seen.config_drive {
        steps.push(Step::WriteConfigDrive);
    }
    steps.push(Step::Define);
    match spec.run_state_in_force() {
        RunState::Stopped => Standing::AsAsked,
        RunState::Running if stays_off(spec, seen, DomainState::Off) => Standing::GuestShutdown,
        RunState::Running => start(seen, steps),
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

fn start(seen: &Seen, steps: &mut Vec<Step>) -> Standing {
    if seen.backing_off && (seen.start_refused || seen.crashes > 0) {
        steps.clear();
        return if seen.start_refused {
            Standing::StartRefused
        } else if seen.crashes >= QUICK_RESTARTS {
            Standing::CrashLoop
        } else {
            Standing::Building
        };
    }
    steps.push(Step::StartPaused);
    Standing::AwaitingPorts
}

fn resume(seen: &Seen, steps: &mut Vec<Step>) -> Standing {
    match seen.ports_installed {
        Some(true) => {
            steps.push(Step::Resume);
            Standing::AsAsked
        }
        _ if seen.ports_overdue => Standing::PortsOverdue,
        _ => Standing::AwaitingPorts,
    }
}
