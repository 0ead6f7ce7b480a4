//! A simulated API server with its controllers, in memory.

use std::collections::BTreeMap;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::super::plan::{self, Lookup, Observed, Plan, Step, refusals};
use super::super::record::{Reference, Sources, StackRecord};
use pileus_api::Stack;
use pileus_api::names::STACK_UID_LABEL;
use pileus_stack::value::{Value, json};

/// The simulated API server, and the record of one Stack.
pub(super) struct World {
    pub(super) stack: Stack,
    pub(super) sources: Sources,
    pub(super) record: Option<StackRecord>,
    pub(super) stored: BTreeMap<String, Sources>,
    pub(super) objects: BTreeMap<Reference, Value>,
    pub(super) now: Timestamp,
    pub(super) uids: u32,
    /// What was done, in order.
    pub(super) log: Vec<String>,
    /// Objects whose names hold this never become ready.
    pub(super) broken: Option<&'static str>,
    /// Objects whose names hold this are not ready, and do not say that they never will be.
    pub(super) slow: Option<&'static str>,
    /// Objects whose names hold this are refused by the API server.
    pub(super) refused: Option<&'static str>,
    /// An object of this name is not there, whatever its kind.
    pub(super) missing: Option<&'static str>,
}

/// One object for the API server, whichever version of its kind is asked for.
fn is_same(one: &Reference, other: &Reference) -> bool {
    let group = |object: &Reference| -> usize { object.api_version.rfind('/').unwrap_or(0) };
    let namespace = |object: &Reference| object.namespace.clone().unwrap_or("demo".to_owned());
    one.name == other.name
        && one.kind == other.kind
        && one.api_version[..group(one)] == other.api_version[..group(other)]
        && namespace(one) == namespace(other)
}

/// Whether a text stands anywhere in a value.
fn names(value: &Value, text: &str) -> bool {
    match value {
        Value::String(other) => other == text,
        Value::Array(items) => items.iter().any(|item| names(item, text)),
        Value::Object(map) => map.values().any(|item| names(item, text)),
        _ => false,
    }
}

impl Lookup for World {
    fn find(&self, kind: &str, name: &str) -> Option<Value> {
        let found = self
            .objects
            .iter()
            .find(|(object, _)| object.kind == kind && object.name == name);
        found.map(|(_, live)| live.clone())
    }

    fn may_use(&self, _: &str, _: Option<&str>, name: &str) -> bool {
        self.missing != Some(name)
    }
}

pub(super) fn stack() -> Stack {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "pileus.dev/v1alpha1", "kind": "Stack",
        "metadata": {"name": "shop", "namespace": "demo", "uid": "u-1"},
        "spec": {"template": "x"},
    }))
    .unwrap()
}

