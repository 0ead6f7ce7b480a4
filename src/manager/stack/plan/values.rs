//! Resources whose objects the stack does not make: those without objects, and external ones.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::decide::Decision;
use super::forward::Walk;
use super::{Action, Key, State, resource_state, since};
use kube::ResourceExt;
use pileus_stack::functions::Known;
use pileus_stack::resource_types::{self, MappedValue, Mapping, MappingInput, SupportedType};
use pileus_stack::tree::Leaf;
use pileus_stack::value::Map;

impl Walk<'_, '_> {
    /// The incarnation of a resource with an `external_id`.
    fn external_number(&self, path: &str) -> u32 {
        let record = &self.pass.plan.record;
        let mut incarnations = record.incarnations(path);
        let newest = incarnations.next();
        match newest {
            Some((number, entry)) if entry.external => number,
            // The stack's own object of this resource is another one.
            Some((number, _)) => number.saturating_add(1),
            None => 1,
        }
    }

    /// A resource with an `external_id`: its object is found by name, and never changed.
    pub(super) fn external_resource(
        &mut self,
        path: &str,
        leaf: &Leaf,
        supported: &SupportedType,
    ) -> Known {
        let name = leaf.external_id.as_str().unwrap_or_default();
        let number = self.external_number(path);
        self.targets.insert(path.to_owned(), number);
        if !self.read_only {
            let now = self.pass.observed.now;
            let entry = self.entry((path.to_owned(), number));
            entry.resource_type.clone_from(&leaf.resource_type);
            entry.external = true;
            entry.set_state(
                Action::Create,
                State::Complete,
                format!("`{name}` exists already"),
                now,
            );
        }
        let lookup = self.pass.observed.lookup;
        let find = |kind: &str, name: &str| lookup.find(kind, name);
        let mut known = match supported.mapping {
            Mapping::Objects { kind: object, .. } => find(object, name)
                .map(|object| resource_types::known(&leaf.resource_type, &object, &find))
                .unwrap_or_default(),
            Mapping::Values(_) => Known::default(),
        };
        known.refid = leaf.external_id.clone();
        known.open = true;
        known
    }

    /// A resource without objects.
    pub(super) fn value_resource(
        &mut self,
        path: &str,
        leaf: &Leaf,
        properties: &Map,
        map: fn(&MappingInput<'_>) -> pileus_stack::Result<MappedValue>,
    ) -> pileus_stack::Result<Option<Known>> {
        let digests = resource_state::digests(leaf, properties, &self.pass.plan.record.seed, None);
        let decision = self.decide(path, leaf, &digests, None)?;
        let (Decision::Keep(number) | Decision::Update(number) | Decision::Create(number)) =
            decision;
        let name = self.name(path, number);
        let namespace = self.pass.stack.namespace().unwrap_or_default();
        let seed = &self.pass.plan.record.seed;
        let seed = Sha256::digest(format!("{seed}/{path}#{number}"));
        let lookup = self.pass.observed.lookup;
        let find = |kind: &str, name: &str| lookup.find(kind, name);
        let value =
            map(&self.request(&name, &namespace, properties, &leaf.metadata, &seed, &find))?;
        if !matches!(decision, Decision::Keep(_)) {
            if !self.may_start(path, number, leaf, &decision) {
                return Ok(None);
            }
            self.start(path, number, leaf, &decision, &digests);
        }
        let key = (path.to_owned(), number);
        self.targets.insert(path.to_owned(), number);
        if !self.read_only {
            self.update_requirements(&key, leaf);
            self.wait_for_delay(&key, &value);
        }
        if self
            .pass
            .plan
            .record
            .entries
            .get(&key)
            .is_none_or(|e| e.state != State::Complete)
        {
            return Ok(None);
        }
        Ok(Some(self.known_value(value)))
    }

    pub(super) fn known_value(&mut self, value: MappedValue) -> Known {
        if let (Some(config), Some(id)) = (&value.config, value.refid.as_str()) {
            self.configs.insert(id.to_owned(), config.clone());
        }
        Known {
            refid: value.refid,
            // A type without attributes returns null for every attribute.
            open: value.attributes.is_empty(),
            attributes: value.attributes,
        }
    }

    /// Completes or fails a resource without objects after the delay that its type has.
    fn wait_for_delay(&mut self, key: &Key, value: &MappedValue) {
        let now = self.pass.observed.now;
        let Some(entry) = self.pass.plan.record.entries.get_mut(key) else {
            return;
        };
        if entry.state != State::InProgress {
            return;
        }
        let left = Duration::from_millis(value.delay_ms).saturating_sub(since(entry.since, now));
        if !left.is_zero() {
            self.pass.requeue_in(left);
        } else if let Some(why) = &value.failure {
            entry.set_state(entry.action, State::Failed, why, now);
            self.failing = true;
        } else {
            self.complete(key);
        }
    }
}
