//! Test cases that were made by Heat itself, and counters of how many pass.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pileus_stack::value::Value;

/// Known differences, with reasons.
pub const DIFFERENCES: &str = include_str!("../heat-differences.md");

/// The folder of the cases.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("PILEUS_HEAT_CASES").map(PathBuf::from);
    let beside = crate::program::root().join("../shared/heat");
    folder.or_else(|| beside.is_dir().then_some(beside))
}

/// The cases of `file`; `None`, with a message, if the folder does not exist.
pub fn cases_of(file: &str) -> Option<Vec<Value>> {
    let Some(folder) = folder() else {
        println!("no cases: PILEUS_HEAT_CASES is not set; {file} is not compared");
        return None;
    };
    let text = std::fs::read_to_string(folder.join(file)).expect("the cases can be read");
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    Some(lines.collect())
}

/// Passed and total cases by group.
#[derive(Default)]
pub struct Results {
    groups: BTreeMap<String, (usize, usize)>,
    /// Failures that are not in the list of differences.
    unexpected: Vec<String>,
}

impl Results {
    pub fn count(&mut self, group: &str, name: &str, failure: Option<String>) {
        let (passed, total) = self.groups.entry(group.to_owned()).or_default();
        *total += 1;
        match failure {
            None => *passed += 1,
            Some(failure) if !DIFFERENCES.contains(name) => {
                self.unexpected.push(format!("{name}: {failure}"));
            }
            Some(_) => {}
        }
    }

    /// Prints the results; panics if less than `least` per cent have passed.
    pub fn require(&self, what: &str, least: usize) {
        for (group, (passed, total)) in &self.groups {
            println!("{what}: {group:<28} {passed:>5} of {total:>5}");
        }
        for failure in &self.unexpected {
            println!("MISS {what} {failure}");
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
