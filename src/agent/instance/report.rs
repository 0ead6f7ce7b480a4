//! Says how an Instance stands, in its status and in events; writes only what differs,
//! and not at all about work that is over in a moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use uuid::Uuid;

use super::observe::Observed;
use super::plan::timing::{REPORT_DELAY, next_pass, report_delay};
use super::plan::{DomainState, Standing};
use super::{Download, Error};
use crate::Agent;
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::instance::InstanceStatus;
use pileus_api::names::AGENT;
use pileus_api::server::{Hardware, PowerState, RunState};
use pileus_api::{Instance, Reason};
use pileus_kube_ext::report::applied_status;
use pileus_kube_ext::{ApiError, chain};

/// Progress is told this often at most.
const PROGRESS: Duration = Duration::from_secs(5);

/// What to say of a standing: status of Ready, reason, message, and whether only a person
/// can help.
struct Words {
    ready: Option<bool>,
    reason: Reason,
    message: String,
    stalled: bool,
}

fn words(
    object: &Instance,
    standing: &Standing,
    download: Option<&DownloadWords>,
    refused: Option<&str>,
) -> Words {
    let say = |ready, reason, message: String, stalled| Words {
        ready,
        reason,
        message,
        stalled,
    };
    match standing {
        Standing::AsAsked if object.spec.preempted => preempted(
            "stopped: a Server of higher priority has its processors and memory".into(),
        ),
        Standing::AwaitingRoom(why) => preempted(format!(
            "stopped for a Server of higher priority, and Host {} has no room for it again yet: {why}",
            object.spec.host
        )),
        Standing::AsAsked if object.spec.run_state == RunState::Running => {
            say(Some(true), Reason::Active, "running".into(), false)
        }
        Standing::AsAsked => say(Some(true), Reason::Stopped, "stopped as asked".into(), false),
        Standing::Fetching => {
            let message = match download {
                Some(DownloadWords::Progress(text)) => text.clone(),
                _ => format!("fetching image {}", object.spec.image.name),
            };
            say(Some(false), Reason::Downloading, message, false)
        }
        Standing::ImageFailed => image_failed(object, download),
        Standing::AwaitingDigest => {
            let message = "image fetched; waiting for its digest to be confirmed for all hosts";
            say(Some(false), Reason::Building, message.into(), false)
        }
        Standing::WrongDigest(found) => say(
            Some(false),
            Reason::DigestMismatch,
            format!(
                "image {}: this host got {found}, which is not what the first import fixed; make a new Image for the new bytes",
                object.spec.image.name
            ),
            true,
        ),
        Standing::Building => say(Some(false), Reason::Building, "being built".into(), false),
        Standing::AwaitingPorts => {
            let message = "built and paused; waiting for OVN to install the ports' flows";
            say(Some(false), Reason::Building, message.into(), false)
        }
        Standing::PortsOverdue => say(
            Some(false),
            Reason::NetworkNotReady,
            "built and paused: OVN has not installed the ports' flows in time; see the Host's NetworkAvailable condition and ovn-controller's log".into(),
            false,
        ),
        Standing::Stopping => {
            let seconds = object.spec.shutdown_timeout_seconds;
            let message = format!("asked to shut down; its power is cut after {seconds} s");
            say(Some(false), Reason::Stopping, message, false)
        }
        Standing::GuestShutdown => say(
            Some(false),
            Reason::GuestShutdown,
            "the guest shut itself down and onGuestShutdown is Stop; set runState to Stopped and back to Running to start it".into(),
            false,
        ),
        Standing::StartRefused => say(
            Some(false),
            Reason::HypervisorFailed,
            refused.unwrap_or("the hypervisor refused to start it").to_owned(),
            false,
        ),
        Standing::CrashLoop => say(
            Some(false),
            Reason::CrashLoop,
            "the guest's QEMU ends again and again soon after its start; see its console log and QEMU's log on the host".into(),
            false,
        ),
        Standing::Stale(highest) => say(
            Some(false),
            Reason::StaleEpoch,
            format!(
                "this host has seen epoch {highest} of the Server, which is newer than {}; nothing is touched",
                object.spec.epoch
            ),
            true,
        ),
        Standing::Foreign => say(
            Some(false),
            Reason::StaleEpoch,
            "a domain or directory of this id belongs to another owner or a newer epoch; nothing is touched. Look at it with `virsh dumpxml` on the host".into(),
            true,
        ),
        Standing::Ended => ended(&object.spec.host, object.spec.epoch),
        Standing::NoRoom(why) => no_room(&object.spec.host, why),
        Standing::DiskMissing => say(
            Some(false),
            Reason::DiskMissing,
            "its root disk is gone from the host and is not made up anew; restore it, or delete the Server and make it again".into(),
            true,
        ),
        Standing::Removing => say(Some(false), Reason::Deleting, "being removed".into(), false),
    }
}

