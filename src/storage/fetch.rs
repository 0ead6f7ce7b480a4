//! Downloads a URL into a file, under the fetch policy, and resumes interrupted downloads.

use std::io::{Read, SeekFrom};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode, Url};
use sha2::{Digest, Sha256, Sha512};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::error::Shortage;
use super::policy::{FetchPolicy, Location, redact};
use super::{Error, disk};

/// How many redirects are followed.
const MAX_REDIRECTS: usize = 5;
/// How long a server may send nothing.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// Bytes between two checks of the space that is left.
const SPACE_CHECK_INTERVAL: usize = 64 << 20;

/// How much of a download is done; read by others while it runs.
#[derive(Debug, Default)]
pub struct DownloadProgress {
    received: AtomicU64,
    total: AtomicU64,
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

#[derive(Default)]
struct Hasher {
    sha256: Sha256,
    sha512: Sha512,
    size: u64,
}

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.sha512.update(bytes);
        self.size += bytes.len() as u64;
    }

    fn finish(self) -> Digests {
        Digests {
            sha256: format!("sha256:{}", hex::encode(self.sha256.finalize())),
            sha512: format!("sha512:{}", hex::encode(self.sha512.finalize())),
            size: self.size,
            resumed: false,
        }
    }
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
    match policy.check(url, has_checksum)? {
        Location::File(path) => copy(&path, partial, progress).await,
        Location::Web(parsed) => download(policy, parsed, has_checksum, partial, progress).await,
    }
}

async fn copy(from: &Path, partial: &Path, progress: &DownloadProgress) -> Result<Digests, Error> {
    use tokio::io::AsyncReadExt;
    let mut source = File::open(from).await.map_err(Error::io("open", from))?;
    let length = source
        .metadata()
        .await
        .map_err(Error::io("look at", from))?
        .len();
    progress.total.store(length, Ordering::Relaxed);
    progress.received.store(0, Ordering::Relaxed);
    check_space(partial, length)?;
    let mut out = File::create(partial)
        .await
        .map_err(Error::io("write", partial))?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = source
            .read(&mut buffer)
            .await
            .map_err(Error::io("read", from))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        out.write_all(&buffer[..n])
            .await
            .map_err(Error::io("write", partial))?;
        progress.received.fetch_add(n as u64, Ordering::Relaxed);
    }
    out.flush().await.map_err(Error::io("write", partial))?;
    out.sync_all().await.map_err(Error::io("write", partial))?;
    Ok(hasher.finish())
}

/// Fails when `need` more bytes would fill the file system.
fn check_space(partial: &Path, need: u64) -> Result<(), Error> {
    let dir = partial.parent().unwrap_or(partial);
    let usable = disk::space_of(dir)?.usable();
    if need > usable {
        return Err(Error::NoSpace(Shortage {
            path: dir.to_owned(),
            bytes: Some((need, usable)),
        }));
    }
    Ok(())
}

/// The validator of an interrupted download. Stored with the boot id, since after a loss of
/// power the file may have its length and not all of its bytes.
fn saved_validator(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let (boot, tag) = text.split_once('\n')?;
    (boot == boot_id()).then(|| tag.to_owned())
}

fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

