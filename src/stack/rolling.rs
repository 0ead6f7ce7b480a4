//! Updates of a group in batches, as Heat's `heat/scaling/rolling_update.py` and
//! `resource_group.py` do it, but computed from the existing members instead of a stored list.
//!
//! A batch updates members and creates missing ones. It may create more members than the group has
//! in the end, so that enough of them are in service during the update; these are deleted at the
//! end.

use std::collections::{BTreeMap, BTreeSet};

/// Batch size and pause of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Members that one batch creates or updates.
    pub size: usize,
    /// Members that are not updated at the same time.
    pub min_in_service: usize,
    /// Seconds between two batches.
    pub pause: f64,
}

/// One batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Members that exist when it is complete.
    pub capacity: usize,
    /// Members that it creates or updates.
    pub updated: usize,
}

/// The next batch of a group that has `current` of its `target` members, of which `up_to_date` are
/// up to date; `None` when all are. Members beyond the target are not counted.
#[must_use]
pub fn next(target: usize, current: usize, up_to_date: usize, policy: &Policy) -> Option<Batch> {
    if up_to_date >= current && current == target {
        return None;
    }
    let kept = policy.min_in_service.min(target).min(current);
    let updated = policy.size.min(target.saturating_sub(up_to_date));
    Some(Batch {
        capacity: updated + current.min(target - updated).max(kept),
        updated,
    })
}

