//! The objects that wait for a pass of one controller: namespaces take turns, and none has more
//! than its part of the passes that run at once. So an object waits for as many passes as there
//! are namespaces with work, however many objects they have.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Instant;

/// The key of an object, with the group that takes its turn.
pub trait Keyed: Clone + Eq + Hash + Ord {
    /// The namespace; nothing for kinds without, which are one group each object.
    fn group(&self) -> Option<String>;
}

/// See the module.
pub struct FairQueue<K> {
    /// Objects that wait, by group; no group is empty.
    waiting: HashMap<Option<String>, VecDeque<K>>,
    /// The groups of `waiting`, whose turn is next first.
    turns: VecDeque<Option<String>>,
    /// The same objects, to find them.
    queued: HashSet<K>,
    /// Objects with a pass, and whether they changed during it.
    running: HashMap<K, bool>,
    /// How many of those each namespace has.
    by_group: HashMap<String, usize>,
    /// How many a namespace may have.
    most: usize,
    /// Objects that are looked at later, by time and by object.
    later: BTreeSet<(Instant, K)>,
    times: BTreeMap<K, Instant>,
}

impl<K: Keyed> FairQueue<K> {
    /// One for `concurrency` passes at once.
    pub fn new(concurrency: usize) -> Self {
        Self {
            waiting: HashMap::new(),
            turns: VecDeque::new(),
            queued: HashSet::new(),
            running: HashMap::new(),
            by_group: HashMap::new(),
            // The rest is free for others at any time.
            most: (concurrency * 3 / 4).max(1),
            later: BTreeSet::new(),
            times: BTreeMap::new(),
        }
    }

    /// How many passes run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// An object has to be looked at, after its pass if it has one.
    pub fn push(&mut self, object: K) {
        self.forget_time(&object);
        if let Some(again) = self.running.get_mut(&object) {
            *again = true;
        } else if self.queued.insert(object.clone()) {
            let group = object.group();
            let waiting = self.waiting.entry(group.clone()).or_default();
            if waiting.is_empty() {
                self.turns.push_back(group);
            }
            waiting.push_back(object);
        }
    }

    /// An object has to be looked at then, unless that is before.
    pub fn push_at(&mut self, object: K, at: Instant) {
        if self.queued.contains(&object)
            || self.running.get(&object) == Some(&true)
            || self.times.get(&object).is_some_and(|before| *before <= at)
        {
            return;
        }
        self.forget_time(&object);
        self.later.insert((at, object.clone()));
        self.times.insert(object, at);
    }

    fn forget_time(&mut self, object: &K) {
        if let Some(at) = self.times.remove(object) {
            self.later.remove(&(at, object.clone()));
        }
    }

