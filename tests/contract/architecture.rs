//! What cargo cannot see of the structure: plans are pure, and the programs load no library that
//! they need not. Who may import whom stands in the `Cargo.toml` of each member of `src/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pileus_tests::program::{program, root};

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
    walk(&root().join("src"), &mut found);
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

/// What `ldd` lists, by the dynamic loader itself, which runs nothing of the program.
fn libraries(name: &str) -> Vec<String> {
    let listed = Command::new(program(name))
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`; the loader itself has a path only.
    let names: Vec<_> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(|name| name.rsplit('/').next().unwrap_or(name).to_owned())
        .collect();
    assert!(
        names.iter().any(|name| name == "libc.so.6"),
        "not the loader's list: {listed}"
    );
    names
}

/// The agent is the only program that needs libvirt: the other must start without it, and without
/// waiting for its many libraries.
#[test]
fn pileus_starts_with_nothing_but_the_c_library() {
    let allowed = [
        "libc.so",
        "libm.so",
        "libgcc_s.so",
        "ld-linux",
        "linux-vdso",
    ];
    let others: Vec<_> = libraries("pileus")
        .into_iter()
        .filter(|name| !allowed.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    assert!(
        others.is_empty(),
        "libraries that the start waits for: {others:?}"
    );
}

/// All programs of the workspace: each member of `src/` with a `[[bin]]`.
fn programs() -> Vec<String> {
    let members = fs::read_dir(root().join("src")).unwrap();
    let manifests = members
        .filter_map(|member| fs::read_to_string(member.unwrap().path().join("Cargo.toml")).ok());
    let mut names = Vec::new();
    for manifest in manifests {
        for binary in manifest.split("[[bin]]").skip(1) {
            let name = binary.lines().find_map(|line| line.strip_prefix("name = "));
            names.push(name.unwrap().trim_matches('"').to_owned());
        }
    }
    names.sort();
    names
}

#[test]
fn pileus_agent_and_no_other_program_loads_libvirt() {
    let all = programs();
    assert!(all.contains(&"pileus".to_owned()), "{all:?}");
    let with_libvirt: Vec<_> = all
        .into_iter()
        .filter(|name| libraries(name).iter().any(|l| l == "libvirt.so.0"))
        .collect();
    assert_eq!(with_libvirt, ["pileus-agent"]);
}
