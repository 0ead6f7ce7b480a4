//! What one resource should be, and whether its objects are that.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::{Entry, Reference};
use pileus_api::Reason;
use pileus_api::names::{STACK_DIGEST_ANNOTATION, STACK_RESOURCE_ANNOTATION, STACK_UID_LABEL};
use pileus_stack::kinds::{self, IDENTITY, METADATA, Makes};
use pileus_stack::tree::Leaf;
use pileus_stack::value::{Map, Value, json};

/// How far an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is as it should be.
    Ready,
    /// It is on its way, and what it says of that.
    Pending(String),
    /// Only a person can help it, and how.
    Failed(String),
}

/// A condition of an object, if it has it.
pub(super) fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == name)
}

/// How far an object is, by its own word. `wait_for` is the condition that says so for an
/// object that is not Pileus'.
pub(super) fn progress(object: &Value, wait_for: Option<&str>) -> Progress {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return Progress::Failed("somebody else deletes it".to_owned());
    }
    let pileus = object["apiVersion"]
        .as_str()
        .is_some_and(|version| version.starts_with(pileus_api::GROUP));
    let wanted = match wait_for {
        Some(name) => name,
        // Flavors have no status.
        None if pileus && object["kind"] != "Flavor" => "Ready",
        None => return Progress::Ready,
    };
    if let Some(stalled) = condition(object, "Stalled")
        && stalled["status"] == "True"
    {
        return Progress::Failed(text(&stalled["message"]));
    }
    let generation = object["metadata"]["generation"].as_i64();
    let observed = object["status"]["observedGeneration"].as_i64();
    let Some(ready) = condition(object, wanted) else {
        return Progress::Pending(format!("it has no condition {wanted} yet"));
    };
    if pileus && ready["status"] == "False" && ready["reason"] == Reason::InvalidSpec.as_str() {
        return Progress::Failed(text(&ready["message"]));
    }
    if ready["status"] != "True" {
        return Progress::Pending(text(&ready["message"]));
    }
    if observed.is_some() && observed < generation {
        return Progress::Pending("its change has not been observed yet".to_owned());
    }
    Progress::Ready
}

/// What an object says of something that it names and that is not there, or not for it, and
/// Heat's words for that: property and noun.
pub(super) fn missing(object: &Value) -> Option<Missing> {
    let pileus = object["apiVersion"]
        .as_str()?
        .starts_with(pileus_api::GROUP);
    let ready = condition(object, "Ready").filter(|ready| pileus && ready["status"] == "False")?;
    let reason = ready["reason"].as_str()?;
    let (_, properties, noun) = NAMED.iter().find(|(named, ..)| named.as_str() == reason)?;
    Some(Missing {
        properties,
        noun,
        message: ready["message"].as_str().unwrap_or_default().to_owned(),
    })
}

/// Something that a resource names and that is not there.
pub(super) struct Missing {
    /// Properties that may name it.
    properties: &'static [&'static str],
    noun: &'static str,
    message: String,
}

/// What Heat's custom constraints check before a resource is made.
const NAMED: [(Reason, &[&str], &str); 8] = [
    (
        Reason::FlavorNotFound,
        &["flavor", "InstanceType"],
        "Flavor",
    ),
    (Reason::ImageNotFound, &["image", "ImageId"], "Image"),
    (Reason::ImageNotShared, &["image", "ImageId"], "Image"),
    (Reason::KeyPairNotFound, &["key_name", "KeyName"], "Key"),
    (
        Reason::NetworkNotFound,
        &["network", "network_id", "networks", "VpcId"],
        "Network",
    ),
    (
        Reason::NetworkNotShared,
        &["network", "network_id", "networks", "VpcId"],
        "Network",
    ),
    (
        Reason::PortNotFound,
        &["networks", "NetworkInterfaces"],
        "Port",
    ),
    (
        Reason::SecurityGroupNotFound,
        &[
            "security_groups",
            "security_group",
            "remote_group",
            "GroupSet",
        ],
        "Security Group",
    ),
];

