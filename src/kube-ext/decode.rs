//! Objects are decoded one by one, so that one that cannot be decoded spoils no list, no watch and
//! nobody's answer: it is named and set aside, and the others go on.
//!
//! An object is cut into its parts first, without going into any of them: that works at any
//! depth. `metadata.managedFields` of others, which anybody can make as deep and as big as the
//! object, are dropped there. Then the metadata and the whole are decoded apart, so that an
//! object whose spec cannot be decoded still has its name.

use std::borrow::Cow;
use std::fmt::{self, Debug, Display};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::Request;
use kube::{Api, Resource};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

/// Field managers whose names begin so are parts of Pileus, which look up in `managedFields` which
/// fields of a status they wrote.
const OURS: &str = "pileus-";
/// How deep an entry of `managedFields` may be nested; our own statuses are far from it, and
/// serde_json's limit for a whole object is 128.
const MAX_ENTRY_DEPTH: usize = 64;
/// Longest text about a problem, in characters; an Event takes 1024 bytes.
const MAX_PROBLEM: usize = 400;

/// An object as the API server has it, or what could be made of it.
#[derive(Clone, Debug)]
pub struct Decoded<K>(pub Result<K, Unreadable>);

/// An object that exists and cannot be decoded.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub struct Unreadable {
    /// Its metadata: at least the name.
    pub metadata: Box<ObjectMeta>,
    /// Which field is wrong and why; has no text of the object's but names of fields.
    pub problem: String,
}

impl<K> Decoded<K> {
    /// The object if it could be decoded.
    #[must_use]
    pub fn ok(self) -> Option<K> {
        self.0.ok()
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Decoded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(decode(text.get())))
    }
}

impl<K: Resource> Resource for Decoded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::version(kind)
    }

    fn plural(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(unreadable) => &unreadable.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(unreadable) => &mut unreadable.metadata,
        }
    }
}

/// Sends a request about one object of those that `api` reaches, and decodes the answer.
///
/// # Errors
/// When the API server refuses or does not answer, or its answer cannot be decoded: the error
/// names the field, and nobody logs the answer.
pub async fn request<K: DeserializeOwned, A>(
    api: &Api<A>,
    make: impl FnOnce(&Request) -> Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<K, kube::Error>
where
    A: Resource + Clone,
{
    let request = make(&Request::new(api.resource_url())).map_err(kube::Error::BuildRequest)?;
    let text = api.clone().into_client().request_text(request).await?;
    decode(&text).map_err(|unreadable| kube::Error::Service(Box::new(unreadable)))
}

/// Decodes the text of one object.
///
/// # Errors
/// What it is and why it cannot be decoded.
pub fn decode<K: DeserializeOwned>(text: &str) -> Result<K, Unreadable> {
    let slim = match serde_json::from_str::<Fields<'_>>(text) {
        Ok(fields) => fields.text(|key, value| match key {
            "metadata" => Some(without_managed_fields(value)),
            _ => Some(Cow::Borrowed(value)),
        }),
        // No object at all: whoever wants one says so below.
        Err(_) => text.to_owned(),
    };
    serde_json::from_str(&slim).map_err(|error| Unreadable {
        metadata: Box::new(metadata(&slim)),
        problem: problem::<K>(&slim, &error),
    })
}

/// The fields of a JSON object, in the text as they are.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Fields<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

impl Fields<'_> {
    /// The object's text with the values that `change` gives; without those that it drops.
    fn text(&self, change: impl for<'v> Fn(&str, &'v str) -> Option<Cow<'v, str>>) -> String {
        let length = self.0.iter().map(|(k, v)| k.len() + v.get().len() + 4);
        let mut text = String::with_capacity(length.sum::<usize>() + 2);
        text.push('{');
        for (key, value) in &self.0 {
            let Some(value) = change(key, value.get()) else {
                continue;
            };
            if text.len() > 1 {
                text.push(',');
            }
            // Quotes it as JSON does.
            text.push_str(&serde_json::Value::from(key.as_str()).to_string());
            text.push(':');
            text.push_str(&value);
        }
        text.push('}');
        text
    }
}

