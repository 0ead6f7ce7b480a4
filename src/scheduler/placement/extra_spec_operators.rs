//! The operators of Nova's extra specs.

use std::collections::BTreeMap;

use pileus_values::parse_milli;

/// Whether a key has a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoped {
    /// As in `capabilities:cpu_info:arch`.
    Yes,
    /// As in `ssd`.
    No,
}

/// The first extra spec with this scope or without scope that is not met: (name, value).
/// `is_met` compares a name with its wanted value; it returns nothing for a key without scope
/// that the filter does not handle.
pub fn first_unmet<'a>(
    extra_specs: &'a BTreeMap<String, String>,
    scope: &str,
    is_met: impl Fn(&str, &str, Scoped) -> Option<bool>,
) -> Option<(&'a str, &'a str)> {
    extra_specs.iter().find_map(|(key, wanted)| {
        let (name, scoped) = match key.split_once(':') {
            None => (key.as_str(), Scoped::No),
            Some((first, name)) if first == scope => (name, Scoped::Yes),
            Some(_) => return None,
        };
        let met = is_met(name, wanted, scoped)?;
        (!met).then_some((name, wanted.as_str()))
    })
}

/// Whether `actual` satisfies `wanted`: `<or> a <or> b`, `<in> a`, `<all-in> a b`, `= 4`
/// (at least), `== != >= <=` for numbers, `s== s!= s< s<= s> s>=` for text, or equal text.
#[must_use]
pub fn satisfies(actual: &str, wanted: &str) -> bool {
    let mut words = wanted.split_whitespace();
    let (Some(operator), Some(first)) = (words.next(), words.next()) else {
        return actual == wanted.trim();
    };
    let numbers = || Some((parse_milli(actual).ok()?, parse_milli(first).ok()?));
    let number = |yes: fn(i64, i64) -> bool| numbers().is_some_and(|(a, b)| yes(a, b));
    match operator {
        "<or>" => wanted.split("<or>").skip(1).any(|v| v.trim() == actual),
        "<in>" => actual.contains(first),
        "<all-in>" => {
            let all = wanted
                .split_whitespace()
                .skip(1)
                .filter(|w| *w != "<all-in>");
            all.into_iter().all(|w| actual.contains(w))
        }
        "=" | ">=" => number(|a, b| a >= b),
        "==" => number(|a, b| a == b),
        "!=" => number(|a, b| a != b),
        "<=" => number(|a, b| a <= b),
        "s==" => actual == first,
        "s!=" => actual != first,
        "s<" => actual < first,
        "s<=" => actual <= first,
        "s>" => actual > first,
        "s>=" => actual >= first,
        _ => actual == wanted.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_those_of_nova() {
        for (has, wanted, is) in [
            ("ssd", "ssd", true),
            ("ssd", "hdd", false),
            ("b", "<or> a <or> b", true),
            ("c", "<or> a <or> b", false),
            ("aes vmx", "<in> vmx", true),
            ("aes vmx", "<all-in> vmx <all-in> aes", true),
            ("aes", "<all-in> vmx aes", false),
            ("8", "= 4", true),
            ("8", "== 4", false),
            ("10", ">= 9", true),
            ("10", "s>= 9", false),
            ("1.5", "<= 1.5", true),
            ("x", "!= 3", false),
            ("x", "s!= y", true),
        ] {
            assert_eq!(satisfies(has, wanted), is, "{has} {wanted}");
        }
    }
    #[test]
    fn keys_with_another_scope_are_ignored() {
        let specs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            pairs.collect()
        };
        let all = specs(&[("a:x", "1"), ("b:x", "2"), ("x", "1"), ("y", "3")]);
        let has = |name: &str, wanted: &str, scoped: Scoped| match (name, scoped) {
            ("x", _) => Some(wanted == "1"),
            (_, Scoped::Yes) => Some(false),
            (_, Scoped::No) => None,
        };
        assert_eq!(first_unmet(&all, "a", has), None);
        assert_eq!(first_unmet(&all, "b", has), Some(("x", "2")));
        assert_eq!(
            first_unmet(&specs(&[("a:y:z", "1")]), "a", has),
            Some(("y:z", "1"))
        );
    }
}
