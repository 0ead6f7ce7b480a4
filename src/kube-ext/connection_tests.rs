use std::convert::Infallible;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, WatchParams};

use super::*;

/// An answer of so many pieces with a pause before each; then silence.
struct Answer {
    pieces: usize,
    pause: Pin<Box<Sleep>>,
}

const PAUSE: Duration = Duration::from_millis(100);

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.pieces == 0 {
            return Poll::Pending;
        }
        ready!(self.pause.as_mut().poll(task));
        self.pieces -= 1;
        self.pause.as_mut().reset(Instant::now() + PAUSE);
        let line = r#"{"type":"ADDED","object":{"metadata":{"name":"m"}}}"#;
        let frame = Frame::data(Bytes::from(format!("{line}\n")));
        Poll::Ready(Some(Ok(frame)))
    }
}

/// A client whose API server answers so many pieces, if at all.
fn client(pieces: Option<usize>, ready: &Readiness) -> Api<ConfigMap> {
    let service = tower::service_fn(move |_: Request<Body>| async move {
        let Some(pieces) = pieces else {
            return std::future::pending().await;
        };
        let pause = Box::pin(tokio::time::sleep(PAUSE));
        Ok::<_, Infallible>(Response::new(Answer { pieces, pause }))
    });
    let deadlines = Deadlines {
        request: Duration::from_millis(500),
        silence: Duration::from_millis(400),
    };
    let client = Client::new(service, "default");
    Api::default_namespaced(with_deadlines(client, deadlines, ready.clone()))
}

#[tokio::test]
async fn an_answer_that_does_not_come_or_does_not_end_is_given_up() {
    let ready = Readiness::default();
    for pieces in [None, Some(0), Some(1_000)] {
        let start = Instant::now();
        let error = client(pieces, &ready).list(&ListParams::default()).await;
        let error = crate::chain(&error.unwrap_err());
        assert!(error.contains("sent nothing for 500ms"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    let watch = client(None, &ready)
        .watch(&WatchParams::default(), "0")
        .await;
    assert!(watch.is_err());
}

#[tokio::test]
async fn a_watch_lasts_as_long_as_anything_comes() {
    let ready = Readiness::default();
    let check = ready.check("watch/api/v1/namespaces/default/configmaps");
    check.failed("refused");
    let events = client(Some(8), &ready);
    let events = events.watch(&WatchParams::default(), "0").await.unwrap();
    let events: Vec<_> = events.into_stream().collect().await;
    // Longer in all than any request may take.
    let good = events.iter().filter(|event| event.is_ok()).count();
    assert_eq!((good, events.len()), (8, 9));
    let error = events.into_iter().last().unwrap().unwrap_err();
    assert!(
        crate::chain(&error).contains("sent nothing for 400ms"),
        "{error}"
    );
    // The check fails no more since something came.
    ready.set(true);
    check.failed("again");
    ready.heard("/api/v1/namespaces/default/configmaps");
    assert!(ready.report().1.contains("[+]watch/api"));
}

#[test]
fn watches_are_told_from_other_requests() {
    let is = |uri: &str| is_watch(&uri.parse().unwrap());
    assert!(is("/api/v1/pods?&watch=true&resourceVersion=0"));
    assert!(is("/api/v1/pods?watch=1"));
    assert!(!is("/api/v1/pods?labelSelector=watch%3Dtrue") && !is("/api/v1/pods"));
}
