//! Secrets whose content nobody but the cluster itself is meant to have. Whoever may make a Server or
//! a Stack could read them that way without the right to read Secrets.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use pileus_api::names::STACK_UID_LABEL;

/// Types of Secrets with credentials of a service account or of a new node.
const CREDENTIAL_TYPES: [&str; 2] = [
    "kubernetes.io/service-account-token",
    "bootstrap.kubernetes.io/token",
];

/// Why a Secret is given neither to a guest nor to a Stack, for people: what it is.
#[must_use]
pub fn refusal(secret: &Secret) -> Option<String> {
    let kind = secret.type_.as_deref().unwrap_or_default();
    if CREDENTIAL_TYPES.contains(&kind) {
        return Some(format!("has the type {kind}"));
    }
    let is_of_stack = secret.labels().contains_key(STACK_UID_LABEL);
    is_of_stack.then(|| "belongs to a Stack".to_owned())
}
