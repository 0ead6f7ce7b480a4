//! Writes the statuses of HostAggregates, ServerGroups, Hosts and SchedulerPolicies.

use kube::{Api, ResourceExt};

use crate::state::reports::Report;
use pileus_api::names::SCHEDULER;
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::{ApiError, Context, chain};

/// Writes the statuses that differ; returns whether all writes succeeded.
pub async fn all(context: Context, reports: Vec<Report>) -> bool {
    let mut succeeded = true;
    for report in reports {
        match one(&context, report).await {
            Ok(true) => context.metrics.status_written("scheduler"),
            Ok(false) => {}
            Err(error) if error.is_gone() || error.is_conflict() => {}
            Err(error) => {
                tracing::warn!(error = %chain(&error), "status not written yet");
                succeeded = false;
            }
        }
    }
    succeeded
}

async fn one(context: &Context, report: Report) -> Result<bool, ApiError> {
    let client = context.client.clone();
    match report {
        Report::Aggregate(object, status) => {
            apply_status(&Api::all(client), SCHEDULER, &*object, &status).await
        }
        Report::Group(object, status) => {
            let api = Api::namespaced(client, &object.namespace().unwrap_or_default());
            apply_status(&api, SCHEDULER, &*object, &status).await
        }
        Report::Host(object, status) => {
            apply_status(&Api::all(client), SCHEDULER, &*object, &status).await
        }
        Report::Policy(object, status) => {
            apply_status(&Api::all(client), SCHEDULER, &*object, &status).await
        }
    }
}
