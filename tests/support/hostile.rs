//! Objects of every kind as a hostile tenant would write them, made from the schemas: values at
//! and beyond the bounds, text that some system cannot carry, references into the namespaces of
//! others, forged marks, owners, finalizers and statuses.
//!
//! Most values of an object are plausible, so that it gets past the API server and it is the
//! controllers that have to cope with the rest.

use std::fmt::Write as _;

use pileus_api::{crd, names};
use serde_json::{Map, Value, json};

use crate::random::Random;

/// A kind, by its definition.
pub struct Kind {
    pub name: String,
    pub plural: String,
    pub is_namespaced: bool,
    /// The schema of its spec.
    spec: Value,
    /// The schema of its status.
    status: Value,
}

/// All kinds of `pileus.dev`.
pub fn kinds() -> Vec<Kind> {
    let definitions = crd::all();
    definitions
        .iter()
        .map(|definition| {
            let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
            let properties = &schema["openAPIV3Schema"]["properties"];
            Kind {
                name: definition.spec.names.kind.clone(),
                plural: definition.spec.names.plural.clone(),
                is_namespaced: definition.spec.scope == "Namespaced",
                spec: properties["spec"].clone(),
                status: properties["status"].clone(),
            }
        })
        .collect()
}

/// What the tenant knows of the one that it is after.
pub struct Target {
    pub namespace: String,
    /// Names of objects of the victim, and of shared ones.
    pub names: Vec<String>,
    /// uids of objects of the victim.
    pub uids: Vec<String>,
}

const TEXTS: [&str; 20] = [
    "",
    " ",
    "\0",
    "a\0b",
    "\u{1}\u{1b}[2J",
    "line\r\nline\ttab",
    "\u{202e}exe.gnp",
    "\u{feff}\u{fffd}\u{ffff}",
    "\u{1f4a5}e\u{301}",
    "<a>&amp;]]></a>\"'",
    "$(reboot)`id`;|&",
    "../../../etc/passwd",
    "%s%n%x",
    "{{ .Values }} #{x} ${y}",
    "yes",
    "0x7f000001",
    "-1",
    "null",
    "system:masters",
    "kube-system",
];

const NUMBERS: [i64; 12] = [
    0,
    1,
    -1,
    255,
    65_535,
    65_536,
    2_147_483_647,
    3_000_000_000,
    -2_147_483_648,
    9_007_199_254_740_993,
    i64::MAX,
    i64::MIN,
];

const QUANTITIES: [&str; 8] = [
    "0",
    "-1",
    "64Mi",
    "1e30",
    "9223372036854775807",
    "0.5m",
    "10240Ti",
    "1n",
];

/// Makes hostile objects by chance.
pub struct Maker<'a> {
    pub random: &'a mut Random,
    pub target: &'a Target,
    /// One in so many values is hostile.
    pub one_in: u64,
}

