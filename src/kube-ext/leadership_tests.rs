use std::convert::Infallible;
use std::sync::atomic::AtomicUsize;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use proptest::prelude::*;

use super::*;
use crate::lease::{LEADER_DURATION, RENEW_DEADLINE};

/// The lease on the API server.
#[derive(Clone, Default)]
struct Lease {
    version: u64,
    holder: Option<usize>,
}

/// What a process knows.
#[derive(Clone, Default)]
struct Process {
    rival: Rival,
    leadership: Leadership,
}

/// A request for the lease that is under way.
struct Request {
    by: usize,
    sent: Instant,
    version: u64,
    /// Whether the API server carried it out; nothing before it arrived there.
    done: Option<bool>,
}

/// What happens next. A process that no step is about is stopped.
#[derive(Clone, Debug)]
enum Step {
    /// Time passes, in seconds.
    Wait(u64),
    /// A process looks at the lease and asks for it, as of the version that it saw.
    Ask(usize),
    /// One of the requests arrives at the API server.
    Arrive(prop::sample::Index),
    /// An answer arrives at its process; or none ever does.
    Answer(prop::sample::Index, bool),
}

const PROCESSES: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    let seconds = prop_oneof![Just(1_u64), Just(4), Just(11), Just(19), Just(31)];
    prop_oneof![
        3 => seconds.prop_map(Step::Wait),
        4 => (0..PROCESSES).prop_map(Step::Ask),
        4 => index().prop_map(Step::Arrive),
        4 => (index(), any::<bool>()).prop_map(|(at, lost)| Step::Answer(at, lost)),
    ]
}

struct World {
    now: Instant,
    lease: Lease,
    processes: Vec<Process>,
    under_way: Vec<Request>,
}

impl World {
    /// Carries a step out by the rules of `lease.rs`.
    fn carry_out(&mut self, step: &Step) {
        let (now, lease) = (self.now, &mut self.lease);
        match step {
            Step::Wait(seconds) => self.now += Duration::from_secs(*seconds),
            Step::Ask(me) => {
                let rival = &mut self.processes[*me].rival;
                let version = lease.version.to_string();
                let gone = rival.is_gone(Some(&version), LEADER_DURATION, now);
                if lease.holder.is_none_or(|holder| holder == *me) || gone {
                    self.under_way.push(Request {
                        by: *me,
                        sent: now,
                        version: lease.version,
                        done: None,
                    });
                }
            }
            Step::Arrive(at) if !self.under_way.is_empty() => {
                let request = at.get_mut(&mut self.under_way);
                if request.done.is_none() {
                    let is_first = request.version == lease.version;
                    request.done = Some(is_first);
                    if is_first {
                        lease.version += 1;
                        lease.holder = Some(request.by);
                    }
                }
            }
            Step::Answer(at, lost) if !self.under_way.is_empty() => {
                let at = at.index(self.under_way.len());
                if self.under_way[at].done.is_some() {
                    let request = self.under_way.swap_remove(at);
                    if request.done == Some(true) && !lost {
                        let leadership = &self.processes[request.by].leadership;
                        leadership.begin(1, request.sent + RENEW_DEADLINE);
                    }
                }
            }
            Step::Arrive(_) | Step::Answer(..) => {}
        }
    }

    fn leaders(&self) -> usize {
        let until = |p: &&Process| p.leadership.until().is_some_and(|until| self.now < until);
        self.processes.iter().filter(until).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn two_never_lead_at_once_whoever_is_stopped_and_whatever_is_late(
        steps in proptest::collection::vec(step(), 0..120)
    ) {
        let mut world = World {
            now: Instant::now(),
            lease: Lease::default(),
            processes: Vec::new(),
            under_way: Vec::new(),
        };
        world.processes.resize_with(PROCESSES, Process::default);
        for step in &steps {
            world.carry_out(step);
            let leaders = world.leaders();
            prop_assert!(leaders <= 1, "{leaders} lead after {step:?}");
        }
    }
}

/// An API server that takes half a second for every answer, and counts what reaches it.
fn slow(asked: &Arc<AtomicUsize>) -> Client {
    let asked = asked.clone();
    let service = tower::service_fn(move |_: http::Request<Body>| {
        let asked = asked.clone();
        async move {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(500)).await;
            let text = r#"{"apiVersion":"v1","kind":"Status","metadata":{},"items":[]}"#;
            Ok::<_, Infallible>(http::Response::new(Body::from(text.as_bytes().to_vec())))
        }
    });
    Client::new(service, "default")
}

#[tokio::test]
async fn a_deposed_leader_reads_and_writes_nothing() {
    let asked = Arc::new(AtomicUsize::new(0));
    let leadership = Leadership::default();
    let maps: Api<ConfigMap> = Api::default_namespaced(leadership.fence(slow(&asked)));
    let delete = || async { maps.delete("m", &DeleteParams::default()).await };
    assert!(delete().await.is_err(), "before it leads");
    assert_eq!(asked.load(Ordering::Relaxed), 0);

    leadership.begin(3, Instant::now() + Duration::from_millis(850));
    assert!(leadership.is_held() && leadership.generation() == 3);
    delete().await.unwrap();
    // The second one is not waited for: nobody knows what comes of it.
    let error = delete().await.unwrap_err();
    assert!(
        crate::chain(&error).contains("may not lead any more"),
        "{error}"
    );
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert!(delete().await.is_err() && !leadership.is_held());
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    maps.list(&ListParams::default()).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn leadership_ends_with_the_last_renewal_or_at_once() {
    let start = Instant::now();
    let after = |ms| start + Duration::from_millis(ms);
    let leadership = Leadership::default();
    leadership.begin(1, after(500));
    let waits = tokio::spawn({
        let leadership = leadership.clone();
        async move { leadership.ended().await }
    });
    leadership.renewed(after(700));
    waits.await.unwrap();
    assert!(Instant::now() >= after(700) && !leadership.is_held());
    leadership.begin(2, Instant::now() + Duration::from_secs(20));
    leadership.give_up();
    assert!(!leadership.is_held());
    leadership.ended().await;
}
