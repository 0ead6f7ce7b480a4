//! Domain XML: a pure function of [`DomainSpec`], and the few facts that are read back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use roxmltree::{Document, Node};
use uuid::Uuid;

use super::domain::{
    Boot, Cell, DefinedHardware, DomainSpec, HostFacts, Nic, OwnerMetadata, PciAddress, PciDevice,
    Topology,
};
use pileus_values::{ClusterId, Owner};

/// XML namespace of our metadata.
pub const NAMESPACE: &str = "https://pileus.dev/xmlns/domain/1";
/// Root ports that stay free for hot-plug.
const SPARE_PORTS: usize = 16;
/// Root ports in front of the first interface's: root disk, config drive, rng, balloon,
/// virtio-serial. A device keeps its port for the Server's life.
const FIXED_PORTS: usize = 5;

/// Every offload that virtio-net could negotiate, off in both directions.
const NO_OFFLOAD: &str = "<driver name='qemu'><host csum='off' gso='off' tso4='off' tso6='off' ecn='off' ufo='off'/><guest csum='off' tso4='off' tso6='off' ecn='off' ufo='off'/></driver>";

/// Name of the domain in libvirt; a Server's name may be too long and is not unique.
#[must_use]
pub fn domain_name(id: Uuid) -> String {
    format!("pileus-{id}")
}

/// Text made safe for XML: markup escaped, characters that XML 1.0 does not have dropped.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\t' | '\n' | '\r' => out.push(' '),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {}
            other => out.push(other),
        }
    }
    out
}

/// The metadata element with the owner.
#[must_use]
pub fn owner_xml(metadata: &OwnerMetadata) -> String {
    let Owner {
        cluster,
        kind,
        namespace,
        name,
        uid,
    } = &metadata.owner;
    format!(
        "<pileus:owner xmlns:pileus='{NAMESPACE}' cluster='{}' kind='{}' namespace='{}' name='{}' uid='{}' epoch='{}'{}{}/>",
        escape(&cluster.0),
        escape(kind),
        escape(namespace),
        escape(name),
        escape(uid),
        metadata.epoch,
        if metadata.pinned.is_empty() {
            String::new()
        } else {
            format!(" pinned='{}'", numbers(&metadata.pinned))
        },
        if metadata.devices.is_empty() {
            String::new()
        } else {
            let all: Vec<_> = metadata.devices.iter().map(ToString::to_string).collect();
            format!(" devices='{}'", all.join(","))
        },
    )
}

/// Numbers as libvirt's lists have them.
fn numbers<'a>(all: impl IntoIterator<Item = &'a i32>) -> String {
    let all: Vec<_> = all.into_iter().map(ToString::to_string).collect();
    all.join(",")
}

/// The domain's XML.
#[must_use]
pub fn domain_xml(spec: &DomainSpec) -> String {
    let mut x = String::with_capacity(8192);
    let title = format!(
        "{}/{}",
        spec.metadata.owner.namespace, spec.metadata.owner.name
    );
    // Writing into a String cannot fail; the results are dropped for that reason.
    let _ = write!(
        x,
        "<domain type='{virt}'>\n\
         <name>{name}</name>\n<uuid>{id}</uuid>\n<title>{title}</title>\n\
         <metadata>{metadata}</metadata>\n\
         <memory unit='MiB'>{memory}</memory>\n<vcpu placement='static'>{vcpus}</vcpu>\n",
        virt = spec.virt_type.as_str(),
        name = domain_name(spec.id),
        id = spec.id,
        title = escape(&title),
        metadata = owner_xml(&spec.metadata),
        memory = spec.memory_mib,
        vcpus = spec.vcpus,
    );
    if let Some(topology) = &spec.topology {
        tuning(&mut x, topology);
    }
    os(&mut x, spec);
    let _ = write!(
        x,
        "<features><acpi/><apic/></features>\n\
         <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{cpu}</model>{cells}</cpu>\n\
         <clock offset='utc'><timer name='pit' tickpolicy='delay'/><timer name='rtc' tickpolicy='catchup'/><timer name='hpet' present='no'/></clock>\n\
         <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>\n\
         <devices>\n",
        cpu = escape(&spec.cpu_model),
        cells = spec.topology.as_ref().map(cells).unwrap_or_default(),
    );
    let ports = FIXED_PORTS + spec.nics.len() + spec.devices.len() + SPARE_PORTS;
    controllers(&mut x, ports);
    let _ = writeln!(
        x,
        "<disk type='file' device='disk'><driver name='qemu' type='{format}' discard='unmap'/><source file='{path}'/><target dev='vda' bus='virtio'/><serial>{serial}</serial>{address}</disk>",
        format = escape(&spec.root.format),
        path = escape(&spec.root.path),
        serial = escape(&spec.root.serial.chars().take(20).collect::<String>()),
        address = on_port(1),
    );
    if let Some(path) = &spec.config_drive {
        let _ = writeln!(
            x,
            "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/><target dev='vdz' bus='virtio'/><readonly/><serial>config-2</serial>{}</disk>",
            escape(path),
            on_port(2),
        );
    }
    for (index, nic) in spec.nics.iter().enumerate() {
        interface(&mut x, nic, FIXED_PORTS + 1 + index);
    }
    for (index, device) in spec.devices.iter().enumerate() {
        passed(&mut x, *device, FIXED_PORTS + 1 + spec.nics.len() + index);
    }
    let _ = write!(
        x,
        "<serial type='pty'><log file='{log}' append='on'/><target port='0'/></serial>\n\
         <console type='pty'><target type='serial' port='0'/></console>\n\
         <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\n\
         <graphics type='vnc'><listen type='socket'/></graphics>\n\
         <video><model type='vga' vram='16384'/><address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x0'/></video>\n\
         <rng model='virtio'><backend model='random'>/dev/urandom</backend>{rng}</rng>\n\
         <memballoon model='virtio' autodeflate='on'><stats period='10'/>{balloon}</memballoon>\n\
         </devices>\n</domain>\n",
        log = escape(&spec.console_log),
        rng = on_port(3),
        balloon = on_port(4),
    );
    x
}

