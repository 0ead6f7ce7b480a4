//! Reports the progress of an Instance in its status and in events; writes only what differs,
//! and nothing about work that is over in a moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use uuid::Uuid;

use super::observe::Snapshot;
use super::plan::timing::{REPORT_DELAY, next_pass, report_delay};
use super::plan::{DomainState, Progress};
use super::{Download, Error};
use crate::Agent;
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::instance::InstanceStatus;
use pileus_api::names::AGENT;
use pileus_api::server::{Hardware, PowerState, RunState};
use pileus_api::{Instance, Reason};
use pileus_kube_ext::report::applied_status;
use pileus_kube_ext::{ApiError, chain};
use pileus_values::printable;

/// The bytes received of a download are reported at most this often.
const DOWNLOAD_REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Most characters of what is reported of an Instance, also in events and logs.
const MAX_MESSAGE: usize = 1000;

/// What is reported: status of Ready, reason, message, and whether only a person can help.
struct Report {
    ready: Option<bool>,
    reason: Reason,
    message: String,
    stalled: bool,
}

fn describe(
    object: &Instance,
    progress: &Progress,
    download: Option<&DownloadReport>,
    refused: Option<&str>,
) -> Report {
    let say = |ready, reason, message: String, stalled| Report {
        ready,
        reason,
        message,
        stalled,
    };
    match progress {
        Progress::Complete if object.spec.preempted => preempted(
            "stopped: a Server of higher priority has its processors and memory".into(),
        ),
        Progress::AwaitingCapacity(why) => preempted(format!(
            "stopped for a Server of higher priority, and Host {} has no capacity for it again yet: {why}",
            object.spec.host
        )),
        Progress::Complete if object.spec.run_state == RunState::Running => {
            say(Some(true), Reason::Active, "running".into(), false)
        }
        Progress::Complete => say(Some(true), Reason::Stopped, "stopped as asked".into(), false),
        Progress::Fetching => {
            let message = match download {
                Some(DownloadReport::Running(text)) => text.clone(),
                _ => format!("fetching image {}", object.spec.image.name),
            };
            say(Some(false), Reason::Downloading, message, false)
        }
        Progress::ImageFailed => image_failed(object, download),
        Progress::AwaitingDigest => {
            let message = "image fetched; waiting for its digest to be confirmed for all hosts";
            say(Some(false), Reason::Building, message.into(), false)
        }
        Progress::WrongDigest(found) => say(
            Some(false),
            Reason::DigestMismatch,
            format!(
                "image {}: this host got {found}, which is not what the first import fixed; make a new Image for the new bytes",
                object.spec.image.name
            ),
            true,
        ),
        Progress::Building => say(Some(false), Reason::Building, "being built".into(), false),
        Progress::AwaitingPorts => {
            let message = "built and paused; waiting for OVN to install the ports' flows";
            say(Some(false), Reason::Building, message.into(), false)
        }
        Progress::PortsOverdue => say(
            Some(false),
            Reason::NetworkNotReady,
            "built and paused: OVN has not installed the ports' flows in time; see the Host's NetworkAvailable condition and ovn-controller's log".into(),
            false,
        ),
        Progress::Stopping => {
            let seconds = object.spec.shutdown_timeout_seconds;
            let message = format!("asked to shut down; its power is cut after {seconds} s");
            say(Some(false), Reason::Stopping, message, false)
        }
        Progress::GuestShutdown => say(
            Some(false),
            Reason::GuestShutdown,
            "the guest shut itself down and onGuestShutdown is Stop; set runState to Stopped and back to Running to start it".into(),
            false,
        ),
        Progress::StartRefused => say(
            Some(false),
            Reason::HypervisorFailed,
            refused.unwrap_or("the hypervisor refused to start it").to_owned(),
            false,
        ),
        Progress::CrashLoop => say(
            Some(false),
            Reason::CrashLoop,
            "the guest's QEMU ends again and again soon after its start; see its console log and QEMU's log on the host".into(),
            false,
        ),
        Progress::Stale(highest) => say(
            Some(false),
            Reason::StaleEpoch,
            format!(
                "this host has seen epoch {highest} of the Server, which is newer than {}; nothing is touched",
                object.spec.epoch
            ),
            true,
        ),
        Progress::Foreign => say(
            Some(false),
            Reason::StaleEpoch,
            "a domain or directory of this id belongs to another owner or a newer epoch; nothing is touched. Look at it with `virsh dumpxml` on the host".into(),
            true,
        ),
        Progress::Ended => ended(&object.spec.host, object.spec.epoch),
        Progress::NoCapacity(why) => no_capacity(&object.spec.host, why),
        Progress::DiskMissing => say(
            Some(false),
            Reason::DiskMissing,
            "its root disk is gone from the host and is not replaced by a new one; restore it, or delete the Server and make it again".into(),
            true,
        ),
        Progress::Removing => say(Some(false), Reason::Deleting, "being removed".into(), false),
    }
}

