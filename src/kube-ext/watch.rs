//! Watches of one kind each, which no object can stop: what cannot be decoded is reported, on the
//! object and in a metric, and its event goes on with the name alone.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::ready;

use futures::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::decode::{Decoded, Unreadable};
use super::readiness::Check;
use super::{Context, chain};
use pileus_api::Reason;

/// Namespace and name.
type Key = (String, String);

/// What happens to the objects that `api` reaches: first a list of them, then every change. It
/// does not end; what fails is logged, shown in the role's readiness and tried again.
pub fn objects<K>(
    context: &Context,
    api: Api<Decoded<K>>,
    config: Config,
) -> impl Stream<Item = Event<Decoded<K>>> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let check = context.ready.watch_check(api.resource_url());
    let mut set_aside = SetAside::new(context.clone());
    watcher(api, config).default_backoff().filter_map(move |event| {
        ready(match event {
            Ok(event) => {
                note(&check, &event);
                set_aside.note(&event);
                Some(event)
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(kind = %K::kind(&()), error, "the watch failed and will be tried again");
                check.failed(error);
                None
            }
        })
    })
}

/// Whether the list has come, or anything after it.
fn note<K>(check: &Check, event: &Event<K>) {
    match event {
        Event::InitDone => check.ok(),
        Event::Apply(_) | Event::Delete(_) => check.recovered(),
        Event::Init | Event::InitApply(_) => {}
    }
}

/// The objects of one kind that exist and cannot be decoded.
struct SetAside {
    context: Context,
    /// Their uids, and what is wrong with them.
    known: HashMap<Key, (String, String)>,
    /// Those of a list that is being received.
    listed: HashMap<Key, (String, String)>,
}

impl SetAside {
    fn new(context: Context) -> Self {
        Self {
            context,
            known: HashMap::new(),
            listed: HashMap::new(),
        }
    }

    fn note<K: Resource<DynamicType = ()>>(&mut self, event: &Event<Decoded<K>>) {
        let before = self.known.len();
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                if let Err(unreadable) = &object.0 {
                    let reported = self.report(object, unreadable);
                    self.listed.insert(key(object), reported);
                }
            }
            Event::InitDone => self.known = std::mem::take(&mut self.listed),
            Event::Apply(object) => match &object.0 {
                Ok(_) => {
                    if self.known.remove(&key(object)).is_some() {
                        let (kind, (namespace, name)) = (K::kind(&()), key(object));
                        tracing::info!(%kind, %namespace, %name, "the object can be read again");
                    }
                }
                Err(unreadable) => {
                    let reported = self.report(object, unreadable);
                    self.known.insert(key(object), reported);
                }
            },
            Event::Delete(object) => {
                self.known.remove(&key(object));
            }
        }
        if self.known.len() != before || matches!(event, Event::InitDone) {
            self.context
                .metrics
                .set_unreadable(&K::kind(&()), self.known.len());
        }
    }

    /// Reports an object, once for each problem that it has.
    fn report<K: Resource<DynamicType = ()>>(
        &self,
        object: &Decoded<K>,
        unreadable: &Unreadable,
    ) -> (String, String) {
        let problem = unreadable.problem.clone();
        let reported = (object.meta().uid.clone().unwrap_or_default(), problem);
        let ((namespace, name), kind) = (key(object), K::kind(&()));
        if self.known.get(&(namespace.clone(), name.clone())) != Some(&reported) {
            tracing::warn!(%kind, %namespace, %name, problem = reported.1, "an object is set aside");
            let message = format!(
                "{}. Until then Pileus goes by the last version that it could read, if any",
                reported.1
            );
            let events = &self.context.events;
            events.warning(object, Reason::CannotBeRead, "Read", message);
        }
        reported
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}
