//! Prefers hosts with the image in their cache.

use super::{CycleState, RawWeights, Weigher};

/// Kubernetes' `ImageLocality`: a host with the image in its cache need not download it.
pub struct ImageLocalityWeigher;

impl Weigher for ImageLocalityWeigher {
    fn name(&self) -> &'static str {
        "ImageLocalityWeigher"
    }

    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a> {
        let digest = cycle.request.image_digest.as_deref();
        let hosts = digest.and_then(|d| cycle.snapshot.image(d));
        hosts.map_or(RawWeights::Equal, RawWeights::Hosts)
    }
}
