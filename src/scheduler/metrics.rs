//! What the scheduler counts.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// Metrics of the scheduler.
#[derive(Clone)]
pub struct Metrics {
    /// Placements written.
    pub decisions: Counter,
    /// Decisions that no host fits.
    pub failures: Counter,
    /// Servers that were stopped for others.
    pub preemptions: Counter,
    /// Writes that met a newer version of the Server.
    pub conflicts: Counter,
    /// Servers that wait for a decision or for room.
    pub queue: Gauge,
    duration: Histogram,
}

impl Metrics {
    /// Registered with the role's metrics.
    #[must_use]
    pub fn new(role: &pileus_kube_ext::Metrics) -> Self {
        let metrics = Self {
            decisions: Counter::default(),
            failures: Counter::default(),
            preemptions: Counter::default(),
            conflicts: Counter::default(),
            queue: Gauge::default(),
            duration: Histogram::new(exponential_buckets(0.000_01, 4.0, 10)),
        };
        role.register(|r| {
            let m = &metrics;
            r.register(
                "scheduler_decisions",
                "Placements written",
                m.decisions.clone(),
            );
            r.register(
                "scheduler_failures",
                "Decisions that no host fits",
                m.failures.clone(),
            );
            r.register(
                "scheduler_preemptions",
                "Servers stopped for others of higher priority",
                m.preemptions.clone(),
            );
            r.register(
                "scheduler_conflicts",
                "Writes that met a newer version of the Server",
                m.conflicts.clone(),
            );
            r.register(
                "scheduler_queue_length",
                "Servers that wait for a decision or for room",
                m.queue.clone(),
            );
            r.register(
                "scheduler_decision_duration_seconds",
                "Time that a decision took, without its write",
                m.duration.clone(),
            );
        });
        metrics
    }

    /// Notes `count` decisions that took `took` together.
    pub fn decided(&self, count: usize, took: Duration) {
        let Ok(each) = u32::try_from(count) else {
            return;
        };
        if each == 0 {
            return;
        }
        for _ in 0..count {
            self.duration.observe((took / each).as_secs_f64());
        }
    }
}
