//! The program of the agent: arguments, and the role.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use ipnet::IpNet;

use pileus_agent::Config;
use pileus_agent::devices::AllowedDevice;
use pileus_agent::host::plan::Reservation;
use pileus_api::names;
use pileus_hypervisor::VirtType;
use pileus_kube_ext::role;
use pileus_storage::Limits;

#[derive(Clone, Copy, ValueEnum)]
enum Virt {
    /// By the processor.
    Kvm,
    /// Emulated: slow.
    Qemu,
}

/// Makes the Instances of one host real.
#[derive(Parser)]
#[command(name = "pileus-agent", version)]
struct AgentArguments {
    #[command(flatten)]
    role: role::Arguments,
    /// Name of the Host.
    #[arg(long, env = "PILEUS_HOST_NAME")]
    host_name: String,
    /// Directory for images, disks and records.
    #[arg(long, env = "PILEUS_STATE_DIR", default_value = "/var/lib/pileus")]
    state_dir: PathBuf,
    /// Where libvirt is.
    #[arg(long, env = "PILEUS_LIBVIRT_URI", default_value = "qemu:///system")]
    libvirt_uri: String,
    /// How guests are run. Emulation is never chosen by itself.
    #[arg(long, env = "PILEUS_VIRT_TYPE", value_enum, default_value = "kvm")]
    virt_type: Virt,
    /// Processor model of new guests, by libvirt's name; every host of a zone must have it.
    #[arg(long, env = "PILEUS_CPU_MODEL", default_value = "Nehalem")]
    cpu_model: String,
    /// Directory that images may come from by file://; none when absent.
    #[arg(long, env = "PILEUS_IMAGE_FILE_DIR")]
    image_file_dir: Option<PathBuf>,
    /// Networks that images may come from although they are not public, such as 10.1.0.0/16.
    #[arg(long, env = "PILEUS_ALLOW_FETCH", value_delimiter = ',')]
    allow_fetch: Vec<IpNet>,
    /// Biggest image file that is fetched, in GiB.
    #[arg(long, env = "PILEUS_MAX_IMAGE_DOWNLOAD_GIB", default_value_t = 200,
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    max_image_download_gib: u64,
    /// Biggest disk in an image, in GiB.
    #[arg(long, env = "PILEUS_MAX_IMAGE_DISK_GIB", default_value_t = 1024,
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    max_image_disk_gib: u64,
    /// PCI devices that guests may have, by address (0000:81:00.0) or vendor and product
    /// (10de:20b5); none when absent. The Host's spec offers some of them, and never others.
    #[arg(long, env = "PILEUS_ALLOW_PCI_DEVICE", value_delimiter = ',')]
    allow_pci_device: Vec<AllowedDevice>,
    /// File with the host's boot id.
    #[arg(
        long,
        env = "PILEUS_BOOT_ID_FILE",
        default_value = "/proc/sys/kernel/random/boot_id"
    )]
    boot_id_file: PathBuf,
    /// The host's Open vSwitch.
    #[arg(
        long,
        env = "PILEUS_OVS_DB",
        default_value = "unix:/run/openvswitch/db.sock"
    )]
    ovs_db: String,
    /// Runtime directory of the host's OVN, with ovn-controller's control socket.
    #[arg(long, env = "PILEUS_OVN_RUN_DIR", default_value = "/run/ovn")]
    ovn_run_dir: PathBuf,
    /// Memory kept back for the machine itself, in MiB; spec.reserved of the Host counts
    /// instead.
    #[arg(long, env = "PILEUS_RESERVED_MEMORY_MIB", default_value_t = 2048)]
    reserved_memory_mib: i64,
    /// Number of agents that share this machine's memory, such as those of a lab: each offers
    /// an equal part of what is not kept back, also when the machine gets more memory.
    #[arg(long, env = "PILEUS_MEMORY_SHARED_BY", default_value_t = 1,
          value_parser = clap::value_parser!(i64).range(1..))]
    memory_shared_by: i64,
    /// Disk kept back for the machine itself, in GiB; spec.reserved of the Host counts instead.
    #[arg(long, env = "PILEUS_RESERVED_DISK_GIB", default_value_t = 10)]
    reserved_disk_gib: i64,
    /// How long an image that nothing uses is kept, in seconds.
    #[arg(long, env = "PILEUS_IMAGE_GRACE_SECONDS", default_value_t = 86_400)]
    image_grace_seconds: u64,
    /// How long a guest waits for its ports' flows before that is reported, in seconds.
    #[arg(long, env = "PILEUS_PORT_TIMEOUT_SECONDS", default_value_t = 30)]
    port_timeout_seconds: u64,
}

fn main() -> ExitCode {
    let arguments = AgentArguments::parse();
    let role_arguments = arguments.role.clone();
    let config = config(arguments);
    let result = role::block_on(role::run(&role_arguments, names::AGENT, |role| {
        pileus_agent::run(config, role.context, role.stop)
    }));
    role::exit_code("pileus-agent", result)
}

fn config(arguments: AgentArguments) -> Config {
    Config {
        host: arguments.host_name,
        state_dir: arguments.state_dir,
        libvirt_uri: arguments.libvirt_uri,
        virt_type: match arguments.virt_type {
            Virt::Kvm => VirtType::Kvm,
            Virt::Qemu => VirtType::Qemu,
        },
        cpu_model: arguments.cpu_model,
        image_file_dir: arguments.image_file_dir,
        allow_fetch: arguments.allow_fetch,
        limits: Limits {
            download: arguments.max_image_download_gib << 30,
            disk: arguments.max_image_disk_gib << 30,
            ..Limits::default()
        },
        allow_pci_devices: arguments.allow_pci_device,
        boot_id_file: arguments.boot_id_file,
        ovs_db: arguments.ovs_db,
        ovn_run_dir: arguments.ovn_run_dir,
        reservation: Reservation {
            memory_mib: arguments.reserved_memory_mib,
            disk_gib: arguments.reserved_disk_gib,
            memory_shared_by: arguments.memory_shared_by,
        },
        image_grace: Duration::from_secs(arguments.image_grace_seconds),
        port_timeout: Duration::from_secs(arguments.port_timeout_seconds),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        AgentArguments::command().debug_assert();
    }
}
