//! The objects that Stacks are made of: read, created, updated, deleted. No decisions.
//!
//! Namespaced kinds of Pileus, and auxiliary Secrets, are made with the manager's own rights;
//! everything else by impersonation of the Stack's service account, so that nobody gets more rights
//! by making a Stack.
//!
//! | file | what it does |
//! |---|---|
//! | `write` | creates, updates, deletes and releases objects |
//! | `request` | sends requests with the right account |

mod request;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, ResourceExt};
use tokio::sync::Semaphore;

use super::Shared;
use super::caches::Caches;
use super::kinds;
use super::read_cache::ReadCache;
use super::record::{Entry, Reference, StackRecord};
use super::served_kinds::ServedKinds;
use pileus_api::{Sharing, Stack};
use pileus_kube_ext::{ApiError, chain, finalize, find};
use pileus_stack::value::Value;

pub(super) use request::impersonate;

/// How many objects of one Stack are read at once.
const MAX_CONCURRENT_READS: usize = 16;

/// The objects of one Stack.
pub struct Children<'a> {
    client: &'a Client,
    caches: &'a Caches,
    served_kinds: &'a ServedKinds,
    /// How long a kind may be missing before that is an error of its own.
    grace: Duration,
    read_cache: &'a ReadCache,
    /// Limits reads with the rights of service accounts, for all Stacks together.
    reads: &'a Semaphore,
    stack: &'a Stack,
    namespace: String,
}

impl<'a> Children<'a> {
    /// The objects of `stack`.
    #[must_use]
    pub fn of(
        client: &'a Client,
        caches: &'a Caches,
        shared: &'a Shared,
        stack: &'a Stack,
    ) -> Self {
        Self {
            client,
            caches,
            served_kinds: &shared.kinds,
            grace: shared.grace,
            reads: &shared.reads,
            read_cache: &shared.read_cache,
            stack,
            namespace: stack.namespace().unwrap_or_default(),
        }
    }

    fn watched(&self, kind: &str, name: &str) -> Option<Value> {
        kinds::find(kind)?.find(self.caches, &self.namespace, name)
    }

    /// The objects that the record names. An object that is missing in the caches is read: a cache
    /// may be behind, so only the API server can say that it does not exist. `without_cache` reads
    /// objects that are only cached, too.
    ///
    /// Returns with them why the service account could not read one.
    ///
    /// # Errors
    /// When the API server refuses the manager, or does not answer.
    pub async fn observe(
        &self,
        record: &StackRecord,
        without_cache: bool,
    ) -> Result<(BTreeMap<Reference, Value>, Option<String>), ApiError> {
        let mut found = BTreeMap::new();
        let mut unknown = Vec::new();
        let deleting = finalize::is_deleting(self.stack);
        let now = Timestamp::now();
        let unwatched_in_progress = super::plan::unwatched_in_progress(record);
        for entry in record.entries.values() {
            let interval = super::plan::poll_interval(unwatched_in_progress, entry, now);
            let mut up_to_date = false;
            if let Some(object) = entry.objects.last() {
                match self.known(entry, object, without_cache, interval) {
                    Some(live) => {
                        up_to_date = super::plan::is_up_to_date(&live, entry);
                        found.insert(object.clone(), live);
                    }
                    None => unknown.push((object.clone(), entry.by_account)),
                }
            }
            if super::plan::reads_auxiliary(record, entry, up_to_date, deleting) {
                let auxiliary = entry.objects.split_last().map(|(_, others)| others);
                let auxiliary = auxiliary.into_iter().flatten();
                unknown.extend(auxiliary.map(|object| (object.clone(), entry.by_account)));
            }
        }
        let (read, denied) = self.read(unknown).await?;
        found.extend(read);
        Ok((found, denied))
    }