/// The existing members that a batch updates: those with the highest numbers first, without those
/// beyond the `target`, which are deleted at the end.
///
/// `names` are the group's members in this batch; `existing` says for each existing member whether it
/// is up to date.
#[must_use]
pub fn members_to_update<'m>(
    names: &[String],
    existing: &BTreeMap<&'m str, bool>,
    target: usize,
    batch: Batch,
) -> BTreeSet<&'m str> {
    let mut known: Vec<(usize, &str, bool)> = existing
        .iter()
        .filter_map(|(name, up_to_date)| {
            let index = names.iter().position(|other| other == name)?;
            Some((index, *name, *up_to_date))
        })
        .collect();
    known.sort_by_key(|(index, ..)| {
        if *index < target {
            target - index
        } else {
            batch.capacity.max(target)
        }
    });
    let missing = batch.capacity.saturating_sub(known.len());
    let outdated = known.into_iter().filter(|(_, _, up_to_date)| !up_to_date);
    outdated
        .map(|(_, name, _)| name)
        .take(batch.updated.saturating_sub(missing))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fmt::Write as _;

    use sha2::{Digest, Sha256};

    use super::*;

    fn policy(size: usize, min_in_service: usize) -> Policy {
        Policy {
            size,
            min_in_service,
            pause: 0.0,
        }
    }

    /// Capacity and updated members of each batch, as Heat computes them at the beginning.
    fn batches(target: usize, current: usize, size: usize, least: usize) -> Vec<(usize, usize)> {
        let (mut current, mut done, mut found) = (current, 0, Vec::new());
        while let Some(batch) = next(target, current, done, &policy(size, least)) {
            let extra = batch.capacity.saturating_sub(current.max(target));
            done += batch.updated - extra;
            current = batch.capacity;
            found.push((batch.capacity, batch.updated));
        }
        found
    }

    /// Target, current, batch size, minimum in service: what Heat's `_get_batches` gives.
    type Row = (usize, usize, usize, usize, &'static [(usize, usize)]);

    #[test]
    fn batches_are_as_in_heat() {
        let rows: [Row; 25] = [
            (3, 3, 1, 0, &[(3, 1), (3, 1), (3, 1)]),
            (3, 3, 2, 0, &[(3, 2), (3, 1)]),
            (3, 3, 5, 0, &[(3, 3)]),
            (3, 3, 1, 2, &[(3, 1), (3, 1), (3, 1)]),
            (3, 3, 1, 3, &[(4, 1), (4, 1), (4, 1), (4, 1), (3, 0)]),
            (3, 3, 2, 1, &[(3, 2), (3, 1)]),
            (3, 3, 2, 2, &[(4, 2), (4, 2), (3, 0)]),
            (3, 3, 2, 3, &[(5, 2), (5, 2), (4, 1), (3, 0)]),
            (3, 3, 3, 3, &[(6, 3), (6, 3), (3, 0)]),
            (3, 3, 5, 9, &[(6, 3), (6, 3), (3, 0)]),
            (4, 4, 2, 3, &[(5, 2), (5, 2), (4, 1)]),
            (5, 5, 2, 5, &[(7, 2), (7, 2), (7, 2), (6, 1), (5, 0)]),
            (10, 10, 4, 8, &[(12, 4), (12, 4), (12, 4), (10, 0)]),
            (5, 2, 1, 0, &[(3, 1), (4, 1), (5, 1), (5, 1), (5, 1)]),
            (5, 2, 2, 2, &[(4, 2), (5, 2), (5, 1)]),
            (5, 2, 2, 5, &[(4, 2), (6, 2), (7, 2), (6, 1), (5, 0)]),
            (2, 5, 1, 2, &[(3, 1), (3, 1), (2, 0)]),
            (2, 5, 9, 1, &[(3, 2), (2, 0)]),
            (1, 1, 1, 1, &[(2, 1), (2, 1), (1, 0)]),
            (0, 3, 1, 0, &[(0, 0)]),
            (3, 0, 2, 0, &[(2, 2), (3, 1)]),
            (0, 0, 1, 0, &[]),
            (3, 6, 2, 3, &[(5, 2), (4, 1), (3, 0)]),
            (3, 5, 2, 3, &[(5, 2), (4, 1), (3, 0)]),
            (3, 4, 2, 2, &[(4, 2), (3, 1)]),
        ];
        for (target, current, size, least, wanted) in rows {
            let found = batches(target, current, size, least);
            assert_eq!(found, wanted, "{target} {current} {size} {least}");
        }
    }

    /// All groups of up to 12 members with batches of up to 7 and up to 13 in service: the text
    /// that Heat's own functions give for them has this hash.
    #[test]
    fn batches_are_as_in_heat_for_thousands_of_groups() {
        let mut hash = Sha256::new();
        for target in 0..13 {
            for current in 0..13 {
                for size in 1..8 {
                    for least in 0..14 {
                        let mut line = format!("{target} {current} {size} {least}:");
                        for (capacity, fresh) in batches(target, current, size, least) {
                            write!(line, " {capacity}/{fresh}").unwrap();
                        }
                        hash.update(line + "\n");
                    }
                }
            }
        }
        let wanted = "079a801e5a5633841025c9356ab48cf35c04824a8193530a0675bef80f77283c";
        assert_eq!(hex::encode(hash.finalize()), wanted);
    }

    proptest::proptest! {
        /// Members by their numbers, each up to date or not, changed batch by batch.
        #[test]
        fn every_member_is_updated_and_enough_stay_in_service(
            members in proptest::collection::btree_map(0usize..12, proptest::bool::ANY, 0..10),
            target in 0usize..10, size in 1usize..5, least in 0usize..12,
        ) {
            let mut there: BTreeMap<String, bool> =
                members.into_iter().map(|(name, fresh)| (name.to_string(), fresh)).collect();
            for _ in 0..60 {
                let wanted: Vec<String> = (0..target).map(|at| at.to_string()).collect();
                let fresh = wanted.iter().filter(|name| there.get(*name) == Some(&true)).count();
                let current = wanted.iter().filter(|name| there.contains_key(*name)).count();
                let Some(batch) = next(target, current, fresh, &policy(size, least)) else {
                    break;
                };
                let names: Vec<String> = (0..batch.capacity).map(|at| at.to_string()).collect();
                let existing = there.iter().map(|(name, fresh)| (name.as_str(), *fresh)).collect();
                let picked = members_to_update(&names, &existing, target, batch);
                let picked: Vec<String> = picked.into_iter().map(str::to_owned).collect();
                proptest::prop_assert!(picked.len() <= size);
                let left = there.len() - picked.len();
                proptest::prop_assert!(left >= least.min(target).min(current));
                for name in names {
                    there.entry(name).or_insert(true);
                }
                for name in picked {
                    there.insert(name, true);
                }
            }
            for at in 0..target {
                proptest::prop_assert_eq!(there.get(&at.to_string()), Some(&true));
            }
        }
    }
}
