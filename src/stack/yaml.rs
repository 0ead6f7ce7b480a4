//! YAML as Heat reads it: version 1.1 scalars, timestamps and dates as
//! strings, within limits. JSON is a subset and comes the same way.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError};

use super::{Error, Result};
use crate::value::{List, Map, Number, Text, Value};

/// Bytes a document may have; Heat's `max_template_size`.
pub const MAX_BYTES: usize = 524_288;
/// How deep maps and lists may nest.
pub const MAX_DEPTH: usize = 100;
/// Values a document may have once its aliases are written out.
pub const MAX_NODES: usize = 200_000;
/// How many missing blanks of a document are inserted; it is parsed again for each.
const MAX_BLANKS: usize = 50;

/// Reads the one document of `text`.
///
/// # Errors
/// When the text is too large, nests too deep, grows too much through
/// aliases, holds several documents, or is not YAML; with line and column.
pub fn parse(text: &str) -> Result<Value> {
    if text.len() > MAX_BYTES {
        return Err(Error::new(format!(
            "the document has {} bytes, the limit is {MAX_BYTES}",
            text.len()
        )));
    }
    let mut text = Cow::Borrowed(text);
    for _ in 0..MAX_BLANKS {
        match read(&text) {
            Ok(value) => return Ok(value),
            Err(Refused::Value(error)) => return Err(error),
            Err(Refused::Syntax(error)) => match with_blank(&text, &error) {
                Some(more) => text = Cow::Owned(more),
                None => return Err(Error::new(format!("not YAML: {error}"))),
            },
        }
    }
    Err(Error::new(format!(
        "blanks are missing at more than {MAX_BLANKS} places"
    )))
}

/// Why a text is no document.
enum Refused {
    Syntax(ScanError),
    Value(Error),
}

fn read(text: &str) -> std::result::Result<Value, Refused> {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    // Where a text ends inside of a line, when it does.
    let open_end = (!text.ends_with(['\n', '\r'])).then(|| text.chars().count());
    while let Some(next) = parser.next_event() {
        let (mut event, span) = next.map_err(Refused::Syntax)?;
        if let Event::Scalar(text, ScalarStyle::Literal | ScalarStyle::Folded, ..) = &mut event
            && open_end.is_some_and(|end| span.end.index() >= end)
            && text.ends_with('\n')
        {
            // A block ends with the line break that it has; here it has none.
            text.to_mut().pop();
        }
        builder.take(event).map_err(|message| {
            Refused::Value(Error::new(format!(
                "line {}, column {}: {message}",
                span.start.line(),
                span.start.col() + 1
            )))
        })?;
    }
    Ok(builder.root.unwrap_or(Value::Null))
}

/// The text with a blank more, where YAML wants one and Heat's parser does without: before a
/// comment (`}# why`), between a key and a list in a map in braces (`{get_attr:[a, b]}`), and
/// before the further lines of quoted text, where blanks mean nothing.
fn with_blank(text: &str, error: &ScanError) -> Option<String> {
    let index = error.marker().index();
    let at = text.char_indices().nth(index).map(|(at, _)| at)?;
    let (at, blanks) = match error.kind() {
        ErrorKind::CommentNotSeparated if text[at..].starts_with('#') => (at, 1),
        ErrorKind::FlowMappingValueAdjacentCollection if text[at..].starts_with(':') => (at + 1, 1),
        // Deeper than anything that may be around it.
        ErrorKind::InvalidQuotedScalarIndent => (at, 2 * MAX_DEPTH),
        _ => return None,
    };
    Some([&text[..at], &" ".repeat(blanks), &text[at..]].concat())
}

enum Open {
    List(List),
    Map(Map, Option<Text>, Vec<Value>),
}

