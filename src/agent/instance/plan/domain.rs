//! What the domain of an Instance is made of. Pure.

use uuid::Uuid;

use super::PlacementOwner;
use super::resources::{HostResources, asks_for_resources};
use crate::instance::{Error, owner_metadata};
use pileus_api::Instance;
use pileus_api::server::{ConfigDrive, Hardware};
use pileus_hypervisor::{Boot, Disk, DomainSpec, Nic, OwnerMetadata, VirtType};

/// Command line of a kernel that is booted directly, when the image gives none; Nova's.
const COMMAND_LINE: &str = "root=/dev/vda console=tty0 console=ttyS0";

/// What the host has for a domain.
#[derive(Clone, Debug, Default)]
pub struct HostSide<'a> {
    /// Machine types, newest first.
    pub machines: &'a [String],
    /// Processor model of new guests.
    pub cpu_model: &'a str,
    /// How new guests are run.
    pub virt_type: VirtType,
    /// Guests may leave checksums to their cards.
    pub offload: bool,
    /// Path of the root disk.
    pub root_disk: String,
    /// Path of the config drive.
    pub config_drive: String,
    /// The config drive exists, whether or not what it was made from is still there.
    pub has_config_drive: bool,
    /// Path of the console's log.
    pub console_log: String,
    /// Path of the image's kernel, if it has one.
    pub kernel: Option<String>,
    /// Path of the image's initial RAM disk, if it has one.
    pub initrd: Option<String>,
    /// What was allocated for the guest, or why nothing could be; `None` when nothing was
    /// allocated in this pass.
    pub resources: Option<Result<HostResources, String>>,
}

/// The hardware of a guest: what an earlier boot fixed, else what this host gives.
#[must_use]
pub fn hardware(object: &Instance, host: &HostSide<'_>) -> Hardware {
    let fixed = object.spec.hardware.clone();
    let newest = || host.machines.first().cloned();
    fixed
        .or_else(|| object.status.as_ref()?.hardware.clone())
        .unwrap_or_else(|| Hardware {
            machine_type: newest().unwrap_or_else(|| "q35".to_owned()),
            cpu_model: host.cpu_model.to_owned(),
            virt_type: host.virt_type.as_str().to_owned(),
            firmware: "bios".to_owned(),
        })
}

