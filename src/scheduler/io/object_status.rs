//! Writes the statuses of HostAggregates, ServerGroups, Hosts and SchedulerPolicies.

use kube::{Api, ResourceExt};
use prometheus_client::metrics::counter::Counter;

use crate::state::reports::Report;
use pileus_api::Reason;
use pileus_api::names::SCHEDULER;
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::{ApiError, Context, chain};

/// Writes the statuses that differ; returns whether all writes succeeded.
pub async fn all(context: Context, rejected: Counter, reports: Vec<Report>) -> bool {
    let mut succeeded = true;
    for report in reports {
        match one(&context, &report).await {
            Ok(true) => context.metrics.status_written("scheduler"),
            Ok(false) => {}
            Err(error) if error.is_gone() || error.is_conflict() => {}
            Err(error) => {
                if is_rejected(&error) {
                    rejected.inc();
                    publish_rejection(&context, &report, &chain(&error));
                }
                tracing::warn!(error = %chain(&error), "status not written yet");
                succeeded = false;
            }
        }
    }
    succeeded
}

/// Whether trying again does not help.
fn is_rejected(error: &ApiError) -> bool {
    matches!(&*error.source, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422))
}

/// Says in an event what the status cannot say.
fn publish_rejection(context: &Context, report: &Report, why: &str) {
    let note = format!("the API server rejects the status that the scheduler reports: {why}");
    let (events, reason) = (&context.events, Reason::StatusRejected);
    match report {
        Report::Aggregate(object, _) => events.warning(&**object, reason, "Report", note),
        Report::Group(object, _) => events.warning(&**object, reason, "Report", note),
        Report::Host(object, _) => events.warning(&**object, reason, "Report", note),
        Report::Policy(object, _) => events.warning(&**object, reason, "Report", note),
    }
}

async fn one(context: &Context, report: &Report) -> Result<bool, ApiError> {
    let client = context.client.clone();
    match report {
        Report::Aggregate(object, status) => {
            apply_status(&Api::all(client), SCHEDULER, &**object, status).await
        }
        Report::Group(object, status) => {
            let api = Api::namespaced(client, &object.namespace().unwrap_or_default());
            apply_status(&api, SCHEDULER, &**object, status).await
        }
        Report::Host(object, status) => {
            apply_status(&Api::all(client), SCHEDULER, &**object, status).await
        }
        Report::Policy(object, status) => {
            apply_status(&Api::all(client), SCHEDULER, &**object, status).await
        }
    }
}
