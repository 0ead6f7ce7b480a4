//! When a guest is started again, an image is fetched again, an Instance is looked at again and
//! its progress is reported. Pure: what is remembered and the time come in.

use std::time::{Duration, Instant};

use super::{DomainState, Progress, Shutdown};
use pileus_api::server::RunState;

/// A start that lasted this long was a success; what ends later is no crash loop.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// How long after its time a guest may still answer a request to shut down; a guest that goes
/// off later does so by itself.
const LATE_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest pause between starts of a guest that crashes or whose start is refused.
const MAX_START_DELAY: Duration = Duration::from_secs(120);
/// Longest pause between downloads of an image that could not be fetched.
const MAX_FETCH_DELAY: Duration = Duration::from_secs(60);
/// Longest pause after downloads that came far and failed.
const MAX_COSTLY_DELAY: Duration = Duration::from_mins(15);
/// First and longest pause after a download failed in a way that looks final: the bytes at the
/// server may have been replaced, but to find that out takes a whole download.
const FINAL_FETCH_DELAY: Duration = Duration::from_mins(5);
const MAX_FINAL_DELAY: Duration = Duration::from_hours(6);
/// Shortest time until an Instance that waits for a pause to end is looked at again.
const MIN_PASS_DELAY: Duration = Duration::from_millis(200);
/// Work that takes longer than this is reported; shorter work only by its end.
pub const REPORT_DELAY: Duration = Duration::from_secs(3);
/// The same for a guest that has never been reported: until then the manager's "being built"
/// is enough, also when many guests start at once.
const FIRST_REPORT_DELAY: Duration = Duration::from_secs(30);

/// What is remembered of a guest's starts and ends while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartHistory {
    /// When the guest was last started; `None` once its end was counted.
    pub started: Option<Instant>,
    /// When the guest was asked to shut down.
    pub shutdown: Option<Instant>,
    /// Starts in quick succession that ended in a crash.
    pub crashes: u32,
    /// Not to be started before.
    pub not_before: Option<Instant>,
    /// Why the hypervisor refused the last start, and how often in a row.
    pub refused: Option<(String, u32)>,
    /// Starts that nobody asked for, since the status was written.
    pub restarts: i64,
}

impl StartHistory {
    /// Counts crashes by what the domain does now, and sets the pause before the next start.
    pub fn observe(&mut self, wanted: RunState, state: Option<DomainState>, now: Instant) {
        if wanted != RunState::Running {
            return;
        }
        match state {
            Some(DomainState::Running) => {
                self.shutdown = None;
                if self.started.is_some_and(|at| now - at > STABLE_AFTER) {
                    self.crashes = 0;
                }
            }
            Some(DomainState::Off | DomainState::Crashed | DomainState::ShutDown) => {
                let Some(started) = self.started.take() else {
                    return;
                };
                // Asked to stop, or lived long enough: not a crash in quick succession.
                self.crashes = if now - started > STABLE_AFTER || self.shutdown.is_some() {
                    0
                } else {
                    self.crashes + 1
                };
                let pause = start_delay(self.crashes);
                self.not_before = (self.crashes > 1).then(|| now + pause);
            }
            _ => {}
        }
    }

    /// Records a start; `is_restart` when it was to run already, so that nobody asked for it.
    pub fn start_succeeded(&mut self, at: Instant, is_restart: bool) {
        self.started = Some(at);
        self.shutdown = None;
        self.refused = None;
        self.restarts += i64::from(is_restart);
    }

    /// Records a start that the hypervisor refused. It is no crash: what counts as a crash has
    /// run.
    pub fn start_refused(&mut self, at: Instant, why: String) {
        let times = self.refused.take().map_or(0, |(_, times)| times) + 1;
        self.not_before = Some(at + start_delay(times));
        self.refused = Some((why, times));
    }

    /// Whether the guest's end answers a request of ours. A request cannot be withdrawn: the
    /// guest may answer it after it was asked to run again. `recorded` is how long ago the
    /// request was written to disk, if one was.
    #[must_use]
    pub fn is_asked_to_stop(&self, recorded: Option<Duration>, timeout: Duration) -> bool {
        self.shutdown.is_some()
            || recorded.is_some_and(|age| age < timeout.saturating_add(LATE_SHUTDOWN_TIMEOUT))
    }