fn image_failed(object: &Instance, download: Option<&DownloadWords>) -> Words {
    let (reason, message, stalled) = match download {
        Some(DownloadWords::Failed {
            reason,
            message,
            terminal,
        }) => (
            *reason,
            format!("image {}: {message}", object.spec.image.name),
            *terminal,
        ),
        _ => (
            Reason::DownloadFailed,
            "the image could not be fetched".to_owned(),
            false,
        ),
    };
    Words {
        ready: Some(false),
        reason,
        message,
        stalled,
    }
}

fn preempted(message: String) -> Words {
    Words {
        ready: Some(false),
        reason: Reason::Preempted,
        message,
        stalled: false,
    }
}

fn no_room(host: &str, why: &str) -> Words {
    Words {
        ready: Some(false),
        reason: Reason::HostRefused,
        message: format!(
            "Host {host} has no room for it: {why}. Nothing of it was made. It is placed elsewhere as soon as another Host fits, or built here when there is room: remove Servers from that Host, or change its reserved and allocation ratios"
        ),
        stalled: false,
    }
}

/// A refusal as well, so that the Server is placed anew.
fn ended(host: &str, epoch: i64) -> Words {
    Words {
        ready: Some(false),
        reason: Reason::HostRefused,
        message: format!(
            "Host {host} has removed what epoch {epoch} of the Server was, and makes nothing of it again; it is placed anew when another Host fits. Otherwise delete the Server and make it again"
        ),
        stalled: false,
    }
}

enum DownloadWords {
    Progress(String),
    Failed {
        reason: Reason,
        message: String,
        terminal: bool,
    },
}

fn reason_of(error: &pileus_storage::Error) -> Reason {
    use pileus_storage::Error as E;
    match error {
        E::ForbiddenUrl { .. } => Reason::ForbiddenUrl,
        E::ForbiddenAddress { .. } => Reason::ForbiddenAddress,
        E::NotFound { .. } => Reason::NotFound,
        E::Truncated { .. } => Reason::Truncated,
        E::ChecksumMismatch { .. } => Reason::ChecksumMismatch,
        E::DigestMismatch { .. } => Reason::DigestMismatch,
        E::NotAnImage(_) => Reason::NotAnImage,
        E::HasBackingFile(..) => Reason::HasBackingFile,
        E::UnsupportedFormat(_) => Reason::UnsupportedFormat,
        E::ImageTooLarge { .. } => Reason::ImageTooLarge,
        E::WrongDisk { .. } => Reason::WrongDisk,
        E::NoSpace(_) => Reason::NoSpace,
        E::DownloadFailed { .. } | E::Io { .. } | E::Program { .. } => Reason::DownloadFailed,
    }
}

fn download_words(object: &Instance, download: Option<&Download>) -> Option<DownloadWords> {
    match download? {
        Download::Running(progress, _) => {
            let (received, total) = progress.get();
            let of = total.map_or_else(String::new, |total| {
                format!(
                    " of {total} ({} %)",
                    received.saturating_mul(100) / total.max(1)
                )
            });
            Some(DownloadWords::Progress(format!(
                "fetching image {}: {received}{of} bytes",
                object.spec.image.name
            )))
        }
        Download::Failed { error, .. } => Some(DownloadWords::Failed {
            reason: reason_of(error),
            message: chain(error),
            terminal: error.is_terminal(),
        }),
    }
}

/// Reports a standing. Gives when to look again, if sooner than the usual resync.
///
/// # Errors
/// When the status cannot be written.
pub async fn report(
    object: &Arc<Instance>,
    id: Uuid,
    agent: &Arc<Agent>,
    seen: &Observed,
    standing: &Standing,
) -> Result<Option<Duration>, ApiError> {
    let now = Instant::now();
    let told = object
        .status
        .as_ref()
        .is_some_and(|s| s.observed_generation.is_some());
    let delay = report_delay(standing, told);
    let (words, quiet, reported, restarts, next) = agent.runtime(id, |runtime| {
        let download = download_words(object, runtime.download.as_ref());
        let refused = runtime.starts.refused.as_ref();
        let refused = refused.map(|(why, _)| why.as_str());
        let words = words(object, standing, download.as_ref(), refused);
        let quiet = match delay {
            Some(delay) => now - *runtime.busy_since.get_or_insert(now) < delay,
            None => {
                runtime.busy_since = None;
                false
            }
        };
        let fetch_again = match &runtime.download {
            Some(Download::Failed { again, .. }) => Some(*again),
            _ => None,
        };
        let next = next_pass(standing, runtime.starts.not_before, fetch_again, now);
        let restarts = runtime.starts.restarts;
        (words, quiet, runtime.reported, restarts, next)
    });
    let too_soon =
        *standing == Standing::Fetching && reported.is_some_and(|at| now - at < PROGRESS);
    if quiet || too_soon {
        return Ok(next);
    }
    let status = InstanceStatus {
        guest_shutdown: Some(*standing == Standing::GuestShutdown),
        ..status(object, agent, Some(seen), restarts)
    };
    write(object, id, agent, status, words).await?;
    Ok(next)
}

