//! A cache of compiled regular expressions of templates. Templates are evaluated repeatedly, and to
//! compile an expression takes longer than to evaluate a small template.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use fancy_regex::{Regex, RegexBuilder};

/// How many expressions are cached in the process.
const MAX_CACHED: usize = 256;
/// How many of them may be large.
const MAX_CACHED_LARGE: usize = 8;
/// Size in bytes from which an expression is large: `[a-z]{1,63}` is small, `\w{1,63}` is large.
const LARGE_SIZE: usize = 256 << 10;
/// Largest size of an expression in bytes.
const MAX_SIZE: usize = 10 << 20;
/// Backtracking steps for matching one text: expressions may have lookarounds.
const MAX_BACKTRACKS: usize = 20_000;

/// A compiled expression.
#[derive(Debug)]
pub(super) struct CompiledPattern {
    /// The expression.
    pub regex: Regex,
    /// It needs much memory, and much time to compile.
    pub large: bool,
    /// It may have to backtrack, so that one match can cost much more than its text is long.
    pub backtracks: bool,
}

impl CompiledPattern {
    /// The longest text in bytes that it is matched with: a match cannot be interrupted, so each
    /// has to end in time. Below a second for the worst patterns of each sort.
    pub(super) fn longest_text(&self) -> usize {
        match (self.large, self.backtracks) {
            (true, true) => 1 << 10,
            (true, false) => 4 << 10,
            (false, true) => 16 << 10,
            (false, false) => 128 << 10,
        }
    }
}

/// Whether an expression may need more than one walk over its text: it has, or may have,
/// lookarounds, references to groups, or atomic groups.
fn may_backtrack(text: &str) -> bool {
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            // Classes, borders and escaped signs need one walk; of others it is not known.
            '\\' => match rest.next() {
                Some(c) if "dDwWsSnrtbB".contains(c) || c.is_ascii_punctuation() => {}
                _ => return true,
            },
            '(' if rest.next_if_eq(&'?').is_some() => {
                let plain = |c: &char| c.is_ascii_lowercase() || matches!(c, ':' | '-' | 'P');
                if !rest.peek().is_some_and(plain) {
                    return true;
                }
                // `(?P=name)` refers to a group.
                if rest.next_if_eq(&'P').is_some() && rest.peek() != Some(&'<') {
                    return true;
                }
            }
            // `a++` gives nothing back.
            '+' if matches!(before, '*' | '+' | '?' | '}') => return true,
            _ => {}
        }
        before = next;
    }
    false
}

static CACHE: Mutex<Option<HashMap<String, Arc<CompiledPattern>>>> = Mutex::new(None);

/// The compiled expression; `None` if it is malformed or becomes too large.
pub(super) fn compiled(text: &str) -> Option<Arc<CompiledPattern>> {
    let known = || CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(made) = known().as_ref().and_then(|known| known.get(text)) {
        return Some(made.clone());
    }
    let within = |size: usize| {
        RegexBuilder::new(text)
            .backtrack_limit(MAX_BACKTRACKS)
            .delegate_size_limit(size)
            .delegate_dfa_size_limit(LARGE_SIZE)
            .build()
    };
    let made = match within(LARGE_SIZE) {
        Ok(regex) => CompiledPattern {
            regex,
            large: false,
            backtracks: may_backtrack(text),
        },
        Err(_) => CompiledPattern {
            regex: within(MAX_SIZE).ok()?,
            large: true,
            backtracks: may_backtrack(text),
        },
    };
    let made = Arc::new(made);
    let mut known = known();
    let known = known.get_or_insert_default();
    if known.len() >= MAX_CACHED {
        known.clear();
    }
    if made.large && known.values().filter(|made| made.large).count() >= MAX_CACHED_LARGE {
        known.retain(|_, made| !made.large);
    }
    known.insert(text.to_owned(), made.clone());
    Some(made)
}

/// The expression with its Unicode classes restricted to ASCII, which matches ASCII texts in the same
/// way. An expression with flags that change classes is not restricted.
pub(super) fn restricted_to_ascii(text: &str) -> String {
    restrict_to_ascii(text).unwrap_or_else(|| text.to_owned())
}

