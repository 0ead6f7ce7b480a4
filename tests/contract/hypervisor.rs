//! What the agent relies on of a hypervisor, on a real libvirt with real QEMU.
//!
//! Needs root; everything runs in namespaces of its own and ends with the test.
//!
//! One contract in one file: what both can do is tested on libvirt and on the fake in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not see as such"
)]

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use futures::future::{join_all, try_join_all};
use pileus_hypervisor::xml::domain_xml;
use pileus_hypervisor::{
    Boot, Disk, Domain, DomainSpec, Error, Event, FakeHypervisor, GuestNode, Hypervisor,
    ListedDomain, Nic, OwnerMetadata, State, Topology, VirtType,
};
use pileus_libvirt::Libvirt;
use pileus_tests::libvirt::Libvirtd;
use pileus_values::{ClusterId, Owner};
use tokio::sync::broadcast::Receiver;
use tokio::time::timeout;
use uuid::Uuid;

// ---------------------------------------------------------------- helpers

const EVENT_TIMEOUT: Duration = Duration::from_secs(40);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Host {
    /// Before the daemon, so that it is dropped first.
    pub(super) libvirt: Libvirt,
    pub(super) daemon: Libvirtd,
    machine: String,
}

async fn connect(daemon: &Libvirtd) -> Libvirt {
    let logs = daemon.path("log/qemu");
    let libvirt = Libvirt::connect_with_logs(&daemon.uri(), &logs).unwrap();
    timeout(EVENT_TIMEOUT, libvirt.connected())
        .await
        .expect("connected");
    libvirt
}

pub(super) async fn host() -> Host {
    let daemon = Libvirtd::start();
    let libvirt = connect(&daemon).await;
    let machine = libvirt.host().await.unwrap().machines[0].clone();
    Host {
        libvirt,
        daemon,
        machine,
    }
}

fn metadata(name: &str) -> OwnerMetadata {
    OwnerMetadata {
        owner: Owner {
            cluster: ClusterId("0d5f7c4e-3b1e-4d86-8e5c-2c4f0c1f3a11".into()),
            kind: "Server".into(),
            namespace: "default".into(),
            name: name.into(),
            uid: Uuid::new_v4().to_string(),
        },
        epoch: 1,
        ..OwnerMetadata::default()
    }
}

/// A hypervisor under test; the shared part of the contract runs on each.
trait Subject {
    fn hypervisor(&self) -> &dyn Hypervisor;
    /// A domain that can be started.
    fn spec(&self) -> DomainSpec;
    /// Identifies one run of a guest while it is on.
    fn run(&self, id: Uuid) -> Option<u32>;
    /// Kills a guest.
    fn kill(&self, id: Uuid);
}

impl Subject for Host {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &self.libvirt
    }

    fn spec(&self) -> DomainSpec {
        Self::spec(self)
    }

    fn run(&self, id: Uuid) -> Option<u32> {
        self.daemon.qemu(id)
    }

    fn kill(&self, id: Uuid) {
        self.daemon.kill_qemu(id);
    }
}

/// The one in memory.
struct InMemory {
    fake: FakeHypervisor,
    dir: tempfile::TempDir,
}

fn in_memory() -> InMemory {
    InMemory {
        fake: FakeHypervisor::default(),
        dir: tempfile::tempdir().unwrap(),
    }
}

impl Subject for InMemory {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &self.fake
    }

    fn spec(&self) -> DomainSpec {
        let path = |id: Uuid| self.dir.path().join(id.to_string()).display().to_string();
        let spec = bare_spec("pc-q35-10.0", path);
        std::fs::write(&spec.root.path, b"").unwrap();
        spec
    }

    fn run(&self, id: Uuid) -> Option<u32> {
        self.fake.run(id)
    }

    fn kill(&self, id: Uuid) {
        self.fake.end_guest(id, false);
    }
}

