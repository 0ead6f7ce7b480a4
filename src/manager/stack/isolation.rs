//! Isolates Stacks from each other: their passes run in tasks of their own, evaluation does not
//! block the runtime, and a panic ends one pass.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio_util::task::AbortOnDropHandle;

use super::{StackManager, reconcile};
use crate::Outcome;
use crate::stack::plan::Problem;
use pileus_api::{Reason, Stack};
use pileus_kube_ext::cache::Cache;
use pileus_kube_ext::finalize;
use pileus_stack::budget::Stop;

/// When a Stack is reconciled again whose evaluation has panicked or was stopped.
pub(super) const PANIC_RETRY_INTERVAL: Duration = Duration::from_secs(300);
/// How long one evaluation may take. What the engine allows takes a fraction of it, except where
/// others use the processors.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked whether an evaluation is wanted still.
const LOOK: Duration = Duration::from_millis(100);

/// Why there is no result.
pub(super) enum Halt {
    /// Others evaluate now, or the Stack has changed: come again.
    Wait(Duration),
    /// A problem to report, and when to try again.
    Blocked(Problem, Duration),
}

/// Why an evaluation was stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Deadline,
    Changed,
}

/// Evaluates a Stack: when its namespace has its turn, and until the result is not wanted any more
/// or it has taken too long. Then `stop` ends it.
pub(super) fn evaluate<T>(
    manager: &StackManager,
    stack: &Stack,
    stop: &Stop,
    work: impl FnOnce() -> T,
) -> Result<T, Halt> {
    let namespace = stack.namespace().unwrap_or_default();
    let slots = &manager.stacks.slots;
    let slot = slots.enter(&namespace, Instant::now());
    let _slot = slot.map_err(Halt::Wait)?;
    let watched = Watched::start(&manager.caches.stacks, stack, stop);
    let done = compute(work);
    match (watched.cause(), done) {
        (None, Ok(done)) => Ok(done),
        (_, Err(fault)) => Err(Halt::Blocked(fault, PANIC_RETRY_INTERVAL)),
        (Some(Cause::Changed), _) => Err(Halt::Wait(LOOK)),
        (Some(Cause::Deadline), _) => Err(Halt::Blocked(too_long(), PANIC_RETRY_INTERVAL)),
    }
}

fn too_long() -> Problem {
    Problem {
        reason: Reason::InvalidTemplate,
        message: format!(
            "evaluating the template takes longer than {} s, so nothing of the stack is touched; \
             make its functions do less, above all yaql with patterns and long texts. It is tried \
             again in {} minutes and when the Stack changes",
            DEADLINE.as_secs(),
            PANIC_RETRY_INTERVAL.as_secs() / 60
        ),
    }
}

/// Looks after an evaluation while it runs.
struct Watched {
    cause: Arc<Mutex<Option<Cause>>>,
    /// Ends the task with this; nothing is watched where there is no runtime.
    _task: Option<AbortOnDropHandle<()>>,
}

impl Watched {
    fn start(stacks: &Cache<Stack>, stack: &Stack, stop: &Stop) -> Self {
        let cause = Arc::new(Mutex::new(None));
        let (noted, stop) = (cause.clone(), stop.clone());
        let (stacks, name) = (stacks.clone(), stack.name_any());
        let namespace = stack.namespace().unwrap_or_default();
        let before = version(stack);
        let task = async move {
            let start = Instant::now();
            let why = loop {
                tokio::time::sleep(LOOK).await;
                let now = stacks.get(&namespace, &name);
                if now.as_deref().map(version).as_ref() != Some(&before) {
                    break Cause::Changed;
                }
                if start.elapsed() > DEADLINE {
                    break Cause::Deadline;
                }
            };
            // First the cause: who is stopped looks for it.
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
            stop.now();
        };
        let runtime = Handle::try_current().ok();
        Self {
            cause,
            _task: runtime.map(|runtime| AbortOnDropHandle::new(runtime.spawn(task))),
        }
    }

    fn cause(&self) -> Option<Cause> {
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an evaluation is of: with another it is not wanted any more.
fn version(stack: &Stack) -> (Option<String>, Option<i64>, bool) {
    let deleting = finalize::is_deleting(stack);
    (stack.uid(), stack.metadata.generation, deleting)
}

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
