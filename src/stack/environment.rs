//! Environments: parameters, defaults and the registry, several merged in order.

use std::collections::BTreeSet;

use super::{Error, Result, python_type, registry, render, yaml};
use crate::value::{Map, Value};

/// What one or more environments say together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Environment {
    /// Values for parameters the template has.
    pub parameters: Map,
    /// Values for parameters of any template of the tree.
    pub parameter_defaults: Map,
    /// Type mappings, wildcards, per-resource overrides.
    pub registry: Map,
    /// Parts that are read and have no effect; shown to the user.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy)]
enum Strategy {
    Overwrite,
    Merge,
    Deep,
}

impl Environment {
    /// Reads and merges `texts` in order; a later one wins.
    ///
    /// # Errors
    /// When a text is not an environment.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut merged = Self::default();
        for (index, text) in texts.into_iter().enumerate() {
            let value =
                yaml::parse(text).map_err(|e| e.below(&format!("environments[{index}]")))?;
            merged
                .merge(&value)
                .map_err(|e| e.below(&format!("environments[{index}]")))?;
        }
        Ok(merged)
    }

    /// Merges one more environment.
    ///
    /// # Errors
    /// When it is not a map, or a section is unknown or not a map.
    pub fn merge(&mut self, value: &Value) -> Result<()> {
        let map = match value {
            Value::Null => return Ok(()),
            Value::Object(map) => map,
            other => {
                return Err(Error::new(format!(
                    "an environment is a map, this is {}",
                    python_type(other)
                )));
            }
        };
        let strategies = map
            .get("parameter_merge_strategies")
            .cloned()
            .unwrap_or_default();
        for (name, section) in map {
            let target = match name.as_str() {
                "parameters" => &mut self.parameters,
                "parameter_defaults" => &mut self.parameter_defaults,
                "resource_registry" => {
                    merge_maps(&mut self.registry, section_map(name, section)?, &|_| {
                        Strategy::Deep
                    });
                    continue;
                }
                "parameter_merge_strategies" => continue,
                "encrypted_param_names" | "event_sinks" => {
                    if !section.is_null() {
                        self.notes
                            .push(format!("`{name}` is read and has no effect here"));
                    }
                    continue;
                }
                _ => {
                    return Err(Error::at(
                        name,
                        "no section of an environment; there are parameters, parameter_defaults, parameter_merge_strategies, resource_registry, encrypted_param_names and event_sinks",
                    ));
                }
            };
            merge_maps(target, section_map(name, section)?, &|key| {
                let named = strategies.get(key).or_else(|| strategies.get("default"));
                match named.and_then(Value::as_str) {
                    Some("merge") => Strategy::Merge,
                    Some("deep_merge") => Strategy::Deep,
                    _ => Strategy::Overwrite,
                }
            });
        }
        Ok(())
    }

    /// The type that `kind` of the resource `name` is mapped to.
    #[must_use]
    pub fn resolve_type(&self, name: &str, resource_type: &str) -> String {
        let found = self.mapped(name, resource_type, &mut BTreeSet::new());
        found.unwrap_or_else(|| resource_type.to_owned())
    }

    /// The type that there is at the end of a mapping: of several, the first that leads to one.
    /// Entries that were tried already have no type at their end, or are circular.
    fn mapped(
        &self,
        name: &str,
        resource_type: &str,
        seen: &mut BTreeSet<String>,
    ) -> Option<String> {
        if seen.len() >= MAX_MAPPINGS || !seen.insert(resource_type.to_owned()) {
            return None;
        }
        let of_resources = self.registry.get("resources").and_then(|all| all.get(name));
        let own = of_resources.and_then(|own| own.get(resource_type));
        let mut mappings: Vec<(&str, &str)> = (own.and_then(Value::as_str))
            .map(|target| (resource_type, target))
            .into_iter()
            .collect();
        // Those that are for any resource follow by their name: `OS::*` comes before `OS::Nova::*`
        // and before the type itself.
        let start = mappings.len();
        let general = self.registry.iter();
        let general = general.filter_map(|(key, target)| Some((key.as_str(), target.as_str()?)));
        mappings.extend(general.filter(|(key, target)| takes(key, target, resource_type)));
        mappings[start..].sort_unstable();
        let mut found = mappings.into_iter().filter_map(|(key, target)| {
            let prefix = key.strip_suffix('*').filter(|_| key != resource_type);
            match (prefix, target.strip_suffix('*')) {
                _ if is_template(target) => Some(target.to_owned()),
                (Some(prefix), Some(target)) => {
                    let target = format!("{target}{}", &resource_type[prefix.len()..]);
                    self.mapped(name, &target, seen)
                }
                _ => self.mapped(name, target, seen),
            }
        });
        let there =
            || registry::find(resource_type).is_some() || render::is_template_name(resource_type);
        found
            .next()
            .or_else(|| there().then(|| resource_type.to_owned()))
    }
}

/// How many mappings are followed to find a type: mappings can refer to each other in too many ways to
/// try all.
const MAX_MAPPINGS: usize = 32;

