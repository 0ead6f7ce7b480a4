//! `OS::Heat`: resources that need no object, because they are what their properties say.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::{MappedValue, Mapping, MappingInput, SupportedType, attribute_names, text};
use crate::value::{Map, Value};
use crate::{Error, Result};

macro_rules! values {
    ($name:literal, $map:expr, $properties:expr, $ignored:expr) => {
        SupportedType {
            name: $name,
            mapping: Mapping::Values($map),
            properties: $properties,
            ignored: $ignored,
            replaced_on_change: &[],
            by_account: false,
        }
    };
}

pub(super) const TYPES: &[SupportedType] = &[
    values!("OS::Heat::Value", value, &["type", "value"], &[]),
    values!("OS::Heat::None", none, &[], &[]),
    values!(
        "OS::Heat::RandomString",
        random_string,
        &["character_classes", "character_sequences", "length", "salt"],
        &[]
    ),
    values!(
        "OS::Heat::Delay",
        delay,
        &["actions", "jitter_multiplier", "max_jitter", "min_wait"],
        &[]
    ),
    values!(
        "OS::Heat::TestResource",
        test_resource,
        &[
            "action_wait_secs",
            "fail",
            "update_replace",
            "update_replace_value",
            "value",
            "wait_secs"
        ],
        &[
            "attr_wait_secs",
            "client_name",
            "constraint_prop_secs",
            "entity_name"
        ]
    ),
    values!(
        "OS::Heat::CloudConfig",
        cloud_config,
        &["cloud_config"],
        &[]
    ),
    values!("OS::Heat::MultipartMime", multipart, &["parts"], &["group"]),
    values!(
        "OS::Heat::SoftwareConfig",
        software_config,
        &["config"],
        &["group", "inputs", "options", "outputs"]
    ),
];

