//! The programs and files of the checkout that a test is of.

use std::path::{Path, PathBuf};

/// The checkout.
pub fn root() -> &'static Path {
    // The package of the tests lies one below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A program of the workspace (`pileus`, `pileus-agent`), built in the same profile as the test.
///
/// # Panics
/// When it is not built: cargo builds the programs of a test's own package only.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // target/PROFILE/deps/TEST
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(
        path.is_file(),
        "{} is not there: run `cargo build --bins` first, with `--release` for a benchmark",
        path.display()
    );
    path
}
