//! What is made, changed and kept, on the way to a template.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::ResourceExt;
use sha2::{Digest, Sha256};

use super::batch;
use super::decide::Decision;
use super::resource_state::{self, Progress};
use super::rebuild::Search;
use super::conflicts::{Look, Names};
use super::{Action, Entry, Key, Pass, Reference, Sources, State, Step, since};
use pileus_stack::functions::Known;
use pileus_stack::hooks;
use pileus_stack::kinds::{self, How, Kind, Makes, Request, Settles};
use pileus_stack::tree::{self, Flat, Leaf};
use pileus_stack::value::{Map, Value};

/// How long what is under way is waited for once something has failed; Heat's
/// `error_wait_time`.
const ERROR_WAIT: Duration = Duration::from_secs(240);

/// One look at the template, with what has been found so far.
pub(super) struct Walk<'p, 'a> {
    pub(super) pass: &'p mut Pass<'a>,
    /// Nothing is begun: only what is known is gathered.
    pub(super) only_look: bool,
    /// Incarnations that are wanted.
    pub(super) targets: BTreeMap<String, u32>,
    /// Those that are as they should be.
    pub(super) settled: BTreeSet<String>,
    /// Texts of software configurations.
    configs: BTreeMap<String, String>,
    /// A resource has failed: nothing more is begun.
    pub(super) failing: bool,
    /// The incarnation that is kept, changed or made.
    pub(super) decided: BTreeMap<String, u32>,
    /// What the whole template wants, once that was asked for.
    pub(super) look: Option<Look>,
    /// Servers that are to be stopped, once what uses them is.
    pub(super) to_stop: Vec<(Key, Vec<Value>, String)>,
    /// The environment's, which says where resources wait and what must not be done.
    pub(super) registry: Map,
    /// What the resource's objects should be, for checks.
    pub(super) wanted: BTreeMap<Key, Vec<Value>>,
    /// Nothing is done: what a lost record had is looked for.
    pub(super) search: Option<Search>,
}

impl<'p, 'a> Walk<'p, 'a> {
    pub(super) fn new(pass: &'p mut Pass<'a>, only_look: bool) -> Self {
        let failing = is_failing(pass);
        Self {
            pass,
            only_look,
            targets: BTreeMap::new(),
            settled: BTreeSet::new(),
            configs: BTreeMap::new(),
            failing,
            decided: BTreeMap::new(),
            look: None,
            to_stop: Vec::new(),
            registry: Map::new(),
            wanted: BTreeMap::new(),
            search: None,
        }
    }

    /// Evaluates the template, and does what can be done on the way.
    pub(super) fn walk(&mut self, sources: &Sources) -> pileus_stack::Result<Flat> {
        let mut input = super::input(self.pass.stack, sources)?;
        let record = &self.pass.plan.record;
        input.removed.clone_from(&record.removed);
        input.members = batch::members(record);
        if !self.only_look {
            let sizes = record.rolling.iter();
            let sizes = sizes.filter_map(|(path, at)| Some((path.clone(), at.capacity()?)));
            input.sizes = sizes.collect();
        }
        self.registry.clone_from(&input.environment.registry);
        let flat = tree::flatten(&input, &mut |path, leaf| self.settle(path, leaf));
        flat.map_err(|stop| stop.error)
    }

    /// What is known of a resource, if it is as it should be; if it is not, what can be done
    /// for that.
    fn settle(&mut self, path: &str, leaf: &Leaf) -> Option<Known> {
        let known = match self.one(path, leaf) {
            Ok(known) => known,
            Err(error) if self.search.is_some() => {
                self.differs(path, &error.to_string());
                None
            }
            Err(error) => {
                self.fail(path, leaf, &error.to_string());
                None
            }
        };
        if known.is_some() {
            self.settled.insert(path.to_owned());
        }
        known
    }

    fn one(&mut self, path: &str, leaf: &Leaf) -> pileus_stack::Result<Option<Known>> {
        let Some(kind) = kinds::find(&leaf.kind) else {
            let message = format!("resources of the type `{}` cannot be made yet", leaf.kind);
            return Err(pileus_stack::Error::new(message));
        };
        if !leaf.external_id.is_null() {
            return Ok(Some(self.external(path, leaf, kind)));
        }
        if self.search.is_some() {
            return self.find_again(path, leaf, kind);
        }
        let properties = leaf.properties.clone()?;
        kinds::check::refuse(kind, &properties)?;
        match kind.how {
            How::Values(map) => self.value(path, leaf, &properties, map),
            How::Objects { map, .. } => self.objects(path, leaf, kind, &properties, map),
        }
    }

