//! Prefers hosts that hold the image.

use super::{Ask, Figures, Weigher};

/// A host that holds the image already is better: nothing is to be fetched.
pub struct ImageLocalityWeigher;

impl Weigher for ImageLocalityWeigher {
    fn name(&self) -> &'static str {
        "ImageLocalityWeigher"
    }

    fn weigh<'a>(&self, ask: &Ask<'a>) -> Figures<'a> {
        let digest = ask.request.image_digest.as_deref();
        let held = digest.and_then(|d| ask.snapshot.image(d));
        held.map_or(Figures::Same, Figures::Bits)
    }
}
