//! The owners of what Pileus makes outside Kubernetes.
//!
//! Everything made outside Kubernetes (a domain, a directory, a row in OVN) has an
//! id derived from the *name* of its owner and metadata with the owner's uid. The name
//! keeps the id the same when the owner is applied again after its objects were lost; a
//! different uid shows that this happened.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The cluster's identity: uid of its `kube-system` namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub String);

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The owner, recorded on everything that Pileus makes outside Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// uid of the cluster's `kube-system` namespace.
    pub cluster: ClusterId,
    /// Kind of the owner, `Server` for a domain.
    pub kind: String,
    /// Namespace of the owner, empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name of the owner.
    pub name: String,
    /// uid of the owner.
    pub uid: String,
}

/// The namespace of our version 5 UUIDs; fixed for ever, or every id would change.
const ID_NAMESPACE: Uuid = Uuid::from_u128(0x8f4d_6c0e_5a51_5b0e_9a3b_7069_6c65_7573);

/// The id that an object has outside Kubernetes: a version 5 UUID over cluster, kind,
/// namespace and name. A domain's uuid, a logical port's name and an instance-id are
/// made so.
#[must_use]
pub fn stable_id(cluster: &ClusterId, kind: &str, namespace: &str, name: &str) -> Uuid {
    // '/' occurs in none of the parts, so no two owners run together.
    Uuid::new_v5(
        &ID_NAMESPACE,
        format!("{cluster}/{kind}/{namespace}/{name}").as_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_follows_the_name_and_nothing_else() {
        let cluster = ClusterId("c1".into());
        let a = stable_id(&cluster, "Server", "default", "web");
        assert_eq!(a, stable_id(&cluster, "Server", "default", "web"));
        assert_ne!(a, stable_id(&cluster, "Port", "default", "web"));
        assert_ne!(
            a,
            stable_id(&ClusterId("c2".into()), "Server", "default", "web")
        );
        assert_ne!(a, stable_id(&cluster, "Server", "def", "aultweb"));
    }
}
