//! Keeps the import table of `src/lib.rs` true, plans pure, and the program free of libraries.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each module may import of ours; the table of `src/lib.rs`, written out.
/// `drivers::x` alone stands for that one driver.
const TABLE: [(&str, &[&str]); 12] = [
    ("model", &[]),
    ("stack", &["api"]),
    ("stack_cli", &["stack"]),
    ("telemetry", &[]),
    ("api", &["model"]),
    ("drivers", &["model"]),
    ("guest", &["api", "model"]),
    ("network", &["api", "model", "drivers::ovn"]),
    ("kube_ext", &["api", "model"]),
    ("scheduler", &["api", "model", "kube_ext", "telemetry"]),
    (
        "controllers",
        &[
            "api",
            "model",
            "guest",
            "network",
            "stack",
            "kube_ext",
            "telemetry",
            "drivers::ovn",
            "drivers::ovsdb",
        ],
    ),
    (
        "agent",
        &[
            "api",
            "model",
            "guest",
            "network",
            "kube_ext",
            "telemetry",
            "drivers",
        ],
    ),
];

/// What a plan is free of: clients, clocks, randomness, files, tokio.
const IMPURE: [&str; 14] = [
    "kube::Api",
    "kube::Client",
    "kube::{Api",
    "kube::{Client",
    "kube::client",
    "tokio",
    "Timestamp::now",
    "SystemTime",
    "Instant::now",
    "Uuid::new_v4",
    "std::fs",
    "std::env",
    "std::process",
    "async fn",
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, without_comments(&text)));
            }
        }
    }
    let mut found = Vec::new();
    walk(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    assert!(found.len() > 50, "the sources were not found");
    found
}

/// The text without line comments; `//` inside of a string costs the rest of that line,
/// where no path of ours stands.
fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The top-level module that a file belongs to.
fn module(path: &Path) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inner = path.strip_prefix(src).unwrap();
    let first = inner.components().next().unwrap();
    let first = first.as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules named after `crate::`, with the second segment for drivers; grouped
/// imports are taken apart one level deep.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in text.split("crate::").skip(1) {
        let items: Vec<&str> = if let Some(group) = rest.strip_prefix('{') {
            top_level_items(group)
        } else {
            vec![rest]
        };
        for item in items {
            let path: String = item
                .trim_start()
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
                .collect();
            let mut segments = path.split("::").filter(|s| !s.is_empty());
            let Some(first) = segments.next() else {
                continue;
            };
            match (first, segments.next()) {
                ("drivers", Some(driver)) => found.insert(format!("drivers::{driver}")),
                _ => found.insert(first.to_owned()),
            };
        }
    }
    found
}

fn top_level_items(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0_i32, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let table: BTreeMap<_, _> = TABLE.into_iter().collect();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module(&path);
        let file = path.file_name().unwrap().to_str().unwrap();
        // Tests may try a module against the real thing.
        if matches!(module.as_str(), "lib" | "main") || file.ends_with("tests.rs") {
            continue;
        }
        let allowed = table
            .get(module.as_str())
            .unwrap_or_else(|| panic!("module {module} is not in the table"));
        for import in imports(&text) {
            let whole = import.split("::").next().unwrap();
            // Macros and items of the crate root are nobody's module.
            let is_ours = table.contains_key(whole);
            if is_ours
                && whole != module
                && !allowed.contains(&import.as_str())
                && !allowed.contains(&whole)
            {
                wrong.push(format!(
                    "{}: {module} must not import {import}",
                    path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn plans_are_pure() {
    let mut plans = 0;
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        // `plan.rs`, or all of `plan/`.
        if !path.with_extension("").iter().any(|part| part == "plan") {
            continue;
        }
        plans += 1;
        let code = text.split("#[cfg(test)]").next().unwrap();
        for impure in IMPURE {
            if code.contains(impure) {
                wrong.push(format!("{}: {impure}", path.display()));
            }
        }
    }
    assert!(plans > 0, "no plan was found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn drivers_know_nothing_of_kubernetes() {
    for (path, text) in sources() {
        if module(&path) == "drivers" {
            for word in ["kube::", "k8s_openapi"] {
                assert!(!text.contains(word), "{}: {word}", path.display());
            }
        }
    }
}

#[test]
fn the_check_itself_sees_grouped_and_nested_imports() {
    let text =
        "use crate::{api::{Server, names}, agent, drivers::ovn::Row};\nlet x = crate::model::Mac;";
    let seen: Vec<_> = imports(text).into_iter().collect();
    assert_eq!(seen, ["agent", "api", "drivers::ovn", "model"]);
    assert!(imports(&without_comments("// crate::agent")).is_empty());
}

/// The agent alone needs libvirt, and loads it itself: everything else must start without it,
/// and without waiting for its many libraries.
#[test]
fn the_program_starts_with_nothing_but_the_c_library() {
    // What `ldd` does: the dynamic loader lists what it loads, and runs nothing.
    let listed = Command::new(env!("CARGO_BIN_EXE_pileus"))
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`; the loader itself has a path only.
    let names: Vec<_> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(|name| name.rsplit('/').next().unwrap_or(name))
        .collect();
    assert!(
        names.contains(&"libc.so.6"),
        "not the loader's list: {listed}"
    );
    let allowed = [
        "libc.so",
        "libm.so",
        "libgcc_s.so",
        "ld-linux",
        "linux-vdso",
    ];
    let others: Vec<_> = names
        .iter()
        .filter(|name| !allowed.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    assert!(
        others.is_empty(),
        "libraries that the start waits for: {others:?}"
    );
}
