//! Whether a role does its work: named checks, one of each cache and of each loop, which
//! `/readyz` shows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How long something that is tried again may fail before the role is not ready.
pub const TOLERANCE: Duration = Duration::from_secs(20);
/// The check of [`Readiness::set`].
const STARTED: &str = "started";
/// What the names of watches' checks begin with; their path follows.
const WATCH: &str = "watch";

/// The checks of a role.
#[derive(Clone)]
pub struct Readiness(Arc<Shared>);

struct Shared {
    checks: Mutex<BTreeMap<String, State>>,
    /// The first loop that ended.
    ended: watch::Sender<Option<String>>,
}

/// How a check stands.
#[derive(Clone, Debug)]
enum State {
    Good,
    /// It has not done its work yet.
    Waiting(String),
    /// It fails since then, and is tried again.
    Failing {
        since: Instant,
        why: String,
    },
    /// It works on something since then, which must not take longer.
    Busy {
        since: Instant,
        at_most: Duration,
    },
    /// It ended, which it must not before the role does.
    Ended,
}

impl State {
    /// Why the role is not ready.
    fn problem(&self, now: Instant) -> Option<String> {
        let since = |since: &Instant| now.saturating_duration_since(*since);
        match self {
            Self::Good => None,
            Self::Waiting(why) => Some(why.clone()),
            Self::Failing { since: at, why } => {
                let lasts = since(at);
                (lasts >= TOLERANCE).then(|| format!("fails for {} s: {why}", lasts.as_secs()))
            }
            Self::Busy { since: at, at_most } => {
                let lasts = since(at);
                let seconds = lasts.as_secs();
                (lasts > *at_most).then(|| format!("gave no sign of life for {seconds} s"))
            }
            Self::Ended => Some("ended; the log says why".to_owned()),
        }
    }
}

impl Default for Readiness {
    /// Not ready until [`Readiness::set`] says so, besides all checks.
    fn default() -> Self {
        let ready = Self(Arc::new(Shared {
            checks: Mutex::default(),
            ended: watch::Sender::new(None),
        }));
        ready.set(false);
        ready
    }
}

impl Readiness {
    /// The role has begun its work, or not.
    pub fn set(&self, started: bool) {
        let state = if started {
            State::Good
        } else {
            State::Waiting("the role has not begun its work".to_owned())
        };
        self.checks().insert(STARTED.to_owned(), state);
    }

    /// Whether the role does its work: every check is good.
    #[must_use]
    pub fn get(&self) -> bool {
        self.report().0
    }

    /// A check of that name, good from now on; the role is not ready any more once it is dropped.
    #[must_use]
    pub fn check(&self, name: impl Into<String>) -> Check {
        let check = Check {
            ready: self.clone(),
            name: name.into(),
            is_done: false,
        };
        check.ok();
        check
    }

    /// The check of the watch of `path`, which waits for its first list.
    #[must_use]
    pub fn watch_check(&self, path: &str) -> Check {
        let check = self.check(format!("{WATCH}{path}"));
        check.waiting("not listed yet");
        check
    }

    /// Something came from the watch of `path`, so it works.
    pub(crate) fn heard(&self, path: &str) {
        let mut checks = self.checks();
        if let Some(state @ State::Failing { .. }) = checks.get_mut(&format!("{WATCH}{path}")) {
            *state = State::Good;
        }
    }

    /// Whether the role is ready, and every check on a line, as Kubernetes' own `/readyz?verbose`
    /// shows them.
    #[must_use]
    pub fn report(&self) -> (bool, String) {
        let now = Instant::now();
        let (mut ready, mut text) = (true, String::new());
        for (name, state) in &*self.checks() {
            let _ = match state.problem(now) {
                None => writeln!(text, "[+]{name} ok"),
                Some(why) => {
                    ready = false;
                    writeln!(text, "[-]{name} failed: {why}")
                }
            };
        }
        (ready, text)
    }

