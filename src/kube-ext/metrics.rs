//! Metrics of a role, in Prometheus' text format.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Labels of a reconcile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Controller {
    /// Kind reconciled, in lower case.
    pub controller: String,
}

/// Labels of what is counted for each kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

/// What all roles count, and the registry to add more to.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    reconciles: Family<Controller, Counter>,
    failures: Family<Controller, Counter>,
    durations: Family<Controller, Histogram>,
    status_writes: Family<Controller, Counter>,
    unreadable: Family<Kind, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("pileus");
        let reconciles = Family::default();
        let failures = Family::default();
        let durations: Family<Controller, Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 14)));
        let status_writes = Family::default();
        let unreadable: Family<Kind, Gauge> = Family::default();
        registry.register("reconciles", "Reconciles begun", reconciles.clone());
        registry.register(
            "reconcile_failures",
            "Reconciles that failed",
            failures.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "Time that a reconcile took",
            durations.clone(),
        );
        registry.register("status_writes", "Status writes", status_writes.clone());
        registry.register(
            "unreadable_objects",
            "Objects that exist and cannot be decoded; their events say why",
            unreadable.clone(),
        );
        Self {
            registry: Arc::new(Mutex::new(registry)),
            reconciles,
            failures,
            durations,
            status_writes,
            unreadable,
        }
    }
}

impl Metrics {
    /// Adds metrics of a part to the registry.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Counts a reconcile that ended.
    pub fn reconciled(&self, controller: &str, took: Duration, failed: bool) {
        let labels = Controller {
            controller: controller.to_owned(),
        };
        self.reconciles.get_or_create(&labels).inc();
        if failed {
            self.failures.get_or_create(&labels).inc();
        }
        self.durations
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// Counts a status that was written.
    pub fn status_written(&self, controller: &str) {
        self.status_writes
            .get_or_create(&Controller {
                controller: controller.to_owned(),
            })
            .inc();
    }

    /// How many objects of a kind cannot be decoded.
    pub fn set_unreadable(&self, kind: &str, count: usize) {
        let kind = kind.to_owned();
        let gauge = self.unreadable.get_or_create(&Kind { kind });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Everything in Prometheus' text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        // Writing into a String fails only if a metric's own encoder does.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}