impl Missing {
    /// Why the resource with these properties cannot be, and the way out.
    pub(super) fn told(&self, properties: &Map) -> String {
        let given = self
            .properties
            .iter()
            .find_map(|name| Some((*name, properties.get(name).filter(|v| !v.is_null())?)));
        let (property, value) = given.unwrap_or((self.properties[0], &Value::Null));
        let value = value.as_str().map(|text| format!(" ({text})"));
        format!(
            "properties.{property}: The {}{} could not be found: {}; make it or name another, and \
             set spec.healRequestedAt to try again",
            self.noun,
            value.unwrap_or_default(),
            self.message
        )
    }
}

/// Digests of a resource's properties: equal values have equal ones, and nothing of the
/// values, which may be secret, can be read from them.
pub(super) fn digests(
    leaf: &Leaf,
    properties: &Map,
    seed: &str,
    makes: Option<(&Makes, &str)>,
) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = properties
        .iter()
        .map(|(name, value)| (name.to_string(), digest(seed, &canonical(value))))
        .collect();
    if kinds::reads_metadata(&leaf.kind) && !leaf.metadata.is_null() {
        let text = canonical(&leaf.metadata);
        found.insert(METADATA.to_owned(), digest(seed, &text));
    }
    if let Some((makes, name)) = makes
        && let Some(object) = makes.objects.last()
        && object["metadata"]["name"] != name
    {
        // Where the template names the object, another name is another object.
        let reference = Reference::of(object);
        found.insert(IDENTITY.to_owned(), digest(seed, &format!("{reference:?}")));
    }
    found
}

/// The value as text, the same whatever the order of its maps: as in Heat, whose dictionaries
/// are equal in any order, another order is no change.
pub(super) fn canonical(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    value.to_string()
}

/// Digest of a text; without the stack's seed nobody can try texts until one fits.
pub(super) fn digest(seed: &str, text: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(seed);
    hash.update([0]);
    hash.update(text);
    hex::encode(&hash.finalize()[..10])
}

/// The manifest with the Stack's marks: whose it is, which resource, and its digest.
pub(super) fn marked(manifest: &Value, uid: &str, path: &str, digest: &str) -> Value {
    let mut object = manifest.clone();
    let metadata = &mut object["metadata"];
    for (key, name, value) in [
        ("labels", STACK_UID_LABEL, uid),
        ("annotations", STACK_RESOURCE_ANNOTATION, path),
        ("annotations", STACK_DIGEST_ANNOTATION, digest),
    ] {
        if !metadata[key].is_object() {
            metadata[key] = json!({});
        }
        metadata[key][name] = Value::from(value);
    }
    object
}

/// Whether an object was last made or changed to be what has this digest.
pub(super) fn is_applied(object: &Value, digest: &str) -> bool {
    object["metadata"]["annotations"][STACK_DIGEST_ANNOTATION] == digest
}

/// Whether an object was last made or changed for the resource at `path`.
pub(super) fn is_of(object: &Value, path: &str) -> bool {
    object["metadata"]["annotations"][STACK_RESOURCE_ANNOTATION] == path
}

/// Whether an object is what an entry says, made or changed for the resource at `path`.
pub(super) fn is_whole(object: &Value, entry: &Entry, path: &str, uid: &str) -> bool {
    is_applied(object, &entry.digest)
        && is_of(object, path)
        && !(entry.retain && is_owned(object, uid))
}

/// Whether the Stack with this uid owns an object, so that it goes with it.
pub(super) fn is_owned(object: &Value, uid: &str) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array();
    let mut owners = owners.into_iter().flatten();
    owners.any(|owner| owner["uid"] == uid)
}

/// The first field of `wanted` that `live` has otherwise, if there is one; what the API
/// server fills in is no difference.
pub(super) fn difference(live: &Value, wanted: &Value, path: &str) -> Option<String> {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match live.get(key) {
                Some(other) => difference(other, value, &path),
                None if pileus_stack::kinds::is_empty(value) => None,
                None => Some(path),
            }
        }),
        (Value::Array(live), Value::Array(wanted)) if live.len() == wanted.len() => {
            let mut pairs = live.iter().zip(wanted);
            pairs.find_map(|(live, wanted)| difference(live, wanted, path))
        }
        (live, wanted) => (live != wanted).then(|| path.to_owned()),
    }
}

/// What a failed resource is told as; Heat's words.
pub(super) fn failure(path: &str, entry: &Entry) -> String {
    let place = path.replace('/', ".resources.");
    format!(
        "Resource {} failed: {}: resources.{place}: {}",
        entry.action.word(),
        entry.kind,
        entry.reason
    )
}
