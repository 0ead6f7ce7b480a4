//! Hosts that offer nothing because of what they reserve.

use std::fmt;

use crate::placement::snapshot::Snapshot;
use pileus_api::common::Claim;

/// Hosts that offer nothing of what a Server requires, because of what they reserve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// How many there are.
    pub hosts: usize,
    /// The first of them by name, such as `host1 reserves 14101 of 10329 MiB memory`.
    pub named: Vec<String>,
}

/// How many hosts that reserve everything are named.
const NAMED_RESERVED: usize = 3;

impl Reserved {
    /// Finds them for a Server that requires `claim`.
    #[must_use]
    pub fn find(snapshot: &Snapshot, claim: Claim) -> Self {
        let required = [claim.vcpus, claim.memory_mib, claim.disk_gib];
        let mut all: Vec<_> = snapshot
            .hosts()
            .filter_map(|host| {
                let parts = host.exhausted().into_iter();
                let parts: Vec<_> = parts
                    .filter(|part| required[part.part] > 0)
                    .map(|part| part.to_string())
                    .collect();
                (!parts.is_empty()).then(|| (host.name(), parts.join(" and ")))
            })
            .collect();
        all.sort_unstable();
        let hosts = all.len();
        all.truncate(NAMED_RESERVED);
        let named = all.into_iter();
        Self {
            hosts,
            named: named
                .map(|(host, figures)| format!("{host} reserves {figures}"))
                .collect(),
        }
    }
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.named.join(", "))?;
        match self.hosts.saturating_sub(self.named.len()) {
            0 => Ok(()),
            more => write!(f, ", and {more} more such Hosts"),
        }
    }
}
