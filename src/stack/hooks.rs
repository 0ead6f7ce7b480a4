//! Hooks and restricted actions of an environment's `resource_registry`:
//!
//! ```yaml
//! resource_registry:
//!   resources:
//!     server:
//!       hooks: [pre-create, pre-update]
//!       restricted_actions: replace
//!     group:              # resources of its members
//!       "*": {server: {hooks: post-create}}
//! ```
//!
//! Names may have `*` anywhere, as in Heat.

use std::collections::BTreeSet;

use super::tree::SEPARATOR;
use super::{Error, Result};
use crate::value::{Map, Value};

/// Heat's hooks, at which a resource can wait.
pub const HOOKS: [&str; 6] = [
    "pre-create",
    "pre-update",
    "pre-delete",
    "post-create",
    "post-update",
    "post-delete",
];
/// Heat's actions that can be restricted.
const ACTIONS: [&str; 2] = ["update", "replace"];

/// Hooks and restricted actions of one resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceHooks {
    /// Hooks at which it waits.
    pub hooks: BTreeSet<String>,
    /// Actions that are forbidden.
    pub restricted: BTreeSet<String>,
}

/// Hooks and restricted actions that `registry` has for the resource at `path`.
#[must_use]
pub fn of(registry: &Map, path: &str) -> ResourceHooks {
    let mut found = ResourceHooks::default();
    if let Some(resources) = registry.get("resources").and_then(Value::as_object) {
        let names: Vec<&str> = path.split(SEPARATOR).collect();
        collect(resources, &names, &mut found);
    }
    found
}

fn collect(resources: &Map, names: &[&str], found: &mut ResourceHooks) {
    let Some((first, rest)) = names.split_first() else {
        return;
    };
    for (_, entry) in resources.iter().filter(|(name, _)| matches(name, first)) {
        let Some(entry) = entry.as_object() else {
            continue;
        };
        if rest.is_empty() {
            found.hooks.extend(names_in(entry.get("hooks")));
            found
                .restricted
                .extend(names_in(entry.get("restricted_actions")));
        } else {
            collect(entry, rest, found);
        }
    }
}

/// The names in a value, which is one name or a list of names.
fn names_in(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(name)) => vec![name.to_string()],
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect(),
        _ => Vec::new(),
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for anything.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(before) = last.replace(part) {
            match rest.find(before) {
                Some(at) => rest = &rest[at + before.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |end: &str| rest.ends_with(end))
}

/// Checks that all hooks and restricted actions exist.
///
/// # Errors
/// For the first unknown one, with its place.
pub fn check(registry: &Map) -> Result<()> {
    let resources = registry.get("resources").and_then(Value::as_object);
    resources.map_or(Ok(()), |resources| {
        check_entries(resources, "resource_registry.resources")
    })
}

fn check_entries(entries: &Map, path: &str) -> Result<()> {
    for (name, entry) in entries {
        let known: &[&str] = match name.as_str() {
            "hooks" => &HOOKS,
            "restricted_actions" => &ACTIONS,
            _ => {
                if let Some(inner) = entry.as_object() {
                    check_entries(inner, &format!("{path}.{name}"))?;
                }
                continue;
            }
        };
        for given in names_in(Some(entry)) {
            if !known.contains(&given.as_str()) {
                return Err(Error::at(
                    format!("{path}.{name}"),
                    format!("`{given}` is unknown; use one of {}", known.join(", ")),
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use crate::value::json;

    use super::*;

    fn registry() -> Map {
        let registry = json!({"My::Type": "x.yaml", "resources": {
            "web*": {"hooks": "pre-create", "restricted_actions": ["update", "replace"]},
            "web1": {"hooks": ["post-update"], "OS::Nova::Server": "y.yaml"},
            "group": {"*": {"server": {"hooks": ["pre-delete"]}}},
        }});
        registry.as_object().unwrap().clone()
    }

    #[test]
    fn hooks_are_found_by_name_pattern_and_nesting() {
        let hooks = |path: &str| {
            let found = of(&registry(), path);
            found.hooks.into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(hooks("web0"), "pre-create");
        assert_eq!(hooks("web1"), "post-update pre-create");
        assert_eq!(hooks("group/7/server"), "pre-delete");
        assert_eq!(hooks("server"), "");
        assert_eq!(hooks("group"), "");
        assert_eq!(of(&registry(), "web0").restricted.len(), 2);
    }

    #[test]
    fn a_star_matches_anything() {
        for (pattern, text, is) in [
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "ab", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxcyy", false),
            ("abc", "abcd", false),
            ("*a", "aba", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, text), is, "{pattern} {text}");
        }
    }

    #[test]
    fn an_unknown_hook_is_reported_with_its_place() {
        assert_eq!(check(&registry()), Ok(()));
        let wrong = json!({"resources": {"a": {"b": {"hooks": "pre-lunch"}}}});
        let error = check(wrong.as_object().unwrap()).unwrap_err();
        assert_eq!(error.path, "resource_registry.resources.a.b.hooks");
    }
}
