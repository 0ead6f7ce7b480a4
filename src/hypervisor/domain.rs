//! Domains and hosts, in values of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use pileus_values::{Mac, Owner};

/// Everything that defines a domain; libvirt chooses nothing that a guest can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainSpec {
    /// The domain's uuid; its name is made from it.
    pub id: Uuid,
    /// Its owner, kept in its metadata.
    pub metadata: OwnerMetadata,
    /// Virtual processors.
    pub vcpus: i64,
    /// Memory of the guest in MiB.
    pub memory_mib: i64,
    /// NUMA nodes of the guest; none of its own, anywhere on the host, when absent.
    pub topology: Option<Topology>,
    /// Versioned machine type, such as `pc-q35-10.0`.
    pub machine: String,
    /// Model of the processors, by libvirt's name.
    pub cpu_model: String,
    /// How instructions are run.
    pub virt_type: VirtType,
    /// What is booted.
    pub boot: Boot,
    /// Root disk.
    pub root: Disk,
    /// Config drive, a raw image.
    pub config_drive: Option<String>,
    /// Interfaces, in the order that the guest sees.
    pub nics: Vec<Nic>,
    /// PCI devices of the host that the guest has to itself.
    pub devices: Vec<PciAddress>,
    /// File that the console is logged to.
    pub console_log: String,
}

/// The owner of a domain and what it has of the host, kept in the domain's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerMetadata {
    /// Whose it is.
    pub owner: Owner,
    /// Epoch of the placement that it was made for.
    pub epoch: i64,
    /// Processors of the host that it has to itself.
    pub pinned: BTreeSet<i32>,
    /// PCI devices of the host that it has to itself.
    pub devices: BTreeSet<PciAddress>,
}

/// NUMA nodes of a guest, and where on the host each of them is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// In the order of their numbers in the guest.
    pub nodes: Vec<GuestNode>,
    /// Size in KiB of the huge pages that its memory is made of, if any.
    pub page_kib: Option<i64>,
}

/// A NUMA node of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestNode {
    /// Number of the host's node that its memory is on.
    pub host_node: i32,
    /// Memory in MiB.
    pub memory_mib: i64,
    /// For each of its processors those of the host that it may run on.
    pub cpus: BTreeMap<i32, BTreeSet<i32>>,
}

/// How instructions are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VirtType {
    /// By the processor.
    #[default]
    Kvm,
    /// Emulated: slow, and never chosen silently.
    Qemu,
}

impl VirtType {
    /// As libvirt spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// What the root disk's first sectors hold.
    Disk,
    /// A kernel from the host.
    Kernel {
        /// Path of the kernel.
        kernel: String,
        /// Path of the initial RAM disk.
        initrd: Option<String>,
        /// Command line.
        command_line: String,
    },
}

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Path of the image.
    pub path: String,
    /// `qcow2` or `raw`.
    pub format: String,
    /// Serial number that the guest sees, at most 20 characters.
    pub serial: String,
}

/// An interface of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Name of the logical port; the interface id in Open vSwitch.
    pub port_id: Uuid,
    /// Ethernet address.
    pub mac: Mac,
    /// Largest packet in bytes.
    pub mtu: i32,
    /// The guest may leave checksums and segmentation to the card. Not behind a switch
    /// in userspace, which does not complete them, so that TCP silently fails.
    pub offload: bool,
}

impl Nic {
    /// Name of the tap device, as OpenStack makes it: at most 14 characters.
    #[must_use]
    pub fn tap(&self) -> String {
        format!("tap{}", &self.port_id.to_string()[..11])
    }
}

/// A domain in the list of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedDomain {
    /// The domain's uuid.
    pub id: Uuid,
    /// Its metadata; `None` when it is not ours.
    pub metadata: Option<OwnerMetadata>,
    /// Its state.
    pub state: State,
}

/// A domain as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// The domain's uuid.
    pub id: Uuid,
    /// Its metadata; `None` when it is not ours.
    pub metadata: Option<OwnerMetadata>,
    /// Its state.
    pub state: State,
    /// Machine type and processor model that it was defined with.
    pub hardware: DefinedHardware,
    /// Tap devices, while it runs.
    pub taps: Vec<String>,
}

/// Hardware that a domain was defined with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefinedHardware {
    /// Machine type.
    pub machine: String,
    /// Processor model.
    pub cpu_model: String,
    /// `kvm` or `qemu`.
    pub virt_type: String,
}

/// State of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Running.
    Running,
    /// Its processors are paused.
    Paused,
    /// The guest is shutting down.
    ShuttingDown,
    /// Off, because the guest shut itself down. Reported for as long as it can be known, also
    /// after restarts of the hypervisor's daemon.
    ShutDown,
    /// Off for another reason: crashed, killed, rebooted host, never started; or the reason
    /// is no longer known.
    Off,
    /// The guest crashed; QEMU is still there.
    Crashed,
}

/// What the hypervisor's host has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Architecture, such as `x86_64`.
    pub architecture: String,
    /// NUMA cells.
    pub cells: Vec<Cell>,
    /// Versioned machine types of the Q35 family, newest first.
    pub machines: Vec<String>,
    /// What confines guests to their own files, by libvirt's names, such as `apparmor`, `selinux`
    /// and `dac`.
    pub security_models: Vec<String>,
    /// Version of libvirt, such as `11.3.0`.
    pub libvirt: String,
    /// Version of QEMU, such as `10.0.2`.
    pub qemu: String,
}

/// A NUMA cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Its number.
    pub id: i32,
    /// Numbers of its processors.
    pub cpus: Vec<i32>,
    /// Memory in MiB.
    pub memory_mib: i64,
    /// Huge pages in all, by size in KiB; sizes of which there are none are left out.
    pub pages: BTreeMap<i64, i64>,
}

/// Address of a PCI device of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Domain.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Slot, below 32.
    pub slot: u8,
    /// Function, below 8.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            slot,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{slot:02x}.{function:x}")
    }
}

impl FromStr for PciAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (slot, function) = rest.split_once('.')?;
            Some(Self {
                domain: u32::from_str_radix(domain, 16).ok()?,
                bus: u8::from_str_radix(bus, 16).ok()?,
                slot: u8::from_str_radix(slot, 16).ok().filter(|n| *n < 32)?,
                function: u8::from_str_radix(function, 16).ok().filter(|n| *n < 8)?,
            })
        };
        read().ok_or_else(|| format!("`{text}` is no PCI address such as 0000:81:00.0"))
    }
}

/// A PCI device of a host that a guest could have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciDevice {
    /// Its address.
    pub address: PciAddress,
    /// Vendor, four hexadecimal digits.
    pub vendor: String,
    /// Product, four hexadecimal digits.
    pub product: String,
    /// Number of the NUMA node that it is on, if known.
    pub numa_node: Option<i32>,
}

/// An event of the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A domain changed its state.
    Domain(Uuid),
    /// The connection was lost; nothing is known until [`Event::Connected`].
    Disconnected,
    /// The connection is there (again): everything must be observed.
    Connected,
}
