//! Writes a Server's status, until the outcome is certain.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::state::{Outcome, StatusWrite};
use pileus_api::Server;
use pileus_api::names::SCHEDULER;
use pileus_kube_ext::report::apply_status_to_version;
use pileus_kube_ext::{ApiError, chain, is_unserved};

/// Timeout of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest delay between attempts.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);

/// Writes a decision to the version of the Server that was decided.
///
/// An attempt without a known outcome (a timeout, a broken connection, a server error) may have
/// succeeded all the same, so the same write is repeated until the outcome is certain: if an
/// earlier attempt or another writer was first, it is a conflict.
pub async fn write_status(client: Client, write: &StatusWrite) -> Outcome {
    let api: Api<Server> = Api::namespaced(client, &write.key.0);
    let mut wait = Duration::from_millis(100);
    loop {
        let call = async {
            if withdraws_placement(write) {
                withdraw_placement(&api, write).await
            } else {
                apply_status_to_version(&api, SCHEDULER, &write.server, &write.status).await
            }
        };
        match tokio::time::timeout(ATTEMPT_TIMEOUT, call).await {
            Ok(Ok(server)) => return Outcome::Written(Arc::new(server)),
            Ok(Err(error)) => {
                if let Some(outcome) = known_outcome(&error) {
                    return outcome;
                }
                tracing::warn!(server = ?write.key, error = %chain(&error), "status not written yet");
            }
            Err(_) => tracing::warn!(server = ?write.key, "writing a status takes too long"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(MAX_RETRY_DELAY);
    }
}

/// Whether the write withdraws a placement.
fn withdraws_placement(write: &StatusWrite) -> bool {
    let status = write.server.status.as_ref();
    write.status.placement.is_none() && status.is_some_and(|s| s.placement.is_some())
}

/// Withdraws a placement with a merge patch. Server-side apply removes only the fields that the
/// scheduler owns, and those of a status that a backup tool has restored belong to that tool.
async fn withdraw_placement(api: &Api<Server>, write: &StatusWrite) -> Result<Server, ApiError> {
    let server = &write.server;
    let mut conditions = write.status.conditions.clone();
    let others = server.status.iter().flat_map(|s| &s.conditions);
    let ours: Vec<String> = conditions.iter().map(|c| c.type_.clone()).collect();
    conditions.extend(others.filter(|c| !ours.contains(&c.type_)).cloned());
    let patch = json!({
        "metadata": {"uid": server.uid(), "resourceVersion": server.resource_version()},
        "status": {
            "placement": null,
            "nomination": null,
            "preemption": null,
            "refusals": write.status.refusals,
            "conditions": conditions,
        },
    });
    let params = PatchParams {
        field_manager: Some(SCHEDULER.to_owned()),
        ..PatchParams::default()
    };
    let name = server.name_any();
    api.patch_status(&name, &params, &Patch::Merge(&patch))
        .await
        .map_err(ApiError::doing(format!(
            "withdraw the placement of Server {name}"
        )))
}

/// The outcome, if the error means that nothing was written.
fn known_outcome(error: &ApiError) -> Option<Outcome> {
    if error.is_conflict() || error.is_gone() {
        return Some(Outcome::Conflict);
    }
    if is_unserved(&error.source) {
        // The API server has just started and does not serve our kinds yet.
        return None;
    }
    match &*error.source {
        kube::Error::Api(status) if (400..429).contains(&status.code) => {
            Some(Outcome::Rejected(chain(error)))
        }
        kube::Error::SerdeError(_) => Some(Outcome::Rejected(chain(error))),
        _ => None,
    }
}
