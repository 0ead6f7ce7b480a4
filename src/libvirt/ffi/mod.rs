//! libvirt's client library, loaded when a hypervisor is first wanted: the command line, the
//! manager and the scheduler start faster for it, and where libvirt is not installed. The
//! only place with `unsafe`.
//!
//! Public for the benchmarks, which set Pileus beside libvirt itself.

mod client;
mod events;
mod library;

pub use client::{Connect, Domain, Error, NodeDevice};
pub use events::{Notice, Notify, Session, start_event_loop};
pub use numbers::*;

/// Numbers of libvirt's headers, under their names there. libvirt never changes one.
#[allow(missing_docs, reason = "documented by libvirt, under the same names")]
mod numbers {
    use std::ffi::{c_int, c_uint};

    // virErrorNumber
    pub const VIR_ERR_OK: c_int = 0;
    pub const VIR_ERR_INTERNAL_ERROR: c_int = 1;
    pub const VIR_ERR_NO_DOMAIN: c_int = 42;
    pub const VIR_ERR_OPERATION_INVALID: c_int = 55;
    pub const VIR_ERR_NO_DOMAIN_METADATA: c_int = 80;

    // virDomainState
    pub const VIR_DOMAIN_RUNNING: c_int = 1;
    pub const VIR_DOMAIN_BLOCKED: c_int = 2;
    pub const VIR_DOMAIN_PAUSED: c_int = 3;
    pub const VIR_DOMAIN_SHUTDOWN: c_int = 4;
    pub const VIR_DOMAIN_SHUTOFF: c_int = 5;
    pub const VIR_DOMAIN_CRASHED: c_int = 6;
    pub const VIR_DOMAIN_PMSUSPENDED: c_int = 7;

    // virDomainShutoffReason
    pub const VIR_DOMAIN_SHUTOFF_UNKNOWN: c_int = 0;
    pub const VIR_DOMAIN_SHUTOFF_SHUTDOWN: c_int = 1;

    // virDomainMetadataType
    pub const VIR_DOMAIN_METADATA_ELEMENT: c_int = 2;

    // virDomainModificationImpact
    pub const VIR_DOMAIN_AFFECT_CURRENT: c_uint = 0;
    pub const VIR_DOMAIN_AFFECT_LIVE: c_uint = 1;
    pub const VIR_DOMAIN_AFFECT_CONFIG: c_uint = 2;

    // virDomainXMLFlags
    pub const VIR_DOMAIN_XML_INACTIVE: c_uint = 2;

    // virDomainCreateFlags
    pub const VIR_DOMAIN_START_PAUSED: c_uint = 1;

    // virDomainUndefineFlagsValues
    pub const VIR_DOMAIN_UNDEFINE_MANAGED_SAVE: c_uint = 1;
    pub const VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA: c_uint = 2;
    pub const VIR_DOMAIN_UNDEFINE_NVRAM: c_uint = 4;
    pub const VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA: c_uint = 16;

    // virDomainEventID
    pub const VIR_DOMAIN_EVENT_ID_LIFECYCLE: c_int = 0;

    // virConnectListAllNodeDeviceFlags
    pub const VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV: c_uint = 2;
}