/// A domain that finds nothing to boot, with its disk at `path`.
fn bare_spec(machine: &str, path: impl Fn(Uuid) -> String) -> DomainSpec {
    let id = Uuid::new_v4();
    let disk = path(id);
    DomainSpec {
        id,
        metadata: metadata("web"),
        vcpus: 1,
        memory_mib: 64,
        topology: None,
        machine: machine.into(),
        cpu_model: "Nehalem".into(),
        virt_type: VirtType::Qemu,
        boot: Boot::Disk,
        console_log: format!("{disk}.log"),
        root: Disk {
            path: disk,
            format: "qcow2".into(),
            serial: id.simple().to_string(),
        },
        config_drive: None,
        nics: Vec::new(),
        devices: Vec::new(),
    }
}

async fn domain(subject: &dyn Subject, id: Uuid) -> Option<Domain> {
    subject.hypervisor().domain(id).await.unwrap()
}

async fn state(subject: &dyn Subject, id: Uuid) -> Option<State> {
    domain(subject, id).await.map(|domain| domain.state)
}

impl Host {
    /// A domain that finds nothing to boot.
    pub(super) fn spec(&self) -> DomainSpec {
        bare_spec(&self.machine, |id| self.daemon.disk(&format!("{id}.qcow2")))
    }

    /// Kills the daemon and starts it again.
    async fn new_daemon(&mut self) {
        let mut events = self.libvirt.events();
        self.daemon.kill();
        event(&mut events, &Event::Disconnected).await;
        self.daemon.restart();
        event(&mut events, &Event::Connected).await;
    }

    pub(super) async fn running(&self, spec: &DomainSpec) {
        self.libvirt.define(spec).await.unwrap();
        self.libvirt.start_paused(spec.id).await.unwrap();
        self.libvirt.resume(spec.id).await.unwrap();
        assert_eq!(self.state(spec.id).await, Some(State::Running));
    }

    async fn domain(&self, id: Uuid) -> Option<Domain> {
        self.libvirt.domain(id).await.unwrap()
    }

    async fn state(&self, id: Uuid) -> Option<State> {
        self.domain(id).await.map(|domain| domain.state)
    }
}

/// Waits for the event; others are ignored.
async fn event(events: &mut Receiver<Event>, wanted: &Event) {
    let found = async { while events.recv().await.expect("no event is lost") != *wanted {} };
    timeout(EVENT_TIMEOUT, found)
        .await
        .unwrap_or_else(|_| panic!("{wanted:?} does not come"));
}

