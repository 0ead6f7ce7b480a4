//! Downloads a URL into a file, under the fetch policy, and resumes interrupted downloads.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::fs::File;

use super::blocking::blocking;
use super::policy::{FetchPolicy, Location, redact};
use super::sink::{Sink, Terms};
use super::{Error, Limits};

/// How many redirects are followed.
const MAX_REDIRECTS: usize = 5;
/// How long a server may send nothing.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a server may take until its answer begins, redirects included.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How much of a download is done; read by others while it runs.
#[derive(Debug, Default)]
pub struct DownloadProgress {
    pub(super) received: AtomicU64,
    pub(super) total: AtomicU64,
    pub(super) waiting: AtomicBool,
}

impl DownloadProgress {
    /// Bytes received, and bytes in all, when the server announced them.
    #[must_use]
    pub fn get(&self) -> (u64, Option<u64>) {
        let total = self.total.load(Ordering::Relaxed);
        (
            self.received.load(Ordering::Relaxed),
            (total > 0).then_some(total),
        )
    }

    /// Whether it waits until other downloads have ended.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Digests of bytes, both at once, because the user may have given either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// `sha256:…`.
    pub sha256: String,
    /// `sha512:…`.
    pub sha512: String,
    /// Number of bytes.
    pub size: u64,
    /// Whether some of the bytes were left by an earlier, interrupted download.
    pub resumed: bool,
}

/// Looks names up and drops the addresses that the policy forbids, so that a name
/// whose addresses change between check and connection is no way around the policy.
struct GuardedResolver(FetchPolicy);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.0.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|a| policy.allows(a.ip())).collect();
            if allowed.is_empty() {
                return Err("the fetch policy forbids all its addresses".into());
            }
            let addresses: Addrs = Box::new(allowed.into_iter());
            Ok(addresses)
        })
    }
}

/// Fetches `url` into `partial`; what is there already is used when the server still has
/// the same bytes.
///
/// # Errors
/// When the policy forbids it, or the bytes do not come.
pub async fn fetch(
    policy: &FetchPolicy,
    url: &str,
    has_checksum: bool,
    partial: &Path,
    progress: &DownloadProgress,
) -> Result<Digests, Error> {
    let shown = redact(url);
    let terms = Terms {
        url: &shown,
        limit: policy.limits.download,
        progress,
    };
    let (rules, asked) = (policy.clone(), url.to_owned());
    match blocking(move || rules.check(&asked, has_checksum)).await? {
        Location::File(path) => copy(&path, partial, terms).await,
        Location::Web(parsed) => download(policy, parsed, has_checksum, partial, terms).await,
    }
}

async fn copy(from: &Path, partial: &Path, terms: Terms<'_>) -> Result<Digests, Error> {
    use tokio::io::AsyncReadExt;
    let mut source = File::open(from).await.map_err(Error::io("open", from))?;
    let metadata = source.metadata().await;
    let length = metadata.map_err(Error::io("look at", from))?.len();
    let mut sink = Sink::create(partial, Some(length), terms).await?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = source.read(&mut buffer).await;
        let n = read.map_err(Error::io("read", from))?;
        if n == 0 {
            break;
        }
        sink.write(&buffer[..n]).await?;
    }
    sink.sync().await?;
    Ok(sink.finish())
}

/// The validator of an interrupted download. Stored with the boot id, since after a loss of
/// power the file may have its length and not all of its bytes.
fn saved_validator(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let (boot, tag) = text.split_once('\n')?;
    let now = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    (boot == now.trim()).then(|| tag.to_owned())
}

async fn boot_id() -> String {
    let text = tokio::fs::read_to_string(BOOT_ID).await.unwrap_or_default();
    text.trim().to_owned()
}

/// How fast a server sends.
struct Pace<'a> {
    limits: &'a Limits,
    deadline: Instant,
    window_ends: Instant,
    bytes: u64,
}

impl<'a> Pace<'a> {
    fn new(limits: &'a Limits) -> Self {
        let now = Instant::now();
        Self {
            limits,
            deadline: now + limits.deadline,
            window_ends: now + limits.window,
            bytes: 0,
        }
    }

    fn next_look(&self) -> tokio::time::Instant {
        self.window_ends.min(self.deadline).into()
    }

