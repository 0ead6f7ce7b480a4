//! Creates, updates and keeps resources until the stack is what its template says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::ResourceExt;

use super::batch;
use super::conflicts::{Forecast, NameCheck};
use super::decide::Decision;
use super::rebuild::Search;
use super::resource_state::{self, Progress};
use super::{Action, Entry, Key, Pass, Reference, Sources, State, Step, since};
use pileus_stack::functions::Known;
use pileus_stack::hooks;
use pileus_stack::resource_types::{self, MappedObjects, Mapping, MappingInput, SupportedType};
use pileus_stack::tree::{self, Flat, Leaf};
use pileus_stack::value::{Map, Value};

/// How long resources in progress may continue after another one has failed; Heat's
/// `error_wait_time`.
const ERROR_WAIT: Duration = Duration::from_secs(240);

/// One evaluation of the template, resource by resource, with the results so far.
pub(super) struct Walk<'p, 'a> {
    pub(super) pass: &'p mut Pass<'a>,
    /// Nothing is started or recorded, only evaluated.
    pub(super) read_only: bool,
    /// By path: the incarnation that is wanted.
    pub(super) targets: BTreeMap<String, u32>,
    /// Paths of resources that are ready.
    pub(super) ready: BTreeSet<String>,
    /// Texts of software configurations by reference id.
    pub(super) configs: BTreeMap<String, String>,
    /// A resource has failed: nothing more is started.
    pub(super) failing: bool,
    /// By path: the incarnation that is kept, updated or created.
    pub(super) decided: BTreeMap<String, u32>,
    /// What the whole template wants, once that is needed.
    pub(super) forecast: Option<Forecast>,
    /// Servers to stop, after those that use them: key, manifests and their digest.
    pub(super) to_stop: Vec<(Key, Vec<Value>, String)>,
    /// The environment's `resource_registry`, with hooks and restricted actions.
    pub(super) registry: Map,
    /// The wanted objects of each incarnation, for checks.
    pub(super) manifests: BTreeMap<Key, Vec<Value>>,
    /// Set when a lost record is rebuilt: nothing is started, existing objects are searched for.
    pub(super) search: Option<Search>,
}

impl<'p, 'a> Walk<'p, 'a> {
    pub(super) fn new(pass: &'p mut Pass<'a>, read_only: bool) -> Self {
        let failing = is_failing(pass);
        Self {
            pass,
            read_only,
            targets: BTreeMap::new(),
            ready: BTreeSet::new(),
            configs: BTreeMap::new(),
            failing,
            decided: BTreeMap::new(),
            forecast: None,
            to_stop: Vec::new(),
            registry: Map::new(),
            manifests: BTreeMap::new(),
            search: None,
        }
    }

    /// Evaluates the template, and plans what can be done now.
    pub(super) fn walk(&mut self, sources: &Sources) -> pileus_stack::Result<Flat> {
        let mut input = super::input(self.pass.stack, sources, &self.pass.observed.stop)?;
        let record = &self.pass.plan.record;
        input.removed.clone_from(&record.removed_members);
        input.members = batch::members(record);
        if !self.read_only {
            let sizes = record.rolling.iter();
            let sizes = sizes.filter_map(|(path, at)| Some((path.clone(), at.capacity()?)));
            input.sizes = sizes.collect();
        }
        self.registry.clone_from(&input.environment.registry);
        let flat = tree::flatten(&input, &mut |path, leaf| self.resolve(path, leaf));
        flat.map_err(|stop| stop.error)
    }

    /// The reference id and attributes of a resource if it is ready; otherwise plans what can be
    /// done now to make it ready.
    fn resolve(&mut self, path: &str, leaf: &Leaf) -> Option<Known> {
        let known = match self.try_resolve(path, leaf) {
            Ok(known) => known,
            Err(error) if self.search.is_some() => {
                self.add_difference(path, &error.to_string());
                None
            }
            Err(error) => {
                self.fail_resource(path, leaf, &error.to_string());
                None
            }
        };
        if known.is_some() {
            self.ready.insert(path.to_owned());
        }
        known
    }

    fn try_resolve(&mut self, path: &str, leaf: &Leaf) -> pileus_stack::Result<Option<Known>> {
        let Some(supported) = resource_types::find(&leaf.resource_type) else {
            let message = format!(
                "resources of the type `{}` are not supported yet",
                leaf.resource_type
            );
            return Err(pileus_stack::Error::new(message));
        };
        if !leaf.external_id.is_null() {
            return Ok(Some(self.external_resource(path, leaf, supported)));
        }
        if self.search.is_some() {
            return self.rebuild_resource(path, leaf, supported);
        }
        let properties = leaf.properties.clone()?;
        resource_types::check::refuse(supported, &properties)?;
        match supported.mapping {
            Mapping::Values(map) => self.value_resource(path, leaf, &properties, map),
            Mapping::Objects { map, .. } => {
                self.object_resource(path, leaf, supported, &properties, map)
            }
        }
    }

