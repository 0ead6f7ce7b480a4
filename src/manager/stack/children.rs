//! The objects that Stacks are made of: read, made, changed, deleted. No decisions.
//!
//! Namespaced kinds of Pileus' own, and the Secrets that serve them, are made by the manager;
//! everything else by impersonation of the Stack's service account, so that a Stack never
//! gives its author a right.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use http::HeaderValue;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use kube::core::{ApiResource, DynamicObject, TypeMeta};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::Shared;
use super::fields::{handed_over, replaced};
use super::ledger::{Entry, Ledger, Reference};
use super::recall::Recall;
use super::served::{Kinds, is_no_version};
use super::triggers::by_stack;
use crate::caches::Caches;
use pileus_api::names::{MANAGER, STACK_UID_LABEL};
use pileus_api::{
    Flavor, Image, KeyPair, Network, Port, SecurityGroup, SecurityGroupRule, Server, ServerGroup,
    Stack, Subnet,
};
use pileus_kube_ext::cache::Cache;
use pileus_kube_ext::{ApiError, chain, finalize, find, is_gone, is_unserved};
use pileus_stack::value::{Value, json};

/// How many requests of one Stack are under way at once.
const AT_ONCE: usize = 16;
/// The objects of one Stack.
pub struct Children<'a> {
    client: &'a Client,
    caches: &'a Caches,
    kinds: &'a Kinds,
    /// How long a kind may be missing before there is none.
    grace: Duration,
    recall: &'a Recall,
    /// How many reads with the rights of accounts are under way, of all Stacks.
    reads: &'a Semaphore,
    stack: &'a Stack,
    namespace: String,
}

macro_rules! each_kind {
    ($what:ident!($($rest:tt)*)) => {
        $what!($($rest)*; servers Server, networks Network, subnets Subnet, ports Port,
            groups SecurityGroup, rules SecurityGroupRule, key_pairs KeyPair, images Image,
            server_groups ServerGroup)
    };
}

