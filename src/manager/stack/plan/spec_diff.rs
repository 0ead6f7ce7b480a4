//! Whether an object of Pileus' own kinds is what a manifest says, in all of its spec: that is the
//! Stack's alone, but for what the API server fills in.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::resource_state::difference;
use pileus_api::{
    FlavorSpec, ImageSpec, KeyPairSpec, NetworkSpec, PortSpec, SecurityGroupRuleSpec,
    SecurityGroupSpec, ServerGroupSpec, ServerSpec, SubnetSpec,
};
use pileus_stack::value::Value;

/// The first field of an object's spec that is otherwise than the manifest says, also one that
/// the manifest does not have.
pub(super) fn changed(live: &Value, manifest: &Value) -> Option<String> {
    let kind = manifest["kind"].as_str().unwrap_or_default();
    let read = |spec: &Value| filled(kind, spec).unwrap_or_else(|| spec.clone());
    let (live, wanted) = (read(&live["spec"]), read(&manifest["spec"]));
    difference(&live, &wanted, "spec").or_else(|| difference(&wanted, &live, "spec"))
}

/// A spec with what its type says for what is left out.
fn filled(kind: &str, spec: &Value) -> Option<Value> {
    let read = match kind {
        "Flavor" => through::<FlavorSpec>,
        "Image" => through::<ImageSpec>,
        "KeyPair" => through::<KeyPairSpec>,
        "Network" => through::<NetworkSpec>,
        "Port" => through::<PortSpec>,
        "SecurityGroup" => through::<SecurityGroupSpec>,
        "SecurityGroupRule" => through::<SecurityGroupRuleSpec>,
        "Server" => through::<ServerSpec>,
        "ServerGroup" => through::<ServerGroupSpec>,
        "Subnet" => through::<SubnetSpec>,
        _ => return None,
    };
    read(spec)
}

fn through<T: Serialize + DeserializeOwned>(spec: &Value) -> Option<Value> {
    let typed: T = serde_json::from_value(spec.clone().into()).ok()?;
    serde_json::to_value(typed).ok().map(Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pileus_stack::value::json;

    #[test]
    fn what_is_filled_in_is_no_change_and_what_is_added_is_one() {
        let wanted = json!({"kind": "Server", "spec": {"image": {"name": "i"}, "flavor": "small"}});
        let mut live = wanted.clone();
        live["spec"]["runState"] = "Running".into();
        assert_eq!(changed(&live, &wanted), None);
        live["spec"]["networks"] = json!([{"name": "nic-0", "port": "p"}]);
        let field = changed(&live, &wanted);
        assert!(field.is_some_and(|field| field.starts_with("spec.networks")));
    }
}
