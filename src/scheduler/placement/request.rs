//! What a Server requires of a host, with all references resolved.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::objects::catalogue::Priority;
use crate::placement::facts::ResourceRequest;
use crate::placement::query::Query;
pub use pileus_api::server_group::GroupPolicy;

/// What a Server requires of a host; Nova's RequestSpec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Requirements that many Servers share; decisions on equal ones are cached.
    pub requirements: Requirements,
    /// Digest of its image, if known.
    pub image_digest: Option<String>,
    /// Chooses between hosts of equal weight.
    pub seed: u64,
    /// Its namespace; Nova's project.
    pub namespace: String,
    /// Its ServerGroup.
    pub group: Option<Group>,
    /// Nova's hint `same_host`: on the host of any of these Servers.
    pub same_host: Vec<ServerReference>,
    /// Nova's hint `different_host`: not on the host of any of these Servers.
    pub different_host: Vec<ServerReference>,
    /// Hosts that refused it, with the reason for users.
    pub refused_by: BTreeMap<String, String>,
    /// Kubernetes' topology spread constraints.
    pub spread: Vec<Spread>,
    /// Id of the set of Servers that `spread` counts; chosen by the caller.
    pub spread_set: Option<String>,
    /// Its priority; the highest is decided first.
    pub priority: Priority,
}

/// Requirements that do not depend on one Server alone, so that filter results for equal ones
/// are cached: kube-scheduler's former equivalence class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requirements {
    /// The resources.
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
    /// Taints that it tolerates.
    pub tolerations: Vec<Toleration>,
    /// Network of the host's address; Nova's hints `build_near_host_ip` and `cidr`.
    pub host_cidr: Option<IpNet>,
    /// Nova's hint `query`.
    pub query: Option<Query>,
    /// Physical networks that the host must be connected to.
    pub physical_networks: BTreeSet<String>,
    /// Hosts that can use its volumes; all if absent.
    pub volume_hosts: Option<BTreeSet<String>>,
}

/// A ServerGroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Its id; chosen by the caller.
    pub id: String,
    /// Its policy.
    pub policy: GroupPolicy,
    /// How many members may be on one host with AntiAffinity; Nova's `max_server_per_host`.
    pub max_per_host: u32,
    /// Gang scheduling: how many members must be placed together; 0 if none must.
    pub min_members: u32,
}

/// A Server that another one refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerReference {
    /// Its name.
    pub name: String,
    /// Its uid, if it exists.
    pub uid: Option<String>,
}

/// A toleration, as of a Kubernetes Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Toleration {
    /// Key; any if absent.
    pub key: Option<String>,
    /// Value; any if absent.
    pub value: Option<String>,
    /// Effect; any if absent.
    pub effect: Option<String>,
}

/// One topology spread constraint that must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Key of the label of Hosts whose values are the domains.
    pub key: String,
    /// How many more Servers a domain may have than the emptiest one.
    pub max_skew: u32,
}

/// A stable hash of `text` (FNV-1a); unlike the standard library's it is the same in every build.
#[must_use]
pub fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Combines two hashes, so that every bit depends on both (splitmix64's finalizer).
#[must_use]
pub fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
