//! The agent's effects when it dies in the middle of any of them: real files and disks, a
//! hypervisor in memory, a new agent on the same host each time.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use kube::api::ObjectMeta;
use kube::{Api, Client, Config as KubeConfig};
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use super::plan::{Plan, Progress, Step, plan};
use super::{act, observe};
use crate::epochs::Epochs;
use crate::ports::Ports;
use crate::{Agent, Config};
use pileus_api::Instance;
use pileus_api::image::DiskFormat;
use pileus_api::instance::{InstanceSpec, InstanceStatus, OnDeletion};
use pileus_api::server::{ConfigDrive, OnGuestShutdown, PowerState, RunState};
use pileus_api::topology::{CpuPolicy, GuestNode, GuestTopology};
use pileus_hypervisor::{FakeHypervisor, Hypervisor, State, VirtType};
use pileus_kube_ext::backoff::Backoff;
use pileus_kube_ext::events::Events;
use pileus_kube_ext::{Context, Metrics};
use pileus_storage::{Disks, DownloadProgress, FetchPolicy, ImageStore};
use pileus_values::ClusterId;

const ID: Uuid = Uuid::from_u128(7);

/// A host: what outlives an agent.
struct Host {
    dir: tempfile::TempDir,
    fake: FakeHypervisor,
    object: Arc<Instance>,
}

/// An agent as it starts. Nobody answers at its API server, which no step here needs.
fn agent(dir: &Path, fake: &FakeHypervisor) -> Arc<Agent> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = KubeConfig::new("http://127.0.0.1:9".parse().unwrap());
    let client = Client::try_from(config).unwrap();
    let policy = FetchPolicy {
        file_root: Some(dir.to_owned()),
        ..FetchPolicy::default()
    };
    let (known, _) = kube::runtime::reflector::store();
    let ovs_db = format!("unix:{}", dir.join("no-ovs").display());
    Arc::new(Agent {
        hypervisor: Arc::new(fake.clone()),
        store: ImageStore::open(dir, policy).unwrap(),
        disks: Disks::new(dir),
        ports: Ports::watch(&ovs_db, dir.to_owned()).unwrap(),
        epochs: Epochs::open(&dir.join("epochs.json")).unwrap(),
        capacity: Mutex::default(),
        load: Mutex::default(),
        boot_id: "boot-1".into(),
        instances: Api::namespaced(client.clone(), "pileus-host-a"),
        hosts: Api::all(client.clone()),
        known,
        trigger: mpsc::unbounded_channel().0,
        runtime: Mutex::default(),
        start_queue: super::StartQueue::default(),
        pinning: tokio::sync::Mutex::default(),
        host_changed: Notify::new(),
        orphan_count: prometheus_client::metrics::gauge::Gauge::default(),
        backoff: Backoff::new(Duration::from_millis(1), Duration::from_millis(1)),
        config: Config {
            host: "a".into(),
            state_dir: dir.to_owned(),
            libvirt_uri: String::new(),
            virt_type: VirtType::Qemu,
            cpu_model: "Nehalem".into(),
            image_file_dir: Some(dir.to_owned()),
            allow_fetch: Vec::new(),
            limits: pileus_storage::Limits::default(),
            allow_pci_devices: Vec::new(),
            boot_id_file: dir.join("boot_id"),
            ovs_db,
            ovn_run_dir: dir.to_owned(),
            reservation: crate::host::plan::Reservation {
                memory_mib: 0,
                disk_gib: 0,
                memory_shared_by: 1,
            },
            image_grace: Duration::from_hours(1),
            port_timeout: Duration::from_hours(1),
        },
        context: Context {
            events: Events::new(client.clone(), "test"),
            client,
            cluster: ClusterId("c".into()),
            metrics: Metrics::default(),
            ready: Default::default(),
        },
    })
}