#[derive(Default)]
struct Builder {
    open: Vec<(Open, usize)>,
    anchors: HashMap<usize, (Value, usize)>,
    nodes: usize,
    root: Option<Value>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>) -> std::result::Result<(), String> {
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                return Err("a second document starts here; a template is one document".into());
            }
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.map(|tag| tag.suffix().to_owned());
                let value = match tag.as_deref() {
                    Some("str" | "!") => Value::String(text.as_ref().into()),
                    Some("int" | "float" | "bool" | "null") => scalar(&text),
                    Some(other) => return Err(format!("the tag `{other}` is not allowed")),
                    None if matches!(style, ScalarStyle::Plain) => scalar(&text),
                    None => Value::String(text.as_ref().into()),
                };
                self.count(size(&value))?;
                self.place(value, anchor)?;
            }
            Event::SequenceStart(_, _, Some(tag)) | Event::MappingStart(_, _, Some(tag))
                if !matches!(tag.suffix(), "seq" | "map" | "!") =>
            {
                return Err(format!("the tag `{}` is not allowed", tag.suffix()));
            }
            Event::SequenceStart(_, anchor, _) => self.push(Open::List(List::new()), anchor)?,
            Event::MappingStart(_, anchor, _) => {
                self.push(Open::Map(Map::new(), None, Vec::new()), anchor)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close()?,
            Event::Alias(anchor) => {
                let Some((value, size)) = self.anchors.get(&anchor) else {
                    return Err("an alias inside what it names".into());
                };
                let (value, size) = (value.clone(), *size);
                self.count(size)?;
                self.place(value, 0)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn count(&mut self, more: usize) -> std::result::Result<(), String> {
        self.nodes += more;
        if self.nodes > MAX_NODES {
            return Err(format!(
                "more than {MAX_NODES} values once aliases are written out"
            ));
        }
        Ok(())
    }

    fn push(&mut self, open: Open, anchor: usize) -> std::result::Result<(), String> {
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        self.count(1)?;
        self.open.push((open, anchor));
        Ok(())
    }

    fn close(&mut self) -> std::result::Result<(), String> {
        let Some((open, anchor)) = self.open.pop() else {
            return Err("an end without a start".into());
        };
        let value = match open {
            Open::List(items) => Value::Array(items),
            Open::Map(own, _, merges) => {
                // `<<`: merged keys come before the map's own keys, which override them.
                let mut map = Map::new();
                for base in merges {
                    let Value::Object(base) = base else {
                        return Err("`<<` takes a map or a list of maps".into());
                    };
                    map.extend(base);
                }
                if map.is_empty() {
                    map = own;
                } else {
                    map.extend(own);
                }
                Value::Object(map)
            }
        };
        self.place(value, anchor)
    }

    fn place(&mut self, value: Value, anchor: usize) -> std::result::Result<(), String> {
        if anchor != 0 {
            let size = size(&value);
            self.anchors.insert(anchor, (value.clone(), size));
        }
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some((Open::List(items), _)) => items.push(value),
            Some((Open::Map(map, key, merges), _)) => match key.take() {
                None => *key = Some(key_text(&value)?),
                Some(name) if name == "<<" => match value {
                    // Of a list the first wins.
                    Value::Array(items) => merges.extend(items.into_iter().rev()),
                    one => merges.push(one),
                },
                Some(name) => {
                    map.insert(name, value);
                }
            },
        }
        Ok(())
    }
}

fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(map) => map.values().map(size).sum(),
        // Short texts are one value each; long ones would multiply as well as lists.
        Value::String(text) => text.len() / 64,
        _ => 0,
    }
}

/// A key as JSON has it; Heat's own engine sees keys after JSON, too.
fn key_text(value: &Value) -> std::result::Result<Text, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string().into()),
        Value::Bool(flag) => Ok(flag.to_string().into()),
        Value::Null => Ok("null".into()),
        _ => Err("a map's key must be a string, a number or a boolean".into()),
    }
}

/// A plain scalar by the rules of YAML 1.1; what looks like a time stays text.
fn scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    if let Some(number) = integer(text).or_else(|| float(text)) {
        return Value::Number(number);
    }
    Value::String(text.into())
}

fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let plain = digits.replace('_', "");
    let value = if let Some(binary) = plain.strip_prefix("0b") {
        i128::from_str_radix(binary, 2).ok()?
    } else if let Some(hex) = plain.strip_prefix("0x") {
        i128::from_str_radix(hex, 16).ok()?
    } else if plain.len() > 1 && plain.starts_with('0') && !plain.contains(':') {
        i128::from_str_radix(&plain, 8).ok()?
    } else if plain.contains(':') {
        sexagesimal(&plain)?
    } else {
        plain.parse().ok()?
    };
    Number::from_i128(if negative { -value } else { value })
}

