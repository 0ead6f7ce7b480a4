//! Arguments, telemetry, one role.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use pileus::api::names;
use pileus::drivers::hypervisor::VirtType;
use pileus::kube_ext::{Context, Metrics, chain};
use pileus::scheduler::simulate;
use pileus::telemetry::{self, LogFormat, Readiness};
use pileus::{agent, controllers, scheduler};

/// An infrastructure cloud as Kubernetes custom resources.
#[derive(Parser)]
#[command(name = "pileus", version)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Reconciles every kind and keeps OVN as the objects say.
    Manager(ManagerArguments),
    /// Places Servers on Hosts.
    Scheduler(Common),
    /// Makes the Instances of one host real.
    Agent(Box<AgentArguments>),
    /// Says why a Server is where it is, or nowhere, and the smallest change that would help.
    Why {
        /// Name of the Server.
        server: String,
        /// Its namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Advises which Servers to move, by the filters and weighers that place them.
    Advise {
        /// What the moves are for.
        #[arg(value_enum, default_value = "spread")]
        aim: Aim,
    },
    /// Says where Servers would go, offline: by the scheduler's own code and files alone.
    Simulate {
        /// Hosts, Servers and what they refer to, as `kubectl get … -o yaml` prints them.
        #[arg(short, long = "file", required = true)]
        files: Vec<PathBuf>,
        /// Host to be emptied: would everything on it fit elsewhere?
        #[arg(long)]
        drain: Vec<String>,
        /// Advice of which Servers to move.
        #[arg(long, value_enum)]
        advise: Option<Aim>,
    },
    /// Checks and renders Heat templates offline, without a cluster.
    #[command(subcommand)]
    Stack(pileus::stack_cli::Command),
    /// Prints the CustomResourceDefinitions as YAML.
    Crds {
        /// Leaves out CEL rules, which API servers below 1.25 refuse.
        #[arg(long)]
        without_cel: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Aim {
    /// Hosts that are evenly full.
    Spread,
    /// Hosts that are empty.
    Empty,
}

impl Aim {
    fn of(self) -> scheduler::advice::Aim {
        match self {
            Self::Spread => scheduler::advice::Aim::Spread,
            Self::Empty => scheduler::advice::Aim::Empty,
        }
    }
}

#[derive(Args)]
struct Common {
    /// Shape of log lines; RUST_LOG chooses which.
    #[arg(long, env = "PILEUS_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    /// Address for /healthz, /readyz and /metrics.
    #[arg(long, env = "PILEUS_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

#[derive(Args)]
struct ManagerArguments {
    #[command(flatten)]
    common: Common,
    /// OVN's northbound database, such as unix:/run/ovn/ovnnb_db.sock or tcp:ADDRESS:6641.
    #[arg(
        long,
        env = "PILEUS_OVN_NB",
        default_value = "unix:/run/ovn/ovnnb_db.sock"
    )]
    ovn_nb: String,
    /// Largest packet of the network between the hosts, in bytes.
    #[arg(long, env = "PILEUS_UNDERLAY_MTU", default_value_t = 1500)]
    underlay_mtu: i32,
    /// The network between the hosts is IPv6.
    #[arg(long, env = "PILEUS_UNDERLAY_IPV6")]
    underlay_ipv6: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Virt {
    /// By the processor.
    Kvm,
    /// Emulated: slow.
    Qemu,
}

#[derive(Args)]
struct AgentArguments {
    #[command(flatten)]
    common: Common,
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
    /// Memory kept back for the host when it registers, in MiB.
    #[arg(long, env = "PILEUS_RESERVED_MEMORY_MIB", default_value_t = 2048)]
    reserved_memory_mib: i64,
    /// Disk kept back for the host when it registers, in GiB.
    #[arg(long, env = "PILEUS_RESERVED_DISK_GIB", default_value_t = 10)]
    reserved_disk_gib: i64,
    /// How long an image that nothing uses is kept, in seconds.
    #[arg(long, env = "PILEUS_IMAGE_GRACE_SECONDS", default_value_t = 86_400)]
    image_grace_seconds: u64,
    /// How long a guest waits for its ports' flows before that is told, in seconds.
    #[arg(long, env = "PILEUS_PORT_PATIENCE_SECONDS", default_value_t = 30)]
    port_patience_seconds: u64,
}

fn main() -> ExitCode {
    let role = Arguments::parse().role;
    if let Role::Crds { without_cel } = role {
        return ended(print_crds(!without_cel));
    }
    if let Role::Simulate {
        files,
        drain,
        advise,
    } = role
    {
        let advise = advise.map(Aim::of);
        return answered(simulate(&files, &simulate::Question { drain, advise }));
    }
    if let Role::Stack(command) = &role {
        return pileus::stack_cli::run(command).unwrap_or_else(|error| ended(Err(error.into())));
    }
    // Two threads do for any role: the work is waiting.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(async {
                match role {
                    Role::Why { server, namespace } => why(namespace, server).await,
                    Role::Advise { aim } => advise(aim).await,
                    role => run(role).await,
                }
            });
            // A call of libvirt or a look-up that hangs must not hold the process back.
            runtime.shutdown_timeout(Duration::from_secs(2));
            ended(result)
        }
        Err(error) => ended(Err(error.into())),
    }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pileus: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An answer goes to the output; whether all is well is the exit code.