impl<'a> Children<'a> {
    /// Those of `stack`.
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
            kinds: &shared.kinds,
            grace: shared.grace,
            reads: &shared.reads,
            recall: &shared.recall,
            stack,
            namespace: stack.namespace().unwrap_or_default(),
        }
    }

    fn watched(&self, kind: &str, name: &str) -> Option<Value> {
        macro_rules! look {
            (; $($cache:ident $type:ident),+) => {
                match kind {
                    $(stringify!($type) => value(self.caches.$cache.get(&self.namespace, name)?.as_ref()),)+
                    "Flavor" => value(self.caches.flavors.get("", name)?.as_ref()),
                    _ => None,
                }
            };
        }
        each_kind!(look!())
    }

    /// The objects that the record names. What the stores do not have is asked for directly:
    /// a store may be behind, and absence is only what the API server itself says. `anew` asks
    /// for what is only remembered, too.
    ///
    /// Beside them: why the service account could not read one.
    ///
    /// # Errors
    /// When the API server refuses the manager, or does not answer.
    pub async fn observe(
        &self,
        ledger: &Ledger,
        anew: bool,
    ) -> Result<(BTreeMap<Reference, Value>, Option<String>), ApiError> {
        let mut found = BTreeMap::new();
        let mut unknown = Vec::new();
        let deleting = finalize::is_deleting(self.stack);
        let now = Timestamp::now();
        let under_way = super::plan::under_way(ledger);
        for entry in ledger.entries.values() {
            let pace = super::plan::pace(under_way, entry, now);
            let mut whole = false;
            if let Some(object) = entry.objects.last() {
                match self.stored(entry, object, anew, pace) {
                    Some(live) => {
                        whole = super::plan::is_whole(&live, entry);
                        found.insert(object.clone(), live);
                    }
                    None => unknown.push((object.clone(), entry.by_account)),
                }
            }
            if super::plan::needs_serving(ledger, entry, whole, deleting) {
                let served = entry.objects.split_last().map(|(_, serving)| serving);
                let serving = served.into_iter().flatten();
                unknown.extend(serving.map(|object| (object.clone(), entry.by_account)));
            }
        }
        let (read, denied) = self.read(unknown).await?;
        found.extend(read);
        Ok((found, denied))
    }

    /// These objects by direct reads, each with the service account's rights or not.
    ///
    /// Beside them: why the service account could not read one.
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
                // Closed by nobody; without a permit it is read all the same.
                let _permit = if by_account {
                    self.reads.acquire().await.ok()
                } else {
                    None
                };
                let live = self.get(&object, by_account).await;
                (object, by_account, live)
            })
            .buffer_unordered(AT_ONCE);
        while let Some((object, by_account, live)) = reads.next().await {
            match live {
                Ok(Some(live)) => {
                    if by_account {
                        self.recall.note(&self.uid(), &object, &live, false);
                    }
                    found.insert(object, live);
                }
                Ok(None) => self.recall.forget(&self.uid(), &object),
                Err(error) if by_account && is_forbidden(&error) => denied = Some(chain(&error)),
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
    pub async fn is_namespace_going(&self) -> Result<bool, ApiError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let doing = ApiError::doing(format!("read the namespace {}", self.namespace));
        let namespace = find(&api, &self.namespace).await.map_err(doing)?;
        Ok(namespace.is_none_or(|found| found.metadata.deletion_timestamp.is_some()))
    }

    fn uid(&self) -> String {
        self.stack.uid().unwrap_or_default()
    }

    fn stored(
        &self,
        entry: &Entry,
        object: &Reference,
        anew: bool,
        pace: Duration,
    ) -> Option<Value> {
        if entry.by_account {
            return (!anew).then(|| self.recall.recall(&self.uid(), entry, object, pace))?;
        }
        let ours = object.api_version.starts_with(pileus_api::GROUP) && object.namespace.is_none();
        ours.then(|| self.watched(&object.kind, &object.name))?
    }

    /// Watched objects with the Stack's mark that the record does not name, and their uids.
    #[must_use]
    pub fn strays(&self, ledger: Option<&Ledger>) -> Vec<(Reference, String)> {
        let uid = self.uid();
        let entries = ledger
            .into_iter()
            .flat_map(|ledger| ledger.entries.values());
        let known = entries.flat_map(|entry| &entry.objects).cloned();
        // A manifest may name the Stack's own namespace.
        let known: BTreeSet<Reference> = known
            .map(|object| Reference {
                namespace: object.namespace.filter(|other| *other != self.namespace),
                ..object
            })
            .collect();
        let mut found = Vec::new();
        macro_rules! look {
            (; $($cache:ident $type:ident),+) => {
                $(marked(&self.caches.$cache, &self.namespace, &uid, &mut found);)+
            };
        }
        each_kind!(look!());
        found.retain(|(object, _)| !known.contains(object));
        found
    }

    /// What the API server calls an object's kind, and whether it is in namespaces.
    async fn resource(&self, object: &Reference) -> Result<(ApiResource, bool), ApiError> {
        macro_rules! ours {
            (; $($cache:ident $type:ident),+) => {
                match object.kind.as_str() {
                    $(stringify!($type) => Some((ApiResource::erase::<$type>(&()), true)),)+
                    "Flavor" => Some((ApiResource::erase::<Flavor>(&()), false)),
                    _ => None,
                }
            };
        }
        if object.api_version == Stack::api_version(&())
            && let Some(known) = each_kind!(ours!())
        {
            return Ok(known);
        }
        if object.api_version == "v1" && object.kind == "Secret" {
            return Ok((ApiResource::erase::<Secret>(&()), true));
        }
        self.kinds.of(self.client, object, self.grace).await
    }

    /// Whether the manager's own rights may be used for an object: for Pileus' namespaced
    /// kinds and the Secrets that serve them, in the Stack's own namespace. The record, which
    /// says who made what, lies where tenants can write, and must not lend them more.
    fn is_managers(&self, object: &Reference) -> bool {
        macro_rules! is_one {
            (; $($cache:ident $type:ident),+) => {
                [$(stringify!($type)),+].contains(&object.kind.as_str())
            };
        }
        let own = object
            .namespace
            .as_ref()
            .is_none_or(|n| *n == self.namespace);
        let pileus = object.api_version == Stack::api_version(&()) && each_kind!(is_one!());
        let secret = object.api_version == "v1" && object.kind == "Secret";
        own && (pileus || secret)
    }

    async fn path(&self, object: &Reference, by_account: bool) -> Result<(String, bool), ApiError> {
        if !by_account && !self.is_managers(object) {
            let message = "only the stack's service account may touch it, not the manager";
            let status = kube::core::Status::failure(message, "Forbidden").with_code(403);
            let doing = format!("touch {} {}", object.kind, object.name);
            return Err(ApiError::doing(doing)(kube::Error::Api(status.boxed())));
        }
        if !is_segment(&object.name) {
            let message = format!("`{}` is no name of an object", object.name);
            let status = kube::core::Status::failure(&message, "Invalid").with_code(422);
            let doing = format!("touch a {}", object.kind);
            return Err(ApiError::doing(doing)(kube::Error::Api(status.boxed())));
        }
        let (resource, namespaced) = self.resource(object).await?;
        let namespace = object.namespace.as_deref().unwrap_or(&self.namespace);
        let namespace = namespaced.then_some(namespace);
        Ok((DynamicObject::url_path(&resource, namespace), namespaced))
    }

    /// Sends a request, with the service account's rights if need be.
    async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
        by_account: bool,
    ) -> Result<Value, kube::Error> {
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        if by_account {
            // Without an account there is nobody: the check of the spec asks for one.
            let account = self.stack.spec.service_account_name.as_deref();
            impersonate(&mut request, &self.namespace, account.unwrap_or_default())?;
        }
        self.client.request(request).await
    }

    async fn get(&self, object: &Reference, by_account: bool) -> Result<Option<Value>, ApiError> {
        if !by_account && !self.is_managers(object) {
            // Whatever the record says, the manager has not made it.
            return Ok(None);
        }
        if !is_segment(&object.name) {
            return Ok(None);
        }
        let doing = || ApiError::doing(format!("read {} {}", object.kind, object.name));
        let path = match self.path(object, by_account).await {
            // Objects go with their kind.
            Err(error) if is_unserved(&error.source) || is_no_version(&error) => return Ok(None),
            found => found?.0,
        };
        let request = Request::new(path).get(&object.name, &Default::default());
        match self.send(request, by_account).await {
            Ok(live) => Ok(Some(live)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => {
                if is_unserved(&error) {
                    // What is known of the kind is over; the next look asks for it.
                    self.kinds.forget(object);
                }
                Err(doing()(error))
            }
        }
    }

    /// Makes an object, or changes it to what it should be; the Stack does not own what may
    /// outlive it.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn apply(
        &self,
        manifest: &Value,
        live: Option<&Value>,
        by_account: bool,
        retain: bool,
    ) -> Result<(), ApiError> {
        let object = Reference::of(manifest);
        let name = &object.name;
        let doing = || ApiError::doing(format!("apply {} {name}", object.kind));
        let (path, namespaced) = self.path(&object, by_account).await?;
        let mut wanted = manifest.clone();
        let own = object
            .namespace
            .as_ref()
            .is_none_or(|own| *own == self.namespace);
        if namespaced && own && !retain {
            wanted["metadata"]["ownerReferences"] = json!([self.owner()]);
        }
        let request = Request::new(path);
        let request = match live {
            None => {
                let params = PostParams {
                    field_manager: Some(MANAGER.to_owned()),
                    ..PostParams::default()
                };
                let bytes = bytes(&wanted).map_err(doing())?;
                request.create(&params, bytes)
            }
            // Whatever it is, the API server merges what others have written.
            Some(live) if by_account => {
                self.hand_over(&object, live).await?;
                wanted["metadata"]["uid"] = live["metadata"]["uid"].clone();
                let params = PatchParams::apply(MANAGER).force();
                request.patch(name, &params, &Patch::Apply(&wanted))
            }
            // The spec is the Stack's alone. The version that was read goes with it.
            Some(live) => {
                let mut object = replaced(&wanted, live);
                if retain {
                    object["metadata"]["ownerReferences"] = self.other_owners(live);
                }
                let bytes = bytes(&object).map_err(doing())?;
                request.replace(name, &PostParams::default(), bytes)
            }
        };
        // Whatever comes of it, what was known is over.
        self.recall.forget(&self.uid(), &object);
        match self.send(request, by_account).await {
            Ok(live) if by_account => {
                self.recall.note(&self.uid(), &object, &live, true);
                Ok(())
            }
            Err(kube::Error::Api(status)) if live.is_none() && status.is_already_exists() => {
                self.adopt(&object, by_account).await
            }
            // It went meanwhile; the next pass sees that, and makes it.
            Err(error) if live.is_some() && is_gone(&error) => Ok(()),
            done => done.map(drop).map_err(doing()),
        }
    }

    /// Makes all that was said when an object was made part of what is applied to it.
    ///
    /// It is made by a POST, since only that never touches what is there already, and changed
    /// by server-side apply. To the API server those are two owners, `Update` and `Apply`,
    /// though of one name, and what the second leaves out still belongs to the first: it would
    /// stay for ever. So the first one's fields are given to the second, as client-go's
    /// `csaupgrade` does it, once before the first change.
    async fn hand_over(&self, object: &Reference, live: &Value) -> Result<(), ApiError> {
        let read;
        let live = if live["metadata"].get("managedFields").is_some() {
            live
        } else if self.recall.is_handed_over(&self.uid(), object) {
            return Ok(());
        } else {
            // What is remembered of an object is without them.
            let Some(found) = self.get(object, true).await? else {
                return Ok(());
            };
            read = found;
            &read
        };
        let metadata = &live["metadata"];
        let Some(fields) = handed_over(&metadata["managedFields"]) else {
            return Ok(());
        };
        let change = json!({"metadata": {
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "managedFields": fields,
        }});
        let (path, _) = self.path(object, true).await?;
        let params = PatchParams::default();
        let request = Request::new(path).patch(&object.name, &params, &Patch::Merge(&change));
        match self.send(request, true).await {
            Err(error) if is_gone(&error) => Ok(()),
            done => done.map(drop).map_err(ApiError::doing(format!(
                "take over the fields of {} {}",
                object.kind, object.name
            ))),
        }
    }

    /// What is there already was made by a pass that came to no end, or is somebody else's.
    async fn adopt(&self, object: &Reference, by_account: bool) -> Result<(), ApiError> {
        let uid = self.uid();
        let live = self.get(object, by_account).await?.unwrap_or_default();
        if super::plan::is_ours(&live, &uid) {
            return Ok(());
        }
        let message = "exists and does not belong to this stack; give another name or delete it";
        let status = kube::core::Status::failure(message, "Invalid").with_code(422);
        Err(ApiError::doing(format!(
            "make {} {}",
            object.kind, object.name
        ))(kube::Error::Api(status.boxed())))
    }

    fn owner(&self) -> Value {
        let types = TypeMeta::resource::<Stack>();
        json!({
            "apiVersion": types.api_version,
            "kind": types.kind,
            "name": self.stack.name_any(),
            "uid": self.stack.uid(),
            "controller": true,
            "blockOwnerDeletion": false,
        })
    }

    /// The owners of an object but the Stack.
    fn other_owners(&self, live: &Value) -> Value {
        let uid = self.uid();
        let owners = live["metadata"]["ownerReferences"].as_array();
        let owners = owners.into_iter().flatten().cloned();
        let others = owners.filter(|owner| owner["uid"] != uid.as_str());
        Value::from(others.collect::<Vec<_>>())
    }

    /// Deletes the very object that was seen; one that is gone is fine.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn delete(
        &self,
        object: &Reference,
        uid: Option<&String>,
        by_account: bool,
    ) -> Result<(), ApiError> {
        let (path, _) = self.path(object, by_account).await?;
        let params = DeleteParams {
            preconditions: uid.map(|uid| Preconditions {
                uid: Some(uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        let request = Request::new(path).delete(&object.name, &params);
        self.recall.forget(&self.uid(), object);
        match self.send(request, by_account).await {
            Err(error) if is_gone(&error) => Ok(()),
            done => done.map(drop).map_err(ApiError::doing(format!(
                "delete {} {}",
                object.kind, object.name
            ))),
        }
    }

    /// Takes the Stack's marks from an object, which stays.
    ///
    /// # Errors
    /// A conflict when it has changed; otherwise when the API server refuses or does not
    /// answer.
    pub async fn release(&self, live: &Value, by_account: bool) -> Result<(), ApiError> {
        let object = Reference::of(live);
        let (path, _) = self.path(&object, by_account).await?;
        self.recall.forget(&self.uid(), &object);
        let kept = self.other_owners(live);
        let change = json!({"metadata": {
            "uid": live["metadata"]["uid"],
            "resourceVersion": live["metadata"]["resourceVersion"],
            "ownerReferences": kept,
            "labels": {STACK_UID_LABEL: null},
        }});
        let request = Request::new(path);
        let request = request.patch(
            &object.name,
            &PatchParams::default(),
            &Patch::Merge(&change),
        );
        match self.send(request, by_account).await {
            Err(error) if is_gone(&error) => Ok(()),
            done => done.map(drop).map_err(ApiError::doing(format!(
                "release {} {}",
                object.kind, object.name
            ))),
        }
    }
}

impl super::plan::Lookup for Children<'_> {
    fn find(&self, kind: &str, name: &str) -> Option<Value> {
        self.watched(kind, name)
    }
}

/// Has a request made with the rights of a service account of `namespace`; the API server
/// knows by its name what groups it is in.
pub(super) fn impersonate<B>(
    request: &mut http::Request<B>,
    namespace: &str,
    account: &str,
) -> Result<(), kube::Error> {
    let user = format!("system:serviceaccount:{namespace}:{account}");
    let user = HeaderValue::from_str(&user).map_err(|e| kube::Error::HttpError(e.into()))?;
    request.headers_mut().insert("Impersonate-User", user);
    Ok(())
}

/// Whether a name is one part of a path and no more: the record, which says it, lies where
/// tenants can write.
fn is_segment(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '?', '#', '%'])
}

fn is_forbidden(error: &ApiError) -> bool {
    matches!(&*error.source, kube::Error::Api(status) if status.is_forbidden())
}

fn value(object: &impl Serialize) -> Option<Value> {
    serde_json::to_value(object).ok().map(Value::from)
}

fn bytes(value: &Value) -> Result<Vec<u8>, kube::Error> {
    serde_json::to_vec(value).map_err(kube::Error::SerdeError)
}

fn marked<K>(cache: &Cache<K>, namespace: &str, uid: &str, found: &mut Vec<(Reference, String)>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    for object in cache.by(&by_stack(), uid) {
        if object.namespace().as_deref() == Some(namespace) {
            let reference = Reference {
                api_version: K::api_version(&()).into_owned(),
                kind: K::kind(&()).into_owned(),
                namespace: None,
                name: object.name_any(),
            };
            found.push((reference, object.uid().unwrap_or_default()));
        }
    }
}