pub(super) async fn eventually<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let until = Instant::now() + EVENT_TIMEOUT;
    while !done().await {
        assert!(Instant::now() < until, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

// ---------------------------------------------------------------- tests

#[tokio::test]
async fn a_host_reports_its_facts() {
    let host = host().await;
    let facts = host.libvirt.host().await.unwrap();
    assert_eq!(facts.architecture, std::env::consts::ARCH);
    assert!(!facts.cells.is_empty());
    let cpus: BTreeSet<i32> = facts
        .cells
        .iter()
        .flat_map(|cell| cell.cpus.iter().copied())
        .collect();
    assert_eq!(
        cpus.len(),
        std::thread::available_parallelism().unwrap().get()
    );
    assert!(facts.cells.iter().all(|cell| cell.memory_mib > 256));
    assert!(facts.machines[0].starts_with("pc-q35-"), "{facts:?}");
    let newest: i32 = facts.qemu.split('.').next().unwrap().parse().unwrap();
    assert!(newest >= 7, "{}", facts.qemu);
    assert!(facts.machines[0].starts_with(&format!("pc-q35-{newest}.")));
    assert_eq!(facts.libvirt.split('.').count(), 3);
    assert_eq!(host.libvirt.domains().await.unwrap(), []);
}

#[tokio::test]
async fn a_domain_is_defined_started_stopped_and_removed_and_every_step_can_be_repeated() {
    life(&host().await).await;
    life(&in_memory()).await;
}

async fn life(host: &dyn Subject) {
    let libvirt = host.hypervisor();
    let spec = host.spec();
    let id = spec.id;
    let mut events = libvirt.events();

    for _ in 0..2 {
        libvirt.define(&spec).await.unwrap();
        let found = domain(host, id).await.unwrap();
        assert_eq!(found.state, State::Off);
        assert_eq!(found.metadata.as_ref(), Some(&spec.metadata));
        assert_eq!(found.hardware.machine, spec.machine);
        assert_eq!(found.hardware.cpu_model, "Nehalem");
        assert_eq!(found.hardware.virt_type, "qemu");
        let listed = ListedDomain {
            id: spec.id,
            metadata: found.metadata,
            state: found.state,
        };
        assert_eq!(libvirt.domains().await.unwrap(), [listed]);
        event(&mut events, &Event::Domain(id)).await;
    }
    for _ in 0..2 {
        libvirt.start_paused(id).await.unwrap();
        assert_eq!(state(host, id).await, Some(State::Paused));
    }
    event(&mut events, &Event::Domain(id)).await;
    let qemu = host.run(id).expect("a QEMU");
    for _ in 0..2 {
        libvirt.resume(id).await.unwrap();
        assert_eq!(state(host, id).await, Some(State::Running));
    }
    // Neither a start nor a definition touches a guest that runs.
    libvirt.start_paused(id).await.unwrap();
    libvirt.define(&spec).await.unwrap();
    assert_eq!(state(host, id).await, Some(State::Running));
    assert_eq!(host.run(id), Some(qemu));

    // A definition that is in use is not removed from under its guest.
    let refused = libvirt.undefine(id).await.unwrap_err();
    assert!(matches!(refused, Error::Failed { .. }), "{refused}");
    assert_eq!(state(host, id).await, Some(State::Running));

    for _ in 0..2 {
        libvirt.power_off(id).await.unwrap();
        assert_eq!(state(host, id).await, Some(State::Off));
        assert_eq!(host.run(id), None);
    }
    libvirt.shut_down(id).await.unwrap();
    for _ in 0..2 {
        libvirt.undefine(id).await.unwrap();
        assert_eq!(domain(host, id).await, None);
    }
    assert!(
        Path::new(&spec.root.path).exists(),
        "disks are not libvirt's"
    );
}

#[tokio::test]
async fn a_missing_domain_is_told_from_a_failure() {
    failures(&host().await).await;
    failures(&in_memory()).await;
}

async fn failures(host: &dyn Subject) {
    let libvirt = host.hypervisor();
    let id = Uuid::new_v4();
    assert_eq!(domain(host, id).await, None);
    for missing in [
        libvirt.start_paused(id).await,
        libvirt.resume(id).await,
        libvirt.shut_down(id).await,
        libvirt.set_owner_metadata(id, &metadata("x")).await,
    ] {
        assert!(matches!(missing, Err(Error::NotFound(it)) if it == id));
    }
    libvirt.power_off(id).await.unwrap();
    libvirt.undefine(id).await.unwrap();

    // The error has libvirt's message, and a failed call leaves nothing behind.
    let mut spec = host.spec();
    spec.machine = "pc-q35-0.1".into();
    let refused = libvirt.define(&spec).await.unwrap_err();
    assert!(refused.to_string().contains("pc-q35-0.1"), "{refused}");
    assert_eq!(domain(host, spec.id).await, None);

    // Without its disk a domain can be defined, but not started.
    let spec = host.spec();
    let aside = format!("{}.aside", spec.root.path);
    std::fs::rename(&spec.root.path, &aside).unwrap();
    libvirt.define(&spec).await.unwrap();
    let refused = libvirt.start_paused(spec.id).await.unwrap_err();
    assert!(refused.to_string().contains(&spec.root.path), "{refused}");
    assert_eq!(state(host, spec.id).await, Some(State::Off));
    std::fs::rename(&aside, &spec.root.path).unwrap();
    libvirt.start_paused(spec.id).await.unwrap();

    // After QEMU dies the domain is off, not shut down by its guest.
    let mut events = libvirt.events();
    libvirt.resume(spec.id).await.unwrap();
    event(&mut events, &Event::Domain(spec.id)).await;
    host.kill(spec.id);
    event(&mut events, &Event::Domain(spec.id)).await;
    eventually("the end", async || {
        state(host, spec.id).await == Some(State::Off)
    })
    .await;
}

#[tokio::test]
async fn metadata_survives_any_name_and_changes_under_a_running_guest() {
    marking(&host().await).await;
    marking(&in_memory()).await;
}

async fn marking(host: &dyn Subject) {
    let libvirt = host.hypervisor();
    let mut spec = host.spec();
    let hostile = "<&\"'>]]><!--é😀 {%s}\\";
    let pad = 253 - hostile.chars().count();
    spec.metadata.owner.name = format!("{hostile}{}", "n".repeat(pad));
    spec.metadata.owner.namespace = "n".repeat(63);
    libvirt.define(&spec).await.unwrap();
    libvirt.start_paused(spec.id).await.unwrap();
    libvirt.resume(spec.id).await.unwrap();
    let qemu = host.run(spec.id);
    let seen = async || domain(host, spec.id).await.unwrap().metadata;
    assert_eq!(seen().await.as_ref(), Some(&spec.metadata));

    let mut changed = spec.metadata.clone();
    changed.epoch = i64::MAX;
    changed.owner.uid = "another".into();
    changed.owner.name = format!("{}{hostile}", "m".repeat(pad));
    for _ in 0..2 {
        libvirt.set_owner_metadata(spec.id, &changed).await.unwrap();
        assert_eq!(seen().await.as_ref(), Some(&changed));
        assert_eq!(state(host, spec.id).await, Some(State::Running));
        assert_eq!(host.run(spec.id), qemu);
    }
    // They are in the definition too, and can be changed while the domain is off.
    libvirt.power_off(spec.id).await.unwrap();
    assert_eq!(seen().await.as_ref(), Some(&changed));
    libvirt
        .set_owner_metadata(spec.id, &spec.metadata)
        .await
        .unwrap();
    assert_eq!(seen().await.as_ref(), Some(&spec.metadata));
}

#[tokio::test]
async fn dedicated_resources_are_listed_also_after_a_restart() {
    let mut host = host().await;
    let spec = with_topology(&host, None).await;
    pinning(&host, &spec).await;
    // In the domain's XML, and in the kernel.
    let xml = host.daemon.virsh(&["dumpxml", &spec.id.to_string()]);
    let cpu = spec.metadata.pinned.first().unwrap();
    for part in [
        format!("<vcpupin vcpu='0' cpuset='{cpu}'/>"),
        format!("<emulatorpin cpuset='{cpu}'/>"),
        "<memnode cellid='0' mode='strict' nodeset='0'/>".to_owned(),
        "<cell id='0' cpus='0' memory='65536' unit='KiB'".to_owned(),
    ] {
        assert!(xml.contains(&part), "{part} is not in {xml}");
    }
    let allowed = threads(&host.daemon.process(spec.id), "Cpus_allowed_list");
    assert!(allowed.contains(&("CPU 0/TCG".into(), cpu.to_string())));
    host.new_daemon().await;
    let listed = host.libvirt.domains().await.unwrap();
    assert_eq!(listed[0].metadata.as_ref(), Some(&spec.metadata));

    let memory = in_memory();
    let spec = with_topology(&memory, None).await;
    pinning(&memory, &spec).await;
}

/// A domain with one processor and one NUMA node, on the host's first of each.
async fn with_topology(host: &dyn Subject, page_kib: Option<i64>) -> DomainSpec {
    let cell = host.hypervisor().host().await.unwrap().cells.remove(0);
    let mut spec = host.spec();
    let cpu = *cell.cpus.last().unwrap();
    spec.metadata.pinned = [cpu].into();
    spec.topology = Some(Topology {
        nodes: vec![GuestNode {
            host_node: cell.id,
            memory_mib: spec.memory_mib,
            cpus: [(0, [cpu].into())].into(),
        }],
        page_kib,
    });
    spec
}

async fn pinning(host: &dyn Subject, spec: &DomainSpec) {
    let hypervisor = host.hypervisor();
    hypervisor.define(spec).await.unwrap();
    let listed = async || hypervisor.domains().await.unwrap().remove(0).metadata;
    assert_eq!(listed().await.as_ref(), Some(&spec.metadata));
    hypervisor.start_paused(spec.id).await.unwrap();
    hypervisor.resume(spec.id).await.unwrap();
    assert_eq!(state(host, spec.id).await, Some(State::Running));
    // Another owner, the same processors.
    let metadata = OwnerMetadata {
        epoch: 2,
        ..spec.metadata.clone()
    };
    hypervisor
        .set_owner_metadata(spec.id, &metadata)
        .await
        .unwrap();
    assert_eq!(listed().await, Some(metadata));
    hypervisor
        .set_owner_metadata(spec.id, &spec.metadata)
        .await
        .unwrap();
}

/// Name of each thread, and a line of its status.
fn threads(process: &Path, key: &str) -> Vec<(String, String)> {
    let read = |path: &Path, key: &str| {
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    let tasks = std::fs::read_dir(process.join("task")).unwrap();
    tasks
        .map(|task| task.unwrap().path())
        .map(|path| (read(&path, "Name"), read(&path, key)))
        .collect()
}

/// No guest is started with a device: that needs an IOMMU.
#[tokio::test]
async fn pci_devices_are_listed_and_a_domain_can_be_defined_with_one() {
    let host = host().await;
    passing(&host).await;
    passing(&in_memory()).await;
}

async fn passing(host: &dyn Subject) {
    let hypervisor = host.hypervisor();
    let devices = hypervisor.pci_devices().await.unwrap();
    let Some(device) = devices.first() else {
        println!("SKIPPED passing of devices: the machine has no PCI device");
        return;
    };
    assert_eq!((device.vendor.len(), device.product.len()), (4, 4));
    let addresses: BTreeSet<_> = devices.iter().map(|d| d.address).collect();
    assert_eq!(addresses.len(), devices.len());
    let mut spec = host.spec();
    spec.devices = vec![device.address];
    spec.metadata.devices = [device.address].into();
    // Defined, never started: the device is the machine's own.
    for _ in 0..2 {
        hypervisor.define(&spec).await.unwrap();
        let listed = hypervisor.domains().await.unwrap().remove(0);
        assert_eq!(listed.metadata.as_ref(), Some(&spec.metadata));
    }
    hypervisor.undefine(spec.id).await.unwrap();
}

#[tokio::test]
async fn a_guest_uses_huge_pages() {
    let _pages = HugePages::reserve(64);
    let host = host().await;
    let cells = host.libvirt.host().await.unwrap().cells;
    let pages: i64 = cells.iter().filter_map(|cell| cell.pages.get(&2048)).sum();
    assert!(pages >= 64, "{cells:?}");
    let spec = with_topology(&host, Some(2048)).await;
    pinning(&host, &spec).await;
    let maps = host.daemon.process(spec.id).join("smaps");
    let maps = std::fs::read_to_string(maps).unwrap();
    let kib = maps.lines().filter_map(|line| {
        let line = line.strip_prefix("Private_Hugetlb:")?;
        line.trim().strip_suffix(" kB")?.trim().parse::<i64>().ok()
    });
    assert!(kib.sum::<i64>() > 0, "none is in use");
    // Without pages of that size on the host the start fails, and libvirt says why.
    let mut spec = host.spec();
    spec.topology = Some(Topology {
        page_kib: Some(1024 * 1024),
        nodes: vec![GuestNode {
            memory_mib: spec.memory_mib,
            cpus: [(0, [0].into())].into(),
            ..GuestNode::default()
        }],
    });
    let made = async {
        host.libvirt.define(&spec).await?;
        host.libvirt.start_paused(spec.id).await
    };
    let refused = made.await.unwrap_err();
    assert!(refused.to_string().contains("huge"), "{refused}");
}

/// Pages of 2 MiB that are reserved for the test, in addition to those of others.
struct HugePages(i64);

impl HugePages {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn reserve(count: i64) -> Self {
        Self::add(count);
        Self(count)
    }

    fn add(count: i64) {
        let now = std::fs::read_to_string(Self::FILE).unwrap();
        let now: i64 = now.trim().parse().unwrap();
        std::fs::write(Self::FILE, (now + count).to_string()).expect("root");
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        Self::add(-self.0);
    }
}

#[tokio::test]
async fn many_calls_run_at_once() {
    let host = host().await;
    let libvirt = &host.libvirt;
    let specs: Vec<_> = (0..10).map(|_| host.spec()).collect();
    try_join_all(specs.iter().map(|spec| async move {
        libvirt.define(spec).await?;
        libvirt.start_paused(spec.id).await
    }))
    .await
    .unwrap();
    let all = libvirt.domains().await.unwrap();
    assert_eq!(all.len(), 10);
    assert!(all.iter().all(|domain| domain.state == State::Paused));
    for spec in &specs {
        let domain = all.iter().find(|domain| domain.id == spec.id).unwrap();
        assert_eq!(domain.metadata.as_ref(), Some(&spec.metadata));
    }
    try_join_all(specs[1..].iter().map(|spec| async move {
        libvirt.power_off(spec.id).await?;
        libvirt.undefine(spec.id).await
    }))
    .await
    .unwrap();

    // The same call for one domain from many tasks, and from a second client.
    let other = connect(&host.daemon).await;
    let spec = &specs[0];
    let all_at_once = async |what: &str| {
        let calls = (0..6).map(|n| {
            let client = if n % 2 == 0 { libvirt } else { &other };
            async move {
                match what {
                    "off" => client.power_off(spec.id).await,
                    "define" => client.define(spec).await,
                    "start" => client.start_paused(spec.id).await,
                    "resume" => client.resume(spec.id).await,
                    "metadata" => client.set_owner_metadata(spec.id, &spec.metadata).await,
                    _ => client.undefine(spec.id).await,
                }
            }
        });
        for done in join_all(calls).await {
            assert!(done.is_ok(), "{what}: {done:?}");
        }
    };
    for what in [
        "resume", "metadata", "off", "define", "start", "off", "undefine",
    ] {
        all_at_once(what).await;
    }
    assert_eq!(libvirt.domains().await.unwrap(), []);

    // A client that is dropped leaves no connection open.
    let before = host.daemon.sockets();
    drop(other);
    eventually("the connection's end", async || {
        host.daemon.sockets() < before
    })
    .await;
}

#[tokio::test]
async fn guests_survive_the_daemon_and_the_client_reconnects() {
    let mut host = host().await;
    let libvirt = host.libvirt.clone();
    let (kept, dying) = (host.spec(), host.spec());
    host.running(&kept).await;
    host.running(&dying).await;
    let qemu = host.daemon.qemu(kept.id).expect("a QEMU");
    let mut events = libvirt.events();

    // In the middle of calls: each is answered, or fails as unreachable.
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let libvirt = libvirt.clone();
            tokio::spawn(async move { libvirt.domains().await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(5)).await;
    host.daemon.kill();
    for call in calls {
        match timeout(ANSWER_TIMEOUT, call)
            .await
            .expect("an answer")
            .unwrap()
        {
            Ok(domains) => {
                assert_eq!(domains.len(), 2, "a list must be complete");
                assert!(domains.iter().all(|domain| domain.state == State::Running));
            }
            Err(Error::Unreachable(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    event(&mut events, &Event::Disconnected).await;
    let asked = Instant::now();
    for answer in [
        libvirt.domain(kept.id).await.map(drop),
        libvirt.domains().await.map(drop),
        libvirt.host().await.map(drop),
        libvirt.power_off(kept.id).await,
        libvirt.undefine(kept.id).await,
        libvirt.define(&kept).await,
    ] {
        assert!(matches!(answer, Err(Error::Unreachable(_))), "{answer:?}");
    }
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert_eq!(host.daemon.qemu(kept.id), Some(qemu));
    host.daemon.kill_qemu(dying.id);

    host.daemon.restart();
    event(&mut events, &Event::Connected).await;
    let domain = host.domain(kept.id).await.expect("still there");
    assert_eq!(domain.state, State::Running);
    assert_eq!(domain.metadata.as_ref(), Some(&kept.metadata));
    assert_eq!(host.daemon.qemu(kept.id), Some(qemu));
    assert_eq!(host.state(dying.id).await, Some(State::Off));
    libvirt.power_off(kept.id).await.unwrap();
    event(&mut events, &Event::Domain(kept.id)).await;
    assert_eq!(host.state(kept.id).await, Some(State::Off));
}

#[tokio::test]
async fn a_daemon_that_is_stuck_counts_as_unreachable() {
    let host = host().await;
    let libvirt = &host.libvirt;
    let spec = host.spec();
    host.running(&spec).await;
    let qemu = host.daemon.qemu(spec.id);
    let mut events = libvirt.events();
    host.daemon.halt(true);
    let asked = Instant::now();
    let answer = libvirt.domain(spec.id).await;
    assert!(matches!(answer, Err(Error::Unreachable(_))), "{answer:?}");
    assert!(asked.elapsed() < Duration::from_secs(30));
    event(&mut events, &Event::Disconnected).await;
    let asked = Instant::now();
    let answer = libvirt.power_off(spec.id).await;
    assert!(matches!(answer, Err(Error::Unreachable(_))), "{answer:?}");
    assert!(asked.elapsed() < Duration::from_secs(1));
    host.daemon.halt(false);
    event(&mut events, &Event::Connected).await;
    assert_eq!(host.state(spec.id).await, Some(State::Running));
    assert_eq!(host.daemon.qemu(spec.id), qemu);
}

#[tokio::test]
async fn a_guest_that_shut_down_is_told_from_one_that_was_powered_off() {
    let mut host = host().await;
    let libvirt = host.libvirt.clone();
    let built = Command::new(pileus_tests::program::root().join("hack/guest-image"))
        .arg("tiny")
        .output()
        .unwrap();
    assert!(built.status.success(), "hack/guest-image tiny");
    let built = String::from_utf8(built.stdout).unwrap();
    let get = |key: &str| {
        built
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .unwrap_or_else(|| panic!("no {key} in {built}"))
    };
    // QEMU's user cannot look into root's home.
    let copy = |key: &str| {
        let path = host.daemon.path(key).display().to_string();
        std::fs::copy(get(key), &path).unwrap();
        path
    };
    let mut spec = host.spec();
    spec.memory_mib = 96;
    spec.boot = Boot::Kernel {
        kernel: copy("tiny.kernel"),
        initrd: Some(copy("tiny.initrd")),
        command_line: get("tiny.cmdline").to_owned(),
    };
    host.running(&spec).await;
    eventually("the guest", async || {
        std::fs::read(&spec.console_log)
            .is_ok_and(|log| String::from_utf8_lossy(&log).contains("PILEUS-GUEST: ready"))
    })
    .await;
    let mut events = libvirt.events();
    for _ in 0..2 {
        libvirt.shut_down(spec.id).await.unwrap();
    }
    event(&mut events, &Event::Domain(spec.id)).await;
    eventually("the shutdown", async || {
        host.state(spec.id).await == Some(State::ShutDown)
    })
    .await;
    assert_eq!(host.daemon.qemu(spec.id), None);
    // Later calls do not change that state.
    libvirt.power_off(spec.id).await.unwrap();
    libvirt.define(&spec).await.unwrap();
    assert_eq!(host.state(spec.id).await, Some(State::ShutDown));
    // Nor does a daemon that does not remember it.
    host.new_daemon().await;
    assert_eq!(host.state(spec.id).await, Some(State::ShutDown));
    assert_eq!(libvirt.domains().await.unwrap()[0].state, State::ShutDown);

    libvirt.start_paused(spec.id).await.unwrap();
    libvirt.resume(spec.id).await.unwrap();
    libvirt.power_off(spec.id).await.unwrap();
    assert_eq!(host.state(spec.id).await, Some(State::Off));
    host.new_daemon().await;
    assert_eq!(host.state(spec.id).await, Some(State::Off));

    // Killed while the daemon is down, so that its end is in no log.
    libvirt.start_paused(spec.id).await.unwrap();
    host.daemon.kill();
    host.daemon.kill_qemu(spec.id);
    let mut events = libvirt.events();
    host.daemon.restart();
    event(&mut events, &Event::Connected).await;
    assert_eq!(host.state(spec.id).await, Some(State::Off));
}

/// libvirtd runs five calls of a connection at once and reads no more until one ends, and reading
/// a domain's XML waits for the call that is under way.
#[tokio::test]
async fn guests_that_hang_do_not_block_others() {
    let host = host().await;
    let libvirt = &host.libvirt;
    let hanging: Vec<_> = (0..6).map(|_| host.spec()).collect();
    let other = host.spec();
    for spec in hanging.iter().chain([&other]) {
        libvirt.define(spec).await.unwrap();
        libvirt.start_paused(spec.id).await.unwrap();
    }
    let mut events = libvirt.events();
    let mut calls = Vec::new();
    for spec in &hanging {
        host.daemon.halt_qemu(spec.id, true);
        let (libvirt, id) = (libvirt.clone(), spec.id);
        calls.push(tokio::spawn(async move { libvirt.resume(id).await }));
    }
    // Longer than keepalive waits for an answer.
    let until = Instant::now() + Duration::from_secs(25);
    while Instant::now() < until {
        let domains = timeout(ANSWER_TIMEOUT, libvirt.domains())
            .await
            .expect("a list");
        let domains = domains.unwrap();
        assert_eq!(domains.len(), 7);
        assert!(domains.iter().all(|domain| domain.metadata.is_some()));
        let seen = timeout(ANSWER_TIMEOUT, host.state(other.id))
            .await
            .expect("a look");
        assert_eq!(seen, Some(State::Paused));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(calls.iter().all(|call| !call.is_finished()));
    for spec in &hanging {
        host.daemon.halt_qemu(spec.id, false);
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    while let Ok(event) = events.try_recv() {
        assert!(matches!(event, Event::Domain(_)), "{event:?}");
    }
}

#[tokio::test]
async fn domains_of_others_are_listed_without_an_owner() {
    let host = host().await;
    let file = host.daemon.path("theirs.xml");
    let xml = "<domain type='qemu'><name>theirs</name><memory unit='MiB'>16</memory>\
               <os><type>hvm</type></os></domain>";
    std::fs::write(&file, xml).unwrap();
    let defined = Command::new("virsh")
        .args(["-c", &host.daemon.uri(), "define"])
        .arg(&file)
        .output();
    assert!(defined.unwrap().status.success());
    let listed = host.libvirt.domains().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].metadata, None);
    assert_eq!(host.domain(listed[0].id).await.unwrap().metadata, None);
}

#[tokio::test]
async fn domain_xml_is_valid_in_libvirts_schema() {
    let host = host().await;
    let mut spec = host.spec();
    spec.metadata = metadata(&format!("<&>\"']]>{}", "n".repeat(245)));
    spec.config_drive = Some("/var/lib/pileus/config.img".into());
    spec.nics = (0..3)
        .map(|n| Nic {
            port_id: Uuid::from_u128(n << 64),
            mac: format!("fa:16:3e:00:00:0{n}").parse().unwrap(),
            mtu: 1442,
            offload: n > 0,
        })
        .collect();
    let kernel = Boot::Kernel {
        kernel: "/k".into(),
        initrd: Some("/i".into()),
        command_line: "console=ttyS0 a='b' <c>".into(),
    };
    for boot in [Boot::Disk, kernel] {
        spec.boot = boot;
        let file = host.daemon.path("domain.xml");
        std::fs::write(&file, domain_xml(&spec)).unwrap();
        let output = Command::new("virt-xml-validate")
            .arg(&file)
            .arg("domain")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
}
