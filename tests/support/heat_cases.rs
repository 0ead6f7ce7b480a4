//! Cases made by Heat itself, and figures of how many are met.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pileus_stack::value::Value;

/// What is known to differ, and why.
pub const DIFFERENCES: &str = include_str!("../heat-differences.md");

/// Where the cases are.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("PILEUS_HEAT_CASES").map(PathBuf::from);
    let beside = crate::program::root().join("../shared/heat");
    folder.or_else(|| beside.is_dir().then_some(beside))
}

/// The cases of `file`, or nothing (said aloud) when the folder is not there.
pub fn cases_of(file: &str) -> Option<Vec<Value>> {
    let Some(folder) = folder() else {
        println!("no cases: PILEUS_HEAT_CASES is not set; {file} is not compared");
        return None;
    };
    let text = std::fs::read_to_string(folder.join(file)).expect("the cases can be read");
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    Some(lines.collect())
}

/// Figures by group.
#[derive(Default)]
pub struct Figures {
    groups: BTreeMap<String, (usize, usize)>,
    /// Misses that are not in the list of differences.
    new: Vec<String>,
}

impl Figures {
    pub fn count(&mut self, group: &str, name: &str, miss: Option<String>) {
        let (passed, total) = self.groups.entry(group.to_owned()).or_default();
        *total += 1;
        match miss {
            None => *passed += 1,
            Some(miss) if !DIFFERENCES.contains(name) => self.new.push(format!("{name}: {miss}")),
            Some(_) => {}
        }
    }

    /// Prints the figures; fails below `least` per cent.
    pub fn judge(&self, what: &str, least: usize) {
        for (group, (passed, total)) in &self.groups {
            println!("{what}: {group:<28} {passed:>5} of {total:>5}");
        }
        for miss in &self.new {
            println!("MISS {what} {miss}");
        }
        let (passed, total) = self
            .groups
            .values()
            .fold((0, 0), |sum, group| (sum.0 + group.0, sum.1 + group.1));
        println!("{what}: {passed} of {total}, at least {least} % required");
        assert!(passed * 100 >= least * total, "{what}: {passed} of {total}");
    }
}

pub fn short(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}
