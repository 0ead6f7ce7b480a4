//! How much and how slowly a host fetches: one image server, or one namespace's images, must
//! neither fill its disk nor keep others from fetching.

use std::time::Duration;

/// The limits of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a file.
    pub download: u64,
    /// Most bytes of the disk in an image.
    pub disk: u64,
    /// Bytes in a second that a server must send, averaged over [`Limits::window`].
    pub min_rate: u64,
    /// Time over which the rate is averaged.
    pub window: Duration,
    /// Time after which a download ends, however fast it is; it is resumed later.
    pub deadline: Duration,
    /// Downloads at once.
    pub downloads: usize,
    /// Downloads at once for one namespace.
    pub downloads_per_namespace: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            download: 200 << 30,
            disk: 1 << 40,
            min_rate: 16 << 10,
            window: Duration::from_mins(1),
            deadline: Duration::from_hours(6),
            downloads: 8,
            downloads_per_namespace: 2,
        }
    }
}
