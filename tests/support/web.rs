//! A web server with every habit that an image store must live with; the first part of a
//! path says which.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests, which clippy does not see as one"
)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::routing::get;
use futures::{StreamExt, stream};
use sha2::{Digest, Sha256};

const MIB: usize = 1 << 20;

#[derive(Default)]
pub struct Files {
    contents: Mutex<HashMap<String, Bytes>>,
    /// Requests in order: path and the range asked for.
    seen: Mutex<Vec<(String, Option<String>)>>,
    /// Bytes sent by the slow way.
    pub slow: AtomicUsize,
    /// What was always cut short no longer is.
    pub mended: AtomicBool,
}

pub struct Web {
    pub files: Arc<Files>,
    pub address: SocketAddr,
}

impl Web {
    /// On loopback.
    #[allow(dead_code, reason = "each test crate uses its own part of this module")]
    pub async fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into()).await
    }

    /// At an address that others reach.
    pub async fn start_at(address: IpAddr) -> Self {
        let files = Arc::new(Files::default());
        let app = Router::new()
            .route("/{how}/{name}", get(serve))
            .with_state(files.clone());
        let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { files, address }
    }

    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) {
        let mut files = self.files.contents.lock().unwrap();
        files.insert(name.to_owned(), bytes.into());
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub fn requests(&self) -> Vec<(String, Option<String>)> {
        self.files.seen.lock().unwrap().clone()
    }
}

async fn serve(
    State(files): State<Arc<Files>>,
    UrlPath((how, name)): UrlPath<(String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    let text = |key| {
        headers
            .get(key)
            .and_then(|v: &header::HeaderValue| v.to_str().ok())
            .map(str::to_owned)
    };
    let range = text(header::RANGE);
    let seen = (format!("{how}/{name}"), range.clone());
    files.seen.lock().unwrap().push(seen);
    let answer = |status: StatusCode| Response::builder().status(status);
    let redirect = |to: &str| {
        let answer = answer(StatusCode::FOUND).header(header::LOCATION, to);
        answer.body(Body::empty()).unwrap()
    };
    match how.as_str() {
        "down" => return answer(StatusCode::BAD_GATEWAY).body(Body::empty()).unwrap(),
        "metadata" => return redirect("http://169.254.169.254/latest/meta-data"),
        "by-name" => return redirect("http://localhost.localdomain.invalid/x"),
        "to-file" => return redirect("file:///etc/passwd"),
        "around" => return redirect(&format!("/around/{name}")),
        "hop" => return redirect(&format!("/ok/{name}")),
        "endless" => {
            let chunks = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![7; MIB])));
            let body = Body::from_stream(chunks.take(64));
            return answer(StatusCode::OK).body(body).unwrap();
        }
        "drip" => {
            let drops = stream::repeat(()).take(600).then(|()| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok::<_, std::io::Error>(Bytes::from_static(b"x"))
            });
            let body = Body::from_stream(drops);
            return answer(StatusCode::OK).body(body).unwrap();
        }
        _ => {}
    }
    let Some(all) = files.contents.lock().unwrap().get(&name).cloned() else {
        return answer(StatusCode::NOT_FOUND).body(Body::empty()).unwrap();
    };
    let tag = format!("\"{}\"", hex::encode(&Sha256::digest(&all)[..8]));
    let current = text(header::IF_RANGE).is_none_or(|t| t == tag);
    let start = range
        .filter(|_| current && how != "whole-only")
        .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let from: usize = start.unwrap_or(0);
    if from >= all.len() && start.is_some() {
        return answer(StatusCode::RANGE_NOT_SATISFIABLE)
            .body(Body::empty())
            .unwrap();
    }
    let rest = all.slice(from..);
    let mut built = answer(if start.is_some() {
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    })
    .header(header::ETAG, &tag)
    .header(header::CONTENT_LENGTH, rest.len());
    if start.is_some() {
        let range = format!("bytes {from}-{}/{}", all.len() - 1, all.len());
        built = built.header(header::CONTENT_RANGE, range);
    }
    let breaks = matches!(how.as_str(), "broken" | "whole-only") && start.is_none();
    let first = files
        .seen
        .lock()
        .unwrap()
        .iter()
        .filter(|s| s.0 == format!("{how}/{name}"))
        .count()
        == 1;
    let cut = how == "cut" && !files.mended.load(Ordering::Relaxed);
    let body = if cut || (breaks && first) {
        let half = rest.slice(..rest.len() / 2);
        // The pause lets the first half out before the connection is cut.
        let cut = stream::once(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Err(std::io::Error::other("cut"))
        });
        Body::from_stream(stream::iter([Ok(half)]).chain(cut))
    } else if how == "slow" {
        let files = files.clone();
        let chunks: Vec<_> = rest.chunks(64 << 10).map(Bytes::copy_from_slice).collect();
        Body::from_stream(stream::iter(chunks).then(move |chunk| {
            files.slow.fetch_add(chunk.len(), Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<_, std::io::Error>(chunk)
            }
        }))
    } else {
        Body::from(rest)
    };
    built.body(body).unwrap()
}
