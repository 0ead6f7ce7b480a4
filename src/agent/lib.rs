//! The agent of one host: builds and runs the Instances of its namespace, and reports what
//! it observes. Touches nothing that does not belong to an Instance.

pub mod capacity;
pub mod devices;
pub mod epochs;
pub mod host;
pub mod instance;
pub mod load;
pub mod ports;
pub mod topology;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use ipnet::IpNet;
use kube::runtime::controller::{Action, Config as RunnerConfig, ReconcileRequest, applier};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use pileus_api::names::host_namespace;
use pileus_api::{Host, Instance};
use pileus_hypervisor::{Event, Hypervisor, VirtType};
use pileus_kube_ext::backoff::Backoff;
use pileus_kube_ext::cache::Cache;
use pileus_kube_ext::readiness::Check;
use pileus_kube_ext::{Context, chain};
use pileus_libvirt::Libvirt;
use pileus_network::ovsdb::EndpointError;
use pileus_storage::{Disks, FetchPolicy, ImageStore, Limits};

use capacity::Capacity;
use devices::AllowedDevice;
use epochs::Epochs;
use load::Times;
use ports::Ports;

/// Instances that are worked on at once.
const CONCURRENCY: u16 = 32;
/// Every Instance is reconciled this often without any event.
const RESYNC_INTERVAL: Duration = Duration::from_secs(180);

