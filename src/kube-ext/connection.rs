//! The connection to the API server: a deadline on everything, so that an answer that never comes
//! stops nobody for ever.
//!
//! | what hangs | what ends it |
//! |---|---|
//! | connecting | [`CONNECT_TIMEOUT`] |
//! | an answer, retries included | [`Deadlines::request`] |
//! | a watch: the API server sends a bookmark about every minute | [`Deadlines::silence`] |
//! | a connection without a request | TCP keepalive |

use std::pin::Pin;
use std::task::{Context as Task, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::{Client, Config};
use tokio::time::{Instant, Sleep};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

use super::readiness::Readiness;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After so long without traffic a connection is probed, then every so often, so many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// How long the API server may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For the whole answer to a request that is no watch, and for the beginning of a watch's.
    pub request: Duration,
    /// Between two pieces of a watch.
    pub silence: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(30),
            silence: Duration::from_secs(120),
        }
    }
}

/// The API server did not answer in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the API server sent nothing for {0:?}")]
struct Silent(Duration);

/// A client of the API server that `config` names.
///
/// kube's own stack but for the keepalive, which it has no setting for.
///
/// # Errors
/// When the configuration cannot be used.
pub fn client(mut config: Config) -> Result<Client, kube::Error> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    let (idle, interval, probes) = KEEPALIVE;
    connector.set_keepalive(Some(idle));
    connector.set_keepalive_interval(Some(interval));
    connector.set_keepalive_retries(Some(probes));
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let connections =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(connections);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// `client` with deadlines; reports every sign of life of a watch to `ready`.
#[must_use]
pub fn with_deadlines(client: Client, deadlines: Deadlines, ready: Readiness) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, ready) = (client.clone(), ready.clone());
        async move { send(client, request, deadlines, ready).await }
    });
    Client::new(service, namespace)
}

async fn send(
    client: Client,
    request: Request<Body>,
    deadlines: Deadlines,
    ready: Readiness,
) -> Result<Response<Timed>, BoxError> {
    let watch = is_watch(request.uri()).then(|| request.uri().path().to_owned());
    let ends = Instant::now() + deadlines.request;
    let answer = tokio::time::timeout_at(ends, client.send(request)).await;
    let answer = answer.map_err(|_| Silent(deadlines.request))??;
    let (limit, ends) = match watch {
        Some(path) if answer.status().is_success() => {
            ready.heard(&path);
            let limit = Limit::Silence(deadlines.silence, path, ready);
            (limit, Instant::now() + deadlines.silence)
        }
        _ => (Limit::Whole(deadlines.request), ends),
    };
    Ok(answer.map(|body| Timed {
        body,
        limit,
        ends: Box::pin(tokio::time::sleep_until(ends)),
    }))
}

fn is_watch(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    query
        .split('&')
        .any(|pair| pair == "watch=true" || pair == "watch=1")
}

/// What is limited of an answer.
enum Limit {
    /// All of it.
    Whole(Duration),
    /// The time between two pieces, of the watch of that path.
    Silence(Duration, String, Readiness),
}

/// An answer that has to come in time.
struct Timed {
    body: Body,
    limit: Limit,
    ends: Pin<Box<Sleep>>,
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(task) {
            if let (Limit::Silence(limit, path, ready), Some(Ok(_))) = (&this.limit, &frame) {
                this.ends.as_mut().reset(Instant::now() + *limit);
                ready.heard(path);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        ready!(this.ends.as_mut().poll(task));
        let (Limit::Whole(limit) | Limit::Silence(limit, ..)) = this.limit;
        Poll::Ready(Some(Err(Silent(limit).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
