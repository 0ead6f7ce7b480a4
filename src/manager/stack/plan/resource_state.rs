//! The wanted state of one resource, and whether its objects have that state.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::{Entry, Reference};
use pileus_api::Reason;
use pileus_api::names::{STACK_DIGEST_ANNOTATION, STACK_RESOURCE_ANNOTATION, STACK_UID_LABEL};
use pileus_stack::resource_types::{self, IDENTITY, METADATA, MappedObjects};
use pileus_stack::tree::Leaf;
use pileus_stack::value::{Map, Value, json};

/// Progress of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is ready.
    Ready,
    /// It is not ready yet, with its message.
    Pending(String),
    /// Only a user can repair it, with its message.
    Failed(String),
}

/// A condition of an object.
pub(super) fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == name)
}

/// Progress of an object by its own conditions. `wait_for` is the condition to wait for if it is not
/// an object of Pileus.
pub(super) fn progress(object: &Value, wait_for: Option<&str>) -> Progress {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return Progress::Failed("somebody else is deleting it".to_owned());
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
    // An Image is fetched for the first Server made from it, which waits for the Image.
    let is_lazy = pileus && ready["reason"] == Reason::NotFetched.as_str();
    if ready["status"] != "True" && !is_lazy {
        return Progress::Pending(text(&ready["message"]));
    }
    if observed.is_some() && observed < generation {
        return Progress::Pending("its controller has not observed its last change yet".to_owned());
    }
    Progress::Ready
}

/// The object that another one refers to and that does not exist, or that it may not use, by its
/// `Ready` condition.
pub(super) fn missing(object: &Value) -> Option<Missing> {
    let pileus = object["apiVersion"]
        .as_str()?
        .starts_with(pileus_api::GROUP);
    let ready = condition(object, "Ready").filter(|ready| pileus && ready["status"] == "False")?;
    let reason = ready["reason"].as_str()?;
    let (_, properties, noun) = REFERENCES
        .iter()
        .find(|(named, ..)| named.as_str() == reason)?;
    Some(Missing {
        properties,
        noun,
        message: ready["message"].as_str().unwrap_or_default().to_owned(),
    })
}

/// An object that a resource refers to and that does not exist.
pub(super) struct Missing {
    /// Properties that may name it.
    properties: &'static [&'static str],
    /// Heat's name for its kind.
    noun: &'static str,
    message: String,
}

/// References that Heat's custom constraints check before a resource is created: reason of the
/// condition, properties, Heat's name for the kind.
const REFERENCES: [(Reason, &[&str], &str); 8] = [
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
    /// The message for a resource with these properties.
    pub(super) fn message(&self, properties: &Map) -> String {
        let given = self
            .properties
            .iter()
            .find_map(|name| Some((*name, properties.get(name).filter(|v| !v.is_null())?)));
        let (property, value) = given.unwrap_or((self.properties[0], &Value::Null));
        let value = value.as_str().map(|text| format!(" ({text})"));
        format!(
            "properties.{property}: The {}{} could not be found: {}; create it or name another, and \
             set spec.healRequestedAt to try again",
            self.noun,
            value.unwrap_or_default(),
            self.message
        )
    }
}

/// Digests of a resource's properties. Values may be secret, and cannot be found out from their
/// digests.
pub(super) fn digests(
    leaf: &Leaf,
    properties: &Map,
    seed: &str,
    makes: Option<(&MappedObjects, &str)>,
) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = properties
        .iter()
        .map(|(name, value)| (name.to_string(), digest(seed, &canonical(value))))
        .collect();
    if resource_types::reads_metadata(&leaf.resource_type) && !leaf.metadata.is_null() {
        let text = canonical(&leaf.metadata);
        found.insert(METADATA.to_owned(), digest(seed, &text));
    }
    if let Some((makes, name)) = makes
        && let Some(object) = makes.objects.last()
        && object["metadata"]["name"] != name
    {
        // If the template names the object, another name is another object.
        let reference = Reference::of(object);
        found.insert(IDENTITY.to_owned(), digest(seed, &format!("{reference:?}")));
    }
    found
}

/// The value as text with sorted maps: as in Heat, another order of a map is no change.
pub(super) fn canonical(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    value.to_string()
}

/// Digest of a text. It includes the stack's seed, so that the text cannot be guessed from it.
pub(super) fn digest(seed: &str, text: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(seed);
    hash.update([0]);
    hash.update(text);
    hex::encode(&hash.finalize()[..10])
}

/// The manifest with the Stack's label, and annotations for the resource's path and the digest.
pub(super) fn labelled(manifest: &Value, uid: &str, path: &str, digest: &str) -> Value {
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

/// Whether an object was last written from a manifest with this digest.
pub(super) fn has_digest(object: &Value, digest: &str) -> bool {
    object["metadata"]["annotations"][STACK_DIGEST_ANNOTATION] == digest
}

/// Whether an object was last written for the resource at `path`.
pub(super) fn is_for_resource(object: &Value, path: &str) -> bool {
    object["metadata"]["annotations"][STACK_RESOURCE_ANNOTATION] == path
}

/// Whether an object was last written from the manifest that an entry has the digest of, for the
/// resource at `path`, and has an owner reference only if it may.
pub(super) fn is_up_to_date(object: &Value, entry: &Entry, path: &str, uid: &str) -> bool {
    has_digest(object, &entry.digest)
        && is_for_resource(object, path)
        && !(entry.retain && is_owned(object, uid))
}

/// Whether an object has an owner reference to the Stack with this uid.
pub(super) fn is_owned(object: &Value, uid: &str) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array();
    let mut owners = owners.into_iter().flatten();
    owners.any(|owner| owner["uid"] == uid)
}

/// The first field of `wanted` that differs in `live`; fields that only `live` has are no
/// difference.
pub(super) fn difference(live: &Value, wanted: &Value, path: &str) -> Option<String> {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match live.get(key) {
                Some(other) => difference(other, value, &path),
                None if pileus_stack::resource_types::is_empty(value) => None,
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

/// The message for a failed resource, as in Heat.
pub(super) fn failure_message(path: &str, entry: &Entry) -> String {
    let place = path.replace('/', ".resources.");
    format!(
        "Resource {} failed: {}: resources.{place}: {}",
        entry.action.heat_name(),
        entry.resource_type,
        entry.reason
    )
}
