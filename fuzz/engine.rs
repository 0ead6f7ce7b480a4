//! The stack engine without the rest of the project.
#![allow(
    unexpected_cfgs,
    reason = "whoever builds to fuzz says `--cfg fuzzing`"
)]

#[path = "../src/stack/mod.rs"]
pub mod stack;