/// Whether an entry of the registry is for this type. A wildcard entry is never for a template.
fn takes(key: &str, target: &str, resource_type: &str) -> bool {
    let wildcard = || !is_template(target) && target != resource_type;
    let begins = || {
        key.strip_suffix('*')
            .is_some_and(|prefix| resource_type.starts_with(prefix))
    };
    key != "resources" && (key == resource_type || (begins() && wildcard()))
}

/// Whether Heat's environment treats the name as that of a template.
fn is_template(name: &str) -> bool {
    [".yaml", ".template"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

fn section_map<'a>(name: &str, value: &'a Value) -> Result<Option<&'a Map>> {
    match value {
        Value::Null => Ok(None),
        Value::Object(map) => Ok(Some(map)),
        other => Err(Error::at(
            name,
            format!("must be a map, is {}", python_type(other)),
        )),
    }
}

fn merge_maps(into: &mut Map, from: Option<&Map>, strategy: &dyn Fn(&str) -> Strategy) {
    for (key, value) in from.into_iter().flatten() {
        match (strategy(key), into.get_mut(key), value) {
            (Strategy::Deep, Some(Value::Object(old)), Value::Object(new)) => {
                merge_maps(old, Some(new), &|_| Strategy::Deep);
            }
            (Strategy::Merge, Some(Value::Object(old)), Value::Object(new)) => {
                old.extend(new.clone());
            }
            (Strategy::Deep | Strategy::Merge, Some(Value::Array(old)), Value::Array(new)) => {
                old.extend(new.iter().cloned());
            }
            (Strategy::Merge, Some(Value::String(old)), Value::String(new)) => old.push_str(new),
            (_, Some(old), new) => old.clone_from(new),
            (_, None, new) => {
                into.insert(key.clone(), new.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_later_environment_wins() {
        let env = Environment::parse(["parameters: {a: 1, b: 1}", "parameters: {b: 2}"]).unwrap();
        assert_eq!(env.parameters["b"], 2);
        assert_eq!(env.parameters["a"], 1);
    }

    #[test]
    fn strategies_merge_instead() {
        let env = Environment::parse([
            "parameters: {l: [1]}",
            "parameters: {l: [2]}\nparameter_merge_strategies: {l: merge}",
        ])
        .unwrap();
        assert_eq!(env.parameters["l"], crate::value::json!([1, 2]));
    }

    #[test]
    fn merged_entries_keep_their_order() {
        let env = Environment::parse([
            "parameters: {z: {q: 1, b: 1}, c: 1, a: 1}",
            "parameters: {z: {b: 2, a: 2}, a: 2, b: 2}\nparameter_merge_strategies: {z: deep_merge}",
        ])
        .unwrap();
        let text = Value::Object(env.parameters).to_string();
        assert_eq!(text, r#"{"z":{"q":1,"b":2,"a":2},"c":1,"a":2,"b":2}"#);
    }

    #[test]
    fn mappings_for_a_resource_come_first_then_types_by_name() {
        let registry = "'OS::Heat::V*': 'OS::Heat::None', 'OS::*': 'OS::Heat::Delay', \
            'OS::Heat::Value': 'OS::Heat::TestResource'";
        let text = |registry: &str| format!("resource_registry: {{{registry}}}");
        let env = Environment::parse([text(registry).as_str()]).unwrap();
        assert_eq!(
            env.resolve_type("web", "OS::Heat::Value"),
            "OS::Heat::Delay"
        );
        // What is no type is passed over.
        let registry = registry.replace("OS::Heat::Delay", "OS::Heat::Nothing");
        let env = Environment::parse([text(&registry).as_str()]).unwrap();
        assert_eq!(env.resolve_type("web", "OS::Heat::Value"), "OS::Heat::None");
        let own = "resources: {web: {T: own.yaml}, 'w*': {T: w.yaml}}";
        let env = Environment::parse([text(own).as_str()]).unwrap();
        assert_eq!(env.resolve_type("web", "T"), "own.yaml");
        assert_eq!(env.resolve_type("wet", "T"), "T");
    }

    #[test]
    fn mappings_that_lead_everywhere_and_nowhere_end() {
        let name = "No::Such::Thing::AtAll";
        for target in ["No::Such::Thing::AtAll{}", "{}*"] {
            let each = |at: usize| {
                let target = target.replace("{}", &name[..at]);
                format!("'{}*': '{target}'", &name[..at])
            };
            let all: Vec<String> = (1..name.len()).map(each).collect();
            let text = format!("resource_registry: {{{}}}", all.join(", "));
            let env = Environment::parse([text.as_str()]).unwrap();
            assert_eq!(env.resolve_type("n", name), name);
        }
    }

    #[test]
    fn types_are_mapped_by_name_wildcard_and_resource() {
        let env = Environment::parse([
            "resource_registry:\n  'OS::Quantum*': 'OS::Neutron*'\n  resources:\n    web: {'My::Server': web.yaml}\n",
        ]).unwrap();
        assert_eq!(
            env.resolve_type("n", "OS::Quantum::Net"),
            "OS::Neutron::Net"
        );
        assert_eq!(env.resolve_type("web", "My::Server"), "web.yaml");
        assert_eq!(env.resolve_type("db", "My::Server"), "My::Server");
    }
}
