//! The role of Stacks: a process of its own, with a credential of its own. It alone acts for
//! tenants, and only in namespaces that have let it ([`STACKS_TENANT_ROLE`]).

use std::sync::Arc;

use kube::ResourceExt;
use tokio_util::sync::CancellationToken;

use super::caches::Caches;
use super::plan::Problem;
use super::{Shared, isolation, source_watch, triggers};
use crate::{Error, crd_deletion, while_leading, worker};
use pileus_api::names::{STACKS, STACKS_TENANT_ROLE, opt_in_command};
use pileus_api::{Reason, Stack};
use pileus_kube_ext::telemetry::Readiness;
use pileus_kube_ext::{ApiError, Context};

/// What the passes over Stacks share.
pub struct StackManager {
    /// Client, cluster, events, metrics.
    pub context: Context,
    /// Stacks, and the kinds that they make.
    pub caches: Caches,
    /// What is remembered between passes.
    pub stacks: Shared,
}

impl AsRef<Context> for StackManager {
    fn as_ref(&self) -> &Context {
        &self.context
    }
}

/// Runs the role until `stop` or until leadership is lost; `identity` is who this process is
/// among those of the role.
///
/// # Errors
/// When leadership is lost, or the role cannot begin.
pub async fn run(
    identity: String,
    context: Context,
    ready: Readiness,
    stop: CancellationToken,
) -> Result<(), Error> {
    let until = stop.clone();
    let work = |context, _| lead(context, until);
    while_leading(STACKS, identity, &context, ready, stop, work).await
}

async fn lead(context: Context, stop: CancellationToken) -> Result<(), Error> {
    let manager = Arc::new(StackManager {
        caches: Caches::watch(&context),
        context,
        stacks: Shared::default(),
    });
    tokio::select! {
        () = manager.caches.ready() => {}
        () = crd_deletion::release_while_deleting::<Stack>(&manager.context.client) => return Ok(()),
        () = stop.cancelled() => return Ok(()),
    }
    let stacks = triggers(&manager.caches);
    source_watch::start(&manager, &stacks);
    let reconcile = isolation::reconcile_isolated;
    worker::run(manager, stacks, 16, reconcile, "stack", stop).await;
    Ok(())
}

/// The problem of a Stack whose namespace has not let the role work in it, if `error` says so: the
/// Stack's record, which is read first, may not be read.
pub(super) fn not_opted_in(error: Option<&ApiError>, stack: &Stack) -> Option<Problem> {
    let namespace = stack.namespace().unwrap_or_default();
    error.is_some_and(ApiError::is_forbidden).then(|| Problem {
        reason: Reason::NotOptedIn,
        message: format!(
            "the namespace {namespace} does not let Stacks be made real in it; an administrator \
             of the namespace allows it with: {}",
            opt_in_command(STACKS_TENANT_ROLE, "stacks", &namespace)
        ),
    })
}
