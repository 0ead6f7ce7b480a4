//! (filled in as the tree grows)
pub mod instance;
