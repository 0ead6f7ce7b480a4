//! Python's rules for values: Heat is written in Python, so results of templates depend on how Python
//! writes numbers, compares values, and decides whether a value is true.

use std::fmt::Write as _;

use crate::value::{Number, Text, Value};

/// A float as Python writes it: `1e+16`, `1.5e-07`, `2.0`.
pub(crate) fn float(value: f64) -> String {
    let shortest = format!("{value:e}");
    let Some((mantissa, exponent)) = shortest.split_once('e') else {
        return shortest;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') {
            plain
        } else {
            format!("{plain}.0")
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

/// A number as Python writes it.
pub(crate) fn number(number: &Number) -> String {
    match number.as_f64() {
        Some(value) if number.is_f64() => float(value),
        _ => number.to_string(),
    }
}

/// `str(value)`.
pub(crate) fn text(value: &Value) -> Text {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other, false).into(),
    }
}

/// `str(value)` where lists are tuples.
pub(crate) fn tuple_text(value: &Value) -> String {
    repr(value, true)
}

/// `repr(value)`.
fn repr(value: &Value, tuples: bool) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(it) => number(it),
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| repr(item, tuples)).collect();
            match &items[..] {
                [one] if tuples => format!("({one},)"),
                _ if tuples => format!("({})", items.join(", ")),
                _ => format!("[{}]", items.join(", ")),
            }
        }
        Value::Object(map) => {
            let items = map.iter();
            let items: Vec<_> = items
                .map(|(key, value)| format!("{}: {}", quoted(key), repr(value, tuples)))
                .collect();
            format!("{{{}}}", items.join(", "))
        }
    }
}

/// Text in quotes, with what cannot be printed escaped.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut result = String::from(quote);
    for character in text.chars() {
        match character {
            '\\' => result.push_str("\\\\"),
            '\n' => result.push_str("\\n"),
            '\r' => result.push_str("\\r"),
            '\t' => result.push_str("\\t"),
            c if c == quote => result.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(result, "\\x{:02x}", u32::from(c));
            }
            c => result.push(c),
        }
    }
    result.push(quote);
    result
}

/// JSON as Python writes it, which is what ends up in user data. Maps are in their own order
/// or, where Heat asks for `sort_keys`, in that of their keys.
pub(crate) fn json(value: &Value, sorted: bool) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| json(item, sorted)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            if sorted {
                entries.sort_unstable_by_key(|(key, _)| *key);
            }
            let entries: Vec<_> = entries
                .into_iter()
                .map(|(key, value)| format!("{}: {}", ascii(key), json(value, sorted)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
        Value::String(text) => ascii(text),
        Value::Number(it) => number(it),
        other => other.to_string(),
    }
}

fn ascii(text: &str) -> String {
    let mut result = String::new();
    for character in Value::from(text).to_string().chars() {
        if matches!(character, ' '..='~') {
            result.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(result, "\\u{unit:04x}");
            }
        }
    }
    result
}

/// Whether a value is true: null, zero and empty values are not.
pub(crate) fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Whether two values are the same: `1`, `1.0` and `true` are.
pub(crate) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let same = |(key, a): (&Text, &Value)| b.get(key).is_some_and(|b| equal(a, b));
            a.len() == b.len() && a.iter().all(same)
        }
        (Value::Bool(_) | Value::Number(_), Value::Bool(_) | Value::Number(_)) => {
            match (whole(a), whole(b)) {
                (Some(a), Some(b)) => a == b,
                _ => a.as_f64().or(small(a)) == b.as_f64().or(small(b)),
            }
        }
        _ => a == b,
    }
}

fn small(value: &Value) -> Option<f64> {
    value.as_bool().map(|flag| f64::from(u8::from(flag)))
}

/// The whole number that a value is for Python, to which `true` is 1.
pub(crate) fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Bool(flag) => Some(i128::from(*flag)),
        Value::Number(number) => {
            (number.as_i64().map(i128::from)).or_else(|| number.as_u64().map(i128::from))
        }
        _ => None,
    }
}

/// What counts as blank in text, for `strip()`, `split()` and numbers: more than Unicode's
/// white space.
pub(crate) fn is_blank(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// Text that `int()` takes: with blanks around and underscores between digits.
pub(crate) fn whole_text(text: &str) -> Option<i64> {
    let text = text.trim_matches(is_blank);
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let between = digits.split('_');
    let fits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !between.clone().all(fits) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// `int(value)`: a fraction is cut off.
pub(crate) fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Bool(flag) => Some(i64::from(*flag)),
        Value::String(text) => whole_text(text),
        Value::Number(number) => number.as_i64().or_else(|| {
            let cut = number.as_f64().filter(|n| n.abs() < 9e15)?.trunc();
            #[allow(clippy::cast_possible_truncation, reason = "in range, and whole")]
            Some(cut as i64)
        }),
        _ => None,
    }
}

/// What an index leads to in a list of `length`: from the end when it is negative.
pub(crate) fn at(index: i64, length: usize) -> Option<usize> {
    let index = if index < 0 {
        length.checked_sub(usize::try_from(index.unsigned_abs()).ok()?)?
    } else {
        usize::try_from(index).ok()?
    };
    (index < length).then_some(index)
}

#[cfg(test)]
mod tests {
    use crate::value::json;

    use super::*;

    #[test]
    fn floats_are_written_as_in_python() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (1e-5, "1e-05"),
            (1e22, "1e+22"),
            (123_456.789, "123456.789"),
            (1.7e308, "1.7e+308"),
        ];
        for (value, written) in cases {
            assert_eq!(float(value), written);
        }
        let value = json!([null, true, "it's", "a\n\"b\"", {"k": 1.0}]);
        assert_eq!(
            text(&value),
            r#"[None, True, "it's", 'a\n"b"', {'k': 1.0}]"#
        );
        assert_eq!(
            json(&json!(["\u{7f}é", 1e16]), false),
            r#"["\u007f\u00e9", 1e+16]"#
        );
    }

    #[test]
    fn one_equals_true_at_any_depth() {
        assert!(equal(&json!({"a": [1, 0]}), &json!({"a": [1.0, false]})));
        assert!(!equal(&json!("1"), &json!(1)) && !equal(&json!(null), &json!(false)));
        assert!(!equal(
            &json!(9_007_199_254_740_993_i64),
            &json!(9_007_199_254_740_992_i64)
        ));
    }

    #[test]
    fn integers_are_parsed_as_by_int() {
        assert_eq!(int(&json!(" 8_0 ")), Some(80));
        assert_eq!(int(&json!(-1.7)), Some(-1));
        assert_eq!(int(&json!(true)), Some(1));
        for none in [
            json!("1.0"),
            json!("_1"),
            json!("1__0"),
            json!(""),
            json!(null),
        ] {
            assert_eq!(int(&none), None, "{none}");
        }
        assert_eq!((at(-1, 3), at(3, 3), at(-4, 3)), (Some(2), None, None));
    }
}