/// Where processors run and memory lies, as Nova's `_get_guest_numa_config` has it: QEMU's
/// own threads run on all processors that the guest's may run on.
fn tuning(x: &mut String, topology: &Topology) {
    if let Some(page) = topology.page_kib {
        let nodes: Vec<_> = (0..).zip(&topology.nodes).map(|(at, _)| at).collect();
        let _ = writeln!(
            x,
            "<memoryBacking><hugepages><page size='{page}' unit='KiB' nodeset='{}'/></hugepages></memoryBacking>",
            numbers(&nodes)
        );
    }
    let host_nodes: BTreeSet<_> = topology.nodes.iter().map(|n| n.host_node).collect();
    let _ = write!(
        x,
        "<numatune><memory mode='strict' nodeset='{}'/>",
        numbers(&host_nodes)
    );
    for (at, node) in topology.nodes.iter().enumerate() {
        let _ = write!(
            x,
            "<memnode cellid='{at}' mode='strict' nodeset='{}'/>",
            node.host_node
        );
    }
    x.push_str("</numatune>\n<cputune>");
    let pins: BTreeMap<_, _> = topology.nodes.iter().flat_map(|n| &n.cpus).collect();
    for (vcpu, cpus) in &pins {
        let _ = write!(x, "<vcpupin vcpu='{vcpu}' cpuset='{}'/>", numbers(*cpus));
    }
    let all: BTreeSet<_> = pins.into_values().flatten().collect();
    let _ = writeln!(x, "<emulatorpin cpuset='{}'/></cputune>", numbers(all));
}

fn cells(topology: &Topology) -> String {
    let mut x = String::from("<numa>");
    for (at, node) in topology.nodes.iter().enumerate() {
        let _ = write!(
            x,
            "<cell id='{at}' cpus='{}' memory='{}' unit='MiB'/>",
            numbers(node.cpus.keys()),
            node.memory_mib
        );
    }
    x.push_str("</numa>");
    x
}

fn os(x: &mut String, spec: &DomainSpec) {
    let _ = write!(
        x,
        "<os><type arch='x86_64' machine='{}'>hvm</type>",
        escape(&spec.machine)
    );
    match &spec.boot {
        Boot::Disk => x.push_str("<boot dev='hd'/>"),
        Boot::Kernel {
            kernel,
            initrd,
            command_line,
        } => {
            let _ = write!(x, "<kernel>{}</kernel>", escape(kernel));
            if let Some(initrd) = initrd {
                let _ = write!(x, "<initrd>{}</initrd>", escape(initrd));
            }
            let _ = write!(x, "<cmdline>{}</cmdline>", escape(command_line));
        }
    }
    x.push_str("</os>\n");
}

