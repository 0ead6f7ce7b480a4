//! Which kinds the API server has, and what it calls them: a Stack may hold objects of any.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::Client;
use kube::core::gvk::ParseGroupVersionError;
use kube::core::{ApiResource, GroupVersion, GroupVersionKind};
use kube::discovery::{self, Scope};

use super::record::Reference;
use pileus_kube_ext::ApiError;

/// Why a kind cannot be had; not the reason of a missing object.
const UNSERVED: &str = "KindNotServed";

/// What the API server calls kinds, once it has been asked.
#[derive(Default)]
pub struct ServedKinds {
    known: Mutex<HashMap<GroupVersionKind, (ApiResource, bool)>>,
    /// Since when it has said of a kind that there is none.
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

    /// Has a kind asked for anew.
    pub(super) fn forget(&self, object: &Reference) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .retain(|kind, _| kind.kind != object.kind || kind.api_version() != object.api_version);
    }

    /// Notes that the API server knows no such kind; for how long it has said so.
    fn miss(&self, kind: &GroupVersionKind) -> Duration {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing
            .entry(kind.clone())
            .or_insert_with(Instant::now)
            .elapsed()
    }

    /// What the API server calls an object's kind, and whether it is in namespaces. A kind that
    /// has been missing for `grace` is one that there is not.
    ///
    /// # Errors
    /// When there is no such kind, or the API server does not say.
    pub async fn of(
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
            // An API server that has just started does not know all yet, and a definition may
            // come a little later than the first object of its kind.
            Err(error) if is_missing(&error) && self.miss(&kind) >= grace => {
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

/// Whether the API server says that there is no such kind.
fn is_missing(error: &kube::Error) -> bool {
    use kube::error::DiscoveryError::{MissingApiGroup, MissingKind};
    matches!(
        error,
        kube::Error::Discovery(MissingKind(_) | MissingApiGroup(_))
    ) || matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether an object's `apiVersion` is none: there can be no such object.
pub(super) fn is_no_version(error: &ApiError) -> bool {
    use kube::error::DiscoveryError::InvalidGroupVersion;
    matches!(
        &*error.source,
        kube::Error::Discovery(InvalidGroupVersion(_))
    )
}
