//! How busy the host's processors are, reported so seldom that an idle host writes nothing. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

/// The time over which a figure is the mean, and the shortest time between two reports.
pub const WINDOW: Duration = Duration::from_mins(1);
/// By how many points a figure must differ from the reported one.
const MIN_CHANGE: i64 = 10;
/// Figures this near to 0 or 100 are reported as 0 or 100, so that an idle host reports once.
const IDLE_MARGIN: i64 = 5;

/// What the processors have done since the host has started, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    user: u64,
    kernel: u64,
    idle: u64,
    iowait: u64,
}

impl Times {
    /// Reads the first line of `/proc/stat`; see proc(5).
    #[must_use]
    pub fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line
            .split_whitespace()
            .map_while(|n| n.parse().ok())
            .collect();
        let [user, nice, system, idle, iowait, irq, softirq, ..] = ticks[..] else {
            return None;
        };
        Some(Self {
            user: user.saturating_add(nice),
            kernel: system.saturating_add(irq).saturating_add(softirq),
            idle,
            iowait,
        })
    }

    /// Nova's figures of its CPU monitor, in whole percent, over the time since `before`.
    /// `None` when no time has passed.
    #[must_use]
    pub fn since(self, before: Self) -> Option<BTreeMap<&'static str, i64>> {
        let parts = [
            ("cpu.user.percent", self.user, before.user),
            ("cpu.kernel.percent", self.kernel, before.kernel),
            ("cpu.idle.percent", self.idle, before.idle),
            ("cpu.iowait.percent", self.iowait, before.iowait),
        ];
        let parts = parts.map(|(name, now, then)| (name, now.saturating_sub(then)));
        let all: u64 = parts.iter().map(|(_, ticks)| ticks).sum();
        let percent = |ticks: u64| {
            let share = ticks.saturating_mul(100).saturating_add(all / 2);
            share.checked_div(all).and_then(|n| i64::try_from(n).ok())
        };
        let mut figures = BTreeMap::new();
        for (name, ticks) in parts {
            figures.insert(name, percent(ticks)?);
        }
        let idle = figures.get("cpu.idle.percent").copied()?;
        figures.insert("cpu.percent", 100 - idle);
        Some(figures)
    }
}

/// What is reported now, by what was reported and what is measured: a figure changes when it
/// has moved by [`MIN_CHANGE`] points, or has reached 0 or 100.
#[must_use]
pub fn reported(
    wanted: &[String],
    before: &BTreeMap<String, i64>,
    measured: &BTreeMap<&'static str, i64>,
) -> BTreeMap<String, i64> {
    let figure = |name: &String| {
        let now = match measured.get(name.as_str()).copied()? {
            low if low <= IDLE_MARGIN => 0,
            high if high >= 100 - IDLE_MARGIN => 100,
            between => between,
        };
        let is_extreme = now == 0 || now == 100;
        let figure = match before.get(name).copied() {
            Some(old) if !is_extreme && (now - old).abs() < MIN_CHANGE => old,
            _ => now,
        };
        Some((name.clone(), figure))
    };
    wanted.iter().filter_map(figure).collect()
}

/// What was reported and is still wanted.
#[must_use]
pub fn still_wanted(wanted: &[String], before: &BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let mut kept = before.clone();
    kept.retain(|name, _| wanted.contains(name));
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn measured(percent: i64) -> BTreeMap<&'static str, i64> {
        [
            ("cpu.percent", percent),
            ("cpu.idle.percent", 100 - percent),
        ]
        .into()
    }

    #[test]
    fn ticks_become_percents_of_the_time_between() {
        let before = Times::parse("cpu  100 0 50 1000 10 0 0 7 0 0\ncpu0 1 2 3 4\n").unwrap();
        let after = Times::parse("cpu  140 10 70 1100 30 5 5 9 40 0\n").unwrap();
        let found = after.since(before).unwrap();
        let expected = [
            ("cpu.user.percent", 25),
            ("cpu.kernel.percent", 15),
            ("cpu.idle.percent", 50),
            ("cpu.iowait.percent", 10),
            ("cpu.percent", 50),
        ];
        assert_eq!(found, expected.into());
        assert_eq!(after.since(after), None);
        for other in ["", "cpu0 1 2 3 4 5 6 7", "cpu 1 2 3"] {
            assert_eq!(Times::parse(other), None, "{other}");
        }
    }

    #[test]
    fn only_figures_that_moved_or_reached_an_end_are_reported() {
        let wanted = ["cpu.percent".to_owned()];
        let mut before = BTreeMap::new();
        for (percent, expected) in [
            (3, 0),
            (9, 0),
            (31, 31),
            (40, 31),
            (22, 31),
            (21, 21),
            (96, 100),
            (94, 100),
            (90, 90),
            (4, 0),
        ] {
            before = reported(&wanted, &before, &measured(percent));
            assert_eq!(before["cpu.percent"], expected, "at {percent}");
        }
        assert_eq!(before.len(), 1, "nothing that nobody asked for");
        let other = ["cpu.idle.percent".to_owned()];
        assert_eq!(still_wanted(&other, &before), BTreeMap::new());
        assert_eq!(still_wanted(&wanted, &before), before);
        assert_eq!(
            reported(&["cpu.heat".to_owned()], &before, &measured(1)),
            BTreeMap::new()
        );
    }

    proptest! {
        #[test]
        fn a_load_that_hardly_moves_is_reported_twice_at_most(
            around in 0..=100_i64, jitter in prop::collection::vec(-2..=2_i64, 1..100),
        ) {
            let wanted = ["cpu.percent".to_owned(), "cpu.idle.percent".to_owned()];
            let (mut before, mut writes) = (BTreeMap::new(), 0);
            for by in jitter {
                let next = reported(&wanted, &before, &measured((around + by).clamp(0, 100)));
                writes += usize::from(next != before);
                before = next;
            }
            prop_assert!(writes <= 2, "{} times", writes);
        }
    }
}
