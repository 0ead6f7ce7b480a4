//! Who was refused by the database, and when they are tried again. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::rows::Desired;
use pileus_values::Owner;

/// The first pause before an owner that was refused is tried again; each further one is twice as
/// long.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// An owner that was refused.
#[derive(Clone, Debug)]
struct Refusal {
    owner: Owner,
    message: String,
    /// What was refused: an owner whose rows have changed is tried at once.
    rows: Desired,
    deleted: bool,
    pause: Duration,
    again_at: Instant,
}

/// The owners that were refused, by uid.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals(BTreeMap<String, Refusal>);

impl Refusals {
    /// Forgets owners that have nothing to be done any more.
    pub(super) fn keep_only_of(&mut self, desired: &Desired, deleted: &BTreeSet<String>) {
        if self.0.is_empty() {
            return;
        }
        let owners: BTreeSet<&str> = desired.owners().map(|owner| owner.uid.as_str()).collect();
        self.0
            .retain(|uid, _| owners.contains(uid.as_str()) || deleted.contains(uid));
    }

    /// Remembers that an owner was refused.
    pub(super) fn refused(
        &mut self,
        owner: &Owner,
        message: String,
        desired: &Desired,
        deleted: &BTreeSet<String>,
        now: Instant,
    ) {
        let rows = desired.of(&owner.uid);
        let pause = match self.0.get(&owner.uid) {
            Some(before) if before.rows == rows => (before.pause * 2).min(LONGEST_PAUSE),
            _ => FIRST_PAUSE,
        };
        let refusal = Refusal {
            owner: owner.clone(),
            message,
            rows,
            deleted: deleted.contains(&owner.uid),
            pause,
            again_at: now + pause,
        };
        self.0.insert(owner.uid.clone(), refusal);
    }

    /// The database took the rows of an owner.
    pub(super) fn accepted(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    /// The uids of all who are refused.
    pub(super) fn uids(&self) -> impl Iterator<Item = String> + '_ {
        self.0.keys().cloned()
    }

    /// All who are refused, with the reason.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Owner, &str)> {
        self.0.values().map(|r| (&r.owner, r.message.as_str()))
    }

    /// Those that are to be tried again now: their time has come, or their rows have changed.
    pub(super) fn due(
        &self,
        desired: &Desired,
        deleted: &BTreeSet<String>,
        now: Instant,
    ) -> Vec<Owner> {
        self.0
            .values()
            .filter(|refusal| {
                let uid = &refusal.owner.uid;
                refusal.again_at <= now
                    || refusal.deleted != deleted.contains(uid)
                    || refusal.rows != desired.of(uid)
            })
            .map(|refusal| refusal.owner.clone())
            .collect()
    }

    /// How long until the next one is to be tried again.
    pub(super) fn next(&self, now: Instant) -> Option<Duration> {
        let times = self.0.values().map(|refusal| refusal.again_at);
        times.min().map(|at| at.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::northbound::{AddressSet, LogicalSwitch};

    fn owner(name: &str) -> Owner {
        Owner {
            name: name.into(),
            uid: format!("uid-{name}"),
            ..Owner::default()
        }
    }

    fn desired(config: &str) -> Desired {
        let switch = LogicalSwitch {
            owner: owner("bad"),
            other_config: BTreeMap::from([("k".into(), config.into())]),
        };
        let other = AddressSet {
            owner: owner("good"),
            ..AddressSet::default()
        };
        Desired {
            switches: BTreeMap::from([("s".into(), switch)]),
            address_sets: BTreeMap::from([("a".into(), other)]),
            ..Desired::default()
        }
    }

    #[test]
    fn one_that_was_refused_waits_longer_each_time_and_not_at_all_when_it_has_changed() {
        let (nobody, now) = (BTreeSet::new(), Instant::now());
        let mut refusals = Refusals::default();
        let mut refuse = |at| {
            refusals.refused(&owner("bad"), "no".into(), &desired("1"), &nobody, at);
            let wait = refusals.next(at).unwrap();
            assert_eq!(refusals.due(&desired("1"), &nobody, at), []);
            assert_eq!(
                refusals.due(&desired("1"), &nobody, at + wait),
                [owner("bad")]
            );
            wait
        };
        assert_eq!(refuse(now), FIRST_PAUSE);
        assert_eq!(refuse(now), FIRST_PAUSE * 2);
        for _ in 0..10 {
            refuse(now);
        }
        assert_eq!(refuse(now), LONGEST_PAUSE);
        assert_eq!(refusals.due(&desired("2"), &nobody, now), [owner("bad")]);
        let deleted = BTreeSet::from(["uid-bad".to_owned()]);
        assert_eq!(refusals.due(&desired("1"), &deleted, now), [owner("bad")]);
        refusals.keep_only_of(&Desired::default(), &deleted);
        assert_eq!(refusals.uids().count(), 1);
        refusals.keep_only_of(&Desired::default(), &nobody);
        assert_eq!(refusals.uids().count(), 0);
    }
}
