//! Whom to stop for a Server of higher priority. Pure.
//!
//! On one Host as few as possible are stopped, and those of least priority: beginning with all
//! that may be, one after another is let off while the room still suffices, the most important
//! first; so Kubernetes' preemption chooses too. A Server keeps its disk, its devices and its
//! NUMA nodes when it is stopped, so only processors and memory are gained.

use std::cmp::Reverse;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::objects::catalogue::Key;

/// Processors and memory in MiB.
pub type ComputeResources = [i64; 2];

/// A Server that may be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PotentialVictim {
    /// Namespace and name.
    pub key: Key,
    /// Its priority.
    pub priority: i32,
    /// Whether it should run; to take the place of one that does not hurts nobody.
    pub runs: bool,
    /// When it was made.
    pub created: Option<Time>,
    /// What it gives back.
    pub room: ComputeResources,
}

/// What stopping some Servers costs; the least is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// The highest priority among them.
    highest: Option<i32>,
    /// How many of them run.
    running: usize,
    /// Their memory in MiB.
    memory: i64,
    /// How many they are.
    count: usize,
}

/// The cost of stopping `victims`.
#[must_use]
pub fn cost(victims: &[PotentialVictim]) -> Cost {
    Cost {
        highest: victims.iter().map(|v| v.priority).max(),
        running: victims.iter().filter(|v| v.runs).count(),
        memory: victims.iter().map(|v| v.room[1]).sum(),
        count: victims.len(),
    }
}

fn covers(has: ComputeResources, needs: ComputeResources) -> bool {
    has.iter().zip(needs).all(|(has, needs)| *has >= needs)
}

fn sum(potential_victims: &[PotentialVictim]) -> ComputeResources {
    let rooms = potential_victims.iter().map(|o| o.room);
    rooms.fold([0; 2], |a, b| {
        [a[0].saturating_add(b[0]), a[1].saturating_add(b[1])]
    })
}

/// Who is stopped of `occupants`, so that there are `lacking` processors and memory more;
/// `None` when all of them are not enough.
#[must_use]
pub fn victims(
    lacking: ComputeResources,
    mut potential_victims: Vec<PotentialVictim>,
) -> Option<Vec<PotentialVictim>> {
    let mut gained = sum(&potential_victims);
    if !covers(gained, lacking) {
        return None;
    }
    // The most important first, and of equals the one that runs longest.
    potential_victims.sort_by_key(|o| {
        (
            Reverse((o.priority, o.runs)),
            o.created.clone(),
            o.key.clone(),
        )
    });
    potential_victims.retain(|o| {
        let without = [gained[0] - o.room[0], gained[1] - o.room[1]];
        let let_off = covers(without, lacking);
        if let_off {
            gained = without;
        }
        !let_off
    });
    Some(potential_victims)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(name: &str, priority: i32, runs: bool, room: ComputeResources) -> PotentialVictim {
        PotentialVictim {
            key: ("ns".into(), name.into()),
            priority,
            runs,
            created: None,
            room,
        }
    }

    fn names(victims: Option<Vec<PotentialVictim>>) -> Vec<String> {
        victims.unwrap().into_iter().map(|v| v.key.1).collect()
    }

    #[test]
    fn the_least_important_go_and_of_equals_those_that_are_off() {
        let all = vec![
            one("high", 5, true, [2, 400]),
            one("off", 5, false, [2, 400]),
            one("low", 1, true, [2, 400]),
        ];
        assert_eq!(names(victims([0, 300], all.clone())), ["low"]);
        assert_eq!(names(victims([0, 500], all.clone())), ["off", "low"]);
        assert_eq!(names(victims([6, 0], all.clone())).len(), 3);
        assert_eq!(victims([7, 0], all.clone()), None);
        assert!(names(victims([0, -5], all)).is_empty());
    }

    #[test]
    fn a_low_priority_costs_less_than_a_small_number() {
        let many = [one("a", 1, true, [1, 1]), one("b", 1, true, [1, 1])];
        assert!(cost(&many) < cost(&[one("c", 2, true, [1, 1])]));
        assert!(cost(&[one("c", 1, false, [1, 9])]) < cost(&[one("c", 1, true, [1, 1])]));
        assert!(cost(&[]) < cost(&many));
    }

    proptest! {
        #[test]
        fn who_is_stopped_is_enough_and_nobody_too_many(
            all in proptest::collection::vec((-3..3, any::<bool>(), 0..8_i64, 0..900_i64), 0..9),
            lacking in (0..20_i64, 0..3000_i64),
        ) {
            let potential_victims: Vec<_> = all.iter().enumerate()
                .map(|(i, (p, runs, v, m))| one(&i.to_string(), *p, *runs, [*v, *m]))
                .collect();
            let lacking = [lacking.0, lacking.1];
            match victims(lacking, potential_victims.clone()) {
                None => prop_assert!(!covers(sum(&potential_victims), lacking)),
                Some(chosen) => {
                    let gained = sum(&chosen);
                    prop_assert!(covers(gained, lacking));
                    for v in &chosen {
                        let without = [gained[0] - v.room[0], gained[1] - v.room[1]];
                        prop_assert!(!covers(without, lacking), "{} need not go", v.key.1);
                    }
                }
            }
        }
    }
}
