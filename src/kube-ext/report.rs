//! Reports status by server-side apply: always all fields of the writer, and only when they
//! differ (times aside).

use std::fmt::Debug;

use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::ApiError;
use super::decode::request;

/// Applies `status` to `object` as `manager` unless the object says the same already.
///
/// `status` has all fields of the writer: those that it wrote before and leaves out now are
/// removed.
/// Which fields are this writer's is read from the object's managed fields. The object's
/// uid goes with the apply, so that a status is never written to another object of the
/// same name, nor creates an object.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn apply_status<K, S>(
    api: &Api<K>,
    manager: &str,
    object: &K,
    status: &S,
) -> Result<bool, ApiError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug,
    S: Serialize,
{
    let written = applied_status(api, manager, object, status).await?;
    Ok(written.is_some())
}

/// As [`apply_status`]; gives the object as it is after the write, if there was one.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn applied_status<K, S>(
    api: &Api<K>,
    manager: &str,
    object: &K,
    status: &S,
) -> Result<Option<K>, ApiError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug,
    S: Serialize,
{
    let action = || {
        format!(
            "report the status of {} {}",
            K::kind(&()),
            object.name_any()
        )
    };
    let serialise = |e| ApiError::doing(action())(kube::Error::SerdeError(e));
    let desired = serde_json::to_value(status).map_err(serialise)?;
    let whole = serde_json::to_value(object).map_err(serialise)?;
    let current = whole.get("status").cloned().unwrap_or(Value::Null);
    if same(&current, &desired) && !drops_a_field(object, manager, &current, &desired) {
        return Ok(None);
    }
    write_status(api, manager, object, &desired, None)
        .await
        .map(Some)
        .map_err(ApiError::doing(action()))
}

/// Applies a status that must only be written to the very version of the object that the
/// decision was made from.
///
/// # Errors
/// A conflict when the object has changed; otherwise when the API server refuses or does
/// not answer.
pub async fn apply_status_to_version<K, S>(
    api: &Api<K>,
    manager: &str,
    object: &K,
    status: &S,
) -> Result<K, ApiError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug,
    S: Serialize,
{
    let action = || format!("write the status of {} {}", K::kind(&()), object.name_any());
    let desired = serde_json::to_value(status)
        .map_err(|e| ApiError::doing(action())(kube::Error::SerdeError(e)))?;
    write_status(api, manager, object, &desired, object.resource_version())
        .await
        .map_err(ApiError::doing(action()))
}

async fn write_status<K>(
    api: &Api<K>,
    manager: &str,
    object: &K,
    status: &Value,
    version: Option<String>,
) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": object.name_any(), "uid": object.uid()},
        "status": status,
    });
    if let Some(version) = version {
        patch["metadata"]["resourceVersion"] = Value::String(version);
    }
    let params = PatchParams::apply(manager).force();
    let (name, patch) = (object.name_any(), Patch::Apply(&patch));
    request(api, |request| {
        request.patch_subresource("status", &name, &params, &patch)
    })
    .await
}

/// Whether every field of `desired` stands in `current` with the same value, times aside.
///
/// Lists whose items have a `type` or a `name` are maps, as in the API: an item that
/// only `current` has belongs to another writer.
#[must_use]
pub fn same(current: &Value, desired: &Value) -> bool {
    match (current, desired) {
        (Value::Object(now), Value::Object(want)) => want.iter().all(|(key, value)| {
            key == "lastTransitionTime" || now.get(key).is_some_and(|other| same(other, value))
        }),
        (Value::Array(now), Value::Array(want)) => match item_key(want) {
            Some(key) => want.iter().all(|item| {
                now.iter()
                    .find(|other| other.get(key) == item.get(key))
                    .is_some_and(|other| same(other, item))
            }),
            None => now.len() == want.len() && now.iter().zip(want).all(|(a, b)| same(a, b)),
        },
        (now, want) => now == want,
    }
}

fn item_key(items: &[Value]) -> Option<&'static str> {
    ["type", "name"]
        .into_iter()
        .find(|key| !items.is_empty() && items.iter().all(|item| item.get(*key).is_some()))
}

/// Whether the writer owns something that it now leaves out, by the object's own record
/// of who manages which field.
fn drops_a_field<K>(object: &K, manager: &str, current: &Value, desired: &Value) -> bool
where
    K: Resource<DynamicType = ()>,
{
    object
        .meta()
        .managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.manager.as_deref() == Some(manager))
        .filter_map(|entry| entry.fields_v1.as_ref())
        .filter_map(|fields| fields.0.get("f:status"))
        .any(|owned| owns_more(owned, current, desired))
}

/// Walks a `fieldsV1` tree: true when it names a field or item that `current` has and
/// `desired` lacks.
fn owns_more(owned: &Value, current: &Value, desired: &Value) -> bool {
    let Value::Object(owned) = owned else {
        return false;
    };
    owned.iter().any(|(key, below)| {
        if let Some(field) = key.strip_prefix("f:") {
            match (current.get(field), desired.get(field)) {
                (Some(now), Some(want)) => owns_more(below, now, want),
                (Some(_), None) => true,
                (None, _) => false,
            }
        } else if let Some(selector) = key.strip_prefix("k:") {
            let Ok(Value::Object(selector)) = serde_json::from_str(selector) else {
                return false;
            };
            let pick = |list: &Value| {
                list.as_array().and_then(|items| {
                    items
                        .iter()
                        .find(|item| selector.iter().all(|(k, v)| item.get(k) == Some(v)))
                        .cloned()
                })
            };
            match (pick(current), pick(desired)) {
                (Some(now), Some(want)) => owns_more(below, &now, &want),
                (Some(_), None) => true,
                (None, _) => false,
            }
        } else {
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_other_writers_items_make_no_difference() {
        let now = json!({"phase": "Active", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "1"},
            {"type": "Scheduled", "status": "True"}]});
        let want =
            json!({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2"}]});
        assert!(same(&now, &want));
        let other = json!({"conditions": [{"type": "Ready", "status": "False"}]});
        assert!(!same(&now, &other));
    }

    #[test]
    fn plain_lists_are_compared_in_whole() {
        assert!(!same(&json!(["a", "b"]), &json!(["a"])));
        assert!(same(&json!([{"x": 1}]), &json!([{"x": 1}])));
        assert!(!same(&json!([{"name": "a"}]), &json!([])));
    }

    #[test]
    fn a_field_that_its_writer_leaves_out_is_noticed() {
        let owned = json!({"f:a": {}, "f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}}}});
        let current = json!({"a": 1, "b": 2, "conditions": [{"type": "Ready", "status": "True"}]});
        let keep = json!({"a": 1, "conditions": [{"type": "Ready", "status": "True"}]});
        assert!(!owns_more(&owned, &current, &keep));
        assert!(owns_more(
            &owned,
            &current,
            &json!({"a": 1, "conditions": []})
        ));
        assert!(owns_more(
            &owned,
            &current,
            &json!({"conditions": [{"type": "Ready", "status": "True"}]})
        ));
    }
}
