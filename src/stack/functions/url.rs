//! `make_url`: builds a URL from its parts, each escaped by its own rules.

use super::python;
use crate::value::{Map, Value};
use crate::{Error, Result, python_type};

const PARTS: [&str; 8] = [
    "scheme", "username", "password", "host", "port", "path", "query", "fragment",
];

/// Schemes after which `//` stands even where there is no host, as Python's `urllib` has them.
const WITH_HOST: [&str; 26] = [
    "ftp",
    "http",
    "gopher",
    "nntp",
    "telnet",
    "imap",
    "wais",
    "file",
    "mms",
    "https",
    "shttp",
    "snews",
    "prospero",
    "rtsp",
    "rtspu",
    "rsync",
    "svn",
    "svn+ssh",
    "sftp",
    "nfs",
    "git",
    "git+ssh",
    "ws",
    "wss",
    "rtsps",
    "itms-services",
];

/// Checks the parts and their names; those that `later` says are not known yet.
pub(super) fn check(argument: &Value, later: impl Fn(&Value) -> bool) -> Result<()> {
    let Value::Object(map) = argument else {
        return Err(Error::new("takes a map"));
    };
    if let Some(key) = map.keys().find(|key| !PARTS.contains(&key.as_str())) {
        return Err(Error::new(format!(
            "no part `{key}`; there are {}",
            PARTS.join(", ")
        )));
    }
    check_parts(map, later)
}

fn check_parts(map: &Map, later: impl Fn(&Value) -> bool) -> Result<()> {
    for part in PARTS {
        let Some(value) = map.get(part).filter(|value| !later(value)) else {
            continue;
        };
        match part {
            "query" if !value.is_object() => return Err(Error::at(part, "must be a map")),
            "port" if !python::int(value).is_some_and(|port| (1..=65535).contains(&port)) => {
                return Err(Error::at(
                    part,
                    "the port is none: a whole number from 1 to 65535",
                ));
            }
            "query" | "port" => {}
            _ if !value.is_string() => {
                return Err(Error::at(
                    part,
                    format!("must be text, is {}", python_type(value)),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// `make_url`, by the rules of RFC 3986.
pub(super) fn make(argument: &Value) -> Result<Value> {
    let Value::Object(map) = argument else {
        return Err(Error::new("takes a map"));
    };
    check_parts(map, |_| false)?;
    let part = |key: &str| argument.get(key).and_then(Value::as_str).unwrap_or("");
    let scheme = part("scheme");
    if scheme.contains(':') {
        return Err(Error::at("scheme", "must not have a `:`"));
    }
    let authority = authority(argument, part("username"), part("password"), part("host"));
    let mut path = quote(part("path"), "/");
    let with_authority =
        !authority.is_empty() || (WITH_HOST.contains(&scheme) && !path.starts_with("//"));
    if with_authority && !path.is_empty() && !path.starts_with('/') {
        path.insert(0, '/');
    }
    let query = argument.get("query").and_then(Value::as_object);
    let query = query.map_or_else(String::new, query_of);
    let mut url = String::new();
    if !scheme.is_empty() {
        url.extend([scheme, ":"]);
    }
    if with_authority {
        url.extend(["//", &authority]);
    }
    url += &path;
    if !query.is_empty() {
        url.extend(["?", &query]);
    }
    if !part("fragment").is_empty() {
        url.extend(["#", &quote(part("fragment"), "/")]);
    }
    Ok(Value::from(url))
}

fn authority(argument: &Value, username: &str, password: &str, host: &str) -> String {
    let mut authority = String::new();
    if !username.is_empty() || !password.is_empty() {
        authority += &quote(username, "");
        if !password.is_empty() {
            authority.extend([":", &quote(password, "")]);
        }
        authority += "@";
    }
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = quote(bare.unwrap_or(host), ":");
    if host.contains(':') {
        authority.extend(["[", &host, "]"]);
    } else {
        authority += &host;
    }
    if let Some(port) = argument.get("port") {
        authority.extend([":", &python::text(port)]);
    }
    authority
}

fn query_of(query: &Map) -> String {
    let escape = |text: &str| quote(text, "/ ").replace(' ', "+");
    let pairs = query.iter();
    let pairs: Vec<_> = pairs
        .map(|(key, value)| format!("{}={}", escape(key), escape(&python::text(value))))
        .collect();
    pairs.join("&")
}

/// Percent-encoded, but for letters, digits, `-._~` and what is `safe`.
pub(crate) fn quote(text: &str, safe: &str) -> String {
    use std::fmt::Write as _;
    let mut result = String::new();
    for byte in text.bytes() {
        let character = char::from(byte);
        if character.is_ascii_alphanumeric()
            || "-._~".contains(character)
            || safe.contains(character)
        {
            result.push(character);
        } else {
            let _ = write!(result, "%{byte:02X}");
        }
    }
    result
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use crate::value::json;

    use super::*;

    #[test]
    fn parts_of_a_url_are_escaped_by_their_own_rules() {
        let cases = [
            (
                json!({"scheme": "https", "path": "a", "fragment": "x/ y"}),
                "https:///a#x/%20y",
            ),
            (json!({"scheme": "x", "path": "a"}), "x:a"),
            (json!({"password": "p:/", "host": "h"}), "//:p%3A%2F@h"),
            (json!({"host": "[::1]", "port": "080"}), "//[::1]:080"),
            (json!({"host": "a b", "port": true}), "//a%20b:True"),
            (
                json!({"host": "h", "query": {"a b": [1, null], "c": "d/é"}}),
                "//h?a+b=%5B1%2C+None%5D&c=d/%C3%A9",
            ),
        ];
        for (parts, url) in cases {
            assert_eq!(make(&parts).unwrap(), url, "{parts}");
        }
    }

    #[test]
    fn a_part_of_the_wrong_type_is_refused() {
        for wrong in [
            json!("x"),
            json!({"host": 5}),
            json!({"query": "a=b"}),
            json!({"port": 0}),
            json!({"port": ""}),
            json!({"port": null}),
            json!({"scheme": "a:b"}),
        ] {
            assert!(make(&wrong).is_err(), "{wrong}");
        }
        // What has a name that there is not is passed over, and refused before.
        let extra = json!({"extra": ""});
        assert!(make(&extra).is_ok() && check(&extra, |_| false).is_err());
    }
}
