//! Which Servers of one host are stopped for a Server of higher priority. Pure.
//!
//! As few as possible are stopped, and those of lowest priority: all candidates are taken
//! first, then one after another is spared while the released resources still suffice, the
//! highest priority first; as kube-scheduler does. A Server keeps its disk, its PCI devices and
//! its NUMA nodes when it is stopped, so that only vCPUs and memory are released.

use std::cmp::Reverse;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::objects::catalogue::Key;

/// vCPUs, and memory in MiB.
pub type ComputeResources = [i64; 2];

/// A Server that may be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PotentialVictim {
    /// Namespace and name.
    pub key: Key,
    /// Its priority.
    pub priority: i32,
    /// Whether it should run. Stopping a Server that is off anyway costs less.
    pub running: bool,
    /// When it was created.
    pub created: Option<Time>,
    /// What is released when it is stopped.
    pub compute: ComputeResources,
}

/// The cost of stopping some Servers; the lowest is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// The highest priority among them.
    highest: Option<i32>,
    /// How many of them are running.
    running: usize,
    /// Their memory in MiB.
    memory: i64,
    /// Their number.
    count: usize,
}

/// The cost of stopping `victims`.
#[must_use]
pub fn cost(victims: &[PotentialVictim]) -> Cost {
    Cost {
        highest: victims.iter().map(|v| v.priority).max(),
        running: victims.iter().filter(|v| v.running).count(),
        memory: victims.iter().map(|v| v.compute[1]).sum(),
        count: victims.len(),
    }
}

fn covers(has: ComputeResources, needs: ComputeResources) -> bool {
    has.iter().zip(needs).all(|(has, needs)| *has >= needs)
}

fn sum(candidates: &[PotentialVictim]) -> ComputeResources {
    let amounts = candidates.iter().map(|o| o.compute);
    amounts.fold([0; 2], |a, b| {
        [a[0].saturating_add(b[0]), a[1].saturating_add(b[1])]
    })
}

/// The Servers of `candidates` to be stopped so that `missing` vCPUs and memory are released;
/// `None` if all of them are not enough.
#[must_use]
pub fn select_victims(
    missing: ComputeResources,
    mut candidates: Vec<PotentialVictim>,
) -> Option<Vec<PotentialVictim>> {
    let mut gained = sum(&candidates);
    if !covers(gained, missing) {
        return None;
    }
    // The highest priority first; of equal ones the oldest.
    candidates.sort_by_key(|o| {
        (
            Reverse((o.priority, o.running)),
            o.created.clone(),
            o.key.clone(),
        )
    });
    candidates.retain(|o| {
        let without = [gained[0] - o.compute[0], gained[1] - o.compute[1]];
        let spared = covers(without, missing);
        if spared {
            gained = without;
        }
        !spared
    });
    Some(candidates)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(name: &str, priority: i32, running: bool, compute: ComputeResources) -> PotentialVictim {
        PotentialVictim {
            key: ("ns".into(), name.into()),
            priority,
            running,
            created: None,
            compute,
        }
    }

    fn names(victims: Option<Vec<PotentialVictim>>) -> Vec<String> {
        victims.unwrap().into_iter().map(|v| v.key.1).collect()
    }

    #[test]
    fn the_lowest_priority_is_stopped_first_and_of_equals_those_that_are_off() {
        let all = vec![
            one("high", 5, true, [2, 400]),
            one("off", 5, false, [2, 400]),
            one("low", 1, true, [2, 400]),
        ];
        assert_eq!(names(select_victims([0, 300], all.clone())), ["low"]);
        assert_eq!(names(select_victims([0, 500], all.clone())), ["off", "low"]);
        assert_eq!(names(select_victims([6, 0], all.clone())).len(), 3);
        assert_eq!(select_victims([7, 0], all.clone()), None);
        assert!(names(select_victims([0, -5], all)).is_empty());
    }

    #[test]
    fn stopping_many_of_low_priority_costs_less_than_one_of_higher_priority() {
        let many = [one("a", 1, true, [1, 1]), one("b", 1, true, [1, 1])];
        assert!(cost(&many) < cost(&[one("c", 2, true, [1, 1])]));
        assert!(cost(&[one("c", 1, false, [1, 9])]) < cost(&[one("c", 1, true, [1, 1])]));
        assert!(cost(&[]) < cost(&many));
    }

    proptest! {
        #[test]
        fn victims_are_enough_and_none_is_unnecessary(
            all in proptest::collection::vec((-3..3, any::<bool>(), 0..8_i64, 0..900_i64), 0..9),
            missing in (0..20_i64, 0..3000_i64),
        ) {
            let candidates: Vec<_> = all.iter().enumerate()
                .map(|(i, (p, running, v, m))| one(&i.to_string(), *p, *running, [*v, *m]))
                .collect();
            let missing = [missing.0, missing.1];
            match select_victims(missing, candidates.clone()) {
                None => prop_assert!(!covers(sum(&candidates), missing)),
                Some(chosen) => {
                    let gained = sum(&chosen);
                    prop_assert!(covers(gained, missing));
                    for v in &chosen {
                        let without = [gained[0] - v.compute[0], gained[1] - v.compute[1]];
                        prop_assert!(!covers(without, missing), "{} need not be stopped", v.key.1);
                    }
                }
            }
        }
    }
}
