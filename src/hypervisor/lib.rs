//! The hypervisor of a host behind a small trait, in values of its own, and a fake for tests. The
//! real one is the crate `pileus-libvirt`. Knows nothing of Kubernetes.

pub mod domain;
pub mod fake;
pub mod shutdown_reason;
pub mod xml;

use async_trait::async_trait;
use tokio::sync::broadcast;
use uuid::Uuid;

pub use domain::{
    Boot, Cell, Disk, Domain, DomainSpec, Event, GuestNode, HostFacts, ListedDomain, Nic,
    OwnerMetadata, PciAddress, PciDevice, State, Topology, VirtType,
};
pub use fake::FakeHypervisor;

/// Why the hypervisor did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The hypervisor's library cannot be used on this machine.
    #[error("{0}")]
    Library(String),
    /// The hypervisor's daemon does not answer; it is tried again by itself.
    #[error("libvirt does not answer: {0}")]
    Unreachable(String),
    /// The call timed out. It may still be carried out.
    #[error("libvirt takes too long to {0}")]
    Timeout(&'static str),
    /// There is no such domain.
    #[error("libvirt knows no domain {0}")]
    NotFound(Uuid),
    /// The hypervisor refused.
    #[error("libvirt failed to {action}: {message}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// libvirt's own words.
        message: String,
    },
}

/// A hypervisor. Every method can be called again at any time, and does nothing when its result
/// is there already.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What the host has.
    async fn host(&self) -> Result<HostFacts, Error>;
    /// PCI devices that guests could have: no bridges, and none that has virtual functions.
    async fn pci_devices(&self) -> Result<Vec<PciDevice>, Error>;
    /// All domains, ours and others'; guests that hang do not delay it.
    async fn domains(&self) -> Result<Vec<ListedDomain>, Error>;
    /// One domain.
    async fn domain(&self, id: Uuid) -> Result<Option<Domain>, Error>;
    /// Defines the domain, or changes its definition; a running guest sees nothing of it.
    async fn define(&self, spec: &DomainSpec) -> Result<(), Error>;
    /// Changes the owner's metadata of a domain, running or not, and nothing else.
    async fn set_owner_metadata(&self, id: Uuid, metadata: &OwnerMetadata) -> Result<(), Error>;
    /// Starts the domain with its processors paused.
    async fn start_paused(&self, id: Uuid) -> Result<(), Error>;
    /// Resumes the processors.
    async fn resume(&self, id: Uuid) -> Result<(), Error>;
    /// Asks the guest to shut down.
    async fn shut_down(&self, id: Uuid) -> Result<(), Error>;
    /// Cuts the power.
    async fn power_off(&self, id: Uuid) -> Result<(), Error>;
    /// Removes the definition of a domain that is off; never a disk.
    async fn undefine(&self, id: Uuid) -> Result<(), Error>;
    /// Events from now on.
    fn events(&self) -> broadcast::Receiver<Event>;
}
