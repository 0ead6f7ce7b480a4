//! Logs, and the endpoints `/healthz`, `/readyz` and `/metrics` of a role.

use std::net::SocketAddr;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use clap::ValueEnum;
use tokio_util::sync::CancellationToken;
use tracing::Subscriber;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;

pub use crate::readiness::Readiness;

/// Shape of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text for each event.
    #[default]
    Human,
    /// One JSON object for each event.
    Json,
}

/// Where kube's client logs answers of the API server whole when it cannot decode them, at any
/// level: user data and Secrets among them. Its errors say what was wrong.
const LOGS_ANSWERS: &str = "kube_client::client";

/// Starts logging to standard error; `RUST_LOG` chooses what, `info` when it is not set. What the
/// API server answered is never logged.
pub fn init(format: LogFormat) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube=warn"));
    subscriber(format, filter, std::io::stderr).init();
}

fn subscriber<W>(format: LogFormat, filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        LogFormat::Human => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let filter = filter.and(filter_fn(|event| event.target() != LOGS_ANSWERS));
    Registry::default().with(lines.with_filter(filter))
}

/// Serves the endpoints until `stop`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    listen: SocketAddr,
    ready: Readiness,
    metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    axum::serve(listener, endpoints(ready, metrics))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

fn endpoints(
    ready: Readiness,
    metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/readyz",
            get(move || async move {
                let (is_ready, checks) = ready.report();
                if is_ready {
                    (StatusCode::OK, checks)
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, checks)
                }
            }),
        )
        .route(
            "/metrics",
            get(move || async move {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], metrics())
            }),
        )
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use k8s_openapi::api::core::v1::Secret;
    use kube::api::ListParams;
    use kube::client::Body;
    use kube::{Api, Client};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_the_api_server_answers_is_never_logged() {
        for format in [LogFormat::Human, LogFormat::Json] {
            let log = Log::default();
            let writer = log.clone();
            let filter = EnvFilter::new("trace,kube_client::client=trace");
            let subscriber = subscriber(format, filter, move || writer.clone());
            let _guard = tracing::subscriber::set_default(subscriber);
            for (code, answer) in [
                (200, r#"{"metadata":{},"items":[{"data":"my secret"}]}"#),
                (200, r#"{"kind":"Status","code":"my secret"}"#),
                (500, "my secret"),
            ] {
                let service = tower::service_fn(move |_: http::Request<Body>| async move {
                    let answer = Body::from(answer.as_bytes().to_vec());
                    let answer = http::Response::builder().status(code).body(answer);
                    Ok::<_, Infallible>(answer.unwrap())
                });
                let client = Client::new(service, "default");
                let secrets: Api<Secret> = Api::default_namespaced(client);
                let listed = secrets.list(&ListParams::default()).await;
                assert!(listed.is_err());
                let _ = secrets.delete("s", &Default::default()).await;
            }
            tracing::warn!(target: "kube_client::client::builder", "of the connection");
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            assert!(text.contains("of the connection"), "{text}");
            assert!(!text.contains("my secret"), "{text}");
        }
    }

    #[tokio::test]
    async fn readyz_names_what_is_not_ready() {
        use axum::body::to_bytes;
        use tower::ServiceExt;

        let ready = Readiness::default();
        let check = ready.check("loop/network");
        let ask = || async {
            let request = axum::http::Request::get("/readyz").body(axum::body::Body::empty());
            let app = endpoints(ready.clone(), String::new);
            let answer = app.oneshot(request.unwrap()).await.unwrap();
            let status = answer.status();
            let text = to_bytes(answer.into_body(), 1 << 16).await.unwrap();
            (status.as_u16(), String::from_utf8(text.to_vec()).unwrap())
        };
        let (code, text) = ask().await;
        assert_eq!(code, 503);
        assert!(text.contains("[+]loop/network ok") && text.contains("[-]started failed"));
        ready.set(true);
        assert_eq!(ask().await.0, 200);
        drop(check);
        let (code, text) = ask().await;
        assert!(
            code == 503 && text.contains("[-]loop/network failed: ended"),
            "{text}"
        );
    }
}