    pub(super) fn request<'r>(
        &'r self,
        name: &'r str,
        namespace: &'r str,
        properties: &'r Map,
        metadata: &'r Value,
        seed: &'r [u8],
        find: resource_types::FindObject<'r>,
    ) -> MappingInput<'r> {
        MappingInput {
            name,
            namespace,
            properties,
            metadata,
            suspended: self.pass.plan.record.suspended,
            configs: &self.configs,
            find,
            seed,
        }
    }

    pub(super) fn name(&self, path: &str, number: u32) -> String {
        let stack = self.pass.stack;
        resource_types::object_name(
            &stack.name_any(),
            &stack.uid().unwrap_or_default(),
            path,
            number,
        )
    }

    /// A resource with objects.
    fn object_resource(
        &mut self,
        path: &str,
        leaf: &Leaf,
        supported: &SupportedType,
        properties: &Map,
        map: fn(&MappingInput<'_>) -> pileus_stack::Result<MappedObjects>,
    ) -> pileus_stack::Result<Option<Known>> {
        let namespace = self.pass.stack.namespace().unwrap_or_default();
        let lookup = self.pass.observed.lookup;
        let find = |kind: &str, name: &str| lookup.find(kind, name);
        let made = |walk: &Self, number: u32| {
            let name = walk.name(path, number);
            let makes =
                map(&walk.request(&name, &namespace, properties, &leaf.metadata, &[], &find));
            makes.map(|makes| (makes, name))
        };
        let (makes, name) = made(self, 1)?;
        let seed = self.pass.plan.record.seed.clone();
        let digests = resource_state::digests(leaf, properties, &seed, Some((&makes, &name)));
        let main = makes.objects.last().map(Reference::of);
        let mut decision = self.decide(path, leaf, &digests, main.as_ref())?;
        let (Decision::Keep(number) | Decision::Update(number) | Decision::Create(number)) =
            decision;
        let (makes, _) = made(self, number)?;
        let key = (path.to_owned(), number);
        self.decided.insert(path.to_owned(), number);
        if matches!(decision, Decision::Keep(_))
            && !self.read_only
            && self.needs_reclaim(&key, leaf.retain)
        {
            decision = Decision::Update(number);
        }
        let digest = resource_state::digest(
            &seed,
            &resource_state::canonical(&Value::from(makes.objects.clone())),
        );
        let mut must_read_first = false;
        if !matches!(decision, Decision::Keep(_)) {
            if !self.may_start(path, number, leaf, &decision)
                || !self.remove_conflicting(&key, &makes)?
            {
                return Ok(None);
            }
            let name_check = self.check_name(&key, &makes)?;
            if matches!(name_check, NameCheck::Wait) {
                return Ok(None);
            }
            self.start(path, number, leaf, &decision, &digests);
            let entry = self.entry(key.clone());
            let before = std::mem::take(&mut entry.objects);
            entry.objects = makes.objects.iter().map(Reference::of).collect();
            // An object that was not read by this name must be read first: it may exist.
            let renamed = !before.is_empty() && before.last() != entry.objects.last();
            must_read_first = renamed || matches!(name_check, NameCheck::TakeOver);
            entry.claims = makes.claims;
            entry.digest.clone_from(&digest);
            entry.by_account = supported.by_account;
        }
        self.targets.insert(path.to_owned(), number);
        self.manifests.insert(key.clone(), makes.objects.clone());
        if !self.read_only {
            self.update_requirements(&key, leaf);
            self.suspend(&key, &makes.objects, &digest);
            if must_read_first {
                self.pass.requeue_in(Duration::ZERO);
            } else {
                self.apply_and_observe(&key, &makes.objects, Some(properties));
            }
        }
        let Some(entry) = self.pass.plan.record.entries.get(&key) else {
            return Ok(None);
        };
        let stopping = self.pass.plan.record.action == Some(Action::Suspend)
            && self.pass.plan.record.is_busy();
        if entry.state != State::Complete && !(stopping && entry.state == State::InProgress) {
            return Ok(None);
        }
        let object = entry
            .objects
            .last()
            .and_then(|object| self.pass.observed.objects.get(object));
        // Of a deleted object only the name is known.
        let missing = || Known {
            refid: entry
                .objects
                .last()
                .map(|object| object.name.clone())
                .into(),
            attributes: Map::new(),
            open: true,
        };
        Ok(Some(object.map_or_else(missing, |object| {
            resource_types::known(&leaf.resource_type, object, &find)
        })))
    }

    pub(super) fn entry(&mut self, key: Key) -> &mut Entry {
        self.pass.plan.record.entries.entry(key).or_default()
    }

    /// Whether a resource may be created or updated now.
    pub(super) fn may_start(
        &mut self,
        path: &str,
        number: u32,
        leaf: &Leaf,
        decision: &Decision,
    ) -> bool {
        let makes = matches!(decision, Decision::Create(_));
        !self.read_only
            && !self.failing
            && self.may_start_in_batch(&leaf.batches)
            && self.passes_hooks(path, number, leaf, makes)
    }

    /// RecordStore that a resource is made or changed now.
    pub(super) fn start(
        &mut self,
        path: &str,
        number: u32,
        leaf: &Leaf,
        decision: &Decision,
        digests: &BTreeMap<String, String>,
    ) {
        let now = self.pass.observed.now;
        let action = if matches!(decision, Decision::Create(_)) {
            Action::Create
        } else {
            Action::Update
        };
        let entry = self.entry((path.to_owned(), number));
        entry.resource_type.clone_from(&leaf.resource_type);
        entry.properties.clone_from(digests);
        entry.hook_reached = None;
        entry.reapply = false;
        entry.set_state(action, State::InProgress, "", now);
        entry.since = now;
    }

    /// Records requirements, deletion policy and hooks, which can change without a change of the
    /// resource itself.
    pub(super) fn update_requirements(&mut self, key: &Key, leaf: &Leaf) {
        let targets = &self.targets;
        let requires = leaf.requires.iter();
        let requires = requires.filter_map(|path| Some((path.clone(), *targets.get(path)?)));
        let requires = super::requirements::grouped(requires.collect(), targets);
        let hooks = hooks::of(&self.registry, &key.0).hooks;
        if let Some(entry) = self.pass.plan.record.entries.get_mut(key) {
            entry.requires = requires;
            entry.retain = leaf.retain;
            entry.hooks = hooks;
        }
    }

    /// Plans to apply objects that are not up to date; otherwise records the progress of the main
    /// object.
    pub(super) fn apply_and_observe(
        &mut self,
        key: &Key,
        objects: &[Value],
        properties: Option<&Map>,
    ) {
        let wait_for = properties.and_then(|properties| properties.get("wait_for")?.as_str());
        let uid = self.pass.stack.uid().unwrap_or_default();
        let now = self.pass.observed.now;
        let Some(entry) = self.pass.plan.record.entries.get(key).cloned() else {
            return;
        };
        if entry.state != State::InProgress || entry.action == Action::Delete {
            return;
        }
        if entry.by_account {
            let unwatched_in_progress = super::unwatched_in_progress(&self.pass.plan.record);
            self.pass
                .requeue_in(super::poll_interval(unwatched_in_progress, &entry, now));
        }
        let mut state = Progress::Pending(entry.reason.clone());
        let mut applied = true;
        let live = |object: &Reference| self.pass.observed.objects.get(object);
        // Auxiliary objects are created before the main object: if that exists, they do.
        let main = entry.objects.last().and_then(live);
        let is_current = |live: &Value| resource_state::is_up_to_date(live, &entry, &key.0, &uid);
        let main_is_current = main.is_some_and(is_current);
        let mut steps = Vec::new();
        for (index, (manifest, object)) in objects.iter().zip(&entry.objects).enumerate() {
            if main_is_current && index + 1 < objects.len() {
                continue;
            }
            let live = live(object);
            if live.is_some_and(|live| !super::is_ours(live, &uid)) {
                let why = format!(
                    "{} {} exists and does not belong to this stack; give another name or delete it",
                    object.kind, object.name
                );
                state = Progress::Failed(why);
                applied = true;
                steps.clear();
                break;
            }
            if !live.is_some_and(is_current) {
                applied = false;
                steps.push(Step::Apply {
                    key: key.clone(),
                    manifest: resource_state::labelled(manifest, &uid, &key.0, &entry.digest),
                    live: live.cloned(),
                    by_account: entry.by_account,
                    retain: entry.retain,
                });
            }
            state = live.map_or(state, |live| resource_state::progress(live, wait_for));
        }
        self.pass.plan.steps.extend(steps);
        if !applied {
            return;
        }
        if let (Progress::Pending(_), Some(properties)) = (&state, properties)
            && let Some(missing) = entry
                .objects
                .last()
                .and_then(live)
                .and_then(resource_state::missing)
        {
            let left = self
                .pass
                .observed
                .grace
                .saturating_sub(since(entry.since, now));
            if left.is_zero() {
                state = Progress::Failed(missing.message(properties));
            } else {
                self.pass.requeue_in(left);
            }
        }
        let (to, reason) = match state {
            Progress::Ready => (State::Complete, String::new()),
            Progress::Pending(reason) => (State::InProgress, reason),
            Progress::Failed(reason) => (State::Failed, reason),
        };
        self.failing |= to == State::Failed;
        if to == State::Complete {
            self.complete(key);
        } else if let Some(entry) = self.pass.plan.record.entries.get_mut(key) {
            entry.set_state(entry.action, to, reason, now);
        }
    }

    /// Records the failure of a resource whose object could not be described.
    fn fail_resource(&mut self, path: &str, leaf: &Leaf, message: &str) {
        if self.read_only || self.failing {
            return;
        }
        let now = self.pass.observed.now;
        let record = &self.pass.plan.record;
        let newest = record
            .incarnations(path)
            .next()
            .map(|(number, entry)| (number, entry.clone()));
        // The failure belongs to the next incarnation: the existing one may work.
        let number = newest.map_or(1, |(number, _)| number.saturating_add(1));
        let entry = self.entry((path.to_owned(), number));
        entry.resource_type.clone_from(&leaf.resource_type);
        entry.since = now;
        entry.set_state(Action::Create, State::Failed, message, now);
        self.failing = true;
    }

    fn is_done(&self, flat: &Flat) -> bool {
        flat.unexpanded.is_empty() && self.ready.len() == flat.leaves.len()
    }
}