fn answered(answer: Result<simulate::Answer>) -> ExitCode {
    match answer {
        Ok(answer) => {
            print!("{}", answer.text);
            if answer.all_fit {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => ended(Err(error)),
    }
}

fn simulate(files: &[PathBuf], question: &simulate::Question) -> Result<simulate::Answer> {
    let mut texts = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file);
        texts.push(text.map_err(|e| format!("cannot read {}: {e}", file.display()))?);
    }
    Ok(simulate::simulate(&texts, question, Timestamp::now())?)
}

async fn why(namespace: String, server: String) -> Result<()> {
    let client = pileus::kube_ext::client().await?;
    let mut state = scheduler::live::read(&client).await?;
    let answer = state.why(&(namespace, server), Timestamp::now());
    println!("{answer}");
    Ok(())
}

async fn advise(aim: Aim) -> Result<()> {
    let client = pileus::kube_ext::client().await?;
    let state = scheduler::live::read(&client).await?;
    let advice = scheduler::advice::advise(&state, aim.of(), Timestamp::now());
    print!("{advice}");
    Ok(())
}

async fn run(role: Role) -> Result<()> {
    let common = match &role {
        Role::Manager(arguments) => &arguments.common,
        Role::Scheduler(common) => common,
        Role::Agent(arguments) => &arguments.common,
        _ => return Ok(()),
    };
    telemetry::init(common.log_format);
    let (stop, ready, metrics) = (
        CancellationToken::new(),
        Readiness::default(),
        Metrics::default(),
    );
    tokio::spawn(on_signal(stop.clone()));
    let served = tokio::spawn({
        let (ready, metrics, stop) = (ready.clone(), metrics.clone(), stop.clone());
        let listen = common.listen;
        async move { telemetry::serve(listen, ready, move || metrics.encode(), stop).await }
    });
    let work = start(role, ready, metrics, stop.clone());
    tokio::select! {
        result = work => result,
        // The endpoints end early only when their address cannot be had.
        Ok(Err(error)) = served => Err(format!("cannot serve the endpoints: {error}").into()),
    }
}

async fn start(
    role: Role,
    ready: Readiness,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<()> {
    match role {
        Role::Manager(arguments) => {
            let config = controllers::Config {
                ovn_nb: arguments.ovn_nb,
                underlay_mtu: arguments.underlay_mtu,
                underlay_ipv6: arguments.underlay_ipv6,
                identity: identity(),
            };
            let context = connect(names::MANAGER, metrics, &stop).await?;
            controllers::run(config, context, ready, stop).await?;
        }
        Role::Scheduler(_) => {
            let context = connect(names::SCHEDULER, metrics, &stop).await?;
            let config = scheduler::Config {
                identity: Some(identity()),
            };
            scheduler::run(config, context, move || ready.set(true), stop).await?;
        }
        Role::Agent(arguments) => {
            let context = connect(names::AGENT, metrics, &stop).await?;
            agent::run(agent_config(*arguments), context, ready, stop).await?;
        }
        // Questions, answered without a role.
        _ => {}
    }
    Ok(())
}

fn agent_config(arguments: AgentArguments) -> agent::Config {
    agent::Config {
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
        boot_id_file: arguments.boot_id_file,
        ovs_db: arguments.ovs_db,
        ovn_run_dir: arguments.ovn_run_dir,
        reserved_memory_mib: arguments.reserved_memory_mib,
        reserved_disk_gib: arguments.reserved_disk_gib,
        image_grace: Duration::from_secs(arguments.image_grace_seconds),
        port_patience: Duration::from_secs(arguments.port_patience_seconds),
    }
}

/// Connects to the API server; one that does not answer yet is waited for.
async fn connect(
    manager: &'static str,
    metrics: Metrics,
    stop: &CancellationToken,
) -> Result<Context> {
    loop {
        let error = match Context::connect(manager, metrics.clone()).await {
            Ok(context) => return Ok(context),
            Err(error @ pileus::kube_ext::ConnectError::Config(_)) => return Err(error.into()),
            Err(error) => error,
        };
        tracing::warn!(error = %chain(&error), "waiting for the API server");
        tokio::select! {
            () = stop.cancelled() => return Err(error.into()),
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
    }
}

/// Who this process is among the replicas of its role: `PILEUS_IDENTITY`, else made up.
///
/// A name that outlives the process, such as a pod's, lets it take its own lease back at
/// once after a crash; no two processes may ever have the same.
fn identity() -> String {
    if let Ok(identity) = std::env::var("PILEUS_IDENTITY") {
        return identity;
    }
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    format!(
        "{}-{}",
        host.as_deref().unwrap_or("unknown"),
        uuid::Uuid::new_v4()
    )
}

async fn on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    stop.cancel();
}

fn print_crds(cel: bool) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    for crd in pileus::api::crd::all() {
        let value = pileus::api::crd::to_json(&crd, cel)?;
        write!(out, "---\n{}", serde_saphyr::to_string(&value)?)?;
    }
    Ok(())
}
