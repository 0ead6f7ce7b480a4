//! `Server`: a virtual machine, as in Nova.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{Claim, ObjectName, Resources, SecretKey};
use super::pci::GivenDevice;

/// A virtual machine.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "Server",
    plural = "servers",
    shortname = "srv",
    category = "pileus",
    namespaced,
    status = "ServerStatus",
    selectable = ".spec.flavor",
    selectable = ".spec.image.name",
    selectable = ".status.placement.host",
    selectable = ".status.phase",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Addresses",
        type_ = "string",
        json_path = ".status.addressList"
    ),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.placement.host"),
    printcolumn(
        name = "Flavor",
        type_ = "string",
        priority = 1,
        json_path = ".spec.flavor"
    ),
    printcolumn(
        name = "Image",
        type_ = "string",
        priority = 1,
        json_path = ".spec.image.name"
    ),
    printcolumn(
        name = "Power",
        type_ = "string",
        priority = 1,
        json_path = ".status.powerState"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].message"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.flavor) != has(self.resources)").message(Message::Message("give either flavor or resources".into())))]
#[x_kube(validation = Rule::new("!(has(self.userData) && has(self.userDataFrom))").message(Message::Message("give either userData or userDataFrom".into())))]
#[x_kube(validation = Rule::new("!has(self.networks) || self.networks.all(n, !has(n.port) || self.networks.exists_one(other, has(other.port) && other.port == n.port))").message(Message::Message("a port is given twice in networks; each interface needs its own".into())))]
pub struct ServerSpec {
    /// Name of a Flavor; or give `resources`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flavor: Option<String>,
    /// The size itself; or give `flavor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Image of the root disk.
    pub image: ObjectName,
    /// Interfaces, in the order that the guest sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 16))]
    pub networks: Vec<ServerNetwork>,
    /// Names of KeyPairs of the same namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub key_pairs: Vec<String>,
    /// Data for the guest's first boot, at most 64 KiB; visible to all who can read the
    /// Server: put secrets into `userDataFrom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65535))]
    pub user_data: Option<String>,
    /// The same from a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_from: Option<SecretKey>,
    /// The guest's host name, as Nova's `hostname`; made of the Server's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub hostname: Option<String>,
    /// Free-form metadata, given to the guest: at most 128 entries, Nova's default quota, with
    /// keys and values of at most 255 characters, Nova's limit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "maxProperties" = 128,
        "additionalProperties" = {"type": "string", "maxLength": 255}
    ))]
    #[x_kube(validation = Rule::new("self.all(key, size(key) <= 255)").message(Message::Message("keys of metadata have at most 255 characters".into())))]
    pub metadata: BTreeMap<String, String>,
    /// Whether the guest gets its data on a drive labelled `config-2`.
    #[serde(default)]
    pub config_drive: ConfigDrive,
    /// What the machine should do.
    #[serde(default)]
    pub run_state: RunState,
    /// What happens when the guest shuts itself down. Crashes and reboots of the host are
    /// not a shutdown: a Server that should run is started again after them.
    #[serde(default)]
    pub on_guest_shutdown: OnGuestShutdown,
    /// How long a guest may take to shut down before its power is cut, in seconds.
    #[serde(default = "sixty")]
    #[schemars(range(min = 0, max = 3600))]
    pub shutdown_timeout_seconds: i32,
    /// Constraints on the host that it is placed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementConstraints>,
}

fn sixty() -> i32 {
    60
}

/// One interface of a Server: either a `network` to make a Port on, or a `port`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.network) != has(self.port)").message(Message::Message("give either network or port".into())))]
#[x_kube(validation = Rule::new("!has(self.port) || !(has(self.fixedIP) || has(self.securityGroups))").message(Message::Message("fixedIP and securityGroups belong to the Port when port is given".into())))]
pub struct ServerNetwork {
    /// Name of the interface within the Server.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Network to attach to; the Port is made and owned by the Server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<ObjectName>,
    /// Port of the same namespace to use; it outlives the Server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub port: Option<String>,
    /// Address for a made Port; any free one when absent.
    #[serde(default, rename = "fixedIP", skip_serializing_if = "Option::is_none")]
    pub fixed_ip: Option<String>,
    /// Security groups for a made Port; `default` when absent, none when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub security_groups: Option<Vec<String>>,
}

/// Whether there is a config drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConfigDrive {
    /// The guest gets a config drive.
    #[default]
    Enabled,
    /// No config drive.
    Disabled,
}

/// What a Server should do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RunState {
    /// Powered on.
    #[default]
    Running,
    /// Shut down; host, disk and addresses are kept.
    Stopped,
}

/// What happens when the guest shuts itself down while it should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnGuestShutdown {
    /// It stays off, as in Nova, and Ready becomes False; setting `runState` to Stopped and
    /// back to Running starts it.
    #[default]
    Stop,
    /// It is started again.
    Restart,
}

/// Constraints on the host that it is placed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlacementConstraints {
    /// Labels that the Host must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_selector: BTreeMap<String, String>,
    /// Availability zone; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub availability_zone: Option<String>,
    /// ServerGroup of the same namespace that it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_group: Option<String>,
    /// Servers of the same namespace, beside any of which it is placed; Nova's hint
    /// `same_host`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub same_host: Vec<String>,
    /// Servers of the same namespace, beside none of which it is placed; Nova's hint
    /// `different_host`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub different_host: Vec<String>,
    /// Range that the Host's `spec.address` lies in, such as `10.1.0.0/16`; Nova's hints
    /// `build_near_host_ip` and `cidr`.
    #[serde(default, rename = "hostCIDR", skip_serializing_if = "Option::is_none")]
    pub host_cidr: Option<String>,
    /// A condition that the Host must fulfil, in JSON, such as
    /// `[">=", "$free_ram_mb", 1024]`; Nova's hint `query`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub query: Option<String>,
    /// Taints of Hosts that it tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// Keeps Servers evenly spread over racks, rooms or whatever Hosts' labels name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<TopologySpread>,
    /// Kubernetes' PriorityClass: of Servers that wait for room the highest comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class: Option<String>,
}

