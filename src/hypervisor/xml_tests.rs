//! What is written for libvirt, and what is read of its answers.

use super::*;
use crate::domain::{Disk, GuestNode, VirtType};

fn spec() -> DomainSpec {
    let id = Uuid::from_u128(7);
    DomainSpec {
        id,
        metadata: OwnerMetadata {
            owner: Owner {
                cluster: ClusterId("c".into()),
                kind: "Server".into(),
                namespace: "default".into(),
                name: format!("<&\"'{}", "n".repeat(249)),
                uid: "u".into(),
            },
            epoch: 3,
            ..OwnerMetadata::default()
        },
        vcpus: 1,
        memory_mib: 64,
        topology: None,
        machine: "pc-q35-10.0".into(),
        cpu_model: "Nehalem".into(),
        virt_type: VirtType::Qemu,
        boot: Boot::Kernel {
            kernel: "/k".into(),
            initrd: Some("/i".into()),
            command_line: "console=ttyS0 a='b' <c>".into(),
        },
        root: Disk {
            path: "/d".into(),
            format: "qcow2".into(),
            serial: "s".into(),
        },
        config_drive: Some("/c".into()),
        devices: Vec::new(),
        nics: vec![Nic {
            port_id: Uuid::from_u128(9),
            mac: "fa:16:3e:00:00:01".parse().unwrap(),
            mtu: 1442,
            offload: false,
        }],
        console_log: "/log".into(),
    }
}

#[test]
fn owner_metadata_survives_any_name() {
    let parsed = parse_domain(&domain_xml(&spec()));
    assert_eq!(parsed.metadata, Some(spec().metadata));
    assert_eq!(parsed.hardware.machine, "pc-q35-10.0");
    assert_eq!(parsed.hardware.cpu_model, "Nehalem");
    assert_eq!(parsed.taps, ["tap00000000-00"]);
}

#[test]
fn no_two_devices_share_an_address() {
    let mut spec = spec();
    spec.nics = (0..16)
        .map(|n| Nic {
            port_id: Uuid::from_u128(n),
            ..spec.nics[0].clone()
        })
        .collect();
    let xml = domain_xml(&spec);
    let document = Document::parse(&xml).unwrap();
    let addresses: Vec<_> = document
        .descendants()
        .filter(|n| n.tag_name().name() == "address")
        .map(|n| {
            (
                n.attribute("bus"),
                n.attribute("slot"),
                n.attribute("function"),
            )
        })
        .collect();
    let unique: std::collections::HashSet<_> = addresses.iter().collect();
    assert_eq!(unique.len(), addresses.len());
}

#[test]
fn each_node_of_a_guest_is_bound_to_a_node_of_the_host() {
    let mut spec = spec();
    let plain = domain_xml(&spec);
    for word in ["numa", "cputune", "memoryBacking", "pinned"] {
        assert!(!plain.contains(word), "{word} without a topology");
    }
    let node = |host_node, cpus: &[(i32, &[i32])]| GuestNode {
        host_node,
        memory_mib: 32,
        cpus: cpus
            .iter()
            .map(|(vcpu, on)| (*vcpu, on.iter().copied().collect()))
            .collect(),
    };
    spec.topology = Some(Topology {
        nodes: vec![node(4, &[(0, &[9]), (2, &[8])]), node(1, &[(1, &[2, 3])])],
        page_kib: Some(2048),
    });
    spec.metadata.pinned = [8, 9].into();
    let xml = domain_xml(&spec);
    for part in [
        "<page size='2048' unit='KiB' nodeset='0,1'/>",
        "<memory mode='strict' nodeset='1,4'/><memnode cellid='0' mode='strict' nodeset='4'/><memnode cellid='1' mode='strict' nodeset='1'/>",
        "<vcpupin vcpu='0' cpuset='9'/><vcpupin vcpu='1' cpuset='2,3'/><vcpupin vcpu='2' cpuset='8'/><emulatorpin cpuset='2,3,8,9'/>",
        "<numa><cell id='0' cpus='0,2' memory='32' unit='MiB'/><cell id='1' cpus='1' memory='32' unit='MiB'/></numa></cpu>",
    ] {
        assert!(xml.contains(part), "{part} is not in {xml}");
    }
    assert_eq!(parse_domain(&xml).metadata, Some(spec.metadata));
}

