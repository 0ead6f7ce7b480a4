//! Kubernetes events, published in the background: an event that cannot be written never
//! delays a reconcile.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as Written;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::sync::mpsc;
use tokio::time::timeout;

use pileus_api::Reason;

/// Longest name of an object for which the recorder still makes a name of an event that the
/// API server takes: it adds a dot and the time in hexadecimal to it.
const MAX_RECORDED_NAME: usize = 253 - 17;

/// How many events may wait to be written; further ones are dropped.
const QUEUE_SIZE: usize = 4096;
/// How long the API server may take for one.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a role's events go. They are written one after another: in their order, and without
/// taking the API server's time from what has to be done.
#[derive(Clone)]
pub struct Events {
    waiting: mpsc::Sender<(Event, ObjectReference)>,
}

impl Events {
    /// Events reported by `manager`; must be called within a tokio runtime, whose end they do
    /// not outlive.
    #[must_use]
    pub fn new(client: Client, manager: &str) -> Self {
        let reporter = Reporter {
            controller: manager.to_owned(),
            // The API server refuses longer ones.
            instance: std::env::var("HOSTNAME")
                .ok()
                .map(|name| name.chars().take(128).collect()),
        };
        let writer = Writer {
            recorder: Recorder::new(client.clone(), reporter.clone()),
            client,
            reporter,
        };
        let (waiting, taken) = mpsc::channel(QUEUE_SIZE);
        tokio::spawn(writer.run(taken));
        Self { waiting }
    }

    /// Something went as it should.
    pub fn normal<K>(&self, object: &K, reason: Reason, action: &str, note: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.publish(object, EventType::Normal, reason, action, &note.into());
    }

    /// Something went wrong.
    pub fn warning<K>(&self, object: &K, reason: Reason, action: &str, note: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.publish(object, EventType::Warning, reason, action, &note.into());
    }

    fn publish<K>(&self, object: &K, type_: EventType, reason: Reason, action: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let reference = object.object_ref(&());
        let event = Event {
            type_,
            reason: reason.as_str().to_owned(),
            // The API server refuses longer notes.
            note: Some(note.chars().take(1000).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        if self.waiting.try_send((event, reference)).is_err() {
            tracing::debug!(
                reason = reason.as_str(),
                "too many events wait; this one is not published"
            );
        }
    }
}

struct Writer {
    client: Client,
    reporter: Reporter,
    /// One for all, because it aggregates repeats.
    recorder: Recorder,
}

impl Writer {
    async fn run(self, mut taken: mpsc::Receiver<(Event, ObjectReference)>) {
        while let Some((event, reference)) = taken.recv().await {
            let error = match timeout(WRITE_TIMEOUT, self.write(&event, reference)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => super::chain(&error),
                Err(_) => "the API server takes too long".to_owned(),
            };
            // A namespace that is being deleted takes no events; nobody misses them.
            if error.contains("being terminated") {
                tracing::debug!(%error, "event not published");
            } else {
                tracing::warn!(%error, "event not published");
            }
        }
    }

    async fn write(&self, event: &Event, reference: ObjectReference) -> Result<(), kube::Error> {
        if reference.name.as_ref().map_or(0, String::len) > MAX_RECORDED_NAME {
            self.write_generated(event, reference).await
        } else {
            self.recorder.publish(event, &reference).await
        }
    }

    /// For an object whose name leaves no room for the recorder's: the API server makes one.
    async fn write_generated(
        &self,
        event: &Event,
        regarding: ObjectReference,
    ) -> Result<(), kube::Error> {
        let namespace = regarding.namespace.clone().unwrap_or_default();
        let name = regarding.name.as_deref().unwrap_or_default();
        // The API server cuts it further.
        let cut: String = name.chars().take(200).collect();
        let controller = self.reporter.controller.clone();
        let written = Written {
            metadata: ObjectMeta {
                namespace: Some(namespace.clone()),
                generate_name: Some(format!("{}-", cut.trim_end_matches(['-', '.']))),
                ..ObjectMeta::default()
            },
            action: Some(event.action.clone()),
            reason: Some(event.reason.clone()),
            note: event.note.clone(),
            type_: Some(format!("{:?}", event.type_)),
            event_time: Some(MicroTime(Timestamp::now())),
            regarding: Some(regarding),
            reporting_instance: Some(
                self.reporter
                    .instance
                    .clone()
                    .unwrap_or_else(|| controller.clone()),
            ),
            reporting_controller: Some(controller),
            ..Written::default()
        };
        Api::<Written>::namespaced(self.client.clone(), &namespace)
            .create(&PostParams::default(), &written)
            .await
            .map(drop)
    }
}