    /// Reads these objects, each with the service account's rights or not.
    ///
    /// Returns with them why the service account could not read one.
    ///
    /// # Errors
    /// When the API server refuses the manager, or does not answer.
    pub async fn read(
        &self,
        objects: Vec<(Reference, bool)>,
    ) -> Result<(BTreeMap<Reference, Value>, Option<String>), ApiError> {
        let mut found = BTreeMap::new();
        let mut denied = None;
        let mut reads = futures::stream::iter(objects)
            .map(|(object, by_account)| async move {
                // The semaphore is never closed; an error would only mean no limit.
                let _permit = if by_account {
                    self.reads.acquire().await.ok()
                } else {
                    None
                };
                let live = self.get(&object, by_account).await;
                (object, by_account, live)
            })
            .buffer_unordered(MAX_CONCURRENT_READS);
        while let Some((object, by_account, live)) = reads.next().await {
            match live {
                Ok(Some(live)) => {
                    if by_account {
                        self.read_cache
                            .insert(&self.uid(), &self.namespace, &object, &live, false);
                    }
                    found.insert(object, live);
                }
                Ok(None) => self.read_cache.forget(&self.uid(), &object),
                Err(error) if by_account && error.is_forbidden() => denied = Some(chain(&error)),
                Err(error) => return Err(error),
            }
        }
        drop(reads);
        Ok((found, denied))
    }

    /// Whether the namespace is being deleted with everything in it.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn is_namespace_terminating(&self) -> Result<bool, ApiError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let doing = ApiError::doing(format!("read the namespace {}", self.namespace));
        let namespace = find(&api, &self.namespace).await.map_err(doing)?;
        Ok(namespace.is_none_or(|found| found.metadata.deletion_timestamp.is_some()))
    }

    fn uid(&self) -> String {
        self.stack.uid().unwrap_or_default()
    }

    /// An object as it is known without a read.
    fn known(
        &self,
        entry: &Entry,
        object: &Reference,
        without_cache: bool,
        interval: Duration,
    ) -> Option<Value> {
        if entry.by_account {
            let cached = || self.read_cache.get(&self.uid(), entry, object, interval);
            return (!without_cache).then(cached)?;
        }
        let is_ours =
            object.api_version.starts_with(pileus_api::GROUP) && object.namespace.is_none();
        is_ours.then(|| self.watched(&object.kind, &object.name))?
    }

    /// Watched objects with the Stack's label that the record does not name, and their uids.
    #[must_use]
    pub fn unrecorded(&self, record: Option<&StackRecord>) -> Vec<(Reference, String)> {
        let uid = self.uid();
        let entries = record
            .into_iter()
            .flat_map(|record| record.entries.values());
        let recorded = entries.flat_map(|entry| &entry.objects).cloned();
        // A manifest may name the Stack's own namespace.
        let recorded: BTreeSet<Reference> = recorded
            .map(|object| Reference {
                namespace: object.namespace.filter(|other| *other != self.namespace),
                ..object
            })
            .collect();
        kinds::all()
            .filter(|kind| kind.is_namespaced())
            .flat_map(|kind| kind.labelled(self.caches, &self.namespace, &uid))
            .filter(|(object, _)| !recorded.contains(object))
            .collect()
    }
}

impl super::plan::Lookup for Children<'_> {
    fn find(&self, kind: &str, name: &str) -> Option<Value> {
        self.watched(kind, name)
    }

    fn may_use(&self, kind: &str, namespace: Option<&str>, name: &str) -> bool {
        let own = self.namespace.as_str();
        let at = namespace.unwrap_or(own);
        let shared = |sharing: Option<&Sharing>| {
            at == own || sharing.is_some_and(|sharing| sharing.allows(own))
        };
        let caches = self.caches;
        match kind {
            "Flavor" => (caches.flavors.get("", name)).is_some_and(|flavor| {
                let access = flavor.spec.access.as_ref();
                access.is_none_or(|access| access.allows(own))
            }),
            "Image" => (caches.images.get(at, name))
                .is_some_and(|image| shared(image.spec.shared_with.as_ref())),
            "Network" => (caches.networks.get(at, name))
                .is_some_and(|network| shared(network.spec.shared_with.as_ref())),
            // A Port's Subnet is in the Network's namespace, which the Port's controller checks.
            "Subnet" => {
                let mut others = caches.subnets.state().into_iter();
                caches.subnets.get(own, name).is_some()
                    || others.any(|subnet| subnet.name_any() == name)
            }
            _ => self.watched(kind, name).is_some(),
        }
    }
}