impl World {
    pub(super) fn new(template: &str) -> Self {
        Self {
            stack: stack(),
            sources: Sources {
                template: template.to_owned(),
                ..Sources::default()
            },
            record: None,
            stored: BTreeMap::new(),
            objects: BTreeMap::new(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            uids: 0,
            log: Vec::new(),
            broken: None,
            slow: None,
            refused: None,
            missing: None,
        }
    }

    fn find(&self, wanted: &Reference) -> Option<&Value> {
        let other = || self.objects.iter().find(|(o, _)| is_same(o, wanted));
        let found = self.objects.get(wanted);
        found.or_else(|| other().map(|(_, live)| live))
    }

    /// What a pass reads: serving objects only where they are asked for.
    fn observed(&self) -> BTreeMap<Reference, Value> {
        let mut observed = BTreeMap::new();
        let Some(record) = &self.record else {
            return observed;
        };
        for entry in record.entries.values() {
            let Some((last, serving)) = entry.objects.split_last() else {
                continue;
            };
            let live = self.find(last);
            let whole = live.is_some_and(|live| plan::is_up_to_date(live, entry));
            let deleting = self.stack.metadata.deletion_timestamp.is_some();
            let serving = serving
                .iter()
                .filter(|_| plan::reads_auxiliary(record, entry, whole, deleting));
            for object in serving.chain([last]) {
                if let Some(live) = self.find(object) {
                    observed.insert(object.clone(), live.clone());
                }
            }
        }
        observed
    }

    /// Objects that block the deletion of an object, by the rules of the controllers.
    fn users(&self, object: &Reference) -> Vec<String> {
        let pileus = object.api_version.starts_with(pileus_api::GROUP);
        let subnet = (object.kind == "Subnet")
            .then(|| self.objects[object]["spec"]["network"].as_str())
            .flatten();
        let others = self.objects.iter().filter(|(other, live)| {
            let has_address = matches!(other.kind.as_str(), "Port" | "Server");
            let inside = subnet.is_some_and(|network| has_address && names(&live["spec"], network));
            *other != object && (inside || names(&live["spec"], &object.name))
        });
        let users = others.filter(|_| pileus);
        users.map(|(other, _)| other.name.clone()).collect()
    }

    /// Removes objects that are being deleted and that nothing uses any more.
    fn collect(&mut self) {
        loop {
            let going = self.objects.iter().find(|(object, live)| {
                !live["metadata"]["deletionTimestamp"].is_null() && self.users(object).is_empty()
            });
            let Some(object) = going.map(|(object, _)| object.clone()) else {
                return;
            };
            let live = self.objects.remove(&object).unwrap();
            let path = &live["metadata"]["annotations"]["pileus.dev/stack-resource"];
            self.log
                .push(format!("delete {} {}", object.kind, path.as_str().unwrap()));
        }
    }

    /// What is seen before anything is read.
    pub(super) fn nothing_observed(&self) -> Observed<'_> {
        Observed {
            now: self.now,
            sources: Ok(self.sources.clone()),
            stored: self.stored.clone(),
            record: self.record.clone(),
            seed: "seed".to_owned(),
            objects: BTreeMap::new(),
            denied: None,
            unrecorded: Vec::new(),
            lookup: self,
            definition_deleted: false,
            grace: std::time::Duration::from_secs(60),
            stop: pileus_stack::budget::Stop::default(),
        }
    }

    pub(super) fn plan(&self) -> Plan {
        let observed = Observed {
            objects: self.observed(),
            ..self.nothing_observed()
        };
        plan::plan(&self.stack, &observed)
    }

    /// Plans and acts; `lost` says which steps a crash prevents.
    pub(super) fn pass(&mut self, mut lost: impl FnMut() -> bool) -> Plan {
        let plan = self.plan();
        if let Some(sources) = &plan.new_sources {
            self.stored.insert(sources.digest(), sources.clone());
        }
        self.record = Some(plan.record.clone());
        let mut refused = refusals::Refused::new();
        for step in &plan.steps {
            let applied = match step {
                Step::Apply { key, manifest, .. } => Some((key, Reference::of(manifest))),
                _ => None,
            };
            let is_refused = |name: &str| self.refused.is_some_and(|part| name.contains(part));
            if let Some((key, _)) = applied.filter(|(_, object)| is_refused(&object.name)) {
                refused.insert(key.clone(), "the API server refuses it".to_owned());
            } else if !lost() {
                self.act(step);
            }
        }
        if let Some(record) = &mut self.record {
            refusals::record_refused(record, refused, self.now);
        }
        self.now += SignedDuration::from_millis(100);
        plan
    }

