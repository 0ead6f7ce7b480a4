//! How long a leader may act, and when another may take its place: by the clock of one process
//! each, never by comparing clocks of two.
//!
//! The leader counts from *before* it sent the renewal, the others from when they *saw* it, which
//! is later; and it counts a shorter time than they do. So its time is over before theirs is,
//! however long a request takes and whoever is stopped meanwhile.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use kube::client::Body;
use tokio::time::Instant;
use tower::BoxError;

/// The right to act as the leader, for as long as it lasts. Cheap to clone and to ask.
#[derive(Clone, Debug, Default)]
pub struct Leadership(Arc<State>);

#[derive(Debug, Default)]
struct State {
    generation: AtomicI64,
    /// `None`: this process does not lead.
    until: Mutex<Option<Instant>>,
}

/// The process does not lead any more, or not for certain.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("this process may not lead any more, so nothing was written")]
pub struct NotLeading;

impl Leadership {
    /// Whether this process leads for certain.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.until().is_some_and(|until| Instant::now() < until)
    }

    /// Counts the leaders: a later one has a higher number. 0 before this process led.
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.0.generation.load(Ordering::Relaxed)
    }

    /// Waits until this process leads no longer, or not for certain.
    pub async fn ended(&self) {
        // Renewals put the end off.
        while let Some(until) = self.until().filter(|until| Instant::now() < *until) {
            tokio::time::sleep_until(until).await;
        }
    }

    pub(crate) fn until(&self) -> Option<Instant> {
        *self.0.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self, generation: i64, until: Instant) {
        self.0.generation.store(generation, Ordering::Relaxed);
        self.set(Some(until));
    }

    pub(crate) fn renewed(&self, until: Instant) {
        self.set(Some(until));
    }

    pub(crate) fn give_up(&self) {
        self.set(None);
    }

    fn set(&self, until: Option<Instant>) {
        *self.0.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// `client`, which changes nothing any more once leadership may have ended: not even what
    /// was asked for before and waits to be sent or tried again.
    #[must_use]
    pub fn fence(&self, client: Client) -> Client {
        let leadership = self.clone();
        let namespace = client.default_namespace().to_owned();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (client, leadership) = (client.clone(), leadership.clone());
            async move {
                if request.method().is_safe() {
                    return client.send(request).await.map_err(BoxError::from);
                }
                if !leadership.is_held() {
                    return Err(NotLeading.into());
                }
                tokio::select! {
                    // The end first: a process that was stopped meanwhile must not send what
                    // it was about to send.
                    biased;
                    () = leadership.ended() => Err(NotLeading.into()),
                    answer = client.send(request) => answer.map_err(BoxError::from),
                }
            }
        });
        Client::new(service, namespace)
    }
}

/// What a process that waits for leadership has seen of the lease.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rival {
    /// The lease's version, and when it was first seen here.
    seen: Option<(Option<String>, Instant)>,
}

impl Rival {
    /// Notes the lease as it is seen at `now`; whether its holder counts as gone, because it has
    /// not renewed the lease for as long as that `lasts`.
    pub(crate) fn is_gone(&mut self, version: Option<&str>, lasts: Duration, now: Instant) -> bool {
        match &self.seen {
            Some((last, since)) if last.as_deref() == version => {
                now.saturating_duration_since(*since) >= lasts
            }
            _ => {
                self.seen = Some((version.map(str::to_owned), now));
                false
            }
        }
    }
}

#[cfg(test)]
#[path = "leadership_tests.rs"]
mod tests;
