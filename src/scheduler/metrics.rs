//! Metrics of the scheduler.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// The metrics.
#[derive(Clone)]
pub struct Metrics {
    /// Placements that were written.
    pub decisions: Counter,
    /// Decisions for which no host fits.
    pub failures: Counter,
    /// Servers that were stopped for Servers of higher priority.
    pub preemptions: Counter,
    /// Writes that conflicted with a newer version of the Server.
    pub conflicts: Counter,
    /// Statuses that the API server rejected.
    pub rejected: Counter,
    /// Servers that are pending or waiting.
    pub queue: Gauge,
    duration: Histogram,
}

impl Metrics {
    /// Creates the metrics and registers them with those of the role.
    #[must_use]
    pub fn new(role: &pileus_kube_ext::Metrics) -> Self {
        let metrics = Self {
            decisions: Counter::default(),
            failures: Counter::default(),
            preemptions: Counter::default(),
            conflicts: Counter::default(),
            rejected: Counter::default(),
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
                "Decisions for which no host fits",
                m.failures.clone(),
            );
            r.register(
                "scheduler_preemptions",
                "Servers stopped for Servers of higher priority",
                m.preemptions.clone(),
            );
            r.register(
                "scheduler_conflicts",
                "Writes that conflicted with a newer version of the Server",
                m.conflicts.clone(),
            );
            r.register(
                "scheduler_rejected_statuses",
                "Statuses that the API server rejected",
                m.rejected.clone(),
            );
            r.register(
                "scheduler_queue_length",
                "Servers that wait for a decision or for capacity",
                m.queue.clone(),
            );
            r.register(
                "scheduler_decision_duration_seconds",
                "Duration of a decision, without its write",
                m.duration.clone(),
            );
        });
        metrics
    }

    /// Records `count` decisions that took `took` together.
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
