//! Prefers hosts that hold the image.

use super::{CycleState, RawWeights, Weigher};

/// A host that holds the image already is better: nothing is to be fetched.
pub struct ImageLocalityWeigher;

impl Weigher for ImageLocalityWeigher {
    fn name(&self) -> &'static str {
        "ImageLocalityWeigher"
    }

    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a> {
        let digest = cycle.request.image_digest.as_deref();
        let held = digest.and_then(|d| cycle.snapshot.image(d));
        held.map_or(RawWeights::Equal, RawWeights::Hosts)
    }
}