    /// When the first object is to be looked at that waits for its time.
    pub fn next_time(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// Takes in the objects whose time has come.
    pub fn advance(&mut self, now: Instant) {
        while let Some((at, object)) = self.later.first()
            && *at <= now
        {
            self.push(object.clone());
        }
    }

    /// The next object, whose pass begins.
    pub fn pop(&mut self) -> Option<K> {
        for _ in 0..self.turns.len() {
            let group = self.turns.pop_front()?;
            if !self.may_run(group.as_deref()) {
                self.turns.push_back(group);
                continue;
            }
            let Some(waiting) = self.waiting.get_mut(&group) else {
                continue;
            };
            let object = waiting.pop_front();
            if waiting.is_empty() {
                self.waiting.remove(&group);
            } else {
                self.turns.push_back(group.clone());
            }
            let object = object?;
            self.queued.remove(&object);
            self.running.insert(object.clone(), false);
            if let Some(namespace) = group {
                *self.by_group.entry(namespace).or_default() += 1;
            }
            return Some(object);
        }
        None
    }

    fn may_run(&self, group: Option<&str>) -> bool {
        let running = group.and_then(|namespace| self.by_group.get(namespace));
        running.is_none_or(|running| *running < self.most)
    }

    /// An object's pass has ended.
    pub fn done(&mut self, object: &K) {
        let Some(again) = self.running.remove(object) else {
            return;
        };
        if let Some(namespace) = object.group()
            && let Some(running) = self.by_group.get_mut(&namespace)
        {
            *running -= 1;
            if *running == 0 {
                self.by_group.remove(&namespace);
            }
        }
        if again {
            self.push(object.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// Namespace, where 2 is none, and name.
    type Object = (u8, u16);

    impl Keyed for Object {
        fn group(&self) -> Option<String> {
            (self.0 != 2).then(|| self.0.to_string())
        }
    }

    #[test]
    fn an_object_waits_for_one_pass_of_each_other_namespace() {
        let mut queue = FairQueue::<Object>::new(4);
        for name in 0..10_000 {
            queue.push((0, name));
        }
        let first: Vec<_> = (0..3).map(|_| queue.pop().unwrap()).collect();
        // The fourth pass is kept for others.
        assert_eq!(queue.pop(), None);
        queue.push((1, 0));
        assert_eq!(queue.pop(), Some((1, 0)));
        queue.done(&(1, 0));
        queue.done(&first[0]);
        queue.push((1, 1));
        queue.push((3, 1));
        let next: Vec<_> = std::iter::from_fn(|| queue.pop()).take(3).collect();
        assert!(next.contains(&(1, 1)) && next.contains(&(3, 1)), "{next:?}");
    }

    #[test]
    fn kinds_without_namespaces_use_every_pass() {
        let mut queue = FairQueue::<Object>::new(4);
        for name in 0..10 {
            queue.push((2, name));
        }
        assert_eq!(std::iter::from_fn(|| queue.pop()).take(4).count(), 4);
    }

    #[test]
    fn a_time_is_forgotten_when_the_object_is_looked_at_before() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut queue = FairQueue::<Object>::new(4);
        queue.push_at((0, 0), after(9));
        queue.push_at((0, 0), after(20));
        assert_eq!(queue.next_time(), Some(after(9)));
        queue.push_at((0, 0), after(5));
        assert_eq!(queue.next_time(), Some(after(5)));
        queue.push((0, 0));
        assert_eq!((queue.next_time(), queue.pop()), (None, Some((0, 0))));
        queue.push_at((0, 0), after(7));
        queue.done(&(0, 0));
        queue.advance(after(6));
        assert_eq!(queue.pop(), None);
        queue.advance(after(7));
        assert_eq!(queue.pop(), Some((0, 0)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(Object),
        Pop,
        Done(Option<prop::sample::Index>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let object = (0..4_u8, 0..6_u16);
        let step = prop_oneof![
            3 => object.prop_map(Step::Push),
            3 => Just(Step::Pop),
            2 => any::<prop::sample::Index>().prop_map(|at| Step::Done(Some(at))),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn every_object_gets_its_pass_and_one_at_a_time(steps in steps()) {
            const CONCURRENCY: usize = 4;
            let mut queue = FairQueue::<Object>::new(CONCURRENCY);
            let mut owed: HashSet<Object> = HashSet::new();
            let mut running: Vec<Object> = Vec::new();
            let drain = (0..100).flat_map(|_| [Step::Pop, Step::Done(None)]);
            for step in steps.into_iter().chain(drain) {
                match step {
                    Step::Push(object) => {
                        queue.push(object);
                        owed.insert(object);
                    }
                    Step::Pop if running.len() < CONCURRENCY => {
                        let Some(object) = queue.pop() else { continue };
                        prop_assert!(!running.contains(&object));
                        prop_assert!(owed.remove(&object));
                        running.push(object);
                    }
                    Step::Done(at) if !running.is_empty() => {
                        let at = at.map_or(0, |at| at.index(running.len()));
                        queue.done(&running.swap_remove(at));
                    }
                    Step::Pop | Step::Done(_) => {}
                }
                prop_assert_eq!(queue.running(), running.len());
            }
            prop_assert!(owed.is_empty(), "{owed:?} got no pass");
        }
    }
}
