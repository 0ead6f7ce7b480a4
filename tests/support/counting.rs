//! Counts what a client asks of the API server.
#![allow(clippy::unwrap_used, reason = "a helper that fails ends its test")]
#![allow(dead_code, reason = "each test crate uses its own part of this module")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::task::{self, Poll};

use kube::client::Body;
use tower::{Layer, Service};

/// How often what was asked, by verb and kind.
pub type Counts = BTreeMap<String, usize>;

/// Counts the requests of one client, and has some of them fail.
#[derive(Clone, Default)]
pub struct Counter(Arc<Mutex<Counts>>, Arc<Mutex<Trouble>>, Arc<Mutex<Counts>>);

/// Which requests the API server does not answer as it should.
#[derive(Clone, Default)]
pub enum Trouble {
    #[default]
    None,
    /// All of this verb and kind.
    Of(&'static str),
    /// One of so many, but for watches.
    OneOf(usize),
}

impl Counter {
    /// What was asked since the last time.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// How often all objects of a kind were listed since the last time, by kind, and by the
    /// namespace or `*`, and whether by a selector.
    pub fn take_lists(&self) -> Counts {
        std::mem::take(&mut *self.2.lock().unwrap())
    }

    /// Has some requests fail from now on.
    pub fn trouble(&self, trouble: Trouble) {
        *self.1.lock().unwrap() = trouble;
    }

    fn fails(&self, what: &str) -> bool {
        let all = || self.0.lock().unwrap().values().sum::<usize>();
        match *self.1.lock().unwrap() {
            Trouble::None => false,
            Trouble::Of(other) => what == other,
            Trouble::OneOf(many) => !what.ends_with("watch") && all() % many == 0,
        }
    }
}

/// A client's connection, counted.
#[derive(Clone)]
pub struct Counting<S> {
    inner: S,
    counter: Counter,
}

impl<S> Layer<S> for Counter {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting {
            inner,
            counter: self.clone(),
        }
    }
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Counting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> S::Future {
        let key = format!("{} {}", request.method(), what(request.uri()));
        let fails = self.counter.fails(&key);
        *self.counter.0.lock().unwrap().entry(key).or_default() += 1;
        if request.method() == http::Method::GET
            && let Some(key) = listed(request.uri())
        {
            *self.counter.2.lock().unwrap().entry(key).or_default() += 1;
        }
        if fails {
            // A group and no user to act as: to that the API server says 500, and does nothing.
            let headers = request.headers_mut();
            headers.remove("Impersonate-User");
            headers.insert("Impersonate-Group", "nobody".parse().unwrap());
        }
        self.inner.call(request)
    }
}

/// What is listed, if a path is that of a list: `instances in *`, `ports in demo by labels`.
fn listed(uri: &http::Uri) -> Option<String> {
    let query = uri.query().unwrap_or_default();
    let parts: Vec<&str> = uri.path().split('/').skip(1).collect();
    let rest = if parts[0] == "api" {
        parts.get(2..)?
    } else {
        parts.get(3..)?
    };
    let (namespace, kind) = match rest {
        ["namespaces", namespace, kind] => (*namespace, *kind),
        [kind] => ("*", *kind),
        _ => return None,
    };
    let by = if query.contains("labelSelector") {
        " by labels"
    } else {
        ""
    };
    (!query.contains("watch=")).then(|| format!("{kind} in {namespace}{by}"))
}

/// The kind that a path is about, and its subresource; whether it is a watch.
fn what(uri: &http::Uri) -> String {
    let mut parts: Vec<&str> = uri.path().split('/').collect();
    if let Some(at) = parts.iter().position(|part| *part == "namespaces")
        && parts.len() > at + 2
    {
        parts.drain(..at + 2);
    } else {
        parts.drain(..parts.len().min(if parts[1] == "api" { 3 } else { 4 }));
    }
    let mut what = parts.first().copied().unwrap_or_default().to_owned();
    if let Some(sub) = parts.get(2) {
        let _ = write!(what, "/{sub}");
    }
    if uri.query().is_some_and(|query| query.contains("watch=")) {
        what.push_str(" watch");
    }
    what
}
