//! What the program of every role has in common: arguments, log, endpoints, signals, the
//! connection to the API server.

use std::future::Future;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::telemetry::{self, LogFormat, Readiness};
use crate::{ConnectError, Context, Metrics, chain};

/// Any error, printed with all its causes by [`exit_code`].
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Arguments of every role.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Shape of log lines; RUST_LOG chooses which.
    #[arg(long, env = "PILEUS_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Address for /healthz, /readyz and /metrics.
    #[arg(long, env = "PILEUS_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
}

/// What the work of a role is given.
#[derive(Clone)]
pub struct Role {
    /// Client of the API server, events, metrics.
    pub context: Context,
    /// Asked at `/readyz`.
    pub ready: Readiness,
    /// Cancelled when the process has to end.
    pub stop: CancellationToken,
}

/// Runs `work` to its end on a runtime of two threads, which do for any role and any command:
/// the work is waiting.
///
/// # Errors
/// When the runtime cannot be made, or as the work ends.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(work);
    // A call of libvirt or a look-up that hangs must not hold the process back.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// Runs a role until its work ends, which SIGTERM or SIGINT ask it to do.
///
/// `manager` is the field manager's name, by which the API server knows the role's writes.
///
/// # Errors
/// When the endpoints' address cannot be had, there is no usable configuration for the API
/// server, or the work fails.
pub async fn run<W, E>(
    arguments: &Arguments,
    manager: &'static str,
    work: impl FnOnce(Role) -> W,
) -> Result<()>
where
    W: Future<Output = std::result::Result<(), E>>,
    E: std::error::Error + 'static,
{
    telemetry::init(arguments.log_format);
    let (stop, ready, metrics) = (
        CancellationToken::new(),
        Readiness::default(),
        Metrics::default(),
    );
    log_panics();
    tokio::spawn(on_signal(stop.clone()));
    let served = tokio::spawn({
        let (ready, metrics, stop) = (ready.clone(), metrics.clone(), stop.clone());
        let listen = arguments.listen;
        async move { telemetry::serve(listen, ready, move || metrics.encode(), stop).await }
    });
    let (loops, stopping) = (ready.clone(), stop.clone());
    let ended = async move {
        let name = loops.ended().await;
        // Loops end when they are asked to.
        if stopping.is_cancelled() {
            std::future::pending::<()>().await;
        }
        name
    };
    let work = async move {
        let context = connect(manager, metrics, ready.clone(), &stop).await?;
        let role = Role {
            context,
            ready,
            stop,
        };
        work(role).await.map_err(Into::into)
    };
    tokio::select! {
        biased;
        result = work => result,
        name = ended => Err(format!(
            "`{name}` has ended, which it must not; the log says why"
        ).into()),
        // The endpoints end early only when their address cannot be had.
        Ok(Err(error)) = served => Err(format!("cannot serve the endpoints: {error}").into()),
    }
}

/// Connects to the API server; one that does not answer yet is waited for.
async fn connect(
    manager: &'static str,
    metrics: Metrics,
    ready: Readiness,
    stop: &CancellationToken,
) -> Result<Context> {
    let check = ready.check("connection");
    check.waiting("the API server has not answered yet");
    loop {
        let connected = Context::connect(manager, metrics.clone(), ready.clone()).await;
        let error = match connected {
            Ok(context) => {
                check.done();
                return Ok(context);
            }
            // Waiting mends neither.
            Err(error @ (ConnectError::Config(_) | ConnectError::TooOld(_))) => {
                return Err(error.into());
            }
            Err(error) => error,
        };
        tracing::warn!(error = %chain(&error), "waiting for the API server");
        tokio::select! {
            () = stop.cancelled() => return Err(error.into()),
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
    }
}

/// The exit code of a program; an error is printed to standard error first.
#[must_use]
pub fn exit_code(program: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Who this process is among the replicas of its role: `PILEUS_IDENTITY`, else a random name.
///
/// A name that outlives the process, such as a pod's, lets it take its own lease back at
/// once after a crash; no two processes may ever have the same.
#[must_use]
pub fn identity() -> String {
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

/// Panics go to the log, where everything else is.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(%panic, %backtrace, "a fault of Pileus itself; please report it");
    }));
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