/// A taint that a Server tolerates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// The taint's name, or `*` for every taint.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The taint's value; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub value: Option<String>,
}

/// Servers that are spread together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopologySpread {
    /// Servers of the same namespace with the same word here are counted together.
    #[schemars(length(min = 1, max = 253))]
    pub set: String,
    /// What they are spread over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 8))]
    pub over: Vec<TopologySpreadConstraint>,
}

/// Something that Servers are spread over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopologySpreadConstraint {
    /// Label of Hosts, whose values are the domains.
    #[schemars(length(min = 1, max = 317))]
    pub name: String,
    /// How many more a domain may hold than the emptiest; Kubernetes' `maxSkew`.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_skew: i32,
}

fn one() -> i32 {
    1
}

/// What Pileus found and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// For people, in Nova's words; nothing decides by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Where it is placed. Written by the scheduler alone; the one binding decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Hosts that refused it, which it is not placed on again for ten minutes, unless they have
    /// started again or have more room before. Written by the scheduler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub refusals: Vec<Refusal>,
    /// The Host on which room is kept for it while it waits, as Kubernetes'
    /// `nominatedNodeName`. Written by the scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nomination: Option<Nomination>,
    /// It is stopped, whatever `runState` says, because a Server of higher priority has its
    /// processors and memory; it is started again when its Host has room for it. Written by
    /// the scheduler, and only under a SchedulerPolicy that allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preemption: Option<Preemption>,
    /// The Instance that realises it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What the host says of the machine: Running, Stopped, Paused or Unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_state: Option<PowerState>,
    /// Addresses by interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub addresses: Vec<ServerAddress>,
    /// The addresses with commas between them, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_list: Option<String>,
    /// The size that it was built with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flavor: Option<ResolvedFlavor>,
    /// The image that it was built from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ResolvedImage>,
    /// instance-id of the guest's data, also the domain's uuid on the host.
    #[serde(
        default,
        rename = "instanceID",
        skip_serializing_if = "Option::is_none"
    )]
    pub instance_id: Option<String>,
    /// What was fixed when it first booted and stays so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// Conditions: Ready, Stalled, UpToDate; Scheduled is the scheduler's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The scheduler's decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Name of the Host.
    pub host: String,
    /// Number of the decision; higher than any earlier one for this Server.
    #[schemars(range(min = 1))]
    pub epoch: i64,
    /// What it takes of the host; the scheduler's ledger is the sum of these.
    pub claim: Claim,
    /// The Host's NUMA node for each of the guest's, when it has NUMA nodes of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numa_nodes: Vec<i32>,
    /// The Host's PCI devices that it has to itself.
    // No list by key: the scheduler alone writes it, and always the whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pci_devices: Vec<GivenDevice>,
    /// When it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// A Host that refused a Server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Name of the Host.
    pub name: String,
    /// Number of the placement that it refused.
    pub epoch: i64,
    /// Why, in the Host's words.
    #[serde(default)]
    pub message: String,
    /// When the placement was taken back; the Host may be asked again ten minutes after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// Boot id of the Host then; with another one it may be asked again.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// What the Host had left for it then, by the scheduler's count; with more of anything it
    /// may be asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Claim>,
}

/// A Host on which room is kept for a Server that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Nomination {
    /// Name of the Host.
    pub host: String,
    /// How the room comes to be.
    #[serde(default)]
    pub purpose: NominationPurpose,
    /// Since when it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// How room comes to be on a Host that is kept for a Server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum NominationPurpose {
    /// Others leave of themselves: what they free is not given to those that came later.
    #[default]
    Waiting,
    /// Servers of lower priority are being stopped.
    Preemption,
}

/// Why a Server is stopped though it may be wanted to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Preemption {
    /// uid of the Server that has its place. Not its name: that may be another tenant's.
    pub by: String,
    /// Priority of that Server.
    pub priority: i32,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// What a machine does, as its host says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PowerState {
    /// Not known now.
    #[default]
    Unknown,
    /// Powered on.
    Running,
    /// Powered on, its processors held.
    Paused,
    /// Powered off.
    Stopped,
}

/// An address of a Server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerAddress {
    /// Name of the interface.
    pub name: String,
    /// Name of the Port.
    pub port: String,
    /// Ethernet address.
    pub mac_address: String,
    /// IP addresses.
    #[serde(default)]
    pub ips: Vec<String>,
}

/// The size that a Server was built with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedFlavor {
    /// Name of the Flavor; absent for inline resources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Virtual processors, memory and disk.
    #[serde(flatten)]
    pub claim: Claim,
}

/// The image that a Server was built from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedImage {
    /// Name of the Image.
    pub name: String,
    /// uid of the Image.
    pub uid: String,
    /// `sha256:…` of its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// What is fixed at first boot, so that the guest never sees its hardware change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hardware {
    /// Versioned machine type, such as `pc-q35-10.0`.
    pub machine_type: String,
    /// Model of the processors.
    pub cpu_model: String,
    /// `kvm` or `qemu`.
    pub virt_type: String,
    /// `bios` or `uefi`.
    pub firmware: String,
}
