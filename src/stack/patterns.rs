//! Patterns of templates, made once: they are evaluated again and again, and making one takes
//! longer than evaluating a small template.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use fancy_regex::{Regex, RegexBuilder};

/// Patterns that are kept at most, by everything in the process together.
const KEPT: usize = 256;
/// Large ones among them.
const KEPT_LARGE: usize = 8;
/// What counts as large, in bytes: `[a-z]{1,63}` is small, `\w{1,63}` is not.
const LARGE: usize = 256 << 10;
/// How large one may become, in bytes.
const LARGEST: usize = 10 << 20;
/// Steps back that matching one text may take: patterns of templates look ahead and back.
const BACKTRACK: usize = 20_000;

/// A pattern that can be matched.
#[derive(Debug)]
pub(super) struct Made {
    /// What matches.
    pub regex: Regex,
    /// It takes much room, and much time to make.
    pub large: bool,
}

static KNOWN: Mutex<Option<HashMap<String, Arc<Made>>>> = Mutex::new(None);

/// What matches by `text`; nothing when it is no pattern, or one that becomes too large.
pub(super) fn made(text: &str) -> Option<Arc<Made>> {
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(made) = known().as_ref().and_then(|known| known.get(text)) {
        return Some(made.clone());
    }
    let within = |size: usize| {
        RegexBuilder::new(text)
            .backtrack_limit(BACKTRACK)
            .delegate_size_limit(size)
            .delegate_dfa_size_limit(LARGE)
            .build()
    };
    let made = match within(LARGE) {
        Ok(regex) => Made {
            regex,
            large: false,
        },
        Err(_) => Made {
            regex: within(LARGEST).ok()?,
            large: true,
        },
    };
    let made = Arc::new(made);
    let mut known = known();
    let known = known.get_or_insert_default();
    if known.len() >= KEPT {
        known.clear();
    }
    if made.large && known.values().filter(|made| made.large).count() >= KEPT_LARGE {
        known.retain(|_, made| !made.large);
    }
    known.insert(text.to_owned(), made.clone());
    Some(made)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_templates_use_is_made_and_what_explodes_is_not() {
        for usual in [
            r"^(?:[\w.-]{1,63})$",
            r"^(?:(?=.*\d)(?=.*[A-Z]).{8,128})$",
            r"^(?:(\d{1,3}\.){3}\d{1,3})$",
            r"^(?:[a-zA-Z0-9]{1,4096})$",
        ] {
            assert!(made(usual).is_some(), "{usual}");
        }
        assert!(made(r"[\w.-]{1,63}").unwrap().large);
        assert!(!made("[a-z]{1,63}").unwrap().large);
        assert!(made(r"(\w{0,1000}){0,100}").is_none());
        assert!(made("(").is_none());
    }
}
