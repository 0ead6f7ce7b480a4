//! The contract with users: one file per kind, group `pileus.dev`, version `v1alpha1`.
//! No I/O. A validation that needs no other object lives with its type: what a schema
//! can say the schema says, cross-field rules are CEL on the type, and what neither can say is in
//! [`validation`].

#![allow(
    clippy::duplicated_attributes,
    reason = "print columns are attributes, and several have the same type"
)]

mod bounds;
pub mod common;
pub mod conditions;
pub mod crd;
pub mod flavor;
pub mod host;
pub mod host_aggregate;
pub mod image;
pub mod instance;
pub mod ip_allocation;
pub mod key_pair;
pub mod names;
pub mod network;
pub mod pci;
pub mod port;
pub mod scheduler_policy;
pub mod security_group;
pub mod server;
pub mod server_group;
pub mod stack;
pub mod subnet;
pub mod topology;
pub mod validation;

pub use common::{ObjectName, Resources, SecretKey, Sharing};
pub use conditions::{ConditionType, Reason};
pub use flavor::{Flavor, FlavorSpec};
pub use host::{Host, HostSpec, HostStatus};
pub use host_aggregate::{HostAggregate, HostAggregateSpec, HostAggregateStatus};
pub use image::{Image, ImageSpec, ImageStatus};
pub use instance::{Instance, InstanceSpec, InstanceStatus};
pub use ip_allocation::{IPAllocation, IPAllocationSpec};
pub use key_pair::{KeyPair, KeyPairSpec, KeyPairStatus};
pub use network::{Network, NetworkSpec, NetworkStatus};
pub use port::{Port, PortSpec, PortStatus};
pub use scheduler_policy::{SchedulerPolicy, SchedulerPolicySpec, SchedulerPolicyStatus};
pub use security_group::{
    SecurityGroup, SecurityGroupRule, SecurityGroupRuleSpec, SecurityGroupRuleStatus,
    SecurityGroupSpec, SecurityGroupStatus,
};
pub use server::{Server, ServerSpec, ServerStatus};
pub use server_group::{ServerGroup, ServerGroupSpec, ServerGroupStatus};
pub use stack::{Stack, StackSpec, StackStatus};
pub use subnet::{Subnet, SubnetSpec, SubnetStatus};

/// The API group of every kind.
pub const GROUP: &str = "pileus.dev";
/// The one version served.
pub const VERSION: &str = "v1alpha1";