impl Host {
    /// A host with the image fetched and confirmed, and nothing of the Instance.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image.raw");
        std::fs::write(&image, vec![7; 1 << 20]).unwrap();
        let mut spec = InstanceSpec {
            epoch: 1,
            instance_id: ID.to_string(),
            config_drive: ConfigDrive::Disabled,
            on_guest_shutdown: OnGuestShutdown::Stop,
            shutdown_timeout_seconds: 3600,
            ..InstanceSpec::default()
        };
        spec.server.name = "web".into();
        spec.server.namespace = "default".into();
        spec.server.uid = "u1".into();
        spec.image.disk_format = DiskFormat::Raw;
        spec.image.disk.url = format!("file://{}", image.display());
        let mut object = Instance {
            metadata: ObjectMeta {
                name: Some("web-1".into()),
                ..ObjectMeta::default()
            },
            spec,
            status: None,
        };
        let fake = FakeHypervisor::default();
        let agent = agent(dir.path(), &fake);
        let request = observe::requests(&object).remove(0);
        let stored = agent
            .store
            .import(&request, &DownloadProgress::default())
            .await;
        object.spec.image.disk.digest = Some(stored.unwrap().digest);
        Self {
            dir,
            fake,
            object: Arc::new(object),
        }
    }

    fn change(&mut self, f: impl FnOnce(&mut Instance)) {
        f(Arc::make_mut(&mut self.object));
    }

    /// As the status would be reported.
    async fn report(&mut self, progress: &Progress) {
        let domain = self.fake.domain(ID).await.unwrap();
        let on = domain.is_some_and(|d| d.state == State::Running);
        let status = InstanceStatus {
            power_state: Some(if on {
                PowerState::Running
            } else {
                PowerState::Stopped
            }),
            host_boot_id: Some("boot-1".into()),
            guest_shutdown: Some(*progress == Progress::GuestShutdown),
            realized: Some(true),
            ..InstanceStatus::default()
        };
        self.change(|object| object.status = Some(status));
    }

    async fn look(&self, agent: &Arc<Agent>) -> (observe::Snapshot, Plan) {
        let mut snapshot = observe::observe(&self.object, ID, agent).await.unwrap();
        snapshot.observed.ports_installed = Some(true);
        let own = observe::placement_owner(&self.object, agent);
        let decided = plan(&self.object.spec, &own, &snapshot.observed);
        (snapshot, decided)
    }

    /// Works until nothing is left to do; the agent dies once, at step `fatal`: after the
    /// step, or within it. Returns the progress, and whether the agent died.
    async fn settle(&self, fatal: usize, within: bool) -> (Progress, bool) {
        let mut agent = agent(self.dir.path(), &self.fake);
        let (mut done, mut died) = (0, false);
        'passes: for _ in 0..12 {
            let (snapshot, decided) = self.look(&agent).await;
            let own = observe::placement_owner(&self.object, &agent);
            if decided.steps.is_empty() || decided.steps == [Step::DropFinalizer] {
                return (decided.progress, died);
            }
            for step in &decided.steps {
                if *step == Step::DropFinalizer {
                    continue 'passes;
                }
                let mut effect =
                    Box::pin(act::act(step, &self.object, ID, &own, &snapshot, &agent));
                let last = !died && done == fatal;
                done += 1;
                if last && within {
                    // Up to where it waits for the first time, and no further.
                    let _ = (&mut effect).now_or_never();
                } else {
                    (&mut effect).await.unwrap();
                }
                drop(effect);
                if last {
                    died = true;
                    agent = self::agent(self.dir.path(), &self.fake);
                    continue 'passes;
                }
            }
        }
        panic!("the plan does not converge: {:?}", self.fake.calls());
    }
}

/// A whole life with a death at step `fatal` of one of its parts. Returns whether it
/// died in any part.
async fn live(fatal: usize, within: bool) -> bool {
    let mut host = Host::new().await;
    let mut any = false;
    let mut part = async |host: &mut Host, wanted: Progress| {
        let (progress, died) = host.settle(fatal, within).await;
        assert_eq!(progress, wanted, "at {fatal}, {:?}", host.fake.calls());
        any |= died;
        host.report(&progress).await;
    };

    part(&mut host, Progress::Complete).await;
    assert_eq!(host.fake.run(ID), Some(1), "started once");
    let disk = Disks::new(host.dir.path()).root_disk(ID);
    let made = std::fs::metadata(&disk).unwrap().modified().unwrap();

    host.change(|object| object.spec.run_state = RunState::Stopped);
    part(&mut host, Progress::Complete).await;
    assert_eq!(host.fake.run(ID), None);
    host.change(|object| object.spec.run_state = RunState::Running);
    part(&mut host, Progress::Complete).await;
    assert_eq!(host.fake.run(ID), Some(2), "started once");

    host.fake.end_guest(ID, true);
    part(&mut host, Progress::GuestShutdown).await;
    part(&mut host, Progress::GuestShutdown).await;
    host.change(|object| object.spec.on_guest_shutdown = OnGuestShutdown::Restart);
    part(&mut host, Progress::Complete).await;
    assert_eq!(host.fake.run(ID), Some(3), "started once");
    assert!(!host.fake.calls().contains(&"power off"));
    let after = std::fs::metadata(&disk).unwrap().modified().unwrap();
    assert_eq!(made, after, "one disk for its life");

    host.change(|object| {
        let now = k8s_openapi::jiff::Timestamp::now();
        object.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        object.spec.on_deletion = OnDeletion::Remove;
    });
    let agent = agent(host.dir.path(), &host.fake);
    for (step, stops) in [(fatal, true), (usize::MAX, false)] {
        let (snapshot, decided) = host.look(&agent).await;
        let own = observe::placement_owner(&host.object, &agent);
        for (n, step_) in decided.steps.iter().enumerate() {
            if *step_ == Step::DropFinalizer || (stops && n > step) {
                break;
            }
            let effect = act::act(step_, &host.object, ID, &own, &snapshot, &agent);
            effect.await.unwrap();
        }
    }
    assert_eq!(host.fake.domains().await.unwrap(), []);
    assert!(!Disks::new(host.dir.path()).contents(ID).directory);
    assert!(agent.epochs.get("u1").unwrap().closed.is_some());
    any
}