/// With the attributes of its type, all but `given` without a value.
fn settled(kind: &str, request: &MappingInput<'_>, given: &[(&str, Value)]) -> MappedValue {
    let mut attributes = attribute_names(kind);
    for (name, value) in given {
        attributes.insert((*name).to_owned(), value.clone());
    }
    MappedValue {
        refid: Value::from(request.name),
        attributes,
        ..MappedValue::default()
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of every mapping")]
fn value(request: &MappingInput<'_>) -> Result<MappedValue> {
    // Of the type that `type` says, by its schema.
    let value = request.get("value").cloned().unwrap_or_default();
    Ok(settled("OS::Heat::Value", request, &[("value", value)]))
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of every mapping")]
fn none(request: &MappingInput<'_>) -> Result<MappedValue> {
    let mut mapped = settled("OS::Heat::None", request, &[]);
    // In Heat it has whatever attribute is asked for, without a value.
    mapped.attributes = Map::new();
    Ok(mapped)
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of every mapping")]
fn delay(request: &MappingInput<'_>) -> Result<MappedValue> {
    let seconds = |name: &str| request.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    let applies = request
        .texts("actions")
        .iter()
        .any(|action| action == "CREATE");
    let share = f64::from(Draw::new(request.seed).next()) / f64::from(u32::MAX);
    let jitter = seconds("max_jitter") * seconds("jitter_multiplier") * share;
    let wait = if applies {
        seconds("min_wait") + jitter
    } else {
        0.0
    };
    let mut mapped = settled("OS::Heat::Delay", request, &[]);
    mapped.delay_ms = milliseconds(wait);
    Ok(mapped)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from a float stays within bounds"
)]
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).max(0.0) as u64
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of every mapping")]
fn test_resource(request: &MappingInput<'_>) -> Result<MappedValue> {
    let own = request
        .get("action_wait_secs")
        .and_then(|map| map.get("create"));
    let wait = own.or_else(|| request.get("wait_secs"));
    let value = request.get("value").cloned().unwrap_or_default();
    let mut mapped = settled("OS::Heat::TestResource", request, &[("output", value)]);
    mapped.delay_ms = milliseconds(wait.and_then(Value::as_f64).unwrap_or(0.0));
    mapped.failure = (request.flag("fail") == Some(true))
        .then(|| "Test Resource failed by its property `fail`".to_owned());
    Ok(mapped)
}

fn config(kind: &str, request: &MappingInput<'_>, text: String) -> MappedValue {
    let mut mapped = settled(kind, request, &[("config", Value::from(text.clone()))]);
    mapped.config = Some(text);
    mapped
}

fn cloud_config(request: &MappingInput<'_>) -> Result<MappedValue> {
    let mut given = request.get("cloud_config").cloned().unwrap_or_default();
    // As Python's YAML writes it, whatever the order in the template.
    given.sort_all_objects();
    let text = serde_saphyr::to_string(&given)
        .map_err(|error| Error::at("cloud_config", format!("cannot be written: {error}")))?;
    let text = format!("#cloud-config\n{text}");
    Ok(config("OS::Heat::CloudConfig", request, text))
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of every mapping")]
fn software_config(request: &MappingInput<'_>) -> Result<MappedValue> {
    let text = request.text("config").unwrap_or_default();
    Ok(config("OS::Heat::SoftwareConfig", request, text))
}

/// The parts as one MIME message, each encoded, so that no part can end another.
#[allow(clippy::unnecessary_wraps, reason = "the shape of every mapping")]
fn multipart(request: &MappingInput<'_>) -> Result<MappedValue> {
    let parts = request.list("parts").into_iter().flatten();
    let mut bodies = String::new();
    let boundary = format!("==={}===", hex::encode(Sha256::digest(request.name)));
    for (index, part) in parts.enumerate() {
        let get = |key: &str| part.get(key).and_then(text).filter(|text| !text.is_empty());
        let given = get("config").unwrap_or_default();
        let text = request.configs.get(&given).unwrap_or(&given);
        let kind = match get("type").as_deref() {
            Some("multipart") => subtype_of_multipart(text),
            _ => format!(
                "text/{}",
                get("subtype").unwrap_or_else(|| subtype(text).to_owned())
            ),
        };
        let name = get("filename").unwrap_or_else(|| format!("part-{index:03}"));
        let name = name.replace(['"', '\r', '\n'], "");
        // Writing into a String cannot fail.
        let _ = write!(
            bodies,
            "--{boundary}\nContent-Type: {kind}; charset=\"utf-8\"\nMIME-Version: 1.0\n\
             Content-Transfer-Encoding: base64\n\
             Content-Disposition: attachment; filename=\"{name}\"\n\n{}\n",
            STANDARD.encode(text)
        );
    }
    let text = format!(
        "Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n\n{bodies}--{boundary}--\n"
    );
    Ok(config("OS::Heat::MultipartMime", request, text))
}

/// A part that is a message of its own has its type in its first line.
fn subtype_of_multipart(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let kind = line
        .strip_prefix("Content-Type:")
        .map(|kind| kind.trim().replace('"', ""));
    let kind = kind.and_then(|kind| kind.split(';').next().map(str::to_owned));
    kind.unwrap_or_else(|| "multipart/mixed".to_owned())
}

/// How cloud-init knows what a text is.
fn subtype(text: &str) -> &'static str {
    if text.starts_with("#cloud-config") {
        "cloud-config"
    } else if text.starts_with("#!") {
        "x-shellscript"
    } else if text.starts_with("#include") {
        "x-include-url"
    } else if text.starts_with("#cloud-boothook") {
        "cloud-boothook"
    } else {
        "plain"
    }
}

/// Random numbers from a seed: the same string in every evaluation, without storing it, and it cannot
/// be guessed without the seed.
struct Draw<'a> {
    seed: &'a [u8],
    count: u64,
}

impl<'a> Draw<'a> {
    fn new(seed: &'a [u8]) -> Self {
        Self { seed, count: 0 }
    }

    fn next(&mut self) -> u32 {
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(self.count.to_be_bytes());
        self.count += 1;
        let bytes = hash.finalize();
        u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// One of `count`, which is at most a few hundred: the bias is below 2^-23.
    fn below(&mut self, count: usize) -> usize {
        self.next() as usize % count.max(1)
    }

    fn pick(&mut self, characters: &[char]) -> Option<char> {
        let index = self.below(characters.len());
        characters.get(index).copied()
    }
}

const LOWER: &str = "abcdefghijklmnopqrstuvwxyz";
const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const DIGITS: &str = "0123456789";

fn class(name: &str) -> Vec<char> {
    let all = match name {
        "letters" => [LOWER, UPPER].concat(),
        "lowercase" => LOWER.to_owned(),
        "uppercase" => UPPER.to_owned(),
        "digits" => DIGITS.to_owned(),
        "hexdigits" => format!("{DIGITS}ABCDEF"),
        "octdigits" => "01234567".to_owned(),
        _ => [LOWER, UPPER, DIGITS].concat(),
    };
    all.chars().collect()
}

/// Characters that Heat's `OS::Heat::RandomString` has at most.
const LONGEST: usize = 512;

fn random_string(request: &MappingInput<'_>) -> Result<MappedValue> {
    let mut seed = request.seed.to_vec();
    seed.extend(request.text("salt").unwrap_or_default().bytes());
    let mut draw = Draw::new(&seed);
    let least = |item: &Value| {
        let least = item.get("min").and_then(Value::as_u64).unwrap_or(1);
        usize::try_from(least).unwrap_or(usize::MAX)
    };
    let mut sets: Vec<(Vec<char>, usize)> = Vec::new();
    for item in request.list("character_sequences").into_iter().flatten() {
        let sequence = item.get("sequence").and_then(text).unwrap_or_default();
        sets.push((sequence.chars().collect(), least(item)));
    }
    // Classes have a default, which gives way to sequences.
    if sets.is_empty()
        || request
            .list("character_classes")
            .is_some_and(|list| list.len() > 1)
    {
        for item in request.list("character_classes").into_iter().flatten() {
            let name = item
                .get("class")
                .and_then(Value::as_str)
                .unwrap_or_default();
            sets.push((class(name), least(item)));
        }
    }
    sets.retain(|(characters, _)| !characters.is_empty());
    let length = usize::try_from(request.integer("length")).unwrap_or(0);
    if length > LONGEST {
        return Err(Error::at(
            "length",
            format!("{length} characters are asked for; there are at most {LONGEST}"),
        ));
    }
    let least = sets.iter().map(|(_, least)| *least);
    let needed = least.fold(0_usize, usize::saturating_add);
    if needed > length {
        return Err(Error::at(
            "length",
            format!("{length} is less than the {needed} characters asked for"),
        ));
    }
    let mut characters: Vec<char> = Vec::with_capacity(length);
    for (set, least) in &sets {
        characters.extend((0..*least).filter_map(|_| draw.pick(set)));
    }
    let any: Vec<char> = sets.into_iter().flat_map(|(set, _)| set).collect();
    while characters.len() < length {
        let Some(character) = draw.pick(&any) else {
            break;
        };
        characters.push(character);
    }
    for at in (1..characters.len()).rev() {
        characters.swap(at, draw.below(at + 1));
    }
    let value: String = characters.into_iter().collect();
    let mut mapped = settled(
        "OS::Heat::RandomString",
        request,
        &[("value", Value::from(value.clone()))],
    );
    mapped.refid = Value::from(value);
    let shown: Map = Map::new();
    mapped.attributes.insert("show", Value::Object(shown));
    Ok(mapped)
}
