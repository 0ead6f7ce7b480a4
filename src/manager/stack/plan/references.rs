//! What objects name outside of the stack: flavors, images, keys, networks … An update looks whether
//! all of it is there before it changes or deletes anything, as Heat's custom constraints do: a
//! typing error must not cost a Server that works.

use std::collections::BTreeSet;

use kube::ResourceExt;

use super::forward::Walk;
use super::{Pass, Problem, Reference, Sources};
use pileus_api::Reason;
use pileus_api::names::DEFAULT_GROUP;
use pileus_stack::resource_types::{self, Mapping};
use pileus_stack::tree::{Flat, SEPARATOR};
use pileus_stack::value::Value;

/// An object that another one names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// The field that names it.
    field: String,
    kind: &'static str,
    /// The stack's own if `None`.
    namespace: Option<String>,
    name: String,
}

impl Named {
    fn reason(&self) -> Reason {
        match self.kind {
            "Flavor" => Reason::FlavorNotFound,
            "Image" => Reason::ImageNotFound,
            "KeyPair" => Reason::KeyPairNotFound,
            "Port" => Reason::PortNotFound,
            "SecurityGroup" => Reason::SecurityGroupNotFound,
            "ServerGroup" => Reason::ServerGroupNotFound,
            // A Subnet is part of its Network.
            _ => Reason::NetworkNotFound,
        }
    }
}

/// Everything that a manifest of one of our kinds names.
fn named(manifest: &Value) -> Vec<Named> {
    let mut found = Vec::new();
    let spec = &manifest["spec"];
    let mut add = |field: String, kind: &'static str, value: &Value| {
        let (namespace, name) = match value {
            Value::String(name) => (None, name.to_string()),
            value => {
                let text = |key: &str| value[key].as_str().map(str::to_owned);
                (text("namespace"), text("name").unwrap_or_default())
            }
        };
        // Every namespace gets its default group.
        if !(name.is_empty() || kind == "SecurityGroup" && name == DEFAULT_GROUP) {
            found.push(Named {
                field,
                kind,
                namespace,
                name,
            });
        }
    };
    fn items(value: &Value) -> impl Iterator<Item = &Value> {
        value.as_array().into_iter().flatten()
    }
    match manifest["kind"].as_str() {
        Some("Server") => {
            add("flavor".into(), "Flavor", &spec["flavor"]);
            add("image".into(), "Image", &spec["image"]);
            for pair in items(&spec["keyPairs"]) {
                add("keyPairs".into(), "KeyPair", pair);
            }
            for nic in items(&spec["networks"]) {
                let field = format!("networks[{}]", nic["name"].as_str().unwrap_or_default());
                add(field.clone(), "Network", &nic["network"]);
                add(field.clone(), "Port", &nic["port"]);
                for group in items(&nic["securityGroups"]) {
                    add(field.clone(), "SecurityGroup", group);
                }
            }
            let group = &spec["placement"]["serverGroup"];
            add("placement.serverGroup".into(), "ServerGroup", group);
        }
        Some("Port") => {
            add("network".into(), "Network", &spec["network"]);
            for ip in items(&spec["fixedIPs"]) {
                add("fixedIPs".into(), "Subnet", &ip["subnet"]);
            }
            for group in items(&spec["securityGroups"]) {
                add("securityGroups".into(), "SecurityGroup", group);
            }
        }
        Some("Subnet") => add("network".into(), "Network", &spec["network"]),
        _ => {}
    }
    found
}

impl Pass<'_> {
    /// Why an update that applies `sources` must not begin; `None` if it may.
    pub(super) fn missing_reference(&mut self, sources: &Sources) -> Option<Problem> {
        let before = self.plan.record.clone();
        // As when it begins.
        self.mark_for_replacement();
        let mut walk = Walk::new(self, true);
        let missing = match walk.walk(sources) {
            Ok(flat) => walk.missing_in(&flat),
            // The update itself reports it.
            Err(_) => None,
        };
        self.plan.record = before;
        let (path, missing) = missing?;
        let place = path.replace(SEPARATOR, ".resources.");
        let whose = missing.namespace.as_ref();
        let whose = whose.map_or_else(String::new, |namespace| {
            format!(" in the namespace `{namespace}` that may be used here")
        });
        Some(Problem {
            reason: missing.reason(),
            message: format!(
                "resources.{place}: {}: there is no {} `{}`{whose}, so nothing of the stack is \
                 changed: correct the name, or create it, and the update begins",
                missing.field, missing.kind, missing.name
            ),
        })
    }
}

impl Walk<'_, '_> {
    /// The first thing that is named by what the template would create or update, and that is not
    /// there.
    fn missing_in(&self, flat: &Flat) -> Option<(String, Named)> {
        let namespace = self.pass.stack.namespace().unwrap_or_default();
        let lookup = self.pass.observed.lookup;
        let find = |kind: &str, name: &str| lookup.find(kind, name);
        // Stands for the object's name as long as a resource is not made.
        let placeholders: BTreeSet<&str> = flat
            .leaves
            .keys()
            .filter_map(|path| path.rsplit(SEPARATOR).next())
            .collect();
        let changing = (flat.leaves.iter()).filter(|(path, _)| !self.targets.contains_key(*path));
        for (path, leaf) in changing {
            let (Some(supported), Ok(properties)) =
                (resource_types::find(&leaf.resource_type), &leaf.properties)
            else {
                continue;
            };
            let Mapping::Objects { map, .. } = supported.mapping else {
                continue;
            };
            let name = self.name(path, 1);
            let request = self.request(&name, &namespace, properties, &leaf.metadata, &[], &find);
            // What is not known yet makes an error here, and is known later.
            let Ok(makes) = map(&request) else { continue };
            for manifest in &makes.objects {
                let missing = named(manifest)
                    .into_iter()
                    .find(|named| !placeholders.contains(named.name.as_str()) && !self.has(named));
                if let Some(missing) = missing {
                    return Some((path.clone(), missing));
                }
            }
        }
        None
    }

    /// What these objects name that is not there.
    pub(super) fn missing_of(&self, objects: &[Value]) -> Option<String> {
        let mut named = objects.iter().flat_map(named);
        let missing = named.find(|named| !self.has(named))?;
        Some(format!(
            "{}: there is no {} `{}`",
            missing.field, missing.kind, missing.name
        ))
    }

    /// Whether what is named is there, or is the stack's own.
    fn has(&self, named: &Named) -> bool {
        let own = |object: &Reference| object.kind == named.kind && object.name == named.name;
        let entries = self.pass.plan.record.entries.values();
        let is_own = named.namespace.is_none() && entries.flat_map(|entry| &entry.objects).any(own);
        let namespace = named.namespace.as_deref();
        is_own || (self.pass.observed.lookup).may_use(named.kind, namespace, &named.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pileus_stack::value::json;

    #[test]
    fn all_that_a_server_names_is_found() {
        let server = json!({"kind": "Server", "spec": {
            "flavor": "f", "image": {"name": "i", "namespace": "shared"}, "keyPairs": ["k"],
            "networks": [
                {"name": "a", "network": {"name": "n"}, "securityGroups": ["default", "g"]},
                {"name": "b", "port": "p"}],
            "placement": {"serverGroup": "s"},
        }});
        let found: Vec<String> = named(&server)
            .into_iter()
            .map(|named| format!("{} {}", named.kind, named.name))
            .collect();
        let wanted = [
            "Flavor f",
            "Image i",
            "KeyPair k",
            "Network n",
            "SecurityGroup g",
            "Port p",
            "ServerGroup s",
        ];
        assert_eq!(found, wanted);
    }
}