    /// The shutdown that is under way.
    #[must_use]
    pub fn shutdown(&self, timeout: Duration, now: Instant) -> Option<Shutdown> {
        self.shutdown.map(|at| {
            if now - at >= timeout {
                Shutdown::Overdue
            } else {
                Shutdown::Waiting
            }
        })
    }

    /// Whether the pause before the next start is not over.
    #[must_use]
    pub fn is_backing_off(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|at| now < at)
    }
}

/// Pause after the `times`th failed start in a row.
fn start_delay(times: u32) -> Duration {
    Duration::from_secs(1 << times.min(10)).min(MAX_START_DELAY)
}

/// What a failed download was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchFailure {
    /// It is expected to pass, and an attempt is cheap.
    Passing,
    /// It is expected to pass, but each attempt may take long and much space.
    Costly,
    /// Only other bytes at the server can help.
    Final,
}

/// Pause after the `failures`th download in a row that failed.
#[must_use]
pub fn fetch_delay(failures: u32, last: FetchFailure) -> Duration {
    let (first, longest) = match last {
        FetchFailure::Passing => (Duration::from_secs(4), MAX_FETCH_DELAY),
        FetchFailure::Costly => (Duration::from_secs(4), MAX_COSTLY_DELAY),
        FetchFailure::Final => (FINAL_FETCH_DELAY, MAX_FINAL_DELAY),
    };
    let doublings = failures.saturating_sub(1).min(16);
    first.saturating_mul(1 << doublings).min(longest)
}

/// How long work must last before its progress is reported; `None` for a result, which is
/// reported at once.
/// `is_reported` is whether anything was ever reported of the Instance.
#[must_use]
pub fn report_delay(progress: &Progress, is_reported: bool) -> Option<Duration> {
    match progress {
        Progress::Building | Progress::AwaitingPorts if !is_reported => Some(FIRST_REPORT_DELAY),
        Progress::Fetching | Progress::Building | Progress::AwaitingPorts | Progress::Stopping => {
            Some(REPORT_DELAY)
        }
        _ => None,
    }
}