/// The domain of an Instance.
///
/// # Errors
/// When its interfaces cannot be read, or the host cannot give what it asks for.
pub fn domain_spec(
    object: &Instance,
    id: Uuid,
    own: &PlacementOwner,
    host: HostSide<'_>,
) -> Result<DomainSpec, Error> {
    let spec = &object.spec;
    let hardware = hardware(object, &host);
    let boot = match host.kernel {
        Some(kernel) => Boot::Kernel {
            kernel,
            initrd: host.initrd,
            command_line: spec
                .image
                .kernel_command_line
                .clone()
                .unwrap_or_else(|| COMMAND_LINE.to_owned()),
        },
        None => Boot::Disk,
    };
    let mut nics = Vec::with_capacity(spec.nics.len());
    for nic in &spec.nics {
        nics.push(Nic {
            port_id: nic.port_id.parse().map_err(|e| Error::Spec {
                field: "nics[].portID",
                why: format!("`{}` of interface {}: {e}", nic.port_id, nic.name),
            })?,
            mac: nic.mac_address.parse().map_err(|e| Error::Spec {
                field: "nics[].macAddress",
                why: format!("of interface {}: {e}", nic.name),
            })?,
            mtu: nic.mtu,
            offload: host.offload,
        });
    }
    let resources = match host.resources {
        Some(Ok(resources)) => resources,
        Some(Err(why)) => return Err(Error::Resources(why)),
        None if asks_for_resources(spec) => {
            return Err(Error::Resources("not looked at yet".to_owned()));
        }
        None => HostResources::default(),
    };
    let has_drive = spec.config_drive == ConfigDrive::Enabled
        && (host.has_config_drive || spec.guest_data.is_some());
    Ok(DomainSpec {
        id,
        metadata: OwnerMetadata {
            pinned: resources.pinned,
            devices: resources.devices.iter().copied().collect(),
            ..owner_metadata(own)
        },
        vcpus: spec.claim.vcpus,
        memory_mib: spec.claim.memory_mib,
        topology: resources.topology,
        machine: hardware.machine_type,
        cpu_model: hardware.cpu_model,
        virt_type: if hardware.virt_type == "kvm" {
            VirtType::Kvm
        } else {
            VirtType::Qemu
        },
        boot,
        root: Disk {
            path: host.root_disk,
            format: "qcow2".to_owned(),
            serial: id.simple().to_string(),
        },
        config_drive: has_drive.then_some(host.config_drive),
        nics,
        devices: resources.devices,
        console_log: host.console_log,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::ObjectMeta;
    use pileus_api::instance::{InstanceSpec, InstanceStatus};
    use pileus_api::topology::GuestTopology;

    fn instance() -> Instance {
        Instance {
            metadata: ObjectMeta::default(),
            spec: InstanceSpec::default(),
            status: None,
        }
    }

    fn domain(object: &Instance, host: HostSide<'_>) -> Result<DomainSpec, Error> {
        domain_spec(object, Uuid::from_u128(1), &PlacementOwner::default(), host)
    }

    #[test]
    fn hardware_that_an_earlier_boot_fixed_stays() {
        let machines = ["pc-q35-10.0".to_owned()];
        let host = HostSide {
            machines: &machines,
            cpu_model: "Nehalem",
            ..HostSide::default()
        };
        let mut object = instance();
        assert_eq!(hardware(&object, &host).machine_type, "pc-q35-10.0");
        let of = |machine: &str| Hardware {
            machine_type: machine.into(),
            ..Hardware::default()
        };
        object.status = Some(InstanceStatus {
            hardware: Some(of("pc-q35-9.1")),
            ..InstanceStatus::default()
        });
        assert_eq!(hardware(&object, &host).machine_type, "pc-q35-9.1");
        object.spec.hardware = Some(of("pc-q35-8.0"));
        let made = domain(&object, host).unwrap();
        assert_eq!(
            made.machine, "pc-q35-8.0",
            "what the spec says counts first"
        );
    }

    #[test]
    fn a_guest_without_the_resources_it_asks_for_is_not_defined() {
        let mut object = instance();
        assert!(domain(&object, HostSide::default()).is_ok());
        object.spec.topology = Some(GuestTopology::default());
        let refused = |resources| {
            let host = HostSide {
                resources,
                ..HostSide::default()
            };
            domain(&object, host).is_err()
        };
        assert!(refused(None));
        assert!(refused(Some(Err("none free".into()))));
        assert!(!refused(Some(Ok(HostResources::default()))));
    }

    #[test]
    fn a_guest_keeps_its_config_drive_when_what_it_was_made_from_is_gone() {
        let mut object = instance();
        let drive = |object: &Instance, has_config_drive| {
            let host = HostSide {
                config_drive: "/d".into(),
                has_config_drive,
                ..HostSide::default()
            };
            domain(object, host).unwrap().config_drive
        };
        object.spec.guest_data = Some("uid-1".into());
        assert_eq!(drive(&object, false).as_deref(), Some("/d"));
        object.spec.guest_data = None;
        assert_eq!(drive(&object, true).as_deref(), Some("/d"));
        assert_eq!(drive(&object, false), None, "there never was one");
        object.spec.config_drive = ConfigDrive::Disabled;
        assert_eq!(drive(&object, true), None);
    }

    #[test]
    fn a_kernel_boots_with_novas_command_line_unless_the_image_has_one() {
        let mut object = instance();
        let boot = |object: &Instance| {
            let host = HostSide {
                kernel: Some("/k".into()),
                ..HostSide::default()
            };
            domain(object, host).unwrap().boot
        };
        let kernel = |line: &str| Boot::Kernel {
            kernel: "/k".into(),
            initrd: None,
            command_line: line.into(),
        };
        assert_eq!(boot(&object), kernel(COMMAND_LINE));
        object.spec.image.kernel_command_line = Some("quiet".into());
        assert_eq!(boot(&object), kernel("quiet"));
        let made = domain(&object, HostSide::default()).unwrap();
        assert_eq!(made.boot, Boot::Disk);
    }
}