/// Whether a resource has failed in the current action.
fn is_failing(pass: &Pass<'_>) -> bool {
    let mut entries = pass.plan.record.entries.values();
    entries.any(Entry::has_failed)
}

impl Pass<'_> {
    /// Continues to create, update, roll back, suspend or resume.
    pub(super) fn forward(&mut self, target: &Sources) {
        let mut walk = Walk::new(self, false);
        let flat = match walk.walk(target) {
            Ok(flat) => flat,
            Err(error) => {
                let message = error.to_string();
                self.fail_action(&message);
                return;
            }
        };
        walk.stop_dependents_first();
        let all_batches_done = walk.start_next_batches(&flat);
        let done = walk.is_done(&flat) && all_batches_done && !walk.failing;
        let targets: BTreeSet<Key> = walk.targets.clone().into_iter().collect();
        self.plan.secrets.clone_from(&flat.secrets);
        for (path, named) in &flat.named {
            let known = self
                .plan
                .record
                .members_by_id
                .entry(path.clone())
                .or_default();
            known.extend(named.clone());
        }
        if done && self.remove_except(&targets) && self.has_nothing_in_progress() {
            let record = &mut self.plan.record;
            let action = record.action.unwrap_or_default();
            if matches!(action, Action::Create | Action::Update) {
                record.last_good_digest.clone_from(&record.target_digest);
                record.removed_members = flat.removed;
                record.members_by_id = flat.named;
                record.emptied.clear();
            }
            if action == Action::Rollback && !record.emptied.is_empty() {
                let names = crate::list_some(record.emptied.iter().cloned().collect());
                // No word of success: what was on their disks is lost.
                record.end(
                    State::Failed,
                    format!(
                        "the failed update had deleted {names} to make way for the replacement, and \
                         the rollback made it anew: its disk is empty. All else is as before; an \
                         update that succeeds ends this"
                    ),
                );
            } else {
                record.end(
                    State::Complete,
                    format!("Stack {} completed successfully", action.heat_name()),
                );
            }
            // The outputs may use resources that have just become complete.
            self.set_outputs(target);
            return;
        }
        self.plan.outputs = Some(super::inspect::outputs(&flat));
        if is_failing(self) {
            self.finish_failure();
        }
    }

    fn has_nothing_in_progress(&self) -> bool {
        let mut entries = self.plan.record.entries.values();
        entries.all(|entry| entry.state != State::InProgress || entry.is_waiting_at_hook())
    }

    /// Fails the action once nothing is in progress any more, or after `ERROR_WAIT`.
    fn finish_failure(&mut self) {
        let now = self.observed.now;
        let record = &mut self.plan.record;
        let spent = since(*record.failing_since.get_or_insert(now), now);
        if spent < ERROR_WAIT && !self.has_nothing_in_progress() {
            self.requeue_in(ERROR_WAIT.saturating_sub(spent));
            return;
        }
        let failed = self.plan.record.entries.iter();
        let mut failed = failed.filter(|(_, entry)| entry.has_failed());
        let message = failed
            .next()
            .map(|((path, _), entry)| resource_state::failure_message(path, entry))
            .unwrap_or_default();
        self.fail_action(&message);
    }

    pub(super) fn fail_action(&mut self, message: &str) {
        let now = self.observed.now;
        let record = &mut self.plan.record;
        super::cancel_in_progress(&mut record.entries, "another resource failed", now);
        record.end(State::Failed, message);
    }
}