/// Reports that a pass failed, once that has lasted a moment.
///
/// # Errors
/// When the status cannot be written.
pub async fn report_error(
    object: &Arc<Instance>,
    id: Uuid,
    agent: &Arc<Agent>,
    error: &Error,
) -> Result<(), ApiError> {
    let (ready, reason, stalled) = match error {
        Error::Hypervisor(
            pileus_hypervisor::Error::Unreachable(_) | pileus_hypervisor::Error::Timeout(_),
        ) => (None, Reason::HypervisorUnavailable, false),
        Error::Hypervisor(_) | Error::Resources(_) => {
            (Some(false), Reason::HypervisorFailed, false)
        }
        Error::Storage(error) => (Some(false), reason_of(error), error.is_terminal()),
        Error::Guest(_) | Error::Spec { .. } => (Some(false), Reason::InvalidSpec, true),
        Error::GuestData(_) => (Some(false), Reason::SecretNotFound, false),
        Error::Epoch(_) | Error::Ports(_) => (Some(false), Reason::Retrying, false),
        // The API server is what a report needs.
        Error::Api(_) => return Ok(()),
    };
    let now = Instant::now();
    let (busy_for, restarts) = agent.runtime(id, |runtime| {
        (
            now - *runtime.busy_since.get_or_insert(now),
            runtime.starts.restarts,
        )
    });
    if busy_for < REPORT_DELAY && !stalled {
        return Ok(());
    }
    let message = match error {
        Error::Storage(pileus_storage::Error::ImageTooLarge { .. }) => {
            format!("image {}: {}", object.spec.image.name, chain(error))
        }
        _ => chain(error),
    };
    let words = Words {
        ready,
        reason,
        message,
        stalled,
    };
    let mut status = status(object, agent, None, restarts);
    if ready.is_none() {
        status.power_state = Some(PowerState::Unknown);
    }
    write(object, id, agent, status, words).await
}

/// The parts of a status that do not depend on the standing; what was not seen in this
/// pass stays as it was told last.
fn status(
    object: &Instance,
    agent: &Agent,
    seen: Option<&Observed>,
    restarts: i64,
) -> InstanceStatus {
    let old = object.status.clone().unwrap_or_default();
    let domain = seen.and_then(|s| s.domain.as_ref());
    let hardware = domain.map_or(old.hardware, |d| {
        Some(Hardware {
            machine_type: d.hardware.machine.clone(),
            cpu_model: d.hardware.cpu_model.clone(),
            virt_type: d.hardware.virt_type.clone(),
            firmware: "bios".to_owned(),
        })
    });
    let power_state = match seen {
        None => old.power_state,
        Some(seen) => Some(match seen.plan.domain.as_ref().map(|d| d.state) {
            Some(DomainState::Running | DomainState::ShuttingDown) => PowerState::Running,
            Some(DomainState::Paused) => PowerState::Paused,
            _ => PowerState::Stopped,
        }),
    };
    InstanceStatus {
        observed_generation: object.metadata.generation,
        power_state,
        host_boot_id: if seen.is_some() {
            Some(agent.boot_id.clone())
        } else {
            old.host_boot_id
        },
        hardware,
        image: seen.and_then(|s| s.imported.clone()).or(old.image),
        guest_shutdown: old.guest_shutdown,
        realized: Some(old.realized == Some(true) || seen.is_some_and(|s| s.plan.disk)),
        restarts: Some(old.restarts.unwrap_or(0) + restarts),
        conditions: old.conditions,
    }
}

async fn write(
    object: &Arc<Instance>,
    id: Uuid,
    agent: &Arc<Agent>,
    mut status: InstanceStatus,
    words: Words,
) -> Result<(), ApiError> {
    let stalled = Observation {
        type_: ConditionType::Stalled,
        status: Some(words.stalled),
        reason: words.reason,
        message: if words.stalled {
            words.message.clone()
        } else {
            String::new()
        },
    };
    let ready = Observation {
        type_: ConditionType::Ready,
        status: words.ready,
        reason: words.reason,
        message: words.message.clone(),
    };
    let old: &[Condition] = object.status.as_ref().map_or(&[], |s| &s.conditions);
    status.conditions = conditions::merge(
        old,
        [ready, stalled],
        object.metadata.generation,
        Timestamp::now(),
    );
    let written = applied_status(&agent.instances, AGENT, &**object, &status).await?;
    if let Some(written) = written {
        agent.context.metrics.status_written("instance");
        let changed = agent.runtime(id, |runtime| {
            runtime.reported = Some(Instant::now());
            runtime.starts.restarts = 0;
            runtime.written.note(object, written);
            runtime.told.replace(words.reason) != Some(words.reason)
        });
        if changed {
            tracing::info!(
                instance = %object.name_any(),
                server = %format_args!("{}/{}", object.spec.server.namespace, object.spec.server.name),
                reason = %words.reason,
                message = %words.message,
                "instance"
            );
            if words.ready == Some(true) {
                agent
                    .context
                    .events
                    .normal(&**object, words.reason, "Realise", words.message);
            } else {
                agent
                    .context
                    .events
                    .warning(&**object, words.reason, "Realise", words.message);
            }
        }
    }
    Ok(())
}
