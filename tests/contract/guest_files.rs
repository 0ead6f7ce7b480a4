//! Disks and images as the store makes them, under a real libvirt whose QEMU runs as another user:
//! nobody else of the host may read them, and QEMU must.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as such"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pileus_hypervisor::{Hypervisor, State};
use pileus_storage::{
    Content, DirectoryMetadata, Disks, DownloadProgress, FetchPolicy, ImageStore, Request,
};

use super::hypervisor::host;

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn qemu_reads_disks_and_images_that_are_nobody_elses() {
    let host = host().await;
    let dir = host.daemon.path("pileus");
    std::fs::create_dir(&dir).unwrap();
    let policy = FetchPolicy {
        file_root: Some(dir.clone()),
        ..FetchPolicy::default()
    };
    let store = ImageStore::open(&dir, policy).unwrap();
    std::fs::write(dir.join("image.raw"), vec![7; 1 << 20]).unwrap();
    let request = Request {
        namespace: "team".into(),
        url: format!("file://{}", dir.join("image.raw").display()),
        checksum: None,
        digest: None,
        content: Content::Disk("raw".into()),
    };
    let progress = DownloadProgress::default();
    let image = store.import(&request, &progress).await.unwrap();
    let disks = Disks::new(&dir);
    // Two guests over one image, and the first is started again when both have run.
    let mut specs = Vec::new();
    for _ in 0..2 {
        let mut spec = host.spec();
        let metadata = DirectoryMetadata::default();
        let made = disks.create(&store, spec.id, &metadata, &image, 0).await;
        made.unwrap();
        disks.write_config_drive(spec.id, &[0; 4096]).unwrap();
        spec.root.path = disks.root_disk(spec.id).display().to_string();
        spec.config_drive = Some(disks.config_drive(spec.id).display().to_string());
        host.running(&spec).await;
        specs.push(spec);
    }
    for spec in &specs {
        host.libvirt.power_off(spec.id).await.unwrap();
    }
    host.libvirt.start_paused(specs[0].id).await.unwrap();
    let domain = host.libvirt.domain(specs[0].id).await.unwrap().unwrap();
    assert_eq!(domain.state, State::Paused);
    for spec in &specs {
        assert_eq!(mode(&disks.root_disk(spec.id)), 0o600);
        assert_eq!(mode(&disks.config_drive(spec.id)), 0o600);
    }
    assert_eq!(mode(&store.path(&image.digest)), 0o440);
    // The test's libvirt confines nothing, and says so.
    let models = host.libvirt.host().await.unwrap().security_models;
    assert!(models.iter().any(|model| model == "dac"), "{models:?}");
    assert!(
        !models.iter().any(|model| model == "apparmor"),
        "{models:?}"
    );
}
