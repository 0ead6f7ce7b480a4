//! The calls of libvirt that Pileus declares itself (`pileus_libvirt::ffi`), on a real libvirt
//! with real QEMU: each must reach libvirt, with its arguments, and return libvirt's errors.

use pileus_libvirt::ffi;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::sys;

use super::hypervisor::{Host, eventually, host};

/// A running domain, and a connection beside the driver's.
async fn running(host: &Host) -> (Connect, Domain) {
    let spec = host.spec();
    host.running(&spec).await;
    let connect = Connect::open(Some(&host.daemon.uri())).unwrap();
    let domain = connect.lookup_domain_by_uuid(spec.id).unwrap();
    (connect, domain)
}

/// The file that the domain's disk is in now.
fn disk_file(domain: &Domain) -> String {
    let xml = domain.xml_desc(0).unwrap();
    let (_, rest) = xml.split_once("<source file='").unwrap();
    rest.split_once('\'').unwrap().0.to_owned()
}

/// Waits until the job on the disk has done everything, and lets the domain go on with the result.
async fn pivot(domain: &Domain) {
    eventually("the job on the disk", async || {
        let job = ffi::block_job(domain, "vda").unwrap().expect("a job");
        job.total > 0 && job.done == job.total
    })
    .await;
    eventually("the pivot", async || {
        let pivot = sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT;
        match ffi::abort_block_job(domain, "vda", pivot) {
            Ok(()) => true,
            Err(error) if error.code().is(ErrorNumber::BlockCopyActive) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    assert_eq!(ffi::block_job(domain, "vda").unwrap(), None);
}

#[tokio::test]
async fn a_disk_is_copied_and_its_layers_are_merged_under_a_running_guest() {
    let host = host().await;
    let (_connect, domain) = running(&host).await;
    let original = disk_file(&domain);
    assert_eq!(ffi::block_job(&domain, "vda").unwrap(), None);

    let copy = host.daemon.path("copy.qcow2").display().to_string();
    let destination =
        format!("<disk type='file'><driver type='qcow2'/><source file='{copy}'/></disk>");
    // A copy that is aborted leaves the domain on its disk.
    let flags = sys::VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB;
    ffi::block_copy(&domain, "vda", &destination, flags).unwrap();
    ffi::abort_block_job(&domain, "vda", 0).unwrap();
    assert_eq!(disk_file(&domain), original);
    std::fs::remove_file(&copy).unwrap();

    ffi::block_copy(&domain, "vda", &destination, flags).unwrap();
    pivot(&domain).await;
    assert_eq!(disk_file(&domain), copy);

    // A layer above it, and the commit of that layer.
    let layer = host.daemon.path("layer.qcow2").display().to_string();
    let snapshot = format!(
        "<domainsnapshot><disks><disk name='vda' snapshot='external'>\
         <source file='{layer}'/></disk></disks></domainsnapshot>"
    );
    let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC;
    domain.create_snapshot_xml(&snapshot, flags).unwrap();
    assert_eq!(disk_file(&domain), layer);
    let flags = sys::VIR_DOMAIN_BLOCK_COMMIT_ACTIVE;
    ffi::block_commit(&domain, "vda", Some(&copy), None, 0, flags).unwrap();
    pivot(&domain).await;
    assert_eq!(disk_file(&domain), copy);

    // libvirt's errors arrive, with its own message.
    let error = ffi::block_copy(&domain, "vdz", &destination, 0).unwrap_err();
    assert!(error.message().contains("vdz"), "{error}");
    let error = ffi::block_commit(&domain, "vda", Some("/nowhere"), None, 0, flags).unwrap_err();
    assert!(error.message().contains("/nowhere"), "{error}");
    let error = ffi::block_job(&domain, "v\0da").unwrap_err();
    assert!(error.code().is(ErrorNumber::InvalidArg), "{error}");
}

#[tokio::test]
async fn a_backup_runs_until_it_is_aborted() {
    let host = host().await;
    let (_connect, domain) = running(&host).await;
    let none = ffi::abort_job(&domain).unwrap_err();
    assert!(none.code().is(ErrorNumber::OperationInvalid), "{none}");

    let path = |name: &str| host.daemon.path(name).display().to_string();
    let backup = |socket: &str, scratch: &str| {
        format!(
            "<domainbackup mode='pull'><server transport='unix' socket='{}'/><disks>\
             <disk name='vda' type='file'><scratch file='{}'/></disk></disks></domainbackup>",
            path(&format!("lib/qemu/{socket}")),
            path(&format!("lib/qemu/{scratch}"))
        )
    };
    let checkpoint = "<domaincheckpoint><name>first</name></domaincheckpoint>";
    ffi::begin_backup(&domain, &backup("a", "1"), Some(checkpoint), 0).unwrap();
    let busy = ffi::begin_backup(&domain, &backup("b", "2"), None, 0).unwrap_err();
    assert!(!busy.message().is_empty());
    ffi::abort_job(&domain).unwrap();
    eventually("the end of the backup", async || {
        ffi::abort_job(&domain).is_err()
    })
    .await;
    let checkpoints = host.daemon.virsh(&[
        "checkpoint-list",
        "--name",
        &domain.uuid().unwrap().to_string(),
    ]);
    assert_eq!(checkpoints.trim(), "first");
    ffi::begin_backup(&domain, &backup("c", "3"), None, 0).unwrap();
    ffi::abort_job(&domain).unwrap();
}

#[tokio::test]
async fn file_systems_are_not_frozen_without_an_agent_in_the_guest() {
    let host = host().await;
    let (_connect, domain) = running(&host).await;
    for answer in [
        ffi::freeze_filesystems(&domain, &[]),
        ffi::freeze_filesystems(&domain, &["/", "/home"]),
        ffi::thaw_filesystems(&domain),
    ] {
        let error = answer.unwrap_err();
        assert!(error.message().contains("agent"), "{error}");
    }
}