#[tokio::test]
async fn an_agent_that_dies_at_any_step_is_followed_by_one_that_goes_on() {
    for within in [false, true] {
        let mut fatal = 0;
        while live(fatal, within).await {
            fatal += 1;
        }
        assert!(
            fatal >= 5,
            "a build has steps to die at, {fatal} were found"
        );
    }
}

#[tokio::test]
async fn nothing_is_touched_while_the_hypervisor_does_not_answer() {
    let mut host = Host::new().await;
    let (progress, _) = host.settle(usize::MAX, false).await;
    host.report(&progress).await;
    host.fake.set_down(true);
    let agent = agent(host.dir.path(), &host.fake);
    let snapshot = observe::observe(&host.object, ID, &agent).await;
    assert!(matches!(
        snapshot.err(),
        Some(super::Error::Hypervisor(
            pileus_hypervisor::Error::Unreachable(_)
        ))
    ));
    host.fake.set_down(false);
    let (progress, _) = host.settle(usize::MAX, false).await;
    assert_eq!((progress, host.fake.run(ID)), (Progress::Complete, Some(1)));
}

#[tokio::test]
async fn a_requested_shutdown_is_not_taken_for_the_guests_own() {
    let mut host = Host::new().await;
    let (progress, _) = host.settle(usize::MAX, false).await;
    host.report(&progress).await;
    host.change(|object| object.spec.run_state = RunState::Stopped);
    // The agent asks and dies; before the next one looks, the guest is to run again.
    let agent = agent(host.dir.path(), &host.fake);
    let (snapshot, decided) = host.look(&agent).await;
    assert_eq!(decided.steps, [Step::ShutDown]);
    let own = observe::placement_owner(&host.object, &agent);
    let asked = act::act(&Step::ShutDown, &host.object, ID, &own, &snapshot, &agent);
    asked.await.unwrap();
    drop(agent);
    host.change(|object| object.spec.run_state = RunState::Running);
    let (progress, _) = host.settle(usize::MAX, false).await;
    assert_eq!((progress, host.fake.run(ID)), (Progress::Complete, Some(2)));
    // The request does not outlive the start: what the guest does now it does by itself.
    host.report(&Progress::Complete).await;
    host.fake.end_guest(ID, true);
    let (progress, _) = host.settle(usize::MAX, false).await;
    assert_eq!(progress, Progress::GuestShutdown);
}

#[tokio::test]
async fn a_dedicated_processor_stays_one_guests_whatever_agents_do() {
    let node = |cpus| GuestNode {
        cpus,
        memory_mib: 64,
        ..GuestNode::default()
    };
    let one = GuestTopology {
        cpu_policy: CpuPolicy::Dedicated,
        nodes: vec![node(vec![0])],
        ..GuestTopology::default()
    };
    // One of the host's two is used by a guest whose agent has forgotten it.
    let mut host = Host::new().await;
    host.change(|object| object.spec.topology = Some(one.clone()));
    let (progress, _) = host.settle(usize::MAX, false).await;
    assert_eq!(progress, Progress::Complete);
    let fake = host.fake.clone();
    let pinned = async |id| {
        let domain = fake.domain(id).await.unwrap();
        domain.unwrap().metadata.unwrap().pinned
    };
    let first = pinned(ID).await;
    assert_eq!(first, [0].into());

    // Two that come at once, before either has a domain, and an agent that has just begun.
    let agent = agent(host.dir.path(), &host.fake);
    let another = |id: u128, name: &str| {
        let mut object = Instance::clone(&host.object);
        object.metadata.name = Some(name.into());
        object.spec.instance_id = Uuid::from_u128(id).to_string();
        object.spec.server.uid = name.into();
        object.spec.server.name = name.into();
        (Uuid::from_u128(id), Arc::new(object))
    };
    let (second, third) = (another(8, "b"), another(9, "c"));
    let look = async |(id, object): &(Uuid, Arc<Instance>)| {
        observe::observe(object, *id, &agent).await.unwrap()
    };
    let (snapshot, refused) = (look(&second).await, look(&third).await);
    let own = observe::placement_owner(&third.1, &agent);
    let decided = plan(&third.1.spec, &own, &refused.observed);
    let Progress::NoCapacity(why) = decided.progress else {
        panic!("{decided:?}");
    };
    assert!(why.contains("0 of 2 are free"), "{why}");
    let own = observe::placement_owner(&second.1, &agent);
    for step in [Step::RecordEpoch, Step::MakeDisk, Step::Define] {
        let done = act::act(&step, &second.1, second.0, &own, &snapshot, &agent);
        done.await.unwrap();
    }
    assert_eq!(pinned(second.0).await, [1].into());
    // The choice stays for a domain whose Server comes back under another uid.
    host.change(|object| {
        object.spec.server.uid = "u2".into();
        object.spec.epoch = 2;
    });
    let (progress, _) = host.settle(usize::MAX, false).await;
    assert_eq!((progress, pinned(ID).await), (Progress::Complete, first));
    // The place of one that is gone is free again.
    agent.hypervisor.undefine(second.0).await.unwrap();
    agent.forget(second.0);
    assert!(matches!(look(&third).await.resources, Some(Ok(_))));
}