    pub(super) fn act(&mut self, step: &Step) {
        match step {
            Step::Apply { manifest, live, .. } => {
                let object = Reference::of(manifest);
                let word = if live.is_some() { "change" } else { "make" };
                let path = manifest["metadata"]["annotations"]["pileus.dev/stack-resource"].clone();
                let reported = format!("{word} {} {}", object.kind, path.as_str().unwrap());
                let mut new = manifest.clone();
                self.uids += 1;
                let uid = live.as_ref().map_or_else(
                    || json!(format!("o-{}", self.uids)),
                    |live| live["metadata"]["uid"].clone(),
                );
                new["metadata"]["uid"] = uid;
                let before = self.find(&object).map(|live| live["metadata"].clone());
                match (live, before) {
                    // It belongs to the Stack, and is read by the next pass.
                    (None, Some(_)) if object.kind == "Secret" => return,
                    (None, Some(_)) => panic!("{object:?} is made twice"),
                    (Some(_), None) => panic!("{object:?} is gone"),
                    (Some(live), Some(before)) => {
                        assert_eq!(live["metadata"]["uid"], before["uid"], "{object:?}");
                        if !before["deletionTimestamp"].is_null() {
                            new["metadata"]["deletionTimestamp"] =
                                before["deletionTimestamp"].clone();
                        }
                    }
                    (None, None) => {}
                }
                self.log.push(reported);
                self.objects.retain(|other, _| !is_same(other, &object));
                self.objects.insert(object, new);
            }
            Step::Delete { object, uid, .. } => {
                let mut objects = self.objects.iter_mut();
                let found = objects.find(|(other, _)| is_same(other, object));
                if let Some((_, live)) = found
                    && uid
                        .as_ref()
                        .is_none_or(|uid| live["metadata"]["uid"] == **uid)
                {
                    live["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                }
                self.collect();
            }
            Step::Release { live, .. } => {
                let object = Reference::of(live);
                self.log.push(format!("release {}", object.kind));
                let live = self.objects.get_mut(&object).unwrap();
                live["metadata"]["labels"][STACK_UID_LABEL] = Value::Null;
            }
        }
    }

    /// Makes existing objects ready, unless they are broken, and removes deleted ones.
    pub(super) fn update_objects(&mut self) {
        self.collect();
        for (object, live) in &mut self.objects {
            let is = |part: Option<&str>| part.is_some_and(|part| object.name.contains(part));
            let (ready, stalled) = match (is(self.broken), is(self.slow)) {
                (true, _) => ("False", "True"),
                (_, true) => ("Unknown", "False"),
                _ => ("True", "False"),
            };
            live["status"] = json!({
                "addresses": [{"name": "nic-0", "port": "p", "macAddress": "m", "ips": ["10.0.0.9"]}],
                "conditions": [
                    {"type": "Ready", "status": ready, "reason": "X", "message": "so it is"},
                    {"type": "Stalled", "status": stalled, "reason": "X", "message": "it cannot work"},
                ],
            });
        }
    }

    /// Until nothing is left to do.
    pub(super) fn run_until_idle(&mut self) -> Plan {
        for _ in 0..500 {
            let before = self.record.clone();
            let plan = self.pass(|| false);
            self.update_objects();
            if plan.steps.is_empty() && before == self.record && !plan.record.is_busy() {
                return plan;
            }
        }
        panic!("never at rest: {:#?}\n{:#?}", self.record, self.log);
    }

    pub(super) fn stack_status(&self) -> String {
        self.record.as_ref().unwrap().stack_status().unwrap()
    }

    pub(super) fn change(&mut self, from: &str, to: &str) {
        assert!(self.sources.template.contains(from), "{from}");
        self.sources.template = self.sources.template.replace(from, to);
    }

    pub(super) fn count(&self, kind: &str) -> usize {
        self.objects
            .keys()
            .filter(|object| object.kind == kind)
            .count()
    }

    pub(super) fn at(&self, what: &str) -> usize {
        let found = self.log.iter().position(|line| line == what);
        found.unwrap_or_else(|| panic!("{what} is not in {:#?}", self.log))
    }

    pub(super) fn delete(&mut self) {
        self.stack.metadata.deletion_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now),
        );
        for _ in 0..100 {
            let plan = self.pass(|| false);
            self.update_objects();
            if plan.deleted {
                return;
            }
        }
        panic!("never gone: {:#?}", self.record);
    }
}
