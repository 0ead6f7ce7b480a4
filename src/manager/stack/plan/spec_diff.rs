//! Compares the whole spec of an object of Pileus' own kinds with a manifest: the Stack owns all of
//! the spec, except for defaults that the API server sets.

use super::resource_state::difference;
use crate::stack::kinds;
use pileus_stack::value::Value;

/// The first field of an object's spec that differs from the manifest, or that the manifest does not
/// have.
pub(super) fn first_difference(live: &Value, manifest: &Value) -> Option<String> {
    let kind = manifest["kind"].as_str().unwrap_or_default();
    let kind = kinds::find(kind);
    let read = |spec: &Value| {
        let with_defaults = kind.and_then(|kind| kind.with_defaults(spec));
        with_defaults.unwrap_or_else(|| spec.clone())
    };
    let (live, wanted) = (read(&live["spec"]), read(&manifest["spec"]));
    difference(&live, &wanted, "spec").or_else(|| difference(&wanted, &live, "spec"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pileus_stack::value::json;

    #[test]
    fn a_default_is_no_difference_and_an_added_field_is_one() {
        let wanted = json!({"kind": "Server", "spec": {"image": {"name": "i"}, "flavor": "small"}});
        let mut live = wanted.clone();
        live["spec"]["runState"] = "Running".into();
        assert_eq!(first_difference(&live, &wanted), None);
        live["spec"]["networks"] = json!([{"name": "nic-0", "port": "p"}]);
        let field = first_difference(&live, &wanted);
        assert!(field.is_some_and(|field| field.starts_with("spec.networks")));
    }
}
