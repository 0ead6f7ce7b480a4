//! Isolates Stacks from each other: their passes run in tasks of their own, evaluation does not
//! block the runtime, and a panic ends one pass.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio_util::task::AbortOnDropHandle;

use super::{StackManager, reconcile};
use crate::Outcome;
use crate::stack::plan::Problem;
use pileus_api::{Reason, Stack};

/// When a Stack is reconciled again whose pass has panicked.
pub(super) const PANIC_RETRY_INTERVAL: Duration = Duration::from_secs(300);

/// One pass, in a task of its own.
///
/// # Errors
/// As [`reconcile`].
pub async fn reconcile_isolated(stack: Arc<Stack>, manager: Arc<StackManager>) -> Outcome {
    let name = stack.name_any();
    let task = tokio::spawn(reconcile(stack, manager));
    match AbortOnDropHandle::new(task).await {
        Ok(outcome) => outcome,
        Err(error) => {
            tracing::error!(stack = %name, %error, "a pass panicked");
            Ok(Some(PANIC_RETRY_INTERVAL))
        }
    }
}

/// Computes something that may take a while.
///
/// # Errors
/// When it panicked: as a problem to report on its Stack.
pub fn compute<T>(work: impl FnOnce() -> T) -> Result<T, Problem> {
    // What was touched when it panicked is dropped with it.
    let work = || catch_unwind(AssertUnwindSafe(work));
    let done = match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    };
    done.map_err(|_| Problem {
        reason: Reason::Failed,
        message:
            "evaluating it ended in a fault of Pileus itself, which the log of `pileus stacks` \
                  tells more of; nothing of it is touched. Please report it with the template"
                .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_computes_long_or_panics_blocks_nobody() {
        let (started, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let long = tokio::spawn(async move {
            let _ = started.send(());
            compute(|| ended.recv().is_ok())
        });
        assert!(begun.recv().await.is_some());
        // The runtime's only worker goes on with others meanwhile.
        let other = tokio::spawn(async { 1 });
        assert!(matches!(other.await, Ok(1)));
        assert!(end.send(()).is_ok());
        assert!(matches!(long.await, Ok(Ok(true))));
        let none: Vec<u8> = Vec::new();
        let fault = compute(|| none[std::hint::black_box(0)]);
        assert!(fault.is_err_and(|problem| problem.message.contains("report")));
    }
}
