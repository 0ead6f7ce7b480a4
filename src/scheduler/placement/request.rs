//! What a Server asks of a host, with all references resolved.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::objects::catalogue::Priority;
use crate::placement::facts::ResourceRequest;
use crate::placement::query::Query;
pub use pileus_api::server_group::GroupPolicy;

/// What a Server asks of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// What it has in common with others of its kind; decisions for equal ones share work.
    pub requirements: Requirements,
    /// Digest of its image, if known.
    pub image_digest: Option<String>,
    /// Decides between hosts that are equally good.
    pub seed: u64,
    /// Namespace that it is in: Nova's project.
    pub namespace: String,
    /// Its ServerGroup.
    pub group: Option<Group>,
    /// Nova's hint `same_host`: Servers of which each one's host will do.
    pub same_host: Vec<ServerReference>,
    /// Nova's hint `different_host`: Servers whose hosts will not do.
    pub different_host: Vec<ServerReference>,
    /// Hosts that refused it, and what is to be said of that.
    pub refused_by: BTreeMap<String, String>,
    /// Kubernetes' topology spread.
    pub spread: Vec<Spread>,
    /// Which Servers `spread` counts, in the caller's name.
    pub spread_set: Option<String>,
    /// Of Servers that wait the highest comes first.
    pub priority: Priority,
}

/// What a Server has in common with others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requirements {
    /// What it takes.
    pub resources: ResourceRequest,
    /// Labels that the host must have.
    pub host_selector: BTreeMap<String, String>,
    /// Properties of its image.
    pub image_properties: BTreeMap<String, String>,
    /// Name of its image, with the namespace: `ns/name`.
    pub image: String,
    /// Availability zone.
    pub zone: Option<String>,
    /// Name of its flavor.
    pub flavor: Option<String>,
    /// Extra specs of its flavor.
    pub extra_specs: BTreeMap<String, String>,
    /// Taints that it puts up with.
    pub tolerations: Vec<Toleration>,
    /// Nova's hints `build_near_host_ip` and `cidr`.
    pub host_cidr: Option<IpNet>,
    /// Nova's hint `query`.
    pub query: Option<Query>,
    /// Physical networks that its networks need.
    pub physical_networks: BTreeSet<String>,
    /// Hosts that its volumes bind it to, when they do.
    pub volume_hosts: Option<BTreeSet<String>>,
}

/// A ServerGroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The caller's name for it.
    pub id: String,
    /// Its policy.
    pub policy: GroupPolicy,
    /// How many members one host may hold under AntiAffinity: Nova's
    /// `max_server_per_host`.
    pub max_per_host: u32,
    /// All or nothing: how many members are placed together at least; 0 for any.
    pub min_members: u32,
}

/// A Server named by another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerReference {
    /// Its name.
    pub name: String,
    /// Its uid, when it exists.
    pub uid: Option<String>,
}

/// A toleration, as of a Kubernetes Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Toleration {
    /// Key; any when absent.
    pub key: Option<String>,
    /// Value; any when absent.
    pub value: Option<String>,
    /// Effect; any when absent.
    pub effect: Option<String>,
}

/// One topology spread constraint that must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Label of Hosts whose values are the domains.
    pub key: String,
    /// How many more a domain may hold than the emptiest.
    pub max_skew: u32,
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
