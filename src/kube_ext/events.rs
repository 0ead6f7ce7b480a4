//! Kubernetes events, published in the background: an event that cannot be written never
//! holds a reconcile back.

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

use crate::api::Reason;

/// One recorder for a role, shared, because it aggregates repeats.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// Events reported by `manager`.
    #[must_use]
    pub fn new(client: Client, manager: &str) -> Self {
        let instance = std::env::var("HOSTNAME").ok();
        Self {
            recorder: Recorder::new(
                client,
                Reporter {
                    controller: manager.to_owned(),
                    instance,
                },
            ),
        }
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
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            if let Err(error) = recorder.publish(&event, &reference).await {
                tracing::debug!(error = %super::chain(&error), "event not published");
            }
        });
    }
}