    /// Why the download ends now although it is not done.
    fn check(&mut self, received: usize, now: Instant) -> Option<String> {
        self.bytes = self.bytes.saturating_add(received as u64);
        if now >= self.deadline {
            let minutes = self.limits.deadline.as_secs().div_ceil(60);
            return Some(format!(
                "it was not done after {minutes} min, which is all the time that one download has; \
                 it is tried again, from there on where the server can"
            ));
        }
        if now < self.window_ends {
            return None;
        }
        let Limits {
            window, min_rate, ..
        } = self.limits;
        let sent = std::mem::take(&mut self.bytes);
        self.window_ends = now + *window;
        let least = u128::from(*min_rate) * window.as_millis() / 1000;
        (u128::from(sent) < least).then(|| {
            let seconds = window.as_secs_f64();
            format!(
                "only {sent} bytes came in {seconds:.0} s, less than {min_rate} in a second; offer the \
                 file at a faster server. It is tried again ever more rarely, from there on where \
                 the server can"
            )
        })
    }
}

async fn download(
    policy: &FetchPolicy,
    url: Url,
    has_checksum: bool,
    partial: &Path,
    terms: Terms<'_>,
) -> Result<Digests, Error> {
    let failed = |why: String| Error::DownloadFailed {
        url: terms.url.to_owned(),
        why,
    };
    let (at, tag_path) = (partial.to_owned(), partial.with_extension("etag"));
    let left = tag_path.clone();
    let mut resume = blocking(move || {
        let have = std::fs::metadata(at).map_or(0, |m| m.len());
        let tag = saved_validator(&left).filter(|_| have > 0);
        tag.map(|tag| (have, tag))
    })
    .await;

    let mut pace = Pace::new(&policy.limits);
    let client = client(policy).map_err(|e| failed(chain(&e)))?;
    let mut response = follow(policy, &client, url.clone(), has_checksum, resume.as_ref()).await?;
    if resume.is_some() && response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        // The file had all bytes already, or more than the server has now.
        resume = None;
        response = follow(policy, &client, url, has_checksum, None).await?;
    }

    let status = response.status();
    let length = response.content_length();
    let rest_of = resume.as_ref().map(|(have, _)| *have);
    let rest_of = rest_of.filter(|have| starts_at(response.headers(), *have));
    let (mut sink, offset) = if let (StatusCode::PARTIAL_CONTENT, Some(have)) = (status, rest_of) {
        (Sink::resume(partial, have, length, terms).await?, have)
    } else if status.is_success() && status != StatusCode::PARTIAL_CONTENT {
        // First, so that the old validator is never stored beside new bytes.
        remove(&tag_path).await;
        (Sink::create(partial, length, terms).await?, 0)
    } else if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
        return Err(Error::NotFound {
            url: terms.url.to_owned(),
            status: status.to_string(),
        });
    } else {
        if resume.is_some() {
            // The server refuses the range: start from the beginning next time.
            remove(&tag_path).await;
        }
        return Err(failed(format!("the server answers {status}")));
    };

    match validator(response.headers()) {
        Some(tag) => {
            let text = format!("{}\n{tag}", boot_id().await);
            let written = tokio::fs::write(&tag_path, text).await;
            written.map_err(Error::io("write", &tag_path))?;
        }
        None => remove(&tag_path).await,
    }
    let expected = length.map(|n| n + offset);
    let mut stream = response.bytes_stream();
    let mut broken = None;
    let mut too_slow = None;
    while too_slow.is_none() {
        // Also when nothing comes, its pace is looked at.
        let next = tokio::time::timeout_at(pace.next_look(), stream.next()).await;
        let received = match next {
            Err(_) => 0,
            Ok(None) => break,
            Ok(Some(Ok(bytes))) => {
                sink.write(&bytes).await?;
                bytes.len()
            }
            Ok(Some(Err(error))) => {
                broken = Some(chain(&error));
                break;
            }
        };
        too_slow = pace.check(received, Instant::now());
    }
    sink.sync().await?;
    let got = sink.size();
    let on_disk = tokio::fs::metadata(partial).await;
    let on_disk = on_disk.map_err(Error::io("look at", partial))?.len();
    if on_disk != got {
        // The last write of a download that was cancelled came late.
        remove(&tag_path).await;
        return Err(failed(format!("{on_disk} bytes were written, {got} came")));
    }
    if let Some(why) = too_slow {
        return Err(Error::TooSlow {
            url: terms.url.to_owned(),
            why,
        });
    }
    match (expected, broken) {
        (Some(expected), _) if got < expected => Err(Error::Truncated {
            url: terms.url.to_owned(),
            got,
            expected,
        }),
        (_, Some(why)) => Err(failed(why)),
        _ => Ok(Digests {
            resumed: offset > 0,
            ..sink.finish()
        }),
    }
}

/// Removes a file, if it is there.
async fn remove(path: &Path) {
    let _ = tokio::fs::remove_file(path).await;
}

