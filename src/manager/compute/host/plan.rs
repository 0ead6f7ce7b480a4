//! Whether a host's agent is alive, from what was seen of its heartbeat.
//!
//! A Lease that is there says nothing: it may be of a host that died long ago. Only a Lease that
//! is *seen to change* is a heartbeat. Until then a host is taken for what was reported of it, so
//! that no restart of the manager makes hosts unknown that are well, nor those ready that are not.

use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use pileus_api::Reason;
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_kube_ext::lease::HEARTBEAT_SECONDS;

/// What was seen of a host's Lease.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    version: String,
    /// When this version was first seen.
    at: Instant,
    /// Whether the agent is taken for alive because of it.
    counts: bool,
}

/// Whether an agent is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// There is no Lease.
    None,
    /// There is one that was not seen to change, of a host that was not known to be alive.
    NotSeen,
    /// It is, for so long without another heartbeat.
    Alive(Duration),
    /// It was, and the Lease has not changed for too long.
    Lost,
}

impl Heartbeat {
    /// What is known once the Lease is seen in this version. `was_alive`: what was reported of the
    /// host before this process looked.
    #[must_use]
    pub fn seen(known: Option<Self>, version: String, was_alive: bool, now: Instant) -> Self {
        match known {
            Some(known) if known.version == version => known,
            Some(_) => Self {
                version,
                at: now,
                counts: true,
            },
            None => Self {
                version,
                at: now,
                counts: was_alive,
            },
        }
    }

    /// Whether the agent is alive.
    #[must_use]
    pub fn pulse(&self, now: Instant) -> Pulse {
        if !self.counts {
            return Pulse::NotSeen;
        }
        let lasts = Duration::from_secs(HEARTBEAT_SECONDS.unsigned_abs().into());
        match lasts.checked_sub(now.saturating_duration_since(self.at)) {
            Some(left) if !left.is_zero() => Pulse::Alive(left),
            _ => Pulse::Lost,
        }
    }
}

/// Whether the host was reported with an agent that answers, whatever else it may lack.
#[must_use]
pub fn was_alive(reported: &[Condition]) -> bool {
    conditions::find(reported, ConditionType::Ready).is_some_and(|ready| ready.status != "Unknown")
}

/// A Host is ready when its agent is alive and it can take Servers.
#[must_use]
pub fn ready(name: &str, pulse: Pulse, reported: &[Condition]) -> Observation {
    use ConditionType::Ready;
    match pulse {
        Pulse::None => {
            return Observation::unknown(
                Ready,
                Reason::Pending,
                "its agent has not been heard from yet",
            );
        }
        Pulse::NotSeen | Pulse::Lost => {
            return Observation::unknown(
                Ready,
                Reason::HeartbeatLost,
                format!("the agent of {name} has not been heard from for {HEARTBEAT_SECONDS} s"),
            );
        }
        Pulse::Alive(_) => {}
    }
    for needed in [
        ConditionType::HypervisorAvailable,
        ConditionType::NetworkAvailable,
        ConditionType::DiskAvailable,
    ] {
        match conditions::find(reported, needed) {
            Some(c) if c.status == "True" => {}
            Some(c) => {
                let reason = Reason::parse(&c.reason).unwrap_or(Reason::Retrying);
                return Observation::no(Ready, reason, c.message.clone());
            }
            None => {
                return Observation::unknown(
                    Ready,
                    Reason::Pending,
                    "its agent has not reported its state yet",
                );
            }
        }
    }
    Observation::yes(
        Ready,
        Reason::Heartbeat,
        "its agent answers and can run Servers",
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn an_old_lease_is_no_heartbeat_and_a_host_that_was_alive_stays_so_for_a_while() {
        let start = Instant::now();
        let seen = |known: &Heartbeat, version: &str, at| {
            Heartbeat::seen(Some(known.clone()), version.to_owned(), false, at)
        };
        let dead = Heartbeat::seen(None, "7".into(), false, start);
        assert_eq!(dead.pulse(start), Pulse::NotSeen);
        let dead = seen(&dead, "7", after(start, 500));
        assert_eq!(dead.pulse(after(start, 500)), Pulse::NotSeen);
        let back = seen(&dead, "8", after(start, 510));
        let left = Duration::from_secs(30);
        assert_eq!(back.pulse(after(start, 520)), Pulse::Alive(left));
        assert_eq!(back.pulse(after(start, 550)), Pulse::Lost);

        let alive = Heartbeat::seen(None, "7".into(), true, start);
        assert_eq!(alive.pulse(after(start, 10)), Pulse::Alive(left));
        let alive = seen(&alive, "7", after(start, 39));
        assert!(matches!(alive.pulse(after(start, 39)), Pulse::Alive(_)));
        assert_eq!(alive.pulse(after(start, 40)), Pulse::Lost);
        let alive = seen(&alive, "8", after(start, 41));
        assert!(matches!(alive.pulse(after(start, 80)), Pulse::Alive(_)));
    }

    #[test]
    fn what_was_reported_says_whether_the_agent_answered() {
        let reported = |observation| {
            let now = Timestamp::UNIX_EPOCH;
            conditions::merge(&[], [observation], Some(1), now)
        };
        let ready = |pulse| super::ready("h", pulse, &[]);
        assert!(!was_alive(&[]));
        for pulse in [Pulse::None, Pulse::NotSeen, Pulse::Lost] {
            assert!(!was_alive(&reported(ready(pulse))));
        }
        let full = Observation::no(ConditionType::Ready, Reason::Retrying, "disk full");
        assert!(was_alive(&reported(full)));
    }
}