async fn download(
    policy: &FetchPolicy,
    url: Url,
    has_checksum: bool,
    partial: &Path,
    progress: &DownloadProgress,
) -> Result<Digests, Error> {
    let shown = redact(url.as_str());
    let failed = |why: String| Error::DownloadFailed {
        url: shown.clone(),
        why,
    };
    let tag_path = partial.with_extension("etag");
    let have = std::fs::metadata(partial).map_or(0, |m| m.len());
    let mut resume = saved_validator(&tag_path)
        .filter(|_| have > 0)
        .map(|tag| (have, tag));

    let client = client(policy).map_err(|e| failed(chain(&e)))?;
    let mut response = follow(policy, &client, url.clone(), has_checksum, resume.as_ref()).await?;
    if resume.is_some() && response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        // The file had all bytes already, or more than the server has now.
        resume = None;
        response = follow(policy, &client, url, has_checksum, None).await?;
    }

    let status = response.status();
    let (mut hasher, mut out, offset) =
        if let (StatusCode::PARTIAL_CONTENT, Some((have, _)), true) =
            (status, &resume, starts_at(response.headers(), have))
        {
            let (hasher, out) = resume_file(partial, *have).await?;
            (hasher, out, *have)
        } else if status.is_success() && status != StatusCode::PARTIAL_CONTENT {
            // First, so that the old validator is never stored beside new bytes.
            let _ = std::fs::remove_file(&tag_path);
            let out = File::create(partial)
                .await
                .map_err(Error::io("write", partial))?;
            (Hasher::default(), out, 0)
        } else if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
            return Err(Error::NotFound {
                url: shown,
                status: status.to_string(),
            });
        } else {
            if resume.is_some() {
                // The server refuses the range: start from the beginning next time.
                let _ = std::fs::remove_file(&tag_path);
            }
            return Err(failed(format!("the server answers {status}")));
        };

    match validator(response.headers()) {
        Some(tag) => std::fs::write(&tag_path, format!("{}\n{tag}", boot_id()))
            .map_err(Error::io("write", &tag_path))?,
        None => drop(std::fs::remove_file(&tag_path)),
    }
    let expected = response.content_length().map(|n| n + offset);
    progress
        .total
        .store(expected.unwrap_or(0), Ordering::Relaxed);
    progress.received.store(offset, Ordering::Relaxed);
    check_space(partial, response.content_length().unwrap_or(0))?;
    let mut unchecked = 0;
    let mut stream = response.bytes_stream();
    let mut broken = None;
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(bytes) => {
                unchecked += bytes.len();
                if unchecked >= SPACE_CHECK_INTERVAL {
                    // The length may be unknown, and others write to this file system too.
                    check_space(partial, 0)?;
                    unchecked = 0;
                }
                hasher.update(&bytes);
                out.write_all(&bytes)
                    .await
                    .map_err(Error::io("write", partial))?;
                progress
                    .received
                    .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            Err(error) => {
                broken = Some(chain(&error));
                break;
            }
        }
    }
    out.flush().await.map_err(Error::io("write", partial))?;
    out.sync_all().await.map_err(Error::io("write", partial))?;
    let got = hasher.size;
    let on_disk = std::fs::metadata(partial)
        .map_err(Error::io("look at", partial))?
        .len();
    if on_disk != got {
        // The last write of a download that was cancelled came late.
        let _ = std::fs::remove_file(&tag_path);
        return Err(failed(format!("{on_disk} bytes were written, {got} came")));
    }
    match (expected, broken) {
        (Some(expected), _) if got < expected => Err(Error::Truncated {
            url: shown,
            got,
            expected,
        }),
        (_, Some(why)) => Err(failed(why)),
        _ => Ok(Digests {
            resumed: offset > 0,
            ..hasher.finish()
        }),
    }
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

/// Opens the partial file to write after its first `have` bytes. By position and not by
/// appending: the last write of a download that was cancelled may still be on its way.
async fn resume_file(partial: &Path, have: u64) -> Result<(Hasher, File), Error> {
    let path = partial.to_owned();
    let hasher = tokio::task::spawn_blocking(move || hash_file(&path, have))
        .await
        .map_err(|e| Error::io("read", partial)(std::io::Error::other(e)))??;
    let opened = async {
        let mut out = OpenOptions::new().write(true).open(partial).await?;
        out.set_len(have).await?;
        out.seek(SeekFrom::Start(have)).await?;
        Ok(out)
    };
    let out = opened.await.map_err(Error::io("write", partial))?;
    Ok((hasher, out))
}

async fn follow(
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
        let checked = policy.check(target.as_str(), has_checksum);
        match checked.map_err(|error| redirected(&start, error))? {
            Location::Web(next) => url = next,
            Location::File(_) => {
                return Err(Error::ForbiddenUrl {
                    url: redact(target.as_str()),
                    why: format!("{start} redirects to a file of the host"),
                });
            }
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

fn hash_file(path: &Path, length: u64) -> Result<Hasher, Error> {
    let mut file = std::fs::File::open(path)
        .map_err(Error::io("open", path))?
        .take(length);
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if n == 0 {
            return Ok(hasher);
        }
        hasher.update(&buffer[..n]);
    }
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