/// How an agent is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Host.
    pub host: String,
    /// Directory for images, disks and records.
    pub state_dir: PathBuf,
    /// Where libvirt is.
    pub libvirt_uri: String,
    /// How guests are run; emulation must be asked for.
    pub virt_type: VirtType,
    /// Processor model of new guests, by libvirt's name; one that every host of the zone has.
    pub cpu_model: String,
    /// Directory that images may come from by `file://`.
    pub image_file_dir: Option<PathBuf>,
    /// Addresses that images may come from although they are not public.
    pub allow_fetch: Vec<IpNet>,
    /// How much and how slowly images may come.
    pub limits: Limits,
    /// PCI devices that guests may have.
    pub allow_pci_devices: Vec<AllowedDevice>,
    /// File with the host's boot id.
    pub boot_id_file: PathBuf,
    /// Where the host's Open vSwitch is.
    pub ovs_db: String,
    /// Where ovn-controller has its control socket.
    pub ovn_run_dir: PathBuf,
    /// What is kept back for the machine where the Host's spec does not say.
    pub reservation: host::plan::Reservation,
    /// How long an image that nothing uses is kept.
    pub image_grace: Duration,
    /// How long a guest waits for its ports' flows.
    pub port_timeout: Duration,
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that the agent cannot do without.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error("the state directory cannot be used")]
    Storage(#[source] pileus_storage::Error),
    /// The hypervisor's driver cannot be started.
    #[error("the hypervisor's driver cannot be started")]
    Hypervisor(#[source] pileus_hypervisor::Error),
    /// The address of Open vSwitch is malformed.
    #[error("the address of Open vSwitch cannot be used")]
    Ovs(#[source] EndpointError),
}

/// What the parts of an agent share.
pub struct Agent {
    config: Config,
    context: Context,
    hypervisor: Arc<dyn Hypervisor>,
    store: ImageStore,
    disks: Disks,
    ports: Ports,
    epochs: Epochs,
    /// What the host offers, once it has been observed.
    capacity: Mutex<Option<Capacity>>,
    /// Processor times as last read, and when that was.
    load: Mutex<Option<(Instant, Times)>>,
    boot_id: String,
    instances: Api<Instance>,
    hosts: Api<Host>,
    known: Store<Instance>,
    trigger: mpsc::UnboundedSender<ObjectRef<Instance>>,
    runtime: Mutex<HashMap<Uuid, instance::Runtime>>,
    start_queue: instance::StartQueue,
    /// Held while processors are chosen for a guest.
    pinning: tokio::sync::Mutex<()>,
    host_changed: Notify,
    orphan_count: Gauge,
    backoff: Backoff<String>,
}

impl Agent {
    /// What is remembered of an Instance while the agent runs.
    fn runtime<T>(&self, id: Uuid, f: impl FnOnce(&mut instance::Runtime) -> T) -> T {
        self.all_runtimes(|all| f(all.entry(id).or_default()))
    }

    fn all_runtimes<T>(&self, f: impl FnOnce(&mut HashMap<Uuid, instance::Runtime>) -> T) -> T {
        f(&mut self.runtime.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn forget(&self, id: Uuid) {
        self.all_runtimes(|all| all.remove(&id));
    }
}

/// Runs the agent until `stop`.
///
/// # Errors
/// When it cannot begin; what fails later is tried again and reported on the objects.
pub async fn run(config: Config, context: Context, stop: CancellationToken) -> Result<(), Error> {
    let file = |path: &PathBuf| {
        let path = path.clone();
        move |source| Error::File { path, source }
    };
    let boot_id = std::fs::read_to_string(&config.boot_id_file)
        .map_err(file(&config.boot_id_file))?
        .trim()
        .to_owned();
    let policy = FetchPolicy {
        allow: config.allow_fetch.clone(),
        file_root: config.image_file_dir.clone(),
        limits: config.limits,
    };
    let store = ImageStore::open(&config.state_dir, policy).map_err(Error::Storage)?;
    let epochs_path = config.state_dir.join("epochs.json");
    let epochs = Epochs::open(&epochs_path).map_err(file(&epochs_path))?;
    let namespace = host_namespace(&config.host);
    let instances: Api<Instance> = Api::namespaced(context.client.clone(), &namespace);
    let watched = Api::namespaced(context.client.clone(), &namespace);
    let cache = Cache::watch(&context, watched, watcher::Config::default(), &[]);
    let known = cache.store().clone();
    let (trigger, triggers) = mpsc::unbounded_channel();
    let hypervisor = Libvirt::connect(&config.libvirt_uri).map_err(Error::Hypervisor)?;
    let events = hypervisor.events();
    let orphan_count = Gauge::default();
    context.metrics.register(|registry| {
        let help = "Domains and directories that carry Pileus' metadata and have no owner";
        registry.register("orphans", help, orphan_count.clone());
    });
    let agent = Arc::new(Agent {
        hypervisor: Arc::new(hypervisor),
        disks: Disks::new(&config.state_dir),
        store,
        ports: Ports::watch(&config.ovs_db, config.ovn_run_dir.clone()).map_err(Error::Ovs)?,
        epochs,
        capacity: Mutex::default(),
        load: Mutex::default(),
        boot_id,
        instances: instances.clone(),
        hosts: Api::all(context.client.clone()),
        known: known.clone(),
        trigger,
        runtime: Mutex::default(),
        start_queue: instance::StartQueue::default(),
        pinning: tokio::sync::Mutex::default(),
        host_changed: Notify::new(),
        orphan_count,
        backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)),
        config,
        context,
    });

    host::read_cached_capacity(&agent).await;
    spawn_loops(&agent, events, &stop);

    let waker = agent.clone();
    cache.subscribe(move |change| {
        if change.is_gone {
            // Nothing is remembered of what is deleted.
            waker.backoff.reset(&change.object.name_any());
        } else {
            let _ = waker.trigger.send(ObjectRef::from_obj(&*change.object));
        }
    });
    let queue = futures::stream::unfold(triggers, |mut triggers| async {
        triggers.recv().await.map(|object| {
            (
                Ok::<_, Infallible>(ReconcileRequest::from(object)),
                triggers,
            )
        })
    })
    .take_until(stop.clone().cancelled_owned());
    let runner = RunnerConfig::default().concurrency(CONCURRENCY);
    applier(
        |object, agent| Box::pin(reconcile(object, agent)),
        on_error,
        agent,
        known,
        queue,
        runner,
    )
    .for_each(|result| async move {
        if let Err(error) = result {
            tracing::debug!(error = %chain(&error), "reconcile");
        }
    })
    .await;
    Ok(())
}

/// Starts what runs beside the Instances' passes. A loop that ends before the role, by a panic, ends
/// the role: its check is dropped with it.
fn spawn_loops(
    agent: &Arc<Agent>,
    events: tokio::sync::broadcast::Receiver<Event>,
    stop: &CancellationToken,
) {
    let check = |name: &str| agent.context.ready.check(format!("loop/{name}"));
    let again = || (agent.clone(), stop.clone());
    let forwarding = check("libvirt-events");
    tokio::spawn(forward_events(agent.clone(), events, forwarding));
    let ((agent, stop), heartbeat) = (again(), check("heartbeat"));
    tokio::spawn(host::run_heartbeat(agent, stop, heartbeat));
    let ((agent, stop), reports) = (again(), check("host-status"));
    tokio::spawn(host::run_status_reports(agent, stop, reports));
    let ((agent, stop), collection) = (again(), check("image-collection"));
    tokio::spawn(host::run_image_collection(agent, stop, collection));
}

async fn reconcile(object: Arc<Instance>, agent: Arc<Agent>) -> Result<Action, instance::Error> {
    let started = std::time::Instant::now();
    // A pass that panics is that of one Instance, and of nobody else.
    let pass = AssertUnwindSafe(instance::reconcile(&object, &agent)).catch_unwind();
    let Ok(result) = pass.await else {
        let metrics = &agent.context.metrics;
        metrics.reconciled("instance", started.elapsed(), true);
        tracing::error!(instance = %object.name_any(), "a pass panicked");
        return Ok(Action::requeue(RESYNC_INTERVAL));
    };
    agent
        .context
        .metrics
        .reconciled("instance", started.elapsed(), result.is_err());
    if result.is_ok() {
        agent.backoff.reset(&object.name_any());
    }
    Ok(Action::requeue(result?.unwrap_or(RESYNC_INTERVAL)))
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "the shape that the framework calls"
)]
fn on_error(object: Arc<Instance>, error: &instance::Error, agent: Arc<Agent>) -> Action {
    let wait = agent.backoff.next(object.name_any());
    tracing::warn!(instance = %object.name_any(), error = %chain(error), ?wait, "will be tried again");
    Action::requeue(wait)
}

/// Turns libvirt's events into work: a domain's into its Instance's, a new connection's
/// into that of all Instances.
async fn forward_events(
    agent: Arc<Agent>,
    mut events: tokio::sync::broadcast::Receiver<Event>,
    check: Check,
) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        let id = match events.recv().await {
            Ok(Event::Domain(id)) => Some(id.to_string()),
            Ok(Event::Connected) | Err(RecvError::Lagged(_)) => None,
            Ok(Event::Disconnected) => {
                agent.host_changed.notify_one();
                continue;
            }
            Err(RecvError::Closed) => return check.done(),
        };
        if id.is_none() {
            agent.host_changed.notify_one();
        }
        for object in agent.known.state() {
            if id.as_ref().is_none_or(|id| *id == object.spec.instance_id) {
                let _ = agent.trigger.send(ObjectRef::from_obj(&object));
            }
        }
    }
}