impl Maker<'_> {
    /// An object to be created in `namespace`.
    pub fn object(&mut self, kind: &Kind, name: &str, namespace: &str) -> Value {
        let mut metadata = json!({"name": name});
        if kind.is_namespaced {
            metadata["namespace"] = namespace.into();
        }
        if self.random.once_in(4) {
            self.forge(&mut metadata);
        }
        let mut object = json!({
            "apiVersion": "pileus.dev/v1alpha1",
            "kind": kind.name,
            "metadata": metadata,
            "spec": self.spec(kind),
        });
        if self.random.once_in(4) {
            object["status"] = self.status(kind);
        }
        object
    }

    /// A spec.
    pub fn spec(&mut self, kind: &Kind) -> Value {
        self.value(&kind.spec, "", 0)
    }

    /// A status.
    pub fn status(&mut self, kind: &Kind) -> Value {
        self.value(&kind.status, "", 0)
    }

    /// Marks, owners and finalizers that only Pileus or the victim may set.
    fn forge(&mut self, metadata: &mut Value) {
        let uid = self.uid();
        match self.random.below(4) {
            0 => {
                let label = *self.random.one_of(&[
                    names::SERVER_UID_LABEL,
                    names::PORT_UID_LABEL,
                    names::SUBNET_UID_LABEL,
                    names::STACK_UID_LABEL,
                ]);
                metadata["labels"] = json!({label: uid});
            }
            1 => {
                let annotation = *self.random.one_of(&[
                    names::STACK_RESOURCE_ANNOTATION,
                    names::STACK_DIGEST_ANNOTATION,
                    names::DEFAULT_GROUP_ANNOTATION,
                    names::CLEAR_HOOKS_ANNOTATION,
                    names::REBUILD_RECORD_ANNOTATION,
                ]);
                metadata["annotations"] = json!({annotation: self.text()});
            }
            2 => {
                let finalizer = *self
                    .random
                    .one_of(&[names::MANAGER_FINALIZER, names::AGENT_FINALIZER]);
                metadata["finalizers"] = json!([finalizer]);
            }
            _ => {
                let kind = *self.random.one_of(&["Server", "Network", "Stack", "Port"]);
                metadata["ownerReferences"] = json!([{
                    "apiVersion": "pileus.dev/v1alpha1", "kind": kind, "name": self.name(),
                    "uid": uid, "controller": true, "blockOwnerDeletion": true,
                }]);
            }
        }
    }

    fn uid(&mut self) -> String {
        let uids = &self.target.uids;
        self.random.one_of(uids).clone()
    }

    fn name(&mut self) -> String {
        let names = &self.target.names;
        self.random.one_of(names).clone()
    }

    fn text(&mut self) -> String {
        match self.random.below(24) {
            0 => "a".repeat(253),
            1 => "a".repeat(254),
            2 => "\u{e4}".repeat(5_000),
            3 => "x".repeat(70_000),
            _ => (*self.random.one_of(&TEXTS)).to_owned(),
        }
    }

    fn is_hostile(&mut self) -> bool {
        self.random.once_in(self.one_in)
    }

    fn value(&mut self, schema: &Value, path: &str, depth: u32) -> Value {
        if self.is_hostile() && self.random.once_in(8) {
            return self.anything(0);
        }
        if let Some(words) = schema["enum"].as_array() {
            let words: Vec<_> = words.iter().filter(|word| !word.is_null()).collect();
            return if self.is_hostile() || words.is_empty() {
                self.text().into()
            } else {
                (*self.random.one_of(&words)).clone()
            };
        }
        if schema["x-kubernetes-int-or-string"] == true {
            return (*self.random.one_of(&QUANTITIES)).into();
        }
        match schema["type"].as_str() {
            Some("integer" | "number") => self.number(schema).into(),
            Some("boolean") => self.random.once_in(2).into(),
            Some("string") => self.string(schema, path).into(),
            Some("array") => {
                let count = match self.random.below(12) {
                    0 => 0,
                    1 if self.is_hostile() => 300,
                    n => 1 + n % 2,
                };
                let item = |i: u64, maker: &mut Self| {
                    let mut item = maker.value(&schema["items"], path, depth + 1);
                    // Lists of objects have a key, which must differ.
                    if count > 2 && item["name"].is_string() {
                        item["name"] = format!("n{i}").into();
                    }
                    item
                };
                (0..count).map(|i| item(i, self)).collect()
            }
            _ if schema["properties"].is_object() => self.fields(schema, depth),
            _ if schema["additionalProperties"].is_object() => {
                let mut map = Map::new();
                for i in 0..self.random.below(4) {
                    let key = if self.is_hostile() {
                        self.text()
                    } else {
                        format!("key{i}")
                    };
                    let value = self.value(&schema["additionalProperties"], path, depth + 1);
                    map.insert(key, value);
                }
                map.into()
            }
            _ => self.anything(0),
        }
    }

    fn fields(&mut self, schema: &Value, depth: u32) -> Value {
        let mut object = Map::new();
        let required: Vec<_> = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, inner) in schema["properties"].as_object().unwrap() {
            let is_required = required.iter().any(|field| field == name);
            // Deep specs stay small: fields of fields are rarer.
            let is_chosen = if is_required {
                !(self.is_hostile() && self.random.once_in(4))
            } else {
                self.random.once_in(3 + u64::from(depth))
            };
            if is_chosen {
                object.insert(name.clone(), self.value(inner, name, depth + 1));
            }
        }
        object.into()
    }

    fn number(&mut self, schema: &Value) -> i64 {
        let bound = |name: &str| {
            let bound = schema[name].as_f64();
            #[allow(clippy::cast_possible_truncation, reason = "bounds are small")]
            bound.map(|bound| bound as i64)
        };
        let (least, most) = (bound("minimum").unwrap_or(0), bound("maximum"));
        if self.is_hostile() {
            return match (self.random.below(4), most) {
                (0, _) => least.saturating_sub(1),
                (1, Some(most)) => most.saturating_add(1),
                _ => *self.random.one_of(&NUMBERS),
            };
        }
        match (self.random.below(4), most) {
            (0, _) => least,
            (1, Some(most)) => most,
            (_, most) => least.saturating_add(1).min(most.unwrap_or(i64::MAX)),
        }
    }

    fn string(&mut self, schema: &Value, field: &str) -> String {
        if self.is_hostile() {
            return self.text();
        }
        let plausible: &[&str] = match field {
            "cidr" | "remoteCIDR" | "destination" => {
                &["10.66.0.0/24", "10.66.0.0/30", "fd00:66::/64", "0.0.0.0/0"]
            }
            "gatewayIP" | "nextHop" | "fixedIP" | "address" | "start" | "end" | "dnsServers" => &[
                "10.66.0.9",
                "10.50.0.5",
                "10.50.0.1",
                "169.254.169.254",
                "fd00:66::5",
            ],
            "macAddress" | "mac" => &[
                "02:00:00:00:00:01",
                "fa:16:3e:00:00:01",
                "ff:ff:ff:ff:ff:ff",
            ],
            "url" => &[
                "http://127.0.0.1:8080/",
                "http://169.254.169.254/latest",
                "https://images.example/x",
                "file:///etc/shadow",
            ],
            "checksum" | "digest" => {
                &["sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
            }
            "publicKey" => &[crate::trouble::KEY],
            "namespace" => return self.target.namespace.clone(),
            "uid" | "portUid" | "instanceID" => return self.uid(),
            "template" => return self.template(),
            "userData" => &["#cloud-config\n{}\n"],
            "serviceAccountName" => &["default"],
            "flavor" => &["m1.nano"],
            "image" => &["tiny"],
            _ if schema["format"] == "date-time" => &["2026-01-01T00:00:00Z"],
            _ => return self.name(),
        };
        (*self.random.one_of(plausible)).to_owned()
    }

    /// Templates that cost much, or name what is not the tenant's.
    fn template(&mut self) -> String {
        let head = "heat_template_version: 2021-04-16\n";
        match self.random.below(5) {
            0 => self.text(),
            1 => format!(
                "{head}outputs:\n  a:\n    value:\n      yaql:\n        expression: range(0, 100000).select($ * $).where($ mod 7 = 0).len()\n        data: {{}}\n"
            ),
            2 => format!(
                "{head}outputs:\n  a:\n    value:\n      yaql:\n        expression: regex('(a+)+$').matches('{}b')\n        data: {{}}\n",
                "a".repeat(64)
            ),
            3 => {
                let mut text = format!("{head}resources:\n");
                for i in 0..20 {
                    let _ = writeln!(
                        text,
                        "  r{i}: {{type: OS::Heat::Value, properties: {{value: {{str_replace: {{template: {}, params: {{a: aa}}}}}}}}}}",
                        "a".repeat(200)
                    );
                }
                text
            }
            _ => format!(
                "{head}resources:\n  p: {{type: OS::Neutron::Port, properties: {{network: {}/{}}}}}\n",
                self.target.namespace,
                self.name()
            ),
        }
    }

    /// Any JSON, at times deeper than readers like.
    fn anything(&mut self, depth: u32) -> Value {
        match self.random.below(8) {
            0 => Value::Null,
            1 => (*self.random.one_of(&NUMBERS)).into(),
            2 => self.text().into(),
            3 => json!(0.1),
            4 if depth == 0 => {
                let mut deep = json!({});
                for _ in 0..150 {
                    deep = json!({"a": deep});
                }
                deep
            }
            5 if depth < 4 => vec![self.anything(depth + 1); 3].into(),
            6 if depth < 4 => {
                let key = self.text();
                json!({key: self.anything(depth + 1)})
            }
            _ => true.into(),
        }
    }
}
