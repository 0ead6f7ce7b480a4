//! Clears away what a host has refused, once the scheduler has taken the placement back:
//! nothing of it was made there, and the Server is placed anew when it is gone.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::api::conditions::{self, ConditionType};
use crate::api::instance::OnDeletion;
use crate::api::names::{host_namespace, instance_name};
use crate::api::{Instance, Reason, Server};
use crate::kube_ext::{ApiError, finalize, is_gone};

/// (namespace, name) of Instances that hosts refused and the scheduler took back.
#[must_use]
pub fn taken_back(server: &Server) -> Vec<(String, String)> {
    let Some(status) = &server.status else {
        return Vec::new();
    };
    let uid = server.uid().unwrap_or_default();
    let placed = |host: &str, epoch: i64| {
        let placement = status.placement.as_ref();
        placement.is_some_and(|p| p.host == host && p.epoch == epoch)
    };
    let refusals = status.refusals.iter().filter(|r| !placed(&r.name, r.epoch));
    let names = refusals.map(|r| (host_namespace(&r.name), instance_name(&uid, r.epoch)));
    names.collect()
}

/// Whether it is still as it was when its host refused it: nothing of it exists.
#[must_use]
pub fn is_refused(server: &Server, instance: &Instance) -> bool {
    let status = instance.status.as_ref();
    let said = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let ready = conditions::find(said, ConditionType::Ready);
    Some(&instance.spec.server.uid) == server.uid().as_ref()
        && status.is_some_and(|s| s.realized != Some(true))
        && ready.is_some_and(|r| r.reason == Reason::HostRefused.as_str())
}

/// Deletes a refused Instance and what its guest would have been told. Only in the very
/// version that was looked at: a host that has told meanwhile that it took it on keeps it.
/// One that took it on and has not told yet is ordered to remove that, for the Server is
/// placed elsewhere once the Instance is gone.
///
/// # Errors
/// When the API server refused or did not answer.
pub async fn clear(client: &kube::Client, instance: &Instance) -> Result<(), ApiError> {
    let namespace = instance.namespace().unwrap_or_default();
    let name = instance.name_any();
    if !finalize::is_deleting(instance) {
        let api: Api<Instance> = Api::namespaced(client.clone(), &namespace);
        match delete(&api, &name, instance).await {
            // It has changed: looked at again with its next event.
            Err(kube::Error::Api(status)) if status.is_conflict() => return Ok(()),
            Err(error) if is_gone(&error) => {}
            done => done.map_err(ApiError::doing(format!("delete Instance {name}")))?,
        }
    }
    // Also of one that goes already, should the last pass have ended between the two.
    let api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    match api.delete(&name, &DeleteParams::default()).await {
        Err(error) if is_gone(&error) => Ok(()),
        done => done
            .map(drop)
            .map_err(ApiError::doing(format!("delete the Secret {name}"))),
    }
}

async fn delete(api: &Api<Instance>, name: &str, seen: &Instance) -> Result<(), kube::Error> {
    let ordered = json!({
        "metadata": {"uid": seen.uid(), "resourceVersion": seen.resource_version()},
        "spec": {"onDeletion": OnDeletion::Remove},
    });
    let ordered = api
        .patch(name, &PatchParams::default(), &Patch::Merge(&ordered))
        .await?;
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: ordered.uid(),
            resource_version: ordered.resource_version(),
        }),
        ..DeleteParams::default()
    };
    api.delete(name, &params).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_refused_and_taken_back_goes() {
        let server: Server = serde_json::from_value(json!({
            "apiVersion": "pileus.dev/v1alpha1", "kind": "Server",
            "metadata": {"name": "s", "namespace": "ns", "uid": "u"},
            "spec": {"flavor": "f", "image": {"name": "i"}},
            "status": {
                "placement": {"host": "h2", "epoch": 2,
                    "claim": {"vcpus": 1, "memoryMiB": 1, "diskGiB": 1}},
                "refusals": [{"name": "h1", "epoch": 1}, {"name": "h2", "epoch": 2}],
            },
        }))
        .unwrap();
        let host = ("pileus-host-h1".to_owned(), "u-1".to_owned());
        assert_eq!(taken_back(&server), [host]);
        let instance = |status: serde_json::Value| -> Instance {
            serde_json::from_value(json!({
                "apiVersion": "pileus.dev/v1alpha1", "kind": "Instance",
                "metadata": {"name": "u-1", "namespace": "pileus-host-h1"},
                "spec": {"server": {"namespace": "ns", "name": "s", "uid": "u"}, "host": "h1",
                    "epoch": 1, "instanceID": "x",
                    "claim": {"vcpus": 1, "memoryMiB": 1, "diskGiB": 1},
                    "image": {"name": "i", "uid": "i", "diskFormat": "raw",
                        "disk": {"url": "https://x"}}},
                "status": status,
            }))
            .unwrap()
        };
        let ready = |reason: &str| {
            json!([{"type": "Ready", "status": "False", "reason": reason, "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        let refused = instance(json!({"conditions": ready("HostRefused")}));
        assert!(is_refused(&server, &refused));
        let taken_on = json!({"realized": true, "conditions": ready("HostRefused")});
        assert!(!is_refused(&server, &instance(taken_on)));
        assert!(!is_refused(
            &server,
            &instance(json!({"conditions": ready("Building")}))
        ));
        assert!(!is_refused(&server, &instance(json!({}))));
    }
}
