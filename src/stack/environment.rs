//! Environments: parameters, defaults and the registry, several merged in order.

use super::{Error, Result, kind_of, yaml};
use crate::stack::value::{Map, Value};

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
                    kind_of(other)
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
    pub fn resolve_type(&self, name: &str, kind: &str) -> String {
        let mut current = kind.to_owned();
        // A mapping may lead to another; a loop ends at the bound.
        for _ in 0..10 {
            let Some(next) = self.map_once(name, &current) else {
                break;
            };
            if next == current {
                break;
            }
            current = next;
        }
        current
    }

    fn map_once(&self, name: &str, kind: &str) -> Option<String> {
        let resources = self.registry.get("resources").and_then(Value::as_object);
        let own = resources
            .into_iter()
            .flatten()
            .filter(|(pattern, _)| matches(pattern, name));
        // The name itself before wildcards, and of those the longest.
        let own = own
            .filter_map(|(pattern, entry)| Some((pattern, entry.as_object()?)))
            .max_by_key(|(pattern, _)| (*pattern == name, pattern.len()));
        own.and_then(|(_, entry)| lookup(entry, kind))
            .or_else(|| lookup(&self.registry, kind))
    }
}

fn section_map<'a>(name: &str, value: &'a Value) -> Result<Option<&'a Map>> {
    match value {
        Value::Null => Ok(None),
        Value::Object(map) => Ok(Some(map)),
        other => Err(Error::at(
            name,
            format!("must be a map, is {}", kind_of(other)),
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

/// An exact entry first, then the longest wildcard.
fn lookup(map: &Map, kind: &str) -> Option<String> {
    if let Some(Value::String(target)) = map.get(kind) {
        return Some(target.to_string());
    }
    let (pattern, target) = map
        .iter()
        .filter_map(|(pattern, target)| Some((pattern.strip_suffix('*')?, target.as_str()?)))
        .filter(|(prefix, _)| kind.starts_with(prefix))
        .max_by_key(|(prefix, _)| prefix.len())?;
    Some(match target.strip_suffix('*') {
        Some(prefix) => format!("{prefix}{}", &kind[pattern.len()..]),
        None => target.to_owned(),
    })
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern
        .strip_suffix('*')
        .map_or(pattern == name, |prefix| name.starts_with(prefix))
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
        assert_eq!(env.parameters["l"], crate::stack::value::json!([1, 2]));
    }

    #[test]
    fn what_is_merged_stays_in_its_place() {
        let env = Environment::parse([
            "parameters: {z: {q: 1, b: 1}, c: 1, a: 1}",
            "parameters: {z: {b: 2, a: 2}, a: 2, b: 2}\nparameter_merge_strategies: {z: deep_merge}",
        ])
        .unwrap();
        let text = Value::Object(env.parameters).to_string();
        assert_eq!(text, r#"{"z":{"q":1,"b":2,"a":2},"c":1,"a":2,"b":2}"#);
    }

    #[test]
    fn a_resources_own_name_comes_before_wildcards_whatever_their_order() {
        for registry in [
            "web: {T: own.yaml}, w*: {T: w.yaml}, we*: {T: we.yaml}",
            "we*: {T: we.yaml}, w*: {T: w.yaml}, web: {T: own.yaml}",
        ] {
            let text = format!("resource_registry: {{resources: {{{registry}}}}}");
            let env = Environment::parse([text.as_str()]).unwrap();
            assert_eq!(env.resolve_type("web", "T"), "own.yaml");
            assert_eq!(env.resolve_type("wet", "T"), "we.yaml");
            assert_eq!(env.resolve_type("who", "T"), "w.yaml");
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