/// How long until the Instance is looked at again without an event, if sooner than the usual
/// resync. `not_before` and `fetch_again` end the pauses of its starts and of its download.
#[must_use]
pub fn next_pass(
    progress: &Progress,
    not_before: Option<Instant>,
    fetch_again: Option<Instant>,
    now: Instant,
) -> Option<Duration> {
    let until = |at: Instant| at.saturating_duration_since(now).max(MIN_PASS_DELAY);
    match progress {
        Progress::Fetching => Some(Duration::from_secs(1)),
        Progress::AwaitingPorts | Progress::Stopping => Some(Duration::from_millis(500)),
        Progress::PortsOverdue => Some(Duration::from_secs(5)),
        Progress::NoCapacity(_) | Progress::AwaitingCapacity(_) => Some(Duration::from_secs(10)),
        Progress::Building | Progress::StartRefused | Progress::CrashLoop => {
            Some(not_before.map_or(Duration::from_secs(1), until))
        }
        Progress::ImageFailed => fetch_again.map(until),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn crash(history: &mut StartHistory, started: Instant, lasted: Duration) {
        history.start_succeeded(started, true);
        let ended = started + lasted;
        history.observe(RunState::Running, Some(DomainState::Off), ended);
    }

    #[test]
    fn pauses_grow_with_crashes_in_quick_succession() {
        let (mut history, now) = (StartHistory::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..9 {
            crash(&mut history, now, SECOND);
            let pause = history.not_before.map(|at| at - (now + SECOND));
            pauses.push(pause.map_or(0, |pause| pause.as_secs()));
        }
        assert_eq!(pauses, [0, 4, 8, 16, 32, 64, 120, 120, 120]);
        assert_eq!((history.crashes, history.restarts), (9, 9));
        assert!(history.is_backing_off(now + SECOND));
        assert!(!history.is_backing_off(now + 121 * SECOND));
        // Its end is counted once, however often it is observed.
        history.observe(RunState::Running, Some(DomainState::Off), now);
        assert_eq!(history.crashes, 9);
        crash(&mut history, now, STABLE_AFTER + SECOND);
        assert_eq!((history.crashes, history.not_before), (0, None));
    }

    #[test]
    fn a_guest_that_runs_long_enough_or_was_asked_to_stop_has_not_crashed() {
        let (mut history, now) = (StartHistory::default(), Instant::now());
        crash(&mut history, now, SECOND);
        history.start_succeeded(now, false);
        let running = Some(DomainState::Running);
        history.observe(RunState::Running, running, now + STABLE_AFTER);
        assert_eq!(history.crashes, 1);
        history.observe(RunState::Running, running, now + STABLE_AFTER + SECOND);
        assert_eq!(history.crashes, 0);

        history.start_succeeded(now, false);
        history.shutdown = Some(now);
        let shut_down = Some(DomainState::ShutDown);
        history.observe(RunState::Stopped, shut_down, now + SECOND);
        assert!(
            history.started.is_some(),
            "nothing is counted while it is to stop"
        );
        history.observe(RunState::Running, shut_down, now + SECOND);
        assert_eq!((history.crashes, history.not_before), (0, None));
    }

    #[test]
    fn a_refused_start_pauses_and_is_forgotten_by_one_that_succeeds() {
        let (mut history, now) = (StartHistory::default(), Instant::now());
        for (times, pause) in [(1, 2), (2, 4), (3, 8)] {
            history.start_refused(now, "no memory".into());
            assert_eq!(history.not_before, Some(now + pause * SECOND));
            assert_eq!(history.refused, Some(("no memory".into(), times)));
        }
        assert_eq!(history.crashes, 0);
        history.start_succeeded(now, false);
        assert_eq!((history.refused, history.restarts), (None, 0));
    }

    #[test]
    fn a_request_to_shut_down_has_its_time_and_may_be_answered_a_little_later() {
        let (mut history, now) = (StartHistory::default(), Instant::now());
        let timeout = 10 * SECOND;
        assert_eq!(history.shutdown(timeout, now), None);
        assert!(!history.is_asked_to_stop(None, timeout));
        // Asked by an earlier agent, which left a record.
        assert!(history.is_asked_to_stop(Some(69 * SECOND), timeout));
        assert!(!history.is_asked_to_stop(Some(70 * SECOND), timeout));
        history.shutdown = Some(now);
        assert!(history.is_asked_to_stop(None, timeout));
        let at = |seconds| history.shutdown(timeout, now + seconds * SECOND);
        assert_eq!(at(9), Some(Shutdown::Waiting));
        assert_eq!(at(10), Some(Shutdown::Overdue));
    }

    #[test]
    fn a_failed_download_is_tried_again_ever_more_rarely() {
        let pauses = |last| {
            let pauses = (1..12).map(|n| fetch_delay(n, last).as_secs());
            pauses.collect::<Vec<_>>()
        };
        let passing = [4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60];
        assert_eq!(pauses(FetchFailure::Passing), passing);
        let costly = [4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900];
        assert_eq!(pauses(FetchFailure::Costly), costly);
        let hours = 6 * 3600;
        let last = [
            300, 600, 1200, 2400, 4800, 9600, 19_200, hours, hours, hours, hours,
        ];
        assert_eq!(pauses(FetchFailure::Final), last);
    }

    #[test]
    fn work_that_passes_is_reported_late_and_what_lasts_at_once() {
        assert_eq!(report_delay(&Progress::Complete, false), None);
        assert_eq!(report_delay(&Progress::CrashLoop, true), None);
        let building = |reported| report_delay(&Progress::Building, reported);
        assert_eq!(building(false), Some(FIRST_REPORT_DELAY));
        assert_eq!(building(true), Some(REPORT_DELAY));
        let fetching = report_delay(&Progress::Fetching, false);
        assert_eq!(fetching, Some(REPORT_DELAY));
    }

    #[test]
    fn an_instance_is_observed_again_when_its_pause_ends() {
        let now = Instant::now();
        let soon = Some(now + 7 * SECOND);
        let next = |progress, start, fetch| next_pass(&progress, start, fetch, now);
        assert_eq!(next(Progress::CrashLoop, soon, None), Some(7 * SECOND));
        assert_eq!(next(Progress::Building, None, None), Some(SECOND));
        let over = next(Progress::StartRefused, Some(now), None);
        assert_eq!(over, Some(MIN_PASS_DELAY));
        assert_eq!(next(Progress::ImageFailed, None, soon), Some(7 * SECOND));
        assert_eq!(next(Progress::ImageFailed, soon, None), None);
        assert_eq!(next(Progress::Complete, soon, soon), None);
    }
}
