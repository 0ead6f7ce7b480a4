//! Creates, updates, deletes and releases objects.

use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Request, TypeMeta};

use super::Children;
use crate::stack::managed_fields::{migrated_fields, replacement};
use crate::stack::plan;
use crate::stack::record::Reference;
use pileus_api::Stack;
use pileus_api::names::{MANAGER, STACK_UID_LABEL};
use pileus_kube_ext::{ApiError, is_gone};
use pileus_stack::value::{Value, json};

impl Children<'_> {
    /// Creates an object, or updates it to the manifest. With `retain` it gets no owner reference to
    /// the Stack, since it may outlive it.
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
            // An object of any kind: the API server merges what others have written.
            Some(live) if by_account => {
                self.migrate_fields(&object, live).await?;
                wanted["metadata"]["uid"] = live["metadata"]["uid"].clone();
                let params = PatchParams::apply(MANAGER).force();
                request.patch(name, &params, &Patch::Apply(&wanted))
            }
            // The Stack owns the whole spec. The resource version that was read detects conflicts.
            Some(live) => {
                let mut object = replacement(&wanted, live);
                if retain {
                    object["metadata"]["ownerReferences"] = self.other_owners(live);
                }
                let bytes = bytes(&object).map_err(doing())?;
                request.replace(name, &PostParams::default(), bytes)
            }
        };
        // Whatever the result, the cached object is out of date.
        self.read_cache.forget(&self.uid(), &object);
        match self.send(request, by_account).await {
            Ok(live) if by_account => {
                self.read_cache
                    .insert(&self.uid(), &self.namespace, &object, &live, true);
                Ok(())
            }
            Err(kube::Error::Api(status)) if live.is_none() && status.is_already_exists() => {
                self.check_owned(&object, by_account).await
            }
            // It was deleted meanwhile; the next pass creates it.
            Err(error) if live.is_some() && is_gone(&error) => Ok(()),
            done => done.map(drop).map_err(doing()),
        }
    }

    /// Makes all fields that the manager's create request owns part of its server-side apply.
    ///
    /// An object is created by a POST, because only that never changes an existing object, and
    /// updated by server-side apply. The API server treats these as two owners, `Update` and `Apply`
    /// of the same manager, and a field that the second one leaves out still belongs to the first: it
    /// would never be removed. So the fields of the first are moved to the second, as client-go's
    /// `csaupgrade` does, once before the first update.
    async fn migrate_fields(&self, object: &Reference, live: &Value) -> Result<(), ApiError> {
        let read;
        let live = if live["metadata"].get("managedFields").is_some() {
            live
        } else if self.read_cache.has_migrated_fields(&self.uid(), object) {
            return Ok(());
        } else {
            // A cached object is without them.
            let Some(found) = self.get(object, true).await? else {
                return Ok(());
            };
            read = found;
            &read
        };
        let metadata = &live["metadata"];
        let Some(fields) = migrated_fields(&metadata["managedFields"]) else {
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
                "migrate the managed fields of {} {}",
                object.kind, object.name
            ))),
        }
    }

    /// Whether an object that exists already is the Stack's own, made by an interrupted pass.
    ///
    /// # Errors
    /// When it is not, or cannot be read.
    async fn check_owned(&self, object: &Reference, by_account: bool) -> Result<(), ApiError> {
        let uid = self.uid();
        let live = self.get(object, by_account).await?.unwrap_or_default();
        if plan::is_ours(&live, &uid) {
            return Ok(());
        }
        let message = "exists and does not belong to this stack; give another name or delete it";
        let status = kube::core::Status::failure(message, "Invalid").with_code(422);
        Err(ApiError::doing(format!(
            "create {} {}",
            object.kind, object.name
        ))(kube::Error::Api(status.boxed())))
    }

    /// The owner reference to the Stack.
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

    /// The owner references of an object except that of the Stack.
    fn other_owners(&self, live: &Value) -> Value {
        let uid = self.uid();
        let owners = live["metadata"]["ownerReferences"].as_array();
        let owners = owners.into_iter().flatten().cloned();
        let others = owners.filter(|owner| owner["uid"] != uid.as_str());
        Value::from(others.collect::<Vec<_>>())
    }

    /// Deletes an object, with its uid as a precondition; one that does not exist is no error.
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
        self.read_cache.forget(&self.uid(), object);
        match self.send(request, by_account).await {
            Err(error) if is_gone(&error) => Ok(()),
            done => done.map(drop).map_err(ApiError::doing(format!(
                "delete {} {}",
                object.kind, object.name
            ))),
        }
    }

    /// Removes the Stack's label and owner reference from an object, which stays.
    ///
    /// # Errors
    /// A conflict when it has changed; otherwise when the API server refuses or does not
    /// answer.
    pub async fn release(&self, live: &Value, by_account: bool) -> Result<(), ApiError> {
        let object = Reference::of(live);
        let (path, _) = self.path(&object, by_account).await?;
        self.read_cache.forget(&self.uid(), &object);
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

fn bytes(value: &Value) -> Result<Vec<u8>, kube::Error> {
    serde_json::to_vec(value).map_err(kube::Error::SerdeError)
}
