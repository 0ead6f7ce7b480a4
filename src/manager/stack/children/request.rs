//! Requests for objects, with the rights of the manager or of the Stack's service account.

use http::HeaderValue;
use k8s_openapi::api::core::v1::Secret;
use kube::Resource;
use kube::core::{ApiResource, DynamicObject, Request};

use super::Children;
use crate::stack::kinds::{self, ChildKind};
use crate::stack::record::Reference;
use crate::stack::served_kinds::is_malformed_version;
use pileus_kube_ext::{ApiError, is_gone, is_unserved};
use pileus_stack::value::Value;

impl Children<'_> {
    /// The API resource of an object's kind, and whether it is namespaced.
    async fn resource(&self, object: &Reference) -> Result<(ApiResource, bool), ApiError> {
        if let Some(kind) = kinds::of(object) {
            return Ok((kind.resource(), kind.is_namespaced()));
        }
        if is_secret(object) {
            return Ok((ApiResource::erase::<Secret>(&()), true));
        }
        self.served_kinds
            .resource_of(self.client, object, self.grace)
            .await
    }

    /// Whether the manager's own rights may be used for an object: for Pileus' namespaced kinds and
    /// auxiliary Secrets, in the Stack's own namespace. The record says who made an object, but
    /// tenants can write it, and must not get more rights by that.
    fn is_managers(&self, object: &Reference) -> bool {
        let is_own_namespace = object
            .namespace
            .as_ref()
            .is_none_or(|namespace| *namespace == self.namespace);
        let is_child = kinds::of(object).is_some_and(ChildKind::is_namespaced);
        is_own_namespace && (is_child || is_secret(object))
    }

    /// The request path of an object's kind, and whether it is namespaced.
    ///
    /// # Errors
    /// When the object must not be touched with these rights, its name is malformed, or its kind is
    /// not found.
    pub(super) async fn path(
        &self,
        object: &Reference,
        by_account: bool,
    ) -> Result<(String, bool), ApiError> {
        if !by_account && !self.is_managers(object) {
            let message = "only the stack's service account may change it, not the manager";
            let status = kube::core::Status::failure(message, "Forbidden").with_code(403);
            let doing = format!("access {} {}", object.kind, object.name);
            return Err(ApiError::doing(doing)(kube::Error::Api(status.boxed())));
        }
        if !is_segment(&object.name) {
            let message = format!("`{}` is not a valid name of an object", object.name);
            let status = kube::core::Status::failure(&message, "Invalid").with_code(422);
            let doing = format!("access a {}", object.kind);
            return Err(ApiError::doing(doing)(kube::Error::Api(status.boxed())));
        }
        let (resource, namespaced) = self.resource(object).await?;
        let namespace = object.namespace.as_deref().unwrap_or(&self.namespace);
        let namespace = namespaced.then_some(namespace);
        Ok((DynamicObject::url_path(&resource, namespace), namespaced))
    }

    /// Sends a request, with the service account's rights if `by_account`.
    pub(super) async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
        by_account: bool,
    ) -> Result<Value, kube::Error> {
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        if by_account {
            // An empty account has no rights; the validation of the spec asks for one.
            let account = self.stack.spec.service_account_name.as_deref();
            impersonate(&mut request, &self.namespace, account.unwrap_or_default())?;
        }
        self.client.request(request).await
    }

    /// Reads an object.
    pub(super) async fn get(
        &self,
        object: &Reference,
        by_account: bool,
    ) -> Result<Option<Value>, ApiError> {
        if !by_account && !self.is_managers(object) {
            // Whatever the record says, the manager has not created it.
            return Ok(None);
        }
        if !is_segment(&object.name) {
            return Ok(None);
        }
        let doing = || ApiError::doing(format!("read {} {}", object.kind, object.name));
        let path = match self.path(object, by_account).await {
            // Objects are deleted with their kind.
            Err(error) if is_unserved(&error.source) || is_malformed_version(&error) => {
                return Ok(None);
            }
            found => found?.0,
        };
        let request = Request::new(path).get(&object.name, &Default::default());
        match self.send(request, by_account).await {
            Ok(live) => Ok(Some(live)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => {
                if is_unserved(&error) {
                    // The cached kind is out of date; the next read asks discovery again.
                    self.served_kinds.forget(object);
                }
                Err(doing()(error))
            }
        }
    }
}

fn is_secret(object: &Reference) -> bool {
    object.api_version == "v1" && object.kind == "Secret"
}

/// Makes a request use the rights of a service account of `namespace`. The API server derives the
/// groups from the name.
pub(in crate::stack) fn impersonate<B>(
    request: &mut http::Request<B>,
    namespace: &str,
    account: &str,
) -> Result<(), kube::Error> {
    let user = format!("system:serviceaccount:{namespace}:{account}");
    let user = HeaderValue::from_str(&user).map_err(|e| kube::Error::HttpError(e.into()))?;
    request.headers_mut().insert("Impersonate-User", user);
    Ok(())
}

/// Whether a name is exactly one segment of a path. It comes from the record, which tenants can
/// write.
fn is_segment(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '?', '#', '%'])
}
