//! Texts of others: guests, image servers, other programs, other hosts. They may be of any length
//! and contain any character.

/// `text` as it may be shown: no control characters but ends of lines, which could hide or fake what
/// is around it on a terminal, and at most `most` characters.
#[must_use]
pub fn printable(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most * 4));
    for (count, c) in text.chars().enumerate() {
        if count >= most {
            shown.push('…');
            break;
        }
        if (c.is_control() && c != '\n') || is_direction(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Whether a character changes the direction in which what follows is shown.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_change_a_terminal_is_escaped_and_what_is_long_is_cut() {
        assert_eq!(
            printable("Grüße: `x` 日本\nnext", 100),
            "Grüße: `x` 日本\nnext"
        );
        assert_eq!(
            printable("a\u{1b}[2Jb\r\0\u{9b}\u{202e}c", 100),
            "a\\u{1b}[2Jb\\u{d}\\u{0}\\u{9b}\\u{202e}c"
        );
        assert_eq!(printable("abc", 3), "abc");
        assert_eq!(printable("日本語だ", 3), "日本語…");
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_long_or_controls_anything(text in ".{0,200}", most in 0_usize..50) {
            let shown = printable(&text, most);
            proptest::prop_assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
            proptest::prop_assert!(shown.chars().count() <= most * 10 + 1);
        }
    }
}