/// PCI Express root ports 1 to `count`, eight to a slot of the root complex, from slot 2.
fn controllers(x: &mut String, count: usize) {
    x.push_str("<controller type='usb' index='0' model='none'/>\n<controller type='pci' index='0' model='pcie-root'/>\n");
    for index in 1..=count {
        let (slot, function) = (2 + (index - 1) / 8, (index - 1) % 8);
        let multi = if function == 0 {
            " multifunction='on'"
        } else {
            ""
        };
        let _ = writeln!(
            x,
            "<controller type='pci' index='{index}' model='pcie-root-port'><target chassis='{index}' port='0x{port:x}'/><address type='pci' domain='0x0000' bus='0x00' slot='0x{slot:02x}' function='0x{function:x}'{multi}/></controller>",
            port = slot * 8 + function,
        );
    }
    let _ = writeln!(
        x,
        "<controller type='virtio-serial' index='0'>{}</controller>",
        on_port(5)
    );
}

fn on_port(port: usize) -> String {
    format!("<address type='pci' domain='0x0000' bus='0x{port:02x}' slot='0x00' function='0x0'/>")
}

fn interface(x: &mut String, nic: &Nic, port: usize) {
    let _ = writeln!(
        x,
        "<interface type='bridge'><mac address='{mac}'/><source bridge='br-int'/><virtualport type='openvswitch'><parameters interfaceid='{id}'/></virtualport><target dev='{tap}'/><model type='virtio'/>{driver}<mtu size='{mtu}'/>{address}</interface>",
        mac = nic.mac,
        id = nic.port_id,
        tap = nic.tap(),
        driver = if nic.offload { "" } else { NO_OFFLOAD },
        mtu = nic.mtu,
        address = on_port(port),
    );
}

/// libvirt takes the device from its driver when the guest starts and gives it back at its end.
fn passed(x: &mut String, device: PciAddress, port: usize) {
    let PciAddress {
        domain,
        bus,
        slot,
        function,
    } = device;
    let _ = writeln!(
        x,
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x{domain:04x}' bus='0x{bus:02x}' slot='0x{slot:02x}' function='0x{function:x}'/></source>{address}</hostdev>",
        address = on_port(port),
    );
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.children().find(|n| n.tag_name().name() == name)
}

fn text(node: Node<'_, '_>, path: &[&str]) -> Option<String> {
    path.iter()
        .try_fold(node, |at, name| {
            at.children().find(|n| n.tag_name().name() == *name)
        })
        .and_then(|n| n.text().map(str::to_owned))
}

/// What is read back of a domain's XML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The owner's metadata.
    pub metadata: Option<OwnerMetadata>,
    /// Hardware.
    pub hardware: DefinedHardware,
    /// Tap devices.
    pub taps: Vec<String>,
}

/// Reads a domain's XML; what is not understood is left out.
#[must_use]
pub fn parse_domain(xml: &str) -> Parsed {
    let Ok(document) = Document::parse(xml) else {
        return Parsed::default();
    };
    let root = document.root_element();
    let metadata = document
        .descendants()
        .find(|n| n.tag_name().name() == "owner" && n.tag_name().namespace() == Some(NAMESPACE))
        .and_then(parse_owner);
    let machine = child(root, "os")
        .and_then(|os| child(os, "type"))
        .and_then(|t| t.attribute("machine"))
        .unwrap_or_default();
    let taps = document
        .descendants()
        .filter(|n| n.tag_name().name() == "interface")
        .filter_map(|n| {
            child(n, "target")
                .and_then(|t| t.attribute("dev"))
                .map(str::to_owned)
        })
        .collect();
    Parsed {
        metadata,
        hardware: DefinedHardware {
            machine: machine.to_owned(),
            cpu_model: text(root, &["cpu", "model"]).unwrap_or_default(),
            virt_type: root.attribute("type").unwrap_or_default().to_owned(),
        },
        taps,
    }
}

/// Reads our element of a domain's metadata, from which libvirt takes the namespace.
#[must_use]
pub fn parse_owner_element(xml: &str) -> Option<OwnerMetadata> {
    let document = Document::parse(xml).ok()?;
    parse_owner(document.root_element())
}

fn parse_owner(node: Node<'_, '_>) -> Option<OwnerMetadata> {
    let get = |name| node.attribute(name).map(str::to_owned);
    Some(OwnerMetadata {
        owner: Owner {
            cluster: ClusterId(get("cluster")?),
            kind: get("kind")?,
            namespace: get("namespace")?,
            name: get("name")?,
            uid: get("uid")?,
        },
        epoch: node.attribute("epoch")?.parse().ok()?,
        pinned: node
            .attribute("pinned")
            .unwrap_or_default()
            .split(',')
            .filter_map(|cpu| cpu.parse().ok())
            .collect(),
        devices: node
            .attribute("devices")
            .unwrap_or_default()
            .split(',')
            .filter_map(|address| address.parse().ok())
            .collect(),
    })
}