/// The metadata with no more of `managedFields` than Pileus' own statuses.
fn without_managed_fields(metadata: &str) -> Cow<'_, str> {
    let Ok(fields) = serde_json::from_str::<Fields<'_>>(metadata) else {
        return Cow::Borrowed(metadata);
    };
    let slim = fields.text(|key, value| match key {
        "managedFields" => own_statuses(value).map(Cow::Owned),
        _ => Some(Cow::Borrowed(value)),
    });
    Cow::Owned(slim)
}

/// The entries of `managedFields` about statuses that parts of Pileus wrote.
fn own_statuses(managed_fields: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        manager: String,
        #[serde(default)]
        subresource: String,
    }
    let entries: Vec<&RawValue> = serde_json::from_str(managed_fields).ok()?;
    let is_ours = |entry: &&&RawValue| {
        serde_json::from_str::<Entry>(entry.get()).is_ok_and(|e| {
            e.subresource == "status"
                && e.manager.starts_with(OURS)
                && depth(entry.get()) <= MAX_ENTRY_DEPTH
        })
    };
    let kept: Vec<_> = entries.iter().filter(is_ours).map(|e| e.get()).collect();
    (!kept.is_empty()).then(|| format!("[{}]", kept.join(",")))
}

/// How deep a JSON text is nested.
fn depth(text: &str) -> usize {
    let (mut depth, mut most) = (0_usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                most = most.max(depth);
            }
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// The metadata of an object that cannot be decoded, as far as possible.
fn metadata(text: &str) -> ObjectMeta {
    /// What the API server itself takes only in the right shape.
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Identity {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
    }
    let Ok(fields) = serde_json::from_str::<Fields<'_>>(text) else {
        return ObjectMeta::default();
    };
    let Some((_, metadata)) = fields.0.iter().find(|(key, _)| key == "metadata") else {
        return ObjectMeta::default();
    };
    serde_json::from_str(metadata.get()).unwrap_or_else(|_| {
        let known: Identity = serde_json::from_str(metadata.get()).unwrap_or_default();
        ObjectMeta {
            name: known.name,
            namespace: known.namespace,
            uid: known.uid,
            resource_version: known.resource_version,
            ..ObjectMeta::default()
        }
    })
}

/// Which field is wrong, why, and what to do.
fn problem<K: DeserializeOwned>(text: &str, error: &serde_json::Error) -> String {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let found = serde_path_to_error::deserialize::<_, K>(&mut deserializer);
    let field = match &found {
        Err(found) => short(&found.path(), 100),
        Ok(_) => ".".to_owned(),
    };
    let why = without_position(&without_values(&error.to_string()));
    let why = short(&why, MAX_PROBLEM - 250);
    let field = if field == "." {
        "the object".to_owned()
    } else {
        field
    };
    format!(
        "{field} cannot be read: {why}; correct or remove that field, or delete the object; if a \
         newer version of Pileus wrote it, run that version"
    )
}

fn short(text: &dyn Display, most: usize) -> String {
    let text = text.to_string();
    if text.chars().count() <= most {
        return text;
    }
    let cut: String = text.chars().take(most).collect();
    format!("{cut}…")
}

/// Leaves the text out that serde quotes when it found one where none belongs: it may be secret.
fn without_values(message: &str) -> String {
    for found in ["invalid type: string ", "invalid value: string "] {
        if let Some(rest) = message.strip_prefix(found) {
            let expected = rest.rfind(", expected").map_or("", |at| &rest[at..]);
            return format!("{}{expected}", found.trim_end());
        }
    }
    message.to_owned()
}

/// Leaves out where in the text: nobody else has that text.
fn without_position(message: &str) -> String {
    let end = message.rfind(" at line ").unwrap_or(message.len());
    message[..end].to_owned()
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
