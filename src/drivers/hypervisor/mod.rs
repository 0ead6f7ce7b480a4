//! (filled in as the tree grows)