fn image_failed(object: &Instance, download: Option<&DownloadReport>) -> Report {
    let (reason, message, stalled) = match download {
        Some(DownloadReport::Failed {
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
    Report {
        ready: Some(false),
        reason,
        message,
        stalled,
    }
}

fn preempted(message: String) -> Report {
    Report {
        ready: Some(false),
        reason: Reason::Preempted,
        message,
        stalled: false,
    }
}

fn no_capacity(host: &str, why: &str) -> Report {
    Report {
        ready: Some(false),
        reason: Reason::HostRefused,
        message: format!(
            "Host {host} has no capacity for it: {why}. Nothing of it was made. It is placed elsewhere as soon as another Host fits, or built here when there is capacity: remove Servers from that Host, or change its reserved and allocation ratios"
        ),
        stalled: false,
    }
}

/// A refusal as well, so that the Server is placed again.
fn ended(host: &str, epoch: i64) -> Report {
    Report {
        ready: Some(false),
        reason: Reason::HostRefused,
        message: format!(
            "Host {host} has removed what epoch {epoch} of the Server was, and makes nothing of it again; it is placed again when another Host fits. Otherwise delete the Server and make it again"
        ),
        stalled: false,
    }
}

enum DownloadReport {
    Running(String),
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
        E::FileTooBig { .. } | E::DiskTooBig { .. } => Reason::ImageOverLimit,
        E::NotAnImage(_) => Reason::NotAnImage,
        E::HasBackingFile(..) => Reason::HasBackingFile,
        E::UnsupportedFormat(_) => Reason::UnsupportedFormat,
        E::ImageTooLarge { .. } => Reason::ImageTooLarge,
        E::WrongDisk { .. } => Reason::WrongDisk,
        E::NoSpace(_) => Reason::NoSpace,
        E::DownloadFailed { .. } | E::TooSlow { .. } | E::Io { .. } | E::Program { .. } => {
            Reason::DownloadFailed
        }
    }
}

fn download_report(object: &Instance, download: Option<&Download>) -> Option<DownloadReport> {
    match download? {
        Download::Running(download, _) => {
            let image = &object.spec.image.name;
            if download.is_waiting() {
                return Some(DownloadReport::Running(format!(
                    "image {image} is fetched as soon as other downloads of this host have ended"
                )));
            }
            let (received, total) = download.get();
            let of = total.map_or_else(String::new, |total| {
                format!(
                    " of {total} ({} %)",
                    received.saturating_mul(100) / total.max(1)
                )
            });
            Some(DownloadReport::Running(format!(
                "fetching image {image}: {received}{of} bytes"
            )))
        }
        Download::Failed { error, .. } => Some(DownloadReport::Failed {
            reason: reason_of(error),
            message: chain(error),
            terminal: error.is_terminal(),
        }),
    }
}

/// Reports progress. Returns when the next pass is due, if sooner than the usual resync.
///
/// # Errors
/// When the status cannot be written.
pub async fn report(
    object: &Arc<Instance>,
    id: Uuid,
    agent: &Arc<Agent>,
    snapshot: &Snapshot,
    progress: &Progress,
) -> Result<Option<Duration>, ApiError> {
    let now = Instant::now();
    let is_reported = object
        .status
        .as_ref()
        .is_some_and(|s| s.observed_generation.is_some());
    let delay = report_delay(progress, is_reported);
    let (report, quiet, reported, restarts, next) = agent.runtime(id, |runtime| {
        let download = download_report(object, runtime.download.as_ref());
        let refused = runtime.starts.refused.as_ref();
        let refused = refused.map(|(why, _)| why.as_str());
        let report = describe(object, progress, download.as_ref(), refused);
        if delay.is_none() {
            runtime.busy_since = None;
        }
        let quiet = delay.is_some_and(|delay| now - *runtime.busy_since.get_or_insert(now) < delay);
        let fetch_again = match &runtime.download {
            Some(Download::Failed { again, .. }) => Some(*again),
            _ => None,
        };
        let next = next_pass(progress, runtime.starts.not_before, fetch_again, now);
        let restarts = runtime.starts.restarts;
        (report, quiet, runtime.reported_at, restarts, next)
    });
    let too_soon = *progress == Progress::Fetching
        && reported.is_some_and(|at| now - at < DOWNLOAD_REPORT_INTERVAL);
    if quiet || too_soon {
        return Ok(next);
    }
    let status = InstanceStatus {
        guest_shutdown: Some(*progress == Progress::GuestShutdown),
        ..status(object, agent, Some(snapshot), restarts)
    };
    write(object, id, agent, status, report).await?;
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
        // Nothing can be reported without the API server.
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
    let report = Report {
        ready,
        reason,
        message,
        stalled,
    };
    let mut status = status(object, agent, None, restarts);
    if ready.is_none() {
        status.power_state = Some(PowerState::Unknown);
    }
    write(object, id, agent, status, report).await
}

/// The parts of a status that do not depend on the progress; what was not observed in this
/// pass stays as it was reported last.
fn status(
    object: &Instance,
    agent: &Agent,
    snapshot: Option<&Snapshot>,
    restarts: i64,
) -> InstanceStatus {
    let old = object.status.clone().unwrap_or_default();
    let domain = snapshot.and_then(|s| s.domain.as_ref());
    let hardware = domain.map_or(old.hardware, |d| {
        Some(Hardware {
            machine_type: d.hardware.machine.clone(),
            cpu_model: d.hardware.cpu_model.clone(),
            virt_type: d.hardware.virt_type.clone(),
            firmware: "bios".to_owned(),
        })
    });
    let power_state = match snapshot {
        None => old.power_state,
        Some(snapshot) => Some(match snapshot.observed.domain.as_ref().map(|d| d.state) {
            Some(DomainState::Running | DomainState::ShuttingDown) => PowerState::Running,
            Some(DomainState::Paused) => PowerState::Paused,
            _ => PowerState::Stopped,
        }),
    };
    InstanceStatus {
        observed_generation: object.metadata.generation,
        power_state,
        host_boot_id: if snapshot.is_some() {
            Some(agent.boot_id.clone())
        } else {
            old.host_boot_id
        },
        hardware,
        image: snapshot.and_then(|s| s.imported.clone()).or(old.image),
        guest_shutdown: old.guest_shutdown,
        realized: Some(old.realized == Some(true) || snapshot.is_some_and(|s| s.observed.disk)),
        restarts: Some(old.restarts.unwrap_or(0) + restarts),
        conditions: old.conditions,
    }
}

async fn write(
    object: &Arc<Instance>,
    id: Uuid,
    agent: &Arc<Agent>,
    mut status: InstanceStatus,
    report: Report,
) -> Result<(), ApiError> {
    // It may quote the guest's QEMU, an image or its server.
    let report = Report {
        message: printable(&report.message, MAX_MESSAGE),
        ..report
    };
    let stalled = Observation {
        type_: ConditionType::Stalled,
        status: Some(report.stalled),
        reason: report.reason,
        message: if report.stalled {
            report.message.clone()
        } else {
            String::new()
        },
    };
    let ready = Observation {
        type_: ConditionType::Ready,
        status: report.ready,
        reason: report.reason,
        message: report.message.clone(),
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
            runtime.reported_at = Some(Instant::now());
            runtime.starts.restarts = 0;
            runtime.own_writes.record(object, written);
            runtime.last_reported.replace(report.reason) != Some(report.reason)
        });
        if changed {
            tracing::info!(
                instance = %object.name_any(),
                server = %format_args!("{}/{}", object.spec.server.namespace, object.spec.server.name),
                reason = %report.reason,
                message = %report.message,
                "instance"
            );
            if report.ready == Some(true) {
                agent
                    .context
                    .events
                    .normal(&**object, report.reason, "Realise", report.message);
            } else {
                agent
                    .context
                    .events
                    .warning(&**object, report.reason, "Realise", report.message);
            }
        }
    }
    Ok(())
}
