//! Kinds that the API server serves, found by discovery: a Stack may make objects of any kind.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::Client;
use kube::core::gvk::ParseGroupVersionError;
use kube::core::{ApiResource, GroupVersion, GroupVersionKind};
use kube::discovery::{self, Scope};

use super::record::Reference;
use pileus_kube_ext::ApiError;

/// Reason of the error for a kind that is not served; different from that of a missing object.
const UNSERVED: &str = "KindNotServed";

/// Cached results of API discovery.
#[derive(Default)]
pub struct ServedKinds {
    known: Mutex<HashMap<GroupVersionKind, (ApiResource, bool)>>,
    /// When discovery first reported that there is no such kind.
    missing: Mutex<HashMap<GroupVersionKind, Instant>>,
}

impl ServedKinds {
    fn known(&self, kind: &GroupVersionKind) -> Option<(ApiResource, bool)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(kind).cloned()
    }

    fn note(&self, kind: GroupVersionKind, found: (ApiResource, bool)) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.remove(&kind);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(kind, found);
    }

    /// Forgets a kind, so that discovery is asked again.
    pub(super) fn forget(&self, object: &Reference) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .retain(|kind, _| kind.kind != object.kind || kind.api_version() != object.api_version);
    }

    /// Notes that discovery knows no such kind; returns for how long that has been so.
    fn note_missing(&self, kind: &GroupVersionKind) -> Duration {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing
            .entry(kind.clone())
            .or_insert_with(Instant::now)
            .elapsed()
    }

    /// The API resource of an object's kind, and whether it is namespaced. A missing kind is an
    /// error of its own only once it has been missing for `grace`.
    ///
    /// # Errors
    /// When there is no such kind, or the API server does not answer.
    pub async fn resource_of(
        &self,
        client: &Client,
        object: &Reference,
        grace: Duration,
    ) -> Result<(ApiResource, bool), ApiError> {
        let doing = || format!("find the kind {} of {}", object.kind, object.api_version);
        let version: GroupVersion =
            object
                .api_version
                .parse()
                .map_err(|e: ParseGroupVersionError| {
                    ApiError::doing(doing())(kube::Error::Discovery(
                        kube::error::DiscoveryError::InvalidGroupVersion(e.to_string()),
                    ))
                })?;
        let kind = GroupVersionKind::gvk(&version.group, &version.version, &object.kind);
        if let Some(known) = self.known(&kind) {
            return Ok(known);
        }
        match discovery::pinned_kind(client, &kind).await {
            Ok((resource, capabilities)) => {
                let found = (resource, capabilities.scope == Scope::Namespaced);
                self.note(kind, found.clone());
                Ok(found)
            }
            // An API server that has just started may not serve all kinds yet, and a
            // CustomResourceDefinition may be installed a little later than the first object of
            // its kind.
            Err(error) if is_missing(&error) && self.note_missing(&kind) >= grace => {
                let message = format!(
                    "the API server has no kind {} in {}; correct apiVersion and kind, or \
                     install its definition and set spec.healRequestedAt",
                    object.kind, object.api_version
                );
                let status = kube::core::Status::failure(&message, UNSERVED).with_code(404);
                Err(ApiError::doing(doing())(kube::Error::Api(status.boxed())))
            }
            Err(error) => Err(ApiError::doing(doing())(error)),
        }
    }
}

/// Whether the error is discovery's for a kind that does not exist.
fn is_missing(error: &kube::Error) -> bool {
    use kube::error::DiscoveryError::{MissingApiGroup, MissingKind};
    matches!(
        error,
        kube::Error::Discovery(MissingKind(_) | MissingApiGroup(_))
    ) || matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether an object's `apiVersion` is malformed: there can be no such object.
pub(super) fn is_malformed_version(error: &ApiError) -> bool {
    use kube::error::DiscoveryError::InvalidGroupVersion;
    matches!(
        &*error.source,
        kube::Error::Discovery(InvalidGroupVersion(_))
    )
}