fn restrict_to_ascii(text: &str) -> Option<String> {
    let mut result = String::with_capacity(2 * text.len());
    let mut rest = text.chars().peekable();
    let mut inside = false;
    while let Some(next) = rest.next() {
        match next {
            '\\' => {
                let escaped = rest.next()?;
                match ascii(escaped) {
                    // `\w-x` is not a range, and must not become one.
                    Some(_) if inside && rest.peek() == Some(&'-') => return None,
                    Some(class) if inside => result.push_str(class),
                    Some(class) => result.extend(["[", class, "]"]),
                    None => result.extend(['\\', escaped]),
                }
            }
            // A nested class: parsers differ.
            '[' if inside => return None,
            '[' => {
                inside = true;
                result.push('[');
                if rest.next_if_eq(&'^').is_some() {
                    result.push_str(r"^\x{80}-\x{10FFFF}");
                }
                // A `]` in the first place does not end the class.
                if rest.next_if_eq(&']').is_some() {
                    result.push_str(r"\]");
                }
            }
            ']' => {
                inside = false;
                result.push(']');
            }
            '.' if !inside => result.push_str(r"[\x00-\x09\x0B-\x7F]"),
            '(' if !inside => {
                result.push('(');
                if rest.next_if_eq(&'?').is_some() {
                    result.push('?');
                    let flag = |next: &char| next.is_ascii_alphabetic() || *next == '-';
                    if rest.peek().is_some_and(|next| flag(next) && *next != 'P') {
                        return None;
                    }
                }
            }
            other => result.push(other),
        }
    }
    Some(result)
}

/// The ASCII characters of an escaped class, in the form for use in brackets.
fn ascii(escaped: char) -> Option<&'static str> {
    Some(match escaped {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => r"\t-\r ",
        'D' => r"\x00-/:-\x7F",
        'W' => r"\x00-/:-@\[-\^`{-\x7F",
        'S' => r"\x00-\x08\x0E-\x1F!-\x7F",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_restricted_expression_matches_ascii_in_the_same_way() {
        for text in [
            r"^(?:[\w.-]{1,63})",
            r"^(?:(?=.*\d)(?=.*[^A-Za-z0-9\s]).{8,128})",
            r"[^]\d.]+\S\D\W?[\S]*",
            r"[]\W]x\.\[.(?:[^\n]|\\)(?<=a)(?P<n>.)",
            r"[^\D\W]\s[-\w]",
        ] {
            let narrow = restrict_to_ascii(text).unwrap();
            let (narrow, whole) = (compiled(&narrow).unwrap(), compiled(text).unwrap());
            let all: String = (0..=127_u8).map(char::from).collect();
            for at in 0..all.len() {
                for more in ["", "a", "aB-3 \n$", "]]", "x.[]aa"] {
                    let text = format!("{}{more}", &all[at..]);
                    let found =
                        |made: &CompiledPattern| made.regex.find(&text).unwrap().map(|m| m.range());
                    assert_eq!(found(&narrow), found(&whole), "{text:?}");
                }
            }
        }
        for kept in ["(?s).", r"(?-u:\w)", r"[[:alpha:]]", r"[\w-~]", "(?i:.)"] {
            assert_eq!(restrict_to_ascii(kept), None, "{kept}");
        }
    }

    #[test]
    fn what_may_backtrack_is_known() {
        for text in [r"^[a-z]+-\d{1,3}\.(?:x|y)$", r"(?i)a+?b*", r"(?P<n>a)\b"] {
            assert!(!may_backtrack(text), "{text}");
        }
        for text in [
            r"(?=a)b",
            r"(?<=a)b",
            r"(?!a)",
            r"(a)\1",
            r"(?P<n>a)(?P=n)",
            r"(?>a+)b",
            "a++b",
            r"\Ka",
            r"(?<n>a)\k<n>",
            r"a{1,2}+",
        ] {
            assert!(may_backtrack(text), "{text}");
        }
    }

    #[test]
    fn a_restricted_expression_is_small() {
        let text = r"^(?:(?=^.{6,255}$)(?=.*[A-Z])[\w.-]{1,63}[^\d]{1,100})";
        assert!(
            compiled(text).unwrap().large && !compiled(&restricted_to_ascii(text)).unwrap().large
        );
    }

    #[test]
    fn usual_expressions_are_compiled_and_exploding_ones_are_not() {
        for usual in [
            r"^(?:[\w.-]{1,63})$",
            r"^(?:(?=.*\d)(?=.*[A-Z]).{8,128})$",
            r"^(?:(\d{1,3}\.){3}\d{1,3})$",
            r"^(?:[a-zA-Z0-9]{1,4096})$",
        ] {
            assert!(compiled(usual).is_some(), "{usual}");
        }
        assert!(compiled(r"[\w.-]{1,63}").unwrap().large);
        assert!(!compiled("[a-z]{1,63}").unwrap().large);
        assert!(compiled(r"(\w{0,1000}){0,100}").is_none());
        assert!(compiled("(").is_none());
    }
}
