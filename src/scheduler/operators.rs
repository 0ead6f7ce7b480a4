//! The small language of Nova's extra specs.

use crate::model::parse_milli;

/// The name within `scope`, or the key itself when it has no scope; `None` in another.
#[must_use]
pub fn unscoped<'a>(key: &'a str, scope: &str) -> Option<&'a str> {
    match key.split_once(':') {
        None => Some(key),
        Some((first, name)) if first == scope => Some(name),
        Some(_) => None,
    }
}

/// Whether `has` is as `wanted` says: `<or> a <or> b`, `<in> a`, `<all-in> a b`, `= 4`
/// (at least), `== != >= <=` for numbers, `s== s!= s< s<= s> s>=` for text, or the
/// very text.
#[must_use]
pub fn holds(has: &str, wanted: &str) -> bool {
    let mut words = wanted.split_whitespace();
    let (Some(operator), Some(first)) = (words.next(), words.next()) else {
        return has == wanted.trim();
    };
    let numbers = || Some((parse_milli(has).ok()?, parse_milli(first).ok()?));
    let number = |yes: fn(i64, i64) -> bool| numbers().is_some_and(|(a, b)| yes(a, b));
    match operator {
        "<or>" => wanted.split("<or>").skip(1).any(|v| v.trim() == has),
        "<in>" => has.contains(first),
        "<all-in>" => {
            let all = wanted
                .split_whitespace()
                .skip(1)
                .filter(|w| *w != "<all-in>");
            all.into_iter().all(|w| has.contains(w))
        }
        "=" | ">=" => number(|a, b| a >= b),
        "==" => number(|a, b| a == b),
        "!=" => number(|a, b| a != b),
        "<=" => number(|a, b| a <= b),
        "s==" => has == first,
        "s!=" => has != first,
        "s<" => has < first,
        "s<=" => has <= first,
        "s>" => has > first,
        "s>=" => has >= first,
        _ => has == wanted.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_mean_what_they_mean_in_nova() {
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
            assert_eq!(holds(has, wanted), is, "{has} {wanted}");
        }
        assert_eq!(unscoped("a:b", "a"), Some("b"));
        assert_eq!(unscoped("b", "a"), Some("b"));
        assert_eq!(unscoped("c:b", "a"), None);
    }
}