fn client(policy: &FetchPolicy) -> Result<Client, reqwest::Error> {
    // Installed once per process; a second call finds the first one's and is harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        // A proxy would connect instead of us, and bypass the policy.
        .no_proxy()
        .dns_resolver(Arc::new(GuardedResolver(policy.clone())))
        .connect_timeout(Duration::from_secs(15))
        .read_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("pileus/", env!("CARGO_PKG_VERSION")))
        .build()
}

async fn follow(
    policy: &FetchPolicy,
    client: &Client,
    url: Url,
    has_checksum: bool,
    resume: Option<&(u64, String)>,
) -> Result<Response, Error> {
    let shown = redact(url.as_str());
    let answer = follow_redirects(policy, client, url, has_checksum, resume);
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
    answer.unwrap_or_else(|_| {
        Err(Error::DownloadFailed {
            url: shown,
            why: format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
        })
    })
}

async fn follow_redirects(
    policy: &FetchPolicy,
    client: &Client,
    mut url: Url,
    has_checksum: bool,
    resume: Option<&(u64, String)>,
) -> Result<Response, Error> {
    let start = redact(url.as_str());
    let failed = |why: String| Error::DownloadFailed {
        url: start.clone(),
        why,
    };
    for hop in 0..=MAX_REDIRECTS {
        let checked = check_addresses(policy, &url).await;
        checked.map_err(|error| match hop {
            0 => error,
            _ => redirected(&start, error),
        })?;
        let mut request = client.get(url.clone());
        if let Some((have, tag)) = resume {
            request = request
                .header(RANGE, format!("bytes={have}-"))
                .header(IF_RANGE, tag);
        }
        let response = request.send().await.map_err(|e| failed(chain(&e)))?;
        if !response.status().is_redirection() {
            return Ok(response);
        }
        let target = response
            .headers()
            .get(LOCATION)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| url.join(v).ok())
            .ok_or_else(|| failed("a redirect names no target".into()))?;
        if url.scheme() == "https" && target.scheme() != "https" {
            return Err(Error::ForbiddenUrl {
                url: redact(target.as_str()),
                why: format!("{start} redirects to it, away from https://"),
            });
        }
        let to_file = || Error::ForbiddenUrl {
            url: redact(target.as_str()),
            why: format!("{start} redirects to a file of the host"),
        };
        if target.scheme() == "file" {
            return Err(to_file());
        }
        let checked = policy.check(target.as_str(), has_checksum);
        match checked.map_err(|error| redirected(&start, error))? {
            Location::Web(next) => url = next,
            Location::File(_) => return Err(to_file()),
        }
    }
    Err(failed(format!("more than {MAX_REDIRECTS} redirects")))
}

/// Names the URL that the user gave beside the one that it redirects to.
fn redirected(start: &str, error: Error) -> Error {
    let via = |url: String| format!("{start} redirects to {url}, which");
    match error {
        Error::ForbiddenAddress { url, address } => Error::ForbiddenAddress {
            url: via(url),
            address,
        },
        Error::ForbiddenUrl { url, why } => Error::ForbiddenUrl {
            url,
            why: format!("{start} redirects to it, and {why}"),
        },
        other => other,
    }
}

/// Checks the addresses beforehand: the resolver's refusal would reach the user as "error
/// sending request".
async fn check_addresses(policy: &FetchPolicy, url: &Url) -> Result<(), Error> {
    let Some(url::Host::Domain(host)) = url.host() else {
        return Ok(());
    };
    let found = tokio::net::lookup_host((host, 0))
        .await
        .map_err(|e| Error::DownloadFailed {
            url: redact(url.as_str()),
            why: format!("{host} cannot be looked up: {e}"),
        })?;
    let found: Vec<_> = found.map(|a| a.ip()).collect();
    match found.first() {
        Some(&address) if !found.iter().any(|a| policy.allows(*a)) => {
            Err(Error::ForbiddenAddress {
                url: redact(url.as_str()),
                address,
            })
        }
        _ => Ok(()),
    }
}

fn starts_at(headers: &HeaderMap, offset: u64) -> bool {
    headers
        .get(CONTENT_RANGE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("bytes "))
        .and_then(|v| v.split('-').next()?.parse::<u64>().ok())
        == Some(offset)
}

/// What identifies the server's bytes: a strong entity tag, else the time of change.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned)
    };
    text(ETAG)
        .filter(|tag| !tag.starts_with("W/"))
        .or_else(|| text(LAST_MODIFIED))
}

fn chain(error: &reqwest::Error) -> String {
    use std::error::Error as _;
    // reqwest's own message contains the URL with its query.
    let mut text = String::new();
    let mut source = error.source();
    while let Some(cause) = source {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    if text.is_empty() {
        "the request failed".to_owned()
    } else {
        text
    }
}