    fn external_number(&self, path: &str) -> u32 {
        let record = &self.pass.plan.record;
        let mut incarnations = record.incarnations(path);
        let newest = incarnations.next();
        match newest {
            Some((number, entry)) if entry.external => number,
            // What the stack has made under this name is another thing.
            Some((number, _)) => number.saturating_add(1),
            None => 1,
        }
    }

    /// What exists and is not the stack's: known by its name, and never touched.
    fn external(&mut self, path: &str, leaf: &Leaf, kind: &Kind) -> Known {
        let name = leaf.external_id.as_str().unwrap_or_default();
        let number = self.external_number(path);
        self.targets.insert(path.to_owned(), number);
        if !self.only_look {
            let now = self.pass.observed.now;
            let entry = self.entry((path.to_owned(), number));
            entry.kind.clone_from(&leaf.kind);
            entry.external = true;
            entry.set(
                Action::Create,
                State::Complete,
                format!("`{name}` exists already"),
                now,
            );
        }
        let lookup = self.pass.observed.find;
        let find = |kind: &str, name: &str| lookup.find(kind, name);
        let mut known = match kind.how {
            How::Objects { kind: object, .. } => find(object, name)
                .map(|object| kinds::known(&leaf.kind, &object, &find))
                .unwrap_or_default(),
            How::Values(_) => Known::default(),
        };
        known.refid = leaf.external_id.clone();
        known.open = true;
        known
    }

