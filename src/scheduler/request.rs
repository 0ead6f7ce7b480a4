//! What a Server asks of a host, with all references resolved.

use std::collections::BTreeMap;

use crate::api::common::Claim;

/// What a Server asks of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// What it takes.
    pub claim: Claim,
    /// Labels that the host must have.
    pub host_selector: BTreeMap<String, String>,
    /// Properties of its image.
    pub image_properties: BTreeMap<String, String>,
    /// Digest of its image, if known.
    pub image_digest: Option<String>,
    /// Decides between hosts that are equally good.
    pub seed: u64,
}

/// A stable hash of `text` (FNV-1a): the same in every build, unlike the standard
/// library's.
#[must_use]
pub fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Mixes two hashes into one whose every bit depends on both (splitmix64's finish).
#[must_use]
pub fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