/// `1:30` is 90 in YAML 1.1, as long as every later part is below 60.
fn sexagesimal(text: &str) -> Option<i128> {
    let mut parts = text.split(':');
    let first = parts.next()?;
    if first.starts_with('0') {
        return None;
    }
    let mut total: i128 = first.parse().ok()?;
    for part in parts {
        let value: i128 = part.parse().ok()?;
        if part.len() > 2 || value > 59 {
            return None;
        }
        total = total.checked_mul(60)?.checked_add(value)?;
    }
    Some(total)
}

fn float(text: &str) -> Option<Number> {
    let body = text.trim_start_matches(['-', '+']);
    // YAML 1.1 wants a dot, and a sign in the exponent: `1e5` is text.
    let exponent_signed = body
        .find(['e', 'E'])
        .is_none_or(|at| body[at + 1..].starts_with(['-', '+']));
    let shaped = body.contains('.')
        && body.len() > 1
        && body.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && exponent_signed
        && body
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | '_' | 'e' | 'E' | '+' | '-'));
    if !shaped {
        return None;
    }
    Number::from_f64(text.replace('_', "").parse().ok()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use crate::value::json;

    use super::*;

    #[test]
    fn scalars_are_read_by_yaml_1_1() {
        let value = parse("a: yes\nb: 0755\nc: 2013-05-23\nd: 1:30\ne: '1'\nf: 1e5\ng: 1.5\nh: off\ni: 0x1F\nj:\n").unwrap();
        assert_eq!(
            value,
            json!({"a": true, "b": 493, "c": "2013-05-23", "d": 90, "e": "1", "f": "1e5",
                   "g": 1.5, "h": false, "i": 31, "j": null})
        );
    }

    #[test]
    fn merges_and_aliases_are_expanded() {
        let value = parse("base: &b {x: 1, y: 2}\nall:\n  <<: *b\n  y: 3\n").unwrap();
        assert_eq!(value["all"], json!({"x": 1, "y": 3}));
    }

    #[test]
    fn maps_keep_their_order_and_merged_keys_come_first() {
        let text = "one: &one {z: 1, y: 1}\ntwo: &two {x: 2, y: 2}\n\
                    all: {c: 0, <<: [*one, *two], z: 0, a: 0}\n";
        let all = &parse(text).unwrap()["all"];
        assert_eq!(all.to_string(), r#"{"x":2,"y":1,"z":0,"c":0,"a":0}"#);
    }

    #[test]
    fn a_billion_laughs_are_refused() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..10 {
            let before = format!("*a{}", level - 1);
            let items = vec![before; 10].join(",");
            text.extend([format!("a{level}: &a{level} [{items}]\n")]);
        }
        assert!(parse(&text).unwrap_err().message.contains("aliases"));
    }

    #[test]
    fn depth_and_size_have_limits() {
        assert!(parse(&"[".repeat(5000)).is_err());
        assert!(parse(&" ".repeat(MAX_BYTES + 1)).is_err());
    }

    #[test]
    fn a_block_ends_with_the_text() {
        for (text, value) in [
            ("a: |\n  x\n  y", "x\ny"),
            ("a: |\n  x\n", "x\n"),
            ("a: >\n  x\n  y", "x y"),
            ("a: |+\n  x", "x"),
            ("a: |-\n  x", "x"),
            ("a: |\n  x\n# why", "x\n"),
        ] {
            assert_eq!(parse(text).unwrap(), json!({"a": value}), "{text:?}");
        }
    }

    #[test]
    fn blanks_that_heat_does_without_may_be_missing() {
        let text = "a: {b: c}# why\nd: {get_attr:[x, y]}\ne:\n  f: \"{\n  g\n}\"\nh: 'i\nj'# so\n";
        assert_eq!(
            parse(text).unwrap(),
            json!({"a": {"b": "c"}, "d": {"get_attr": ["x", "y"]}, "e": {"f": "{ g }"}, "h": "i j"})
        );
        let many = "- {a: b}#\n".repeat(MAX_BLANKS + 1);
        assert!(parse(&many).unwrap_err().message.contains("blanks"));
    }

    #[test]
    fn nonstandard_yaml_is_refused() {
        for text in ["a: !Ref b", "a: !own [b]", "a: !own {b: c}"] {
            assert!(parse(text).unwrap_err().message.contains("tag"), "{text}");
        }
        assert_eq!(parse("a: !!seq [b]").unwrap(), json!({"a": ["b"]}));
    }

    #[test]
    fn errors_have_a_line() {
        let error = parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(error.message.contains("line"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }
    }
}