#[test]
fn a_passed_device_has_its_own_address_and_is_in_the_metadata() {
    let mut spec = spec();
    let devices: Vec<PciAddress> = ["0000:81:00.1", "10001:02:1f.7"]
        .into_iter()
        .map(|a| a.parse().unwrap())
        .collect();
    spec.metadata.devices = devices.iter().copied().collect();
    spec.devices = devices;
    let xml = domain_xml(&spec);
    assert!(xml.contains("<source><address domain='0x0000' bus='0x81' slot='0x00' function='0x1'/></source><address type='pci' domain='0x0000' bus='0x07'"), "{xml}");
    assert!(xml.contains("<source><address domain='0x10001' bus='0x02' slot='0x1f' function='0x7'/></source><address type='pci' domain='0x0000' bus='0x08'"), "{xml}");
    assert_eq!(parse_domain(&xml).metadata, Some(spec.metadata));
}

#[test]
fn only_devices_that_a_guest_could_have_are_read() {
    let device = |more: &str| {
        parse_pci_device(&format!(
            "<device><name>pci_0000_81_00_0</name><capability type='pci'><class>0x030200</class>\
             <domain>0</domain><bus>129</bus><slot>0</slot><function>2</function>\
             <product id='0x20B5'>A100</product><vendor id='0x10de'>NVIDIA</vendor>{more}\
             <numa node='1'/></capability></device>"
        ))
    };
    let plain = PciDevice {
        address: "0000:81:00.2".parse().unwrap(),
        vendor: "10de".into(),
        product: "20b5".into(),
        numa_node: Some(1),
    };
    assert_eq!(device(""), Some(plain.clone()));
    // One that could have functions, and has none.
    let could = "<capability type='virt_functions' maxCount='16'/>";
    assert_eq!(device(could), Some(plain));
    for not in [
        "<capability type='pci-bridge'/>",
        "<capability type='virt_functions' maxCount='16'><address domain='0x0000' bus='0x81' slot='0x02' function='0x0'/></capability>",
    ] {
        assert_eq!(device(not), None);
    }
    assert_eq!(parse_pci_device("<device/>"), None);
    for wrong in ["", "81:00.0", "0000:81:20.0", "0000:81:00.8", "0000:81:00"] {
        assert!(wrong.parse::<PciAddress>().is_err(), "{wrong}");
    }
}

#[test]
fn huge_pages_of_a_host_are_read_by_their_size() {
    let xml = "<capabilities><host><topology><cells num='1'><cell id='3'>\
        <memory unit='KiB'>4194304</memory>\
        <pages unit='KiB' size='4'>786432</pages>\
        <pages unit='KiB' size='2048'>512</pages>\
        <pages unit='KiB' size='1048576'>0</pages>\
        <cpus num='2'><cpu id='1'/><cpu id='5'/></cpus>\
        </cell></cells></topology></host></capabilities>";
    let cell = Cell {
        id: 3,
        cpus: vec![1, 5],
        memory_mib: 4096,
        pages: [(2048, 512)].into(),
    };
    assert_eq!(parse_capabilities(xml).cells, [cell]);
}

#[test]
fn security_models_are_read() {
    let xml = "<capabilities><host><secmodel><model>apparmor</model><doi>0</doi></secmodel>\
        <secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+107</baselabel>\
        </secmodel></host></capabilities>";
    let found = parse_capabilities(xml).security_models;
    assert_eq!(found, ["apparmor", "dac"]);
    assert!(
        parse_capabilities("<capabilities/>")
            .security_models
            .is_empty()
    );
}

#[test]
fn a_device_keeps_its_address_when_others_are_added() {
    let before = domain_xml(&spec());
    let mut more = spec();
    more.nics.push(Nic {
        port_id: Uuid::from_u128(10),
        ..more.nics[0].clone()
    });
    let after = domain_xml(&more);
    let nic = before
        .lines()
        .find(|l| l.starts_with("<interface"))
        .unwrap();
    assert!(after.contains(nic));
}

#[test]
fn foreign_xml_has_no_owner() {
    assert_eq!(
        parse_domain("<domain type='kvm'><name>x</name></domain>").metadata,
        None
    );
    assert_eq!(parse_domain("not xml"), Parsed::default());
}