    /// Waits until a check was dropped, by a panic of its loop or otherwise; its name.
    pub async fn ended(&self) -> String {
        let mut ended = self.0.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(name) => name.clone().unwrap_or_default(),
            // Not while we have the sender.
            Err(_) => std::future::pending().await,
        }
    }

    fn checks(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One check, which its loop holds as long as it runs.
pub struct Check {
    ready: Readiness,
    name: String,
    is_done: bool,
}

impl Check {
    /// All is well, also if nothing happens for long.
    pub fn ok(&self) {
        self.set(State::Good);
    }

    /// The first of its work is not done yet.
    pub fn waiting(&self, why: impl Into<String>) {
        self.set(State::Waiting(why.into()));
    }

    /// It failed and is tried again: the role is not ready once it fails for [`TOLERANCE`]. What
    /// waits for its first success goes on waiting.
    pub fn failed(&self, why: impl Into<String>) {
        let mut checks = self.ready.checks();
        let state = checks.entry(self.name.clone()).or_insert(State::Good);
        let why = why.into();
        *state = match state {
            State::Waiting(_) => State::Waiting(why),
            State::Failing { since, .. } => State::Failing { since: *since, why },
            _ => State::Failing {
                since: Instant::now(),
                why,
            },
        };
    }

    /// It worked again; what waits for its first success goes on waiting.
    pub fn recovered(&self) {
        let mut checks = self.ready.checks();
        if let Some(state @ State::Failing { .. }) = checks.get_mut(&self.name) {
            *state = State::Good;
        }
    }

    /// As [`Check::busy`], unless it fails: that goes on until it succeeds.
    pub fn sign_of_life(&self, at_most: Duration) {
        let mut checks = self.ready.checks();
        let known = checks.get_mut(&self.name);
        if let Some(state) = known
            && !matches!(state, State::Failing { .. } | State::Waiting(_))
        {
            *state = State::Busy {
                since: Instant::now(),
                at_most,
            };
        }
    }

    /// It begins something that must not take longer, or gives the next sign of life until then.
    pub fn busy(&self, at_most: Duration) {
        self.set(State::Busy {
            since: Instant::now(),
            at_most,
        });
    }

    /// It is done with its work for good, and shown no more.
    pub fn done(mut self) {
        self.ready.checks().remove(&self.name);
        self.is_done = true;
    }

    fn set(&self, state: State) {
        // Most often nothing changes, and nothing is allocated then.
        let mut checks = self.ready.checks();
        match checks.get_mut(&self.name) {
            Some(known) => *known = state,
            None => {
                checks.insert(self.name.clone(), state);
            }
        }
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        self.set(State::Ended);
        self.ready.0.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| self.name.clone());
            first
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_role_is_ready_when_every_check_is_and_says_which_is_not() {
        let ready = Readiness::default();
        assert!(!ready.get());
        ready.set(true);
        let (loops, cache) = (ready.check("loop/a"), ready.check("cache/b"));
        cache.waiting("not listed yet");
        loops.busy(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(2));
        let (is_ready, text) = ready.report();
        assert!(!is_ready);
        let lines: Vec<_> = text.lines().collect();
        let expected = [
            "[-]cache/b failed: not listed yet",
            "[-]loop/a failed: gave no sign of life for 0 s",
            "[+]started ok",
        ];
        assert_eq!(lines, expected);
        // A failure before the first success keeps it waiting, and says why.
        cache.failed("connection refused");
        cache.recovered();
        assert!(
            ready
                .report()
                .1
                .contains("cache/b failed: connection refused")
        );
        cache.ok();
        loops.ok();
        assert!(ready.get());
        // One that lasts shortly is none.
        cache.failed("reset");
        assert!(ready.get());
        let long_ago = Instant::now().checked_sub(TOLERANCE).unwrap();
        let state = State::Failing {
            since: long_ago,
            why: "reset".into(),
        };
        cache.set(state);
        cache.failed("refused");
        assert!(
            ready
                .report()
                .1
                .contains("cache/b failed: fails for 20 s: refused")
        );
        cache.recovered();
        assert!(ready.get());
    }

    #[tokio::test]
    async fn a_loop_that_panics_is_noticed() {
        let ready = Readiness::default();
        ready.set(true);
        let check = ready.check("loop/a");
        let none: Vec<u8> = Vec::new();
        let panics = tokio::spawn(async move {
            check.ok();
            tokio::task::yield_now().await;
            none[std::hint::black_box(0)]
        });
        assert!(panics.await.is_err());
        assert_eq!(ready.ended().await, "loop/a");
        assert!(!ready.get() && ready.report().1.contains("[-]loop/a failed: ended"));
    }
}
