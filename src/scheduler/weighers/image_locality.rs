//! Prefers hosts that hold the image.

use super::{HostState, Request, Weigher};

/// A host that holds the image already is better: nothing is to be fetched.
pub struct ImageLocalityWeigher;

impl Weigher for ImageLocalityWeigher {
    fn name(&self) -> &'static str {
        "ImageLocalityWeigher"
    }

    fn weigh(&self, host: &HostState, request: &Request) -> i64 {
        let held = request
            .image_digest
            .as_ref()
            .is_some_and(|d| host.facts.images.contains(d));
        i64::from(held)
    }
}
