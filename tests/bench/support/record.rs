//! A recording of everything the API server says of some kinds, with the time it was said.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::{StreamExt, TryStreamExt};
use kube::api::{DynamicObject, ListParams, WatchEvent, WatchParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::Result;

/// One event of a watch: one write.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it was seen.
    pub at: Instant,
    /// Kind of the object.
    pub kind: String,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub action: &'static str,
    /// The object after the write.
    pub object: Value,
}

impl Entry {
    /// Namespace and name.
    pub fn key(&self) -> String {
        let text = |field: &str| self.object["metadata"][field].as_str().unwrap_or_default();
        format!("{}/{}", text("namespace"), text("name"))
    }

    /// The object's name.
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }
}

/// Watches that run until this is dropped. The API server sends an event for every write;
/// it leaves none out.
pub struct Recording {
    entries: Arc<Mutex<Vec<Entry>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Recording {
    /// Begins; what is written after this returns is recorded.
    pub async fn start(client: &Client, kinds: &[ApiResource]) -> Result<Self> {
        let entries = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for kind in kinds {
            let api: Api<DynamicObject> = Api::all_with(client.clone(), kind);
            let limit = ListParams::default().limit(1);
            let from = api.list_metadata(&limit).await?.metadata.resource_version;
            let watch = follow(
                api,
                kind.kind.clone(),
                from.unwrap_or_default(),
                entries.clone(),
            );
            tasks.push(tokio::spawn(watch));
        }
        Ok(Self { entries, tasks })
    }

    /// What was recorded so far.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// When `matches` first held.
    pub fn first(&self, matches: impl Fn(&Entry) -> bool) -> Option<Instant> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().find(|e| matches(e)).map(|e| e.at)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn follow(
    api: Api<DynamicObject>,
    kind: String,
    mut from: String,
    entries: Arc<Mutex<Vec<Entry>>>,
) {
    let bound = WatchParams::default().timeout(290).disable_bookmarks();
    loop {
        let mut events = match api.watch(&bound, &from).await {
            Ok(events) => events.boxed(),
            Err(error) => {
                eprintln!("the watch of {kind} failed, its figures are too low: {error}");
                return;
            }
        };
        while let Ok(Some(event)) = events.try_next().await {
            let at = Instant::now();
            let (action, object) = match event {
                WatchEvent::Added(object) => ("ADDED", object),
                WatchEvent::Modified(object) => ("MODIFIED", object),
                WatchEvent::Deleted(object) => ("DELETED", object),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => {
                    eprintln!("the watch of {kind} broke, its figures are too low: {status:?}");
                    return;
                }
            };
            from = object.metadata.resource_version.clone().unwrap_or(from);
            let object = serde_json::to_value(object).unwrap_or_default();
            let entry = Entry {
                at,
                kind: kind.clone(),
                action,
                object,
            };
            entries
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(entry);
        }
    }
}