    pub(super) fn request<'r>(
        &'r self,
        name: &'r str,
        namespace: &'r str,
        properties: &'r Map,
        metadata: &'r Value,
        seed: &'r [u8],
        find: kinds::Find<'r>,
    ) -> Request<'r> {
        Request {
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
        kinds::object_name(
            &stack.name_any(),
            &stack.uid().unwrap_or_default(),
            path,
            number,
        )
    }

    /// A resource that is nothing but its properties.
    fn value(
        &mut self,
        path: &str,
        leaf: &Leaf,
        properties: &Map,
        map: fn(&Request<'_>) -> pileus_stack::Result<Settles>,
    ) -> pileus_stack::Result<Option<Known>> {
        let digests = resource_state::digests(leaf, properties, &self.pass.plan.record.seed, None);
        let decision = self.decide(path, leaf, &digests, None)?;
        let (Decision::Keep(number) | Decision::Change(number) | Decision::Make(number)) = decision;
        let name = self.name(path, number);
        let namespace = self.pass.stack.namespace().unwrap_or_default();
        let seed = &self.pass.plan.record.seed;
        let seed = Sha256::digest(format!("{seed}/{path}#{number}"));
        let lookup = self.pass.observed.find;
        let find = |kind: &str, name: &str| lookup.find(kind, name);
        let settles =
            map(&self.request(&name, &namespace, properties, &leaf.metadata, &seed, &find))?;
        if !matches!(decision, Decision::Keep(_)) {
            if !self.may_begin(path, number, leaf, &decision) {
                return Ok(None);
            }
            self.begin(path, number, leaf, &decision, &digests);
        }
        let key = (path.to_owned(), number);
        self.targets.insert(path.to_owned(), number);
        if !self.only_look {
            self.refresh(&key, leaf);
            self.pass_time(&key, &settles);
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
        Ok(Some(self.settled_value(settles)))
    }

    pub(super) fn settled_value(&mut self, settles: Settles) -> Known {
        if let (Some(config), Some(id)) = (&settles.config, settles.refid.as_str()) {
            self.configs.insert(id.to_owned(), config.clone());
        }
        Known {
            refid: settles.refid,
            // What has no attributes at all has whatever is asked for, without a value.
            open: settles.attributes.is_empty(),
            attributes: settles.attributes,
        }
    }

    /// Lets a resource that takes its time do so.
    fn pass_time(&mut self, key: &Key, settles: &Settles) {
        let now = self.pass.observed.now;
        let Some(entry) = self.pass.plan.record.entries.get_mut(key) else {
            return;
        };
        if entry.state != State::InProgress {
            return;
        }
        let left = Duration::from_millis(settles.takes).saturating_sub(since(entry.since, now));
        if !left.is_zero() {
            self.pass.again_in(left);
        } else if let Some(why) = &settles.fails {
            entry.set(entry.action, State::Failed, why, now);
            self.failing = true;
        } else {
            self.complete(key);
        }
    }

    /// A resource that is an object.
    fn objects(
        &mut self,
        path: &str,
        leaf: &Leaf,
        kind: &Kind,
        properties: &Map,
        map: fn(&Request<'_>) -> pileus_stack::Result<Makes>,
    ) -> pileus_stack::Result<Option<Known>> {
        let namespace = self.pass.stack.namespace().unwrap_or_default();
        let lookup = self.pass.observed.find;
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
        let (Decision::Keep(number) | Decision::Change(number) | Decision::Make(number)) = decision;
        let (makes, _) = made(self, number)?;
        let key = (path.to_owned(), number);
        self.decided.insert(path.to_owned(), number);
        if matches!(decision, Decision::Keep(_))
            && !self.only_look
            && self.was_taken(&key, leaf.retain)
        {
            decision = Decision::Change(number);
        }
        let digest = resource_state::digest(&seed, &resource_state::canonical(&Value::from(makes.objects.clone())));
        let mut unread = false;
        if !matches!(decision, Decision::Keep(_)) {
            if !self.may_begin(path, number, leaf, &decision) || !self.make_room(&key, &makes)? {
                return Ok(None);
            }
            let names = self.names(&key, &makes)?;
            if matches!(names, Names::Wait) {
                return Ok(None);
            }
            self.begin(path, number, leaf, &decision, &digests);
            let entry = self.entry(key.clone());
            let before = std::mem::take(&mut entry.objects);
            entry.objects = makes.objects.iter().map(Reference::of).collect();
            // What exists and was not asked for by this name has to be read first.
            let renamed = !before.is_empty() && before.last() != entry.objects.last();
            unread = renamed || matches!(names, Names::HandedOver);
            entry.claims = makes.claims;
            entry.digest.clone_from(&digest);
            entry.by_account = kind.by_account;
        }
        self.targets.insert(path.to_owned(), number);
        self.wanted.insert(key.clone(), makes.objects.clone());
        if !self.only_look {
            self.refresh(&key, leaf);
            self.suspend(&key, &makes.objects, &digest);
            if unread {
                self.pass.again_in(Duration::ZERO);
            } else {
                self.push_on(&key, &makes.objects, Some(properties));
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
        // One that somebody has deleted has its name still, and nothing else is known of it.
        let gone = || Known {
            refid: entry
                .objects
                .last()
                .map(|object| object.name.clone())
                .into(),
            attributes: Map::new(),
            open: true,
        };
        Ok(Some(object.map_or_else(gone, |object| {
            kinds::known(&leaf.kind, object, &find)
        })))
    }

    pub(super) fn entry(&mut self, key: Key) -> &mut Entry {
        self.pass.plan.record.entries.entry(key).or_default()
    }

    /// Whether a resource may be made or changed now.
    fn may_begin(&mut self, path: &str, number: u32, leaf: &Leaf, decision: &Decision) -> bool {
        let makes = matches!(decision, Decision::Make(_));
        !self.only_look
            && !self.failing
            && self.may_join(&leaf.batches)
            && self.may_pass(path, number, leaf, makes)
    }

    /// RecordStore that a resource is made or changed now.
    fn begin(
        &mut self,
        path: &str,
        number: u32,
        leaf: &Leaf,
        decision: &Decision,
        digests: &BTreeMap<String, String>,
    ) {
        let now = self.pass.observed.now;
        let action = if matches!(decision, Decision::Make(_)) {
            Action::Create
        } else {
            Action::Update
        };
        let entry = self.entry((path.to_owned(), number));
        entry.kind.clone_from(&leaf.kind);
        entry.properties.clone_from(digests);
        entry.waits = None;
        entry.again = false;
        entry.set(action, State::InProgress, "", now);
        entry.since = now;
    }

    /// What a kept resource works with may have been replaced without it having changed.
    pub(super) fn refresh(&mut self, key: &Key, leaf: &Leaf) {
        let targets = &self.targets;
        let requires = leaf.requires.iter();
        let requires = requires.filter_map(|path| Some((path.clone(), *targets.get(path)?)));
        let requires = super::requirements::in_short(requires.collect(), targets);
        let hooks = hooks::of(&self.registry, &key.0).hooks;
        if let Some(entry) = self.pass.plan.record.entries.get_mut(key) {
            entry.requires = requires;
            entry.retain = leaf.retain;
            entry.hooks = hooks;
        }
    }

    /// Applies what is not as it should be, and notes how far the object is.
    pub(super) fn push_on(&mut self, key: &Key, objects: &[Value], properties: Option<&Map>) {
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
            let under_way = super::under_way(&self.pass.plan.record);
            self.pass.again_in(super::pace(under_way, &entry, now));
        }
        let mut state = Progress::Pending(entry.reason.clone());
        let mut applied = true;
        let live = |object: &Reference| self.pass.observed.objects.get(object);
        // What serves a resource is made before it, so it is there when the resource is.
        let main = entry.objects.last().and_then(live);
        let applied_here = |live: &Value| resource_state::is_whole(live, &entry, &key.0, &uid);
        let whole = main.is_some_and(applied_here);
        let mut steps = Vec::new();
        for (index, (manifest, object)) in objects.iter().zip(&entry.objects).enumerate() {
            if whole && index + 1 < objects.len() {
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
            if !live.is_some_and(applied_here) {
                applied = false;
                steps.push(Step::Apply {
                    key: key.clone(),
                    manifest: resource_state::marked(manifest, &uid, &key.0, &entry.digest),
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
            && let Some(missing) = entry.objects.last().and_then(live).and_then(resource_state::missing)
        {
            let left = self.pass.observed.grace.saturating_sub(since(entry.since, now));
            if left.is_zero() {
                state = Progress::Failed(missing.told(properties));
            } else {
                self.pass.again_in(left);
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
            entry.set(entry.action, to, reason, now);
        }
    }

    /// A resource that could not even be asked for.
    fn fail(&mut self, path: &str, leaf: &Leaf, message: &str) {
        if self.only_look || self.failing {
            return;
        }
        let now = self.pass.observed.now;
        let record = &self.pass.plan.record;
        let newest = record
            .incarnations(path)
            .next()
            .map(|(number, entry)| (number, entry.clone()));
        // What works is left alone: the failure is that of the one that should follow it.
        let number = newest.map_or(1, |(number, _)| number.saturating_add(1));
        let entry = self.entry((path.to_owned(), number));
        entry.kind.clone_from(&leaf.kind);
        entry.since = now;
        entry.set(Action::Create, State::Failed, message, now);
        self.failing = true;
    }

    fn is_done(&self, flat: &Flat) -> bool {
        flat.unexpanded.is_empty() && self.settled.len() == flat.leaves.len()
    }
}

/// Whether a resource has failed in the action that is under way.
fn is_failing(pass: &Pass<'_>) -> bool {
    let mut entries = pass.plan.record.entries.values();
    entries.any(Entry::has_failed)
}

impl Pass<'_> {
    /// Goes on with creating, updating, rolling back, suspending or resuming.
    pub(super) fn forward(&mut self, goal: &Sources) {
        let mut walk = Walk::new(self, false);
        let flat = match walk.walk(goal) {
            Ok(flat) => flat,
            Err(error) => {
                let message = error.to_string();
                self.fail_action(&message);
                return;
            }
        };
        walk.stop_users_first();
        let rolled = walk.next_batches(&flat);
        let done = walk.is_done(&flat) && rolled && !walk.failing;
        let targets: BTreeSet<Key> = walk.targets.clone().into_iter().collect();
        self.plan.secrets.clone_from(&flat.secrets);
        for (path, named) in &flat.named {
            let known = self.plan.record.named.entry(path.clone()).or_default();
            known.extend(named.clone());
        }
        if done && self.remove_but(&targets) && self.is_at_rest() {
            let record = &mut self.plan.record;
            let action = record.action.unwrap_or_default();
            if matches!(action, Action::Create | Action::Update) {
                record.good.clone_from(&record.goal);
                record.removed = flat.removed;
                record.named = flat.named;
            }
            record.end(
                State::Complete,
                format!("Stack {} completed successfully", action.word()),
            );
            // Once more, for the outputs of what has just become complete.
            self.outputs(goal);
            return;
        }
        self.plan.outputs = Some(super::inspect::told(&flat));
        if is_failing(self) {
            self.settle_failure();
        }
    }

    fn is_at_rest(&self) -> bool {
        let mut entries = self.plan.record.entries.values();
        entries.all(|entry| entry.state != State::InProgress || entry.is_waiting())
    }

    /// Fails the action once what is under way has come to its end, or has had its time.
    fn settle_failure(&mut self) {
        let now = self.observed.now;
        let record = &mut self.plan.record;
        let spent = since(*record.failing_since.get_or_insert(now), now);
        if spent < ERROR_WAIT && !self.is_at_rest() {
            self.again_in(ERROR_WAIT.saturating_sub(spent));
            return;
        }
        let failed = self.plan.record.entries.iter();
        let mut failed = failed.filter(|(_, entry)| entry.has_failed());
        let message = failed
            .next()
            .map(|((path, _), entry)| resource_state::failure(path, entry))
            .unwrap_or_default();
        self.fail_action(&message);
    }

    pub(super) fn fail_action(&mut self, message: &str) {
        let now = self.observed.now;
        let record = &mut self.plan.record;
        super::give_up(&mut record.entries, "another resource failed", now);
        record.end(State::Failed, message);
    }
}