/// Reads architecture, NUMA cells, security models and machine types of libvirt's capabilities.
#[must_use]
pub fn parse_capabilities(xml: &str) -> HostFacts {
    let Ok(document) = Document::parse(xml) else {
        return HostFacts::default();
    };
    let root = document.root_element();
    let architecture = text(root, &["host", "cpu", "arch"]).unwrap_or_default();
    let cells = document
        .descendants()
        .filter(|n| n.tag_name().name() == "cell")
        .filter_map(|cell| {
            let memory: i64 = text(cell, &["memory"])?.trim().parse().ok()?;
            let cpus = cell
                .descendants()
                .filter(|n| n.tag_name().name() == "cpu")
                .filter_map(|n| n.attribute("id")?.parse().ok())
                .collect();
            // libvirt gives KiB here.
            Some(Cell {
                id: cell.attribute("id")?.parse().ok()?,
                cpus,
                memory_mib: memory / 1024,
                pages: huge_pages(cell),
            })
        })
        .collect();
    let mut machines: Vec<String> = document
        .descendants()
        .filter(|n| n.tag_name().name() == "arch" && n.attribute("name") == Some(&architecture))
        .flat_map(|n| {
            n.children()
                .filter(|m| m.tag_name().name() == "machine")
                .collect::<Vec<_>>()
        })
        .filter_map(|n| n.text().map(str::to_owned))
        .filter(|m| m.starts_with("pc-q35-"))
        .collect();
    machines.sort_by_key(|m| std::cmp::Reverse(machine_version(m)));
    machines.dedup();
    let security_models = document
        .descendants()
        .filter(|n| n.tag_name().name() == "secmodel")
        .filter_map(|model| text(model, &["model"]))
        .collect();
    HostFacts {
        architecture,
        cells,
        machines,
        security_models,
        ..HostFacts::default()
    }
}

/// Huge pages of a cell by size in KiB; the smallest that libvirt names are the usual ones.
fn huge_pages(cell: Node<'_, '_>) -> BTreeMap<i64, i64> {
    let pages = cell.children().filter(|n| n.tag_name().name() == "pages");
    let mut pages: BTreeMap<i64, i64> = pages
        .filter_map(|n| Some((n.attribute("size")?.parse().ok()?, n.text()?.parse().ok()?)))
        .collect();
    pages.pop_first();
    pages.retain(|_, total| *total > 0);
    pages
}

/// Reads a PCI device that a guest could have of libvirt's node devices.
#[must_use]
pub fn parse_pci_device(xml: &str) -> Option<PciDevice> {
    let document = Document::parse(xml).ok()?;
    let of_type = |node: Node<'_, '_>, kind: &str| {
        let mut children = node.children();
        let found = children
            .find(|n| n.tag_name().name() == "capability" && n.attribute("type") == Some(kind));
        found.map(|n| n.id())
    };
    let root = document.root_element();
    let pci = document.get_node(of_type(root, "pci")?)?;
    let bridge = ["pci-bridge", "cardbus-bridge"];
    let has_functions = of_type(pci, "virt_functions")
        .and_then(|id| document.get_node(id))
        .is_some_and(|n| child(n, "address").is_some());
    if has_functions || bridge.into_iter().any(|kind| of_type(pci, kind).is_some()) {
        return None;
    }
    let number = |name: &str| text(pci, &[name])?.trim().parse::<u32>().ok();
    let id = |name: &str| {
        let id = child(pci, name)?.attribute("id")?;
        Some(id.trim_start_matches("0x").to_ascii_lowercase())
    };
    Some(PciDevice {
        address: PciAddress {
            domain: number("domain")?,
            bus: u8::try_from(number("bus")?).ok()?,
            slot: u8::try_from(number("slot")?).ok()?,
            function: u8::try_from(number("function")?).ok()?,
        },
        vendor: id("vendor")?,
        product: id("product")?,
        numa_node: child(pci, "numa").and_then(|n| n.attribute("node")?.parse().ok()),
    })
}

fn machine_version(machine: &str) -> (u32, u32) {
    let mut numbers = machine
        .trim_start_matches("pc-q35-")
        .split('.')
        .map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
#[path = "xml_tests.rs"]
mod tests;
