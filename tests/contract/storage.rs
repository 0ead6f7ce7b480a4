//! The image store and the disks against a real web server, real `qemu-img`, real files.
//! One contract, in one file: images and the disks over them lie in one store.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::case_sensitive_file_extension_comparisons,
    reason = "helpers of tests, which clippy does not see as such; the names are our own"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use pileus_storage::{
    Content, DirectoryMetadata, Disks, DownloadProgress, Error, FetchPolicy, ImageStore, Limits,
    Request, StoredImage,
};
use pileus_tests::web::Web;
use pileus_values::{ClusterId, Owner};
use sha2::{Digest, Sha256, Sha512};
use tempfile::TempDir;
use uuid::Uuid;

const MIB: usize = 1 << 20;

// ---------------------------------------------------------------- helpers

struct Host {
    dir: TempDir,
    store: ImageStore,
    disks: Disks,
}

fn policy() -> FetchPolicy {
    FetchPolicy {
        allow: vec!["127.0.0.0/8".parse().unwrap()],
        ..FetchPolicy::default()
    }
}

fn host() -> Host {
    limited(Limits::default())
}

fn limited(limits: Limits) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let policy = FetchPolicy { limits, ..policy() };
    let store = ImageStore::open(dir.path(), policy).unwrap();
    let disks = Disks::new(dir.path());
    Host { dir, store, disks }
}

impl Host {
    async fn import(&self, request: &Request) -> Result<StoredImage, Error> {
        self.store
            .import(request, &DownloadProgress::default())
            .await
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path().join(dir))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".lock"))
            .collect();
        names.sort();
        names
    }
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn noise(seed: u8, size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(seed) + 1);
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

fn raw(url: String, checksum: String) -> Request {
    Request {
        namespace: "team".into(),
        url,
        checksum: Some(checksum),
        digest: None,
        content: Content::Disk("raw".into()),
    }
}

fn qemu_img(args: &[&str]) {
    let status = Command::new("qemu-img").args(args).arg("-q").status();
    assert!(status.unwrap().success(), "qemu-img {args:?}");
}

/// A disk of some format, as a file's bytes.
fn made(format: &str, options: &[&str], size: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let path = path.to_str().unwrap();
    let mut args = vec!["create", "-f", format];
    args.extend(options);
    args.extend([path, size]);
    qemu_img(&args);
    std::fs::read(path).unwrap()
}

fn metadata(name: &str) -> DirectoryMetadata {
    DirectoryMetadata {
        owner: Owner {
            cluster: ClusterId("c".into()),
            kind: "Server".into(),
            namespace: "team".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
        },
        epoch: 1,
        uses: vec![],
    }
}

fn age(path: &Path, by: Duration) {
    let file = std::fs::File::open(path).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

// ---------------------------------------------------------------- fetching

#[tokio::test]
async fn an_image_is_fetched_checked_and_found_again() {
    let (web, host) = (Web::start().await, host());
    let bytes = noise(1, 3 * MIB);
    web.put("a", bytes.clone());
    let request = raw(web.url("hop/a"), sha256(&bytes));
    assert_eq!(host.store.find(&request), None);
    let progress = DownloadProgress::default();
    let stored = host.store.import(&request, &progress).await.unwrap();
    assert_eq!(stored.digest, sha256(&bytes));
    assert_eq!(stored.virtual_size, 3 * MIB as u64);
    assert_eq!(progress.get(), (3 * MIB as u64, Some(3 * MIB as u64)));
    assert_eq!(
        std::fs::read(host.store.path(&stored.digest)).unwrap(),
        bytes
    );
    assert_eq!(host.store.find(&request), Some(stored.clone()));
    assert_eq!(host.import(&request).await.unwrap(), stored);
    assert_eq!(web.requests().len(), 2, "one redirect, one download");
    assert_eq!(host.store.list(), vec![stored.digest]);
    assert!(host.names("partial").is_empty());
    // The other kind of checksum, in the other case.
    let sum = format!("SHA512:{}", hex::encode_upper(Sha512::digest(&bytes)));
    host.import(&raw(web.url("ok/a"), sum)).await.unwrap();
}

#[tokio::test]
async fn refusals_of_the_server_are_told_apart() {
    let (web, host) = (Web::start().await, host());
    let ask = |path: &str| raw(web.url(path), sha256(b""));
    let gone = host.import(&ask("ok/none")).await.unwrap_err();
    assert!(matches!(gone, Error::NotFound { .. }) && !gone.is_terminal());
    let down = host.import(&ask("down/x?token=hush")).await.unwrap_err();
    assert!(matches!(down, Error::DownloadFailed { .. }), "{down}");
    assert!(down.to_string().contains("502") && !down.to_string().contains("hush"));
    let around = host.import(&ask("around/x")).await.unwrap_err();
    assert!(around.to_string().contains("redirects"), "{around}");
    let nobody = raw("http://127.0.0.1:1/x?token=hush".into(), sha256(b""));
    let nobody = host.import(&nobody).await.unwrap_err();
    assert!(matches!(nobody, Error::DownloadFailed { .. }));
    assert!(!nobody.to_string().contains("hush"), "{nobody}");
}

#[tokio::test]
async fn a_redirect_leads_nowhere_that_the_url_itself_may_not() {
    let (web, host) = (Web::start().await, host());
    let ask = |path: &str| raw(web.url(path), sha256(b""));
    let metadata = host.import(&ask("metadata/x")).await.unwrap_err();
    assert!(
        matches!(metadata, Error::ForbiddenAddress { .. }),
        "{metadata}"
    );
    assert!(metadata.is_terminal());
    let file = host.import(&ask("to-file/x")).await.unwrap_err();
    assert!(matches!(file, Error::ForbiddenUrl { .. }), "{file}");
    let unknown = host.import(&ask("by-name/x")).await.unwrap_err();
    assert!(matches!(unknown, Error::DownloadFailed { .. }), "{unknown}");
}

#[tokio::test]
async fn a_name_that_resolves_to_a_forbidden_address_is_refused() {
    let web = Web::start().await;
    let dir = tempfile::tempdir().unwrap();
    let strict = ImageStore::open(dir.path(), FetchPolicy::default()).unwrap();
    let url = format!("http://localhost:{}/ok/a", web.address.port());
    let error = strict
        .import(&raw(url, sha256(b"")), &DownloadProgress::default())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::ForbiddenAddress { .. }), "{error}");
    assert!(web.requests().is_empty());
}

#[tokio::test]
async fn a_download_that_broke_off_goes_on_where_it_stopped() {
    let (web, host) = (Web::start().await, host());
    let bytes = noise(2, 4 * MIB);
    web.put("a", bytes.clone());
    let request = raw(web.url("broken/a"), sha256(&bytes));
    let error = host.import(&request).await.unwrap_err();
    assert!(
        matches!(error, Error::Truncated { got, expected, .. }
            if got == 2 * MIB as u64 && expected == 4 * MIB as u64),
        "{error}"
    );
    assert!(!error.is_terminal());
    host.import(&request).await.unwrap();
    let range = web.requests()[1].1.clone();
    assert_eq!(range, Some(format!("bytes={}-", 2 * MIB)));
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_or_has_other_bytes_is_read_from_the_start() {
    let (web, host) = (Web::start().await, host());
    let (old, new) = (noise(3, 2 * MIB), noise(4, MIB + 512));
    for how in ["whole-only", "broken"] {
        let name = format!("{how}-file");
        web.put(&name, old.clone());
        let request = raw(web.url(&format!("{how}/{name}")), sha256(&new));
        host.import(&request).await.unwrap_err();
        web.put(&name, new.clone());
        host.import(&request).await.unwrap();
        std::fs::remove_file(host.store.path(&sha256(&new))).unwrap();
    }
}

#[tokio::test]
async fn what_a_crash_left_wrong_is_fetched_again_and_not_held_against_the_image() {
    let (web, host) = (Web::start().await, host());
    let bytes = noise(5, 2 * MIB);
    web.put("a", bytes.clone());
    let request = raw(web.url("broken/a"), sha256(&bytes));
    host.import(&request).await.unwrap_err();
    let partial = host.names("partial").remove(0);
    let partial = host.dir.path().join("partial").join(partial);
    std::fs::write(&partial, vec![0; MIB]).unwrap();
    host.import(&request).await.unwrap();
    // All of it is there, and the process died before it was stored.
    let bytes = noise(16, 2 * MIB);
    let request = raw(web.url("broken/b"), sha256(&bytes));
    web.put("b", bytes.clone());
    host.import(&request).await.unwrap_err();
    let partial = host.names("partial").remove(0);
    std::fs::write(host.dir.path().join("partial").join(partial), &bytes).unwrap();
    host.import(&request).await.unwrap();
    assert!(host.names("partial").is_empty());
}

#[tokio::test]
async fn wrong_bytes_are_named_and_not_kept() {
    let (web, host) = (Web::start().await, host());
    let bytes = noise(6, MIB);
    web.put("a", bytes.clone());
    let wrong = raw(web.url("ok/a"), sha256(b"other"));
    let error = host.import(&wrong).await.unwrap_err();
    assert!(matches!(error, Error::ChecksumMismatch { .. }) && error.is_terminal());
    for sum in [sha256(&bytes), sha256(b"other")] {
        assert!(error.to_string().contains(&sum), "{error}");
    }
    let fixed = Request {
        digest: Some(sha256(b"first import")),
        ..raw(web.url("ok/a"), sha256(&bytes))
    };
    let error = host.import(&fixed).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert!(host.store.list().is_empty() && host.names("partial").is_empty());
}

#[tokio::test]
async fn a_url_without_a_checksum_is_asked_again_after_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("latest");
    let policy = FetchPolicy {
        file_root: Some(root.path().to_owned()),
        ..FetchPolicy::default()
    };
    let store = ImageStore::open(dir.path(), policy).unwrap();
    let request = Request {
        namespace: "team".into(),
        url: format!("file://{}", file.display()),
        checksum: None,
        digest: None,
        content: Content::Blob,
    };
    std::fs::write(&file, "old").unwrap();
    let progress = DownloadProgress::default();
    assert_eq!(
        store.import(&request, &progress).await.unwrap().digest,
        sha256(b"old")
    );
    std::fs::write(&file, "new").unwrap();
    assert_eq!(
        store.find(&request).unwrap().digest,
        sha256(b"old"),
        "the manager has yet to fix it"
    );
    for entry in std::fs::read_dir(dir.path().join("sources")).unwrap() {
        age(&entry.unwrap().path(), Duration::from_hours(2));
    }
    assert_eq!(
        store.import(&request, &progress).await.unwrap().digest,
        sha256(b"new")
    );
}

// ---------------------------------------------------------------- limits

#[tokio::test]
async fn a_file_or_disk_beyond_the_limit_is_refused_with_both_figures() {
    let web = Web::start().await;
    let host = limited(Limits {
        download: 2 * MIB as u64,
        ..Limits::default()
    });
    // Announced: not a byte of it is fetched.
    let big = noise(50, 3 * MIB);
    web.put("big", big.clone());
    let ask = raw(web.url("slow/big"), sha256(&big));
    let error = host.import(&ask).await.unwrap_err();
    assert!(matches!(error, Error::FileTooBig { .. }) && error.is_terminal());
    assert!(error.to_string().contains("3145728") && error.to_string().contains("2097152"));
    // Not announced: ended as soon as it is too much, and nothing is left of it.
    let progress = DownloadProgress::default();
    let endless = raw(web.url("endless/x"), sha256(b""));
    let error = host.store.import(&endless, &progress).await.unwrap_err();
    assert!(matches!(error, Error::FileTooBig { .. }), "{error}");
    assert!(progress.get().0 <= 2 * MIB as u64);
    assert!(host.names("partial").is_empty());
    // A small file with a disk of 10 TiB in it.
    let vast = made("qcow2", &[], "10T");
    web.put("vast", vast.clone());
    let vast = Request {
        content: Content::Disk("qcow2".into()),
        ..raw(web.url("ok/vast"), sha256(&vast))
    };
    let error = host.import(&vast).await.unwrap_err();
    assert!(matches!(error, Error::DiskTooBig { .. }) && error.is_terminal());
    for part in ["10995116277760", "1099511627776", "--max-image-disk-gib"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(host.names("images").is_empty());
}

#[tokio::test]
async fn a_server_that_hardly_sends_or_never_ends_is_given_up() {
    let web = Web::start().await;
    let slow = Limits {
        min_rate: 1 << 10,
        window: Duration::from_secs(1),
        ..Limits::default()
    };
    let long = Limits {
        min_rate: 0,
        deadline: Duration::from_secs(1),
        ..Limits::default()
    };
    for (limits, says) in [
        (slow, "less than 1024 in a second"),
        (long, "not done after"),
    ] {
        let host = limited(limits);
        let started = Instant::now();
        let error = host
            .import(&raw(web.url("drip/x"), sha256(b"")))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::TooSlow { .. }), "{error}");
        assert!(!error.is_terminal() && error.is_costly());
        assert!(error.to_string().contains(says), "{error}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_downloads_of_one_namespace_hold_up_nobody_else() {
    let web = Web::start().await;
    let host = limited(Limits {
        downloads: 3,
        downloads_per_namespace: 2,
        ..Limits::default()
    });
    let mut slow = Vec::new();
    for n in 0..4_u8 {
        let (store, ask) = (host.store.clone(), raw(web.url("drip/x"), sha256(&[n])));
        let progress = std::sync::Arc::new(DownloadProgress::default());
        let told = progress.clone();
        let task = tokio::spawn(async move { store.import(&ask, &told).await });
        slow.push((progress, task));
    }
    let waiting = || slow.iter().filter(|(p, _)| p.is_waiting()).count();
    let started = Instant::now();
    while waiting() != 2 || web.requests().len() != 2 {
        assert!(started.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let bytes = noise(51, MIB);
    web.put("a", bytes.clone());
    let other = Request {
        namespace: "others".into(),
        ..raw(web.url("ok/a"), sha256(&bytes))
    };
    let quick = tokio::time::timeout(Duration::from_secs(10), host.import(&other)).await;
    quick.unwrap().unwrap();
    assert_eq!(waiting(), 2, "theirs alone");
    for (_, task) in &slow {
        task.abort();
    }
}

// ---------------------------------------------------------------- whose bytes they are

#[tokio::test]
async fn who_knows_a_digest_does_not_have_the_bytes() {
    let (web, host) = (Web::start().await, host());
    let bytes = noise(52, MIB);
    web.put("a", bytes.clone());
    let owned = raw(web.url("ok/a"), sha256(&bytes));
    let stored = host.import(&owned).await.unwrap();
    // Another namespace names the digest, with URLs that do not give the bytes.
    for url in [web.url("ok/none"), "http://127.0.0.1:1/x".into()] {
        for digest in [None, Some(stored.digest.clone())] {
            let thief = Request {
                namespace: "thief".into(),
                digest,
                ..raw(url.clone(), sha256(&bytes))
            };
            assert_eq!(host.store.find(&thief), None);
            host.import(&thief).await.unwrap_err();
        }
    }
    // So does the same namespace: the bytes are had under the URL that gave them.
    let moved = raw(web.url("ok/none"), sha256(&bytes));
    assert_eq!(host.store.find(&moved), None);
    // Who is given them by the URL has them, and they are stored once.
    let file = host.store.path(&stored.digest);
    let number = || std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    let before = (number(), web.requests().len());
    let friend = Request {
        namespace: "friend".into(),
        ..owned.clone()
    };
    assert_eq!(host.store.find(&friend), None, "not asked for yet");
    host.import(&friend).await.unwrap();
    assert_eq!((number(), web.requests().len()), (before.0, before.1 + 1));
    assert!(host.names("partial").is_empty());
    // What was given stays given as long as the bytes are here.
    for entry in std::fs::read_dir(host.dir.path().join("sources")).unwrap() {
        age(&entry.unwrap().path(), Duration::from_hours(48));
    }
    host.store.collect(Duration::from_hours(1)).await.unwrap();
    assert_eq!(host.store.find(&friend), Some(stored.clone()));
    assert_eq!(host.store.find(&owned), Some(stored.clone()));
    // A guest whose disk lies over the bytes has them, also when that is not known any more.
    std::fs::remove_dir_all(host.dir.path().join("sources")).unwrap();
    assert_eq!(host.store.find(&owned), None);
    assert_eq!(host.store.find_for_disk(&owned), Some(stored));
}

#[tokio::test]
async fn a_url_that_has_given_other_bytes_since_still_stands_for_those_that_were_fixed() {
    let (web, host) = (Web::start().await, host());
    let (old, new) = (noise(53, MIB), noise(54, MIB));
    let sum = |bytes: &[u8]| format!("sha512:{}", hex::encode(Sha512::digest(bytes)));
    let of = |bytes: &[u8]| Request {
        checksum: None,
        ..raw("https://example.org/x".into(), sum(bytes))
    };
    // By a file, which needs no checksum.
    let root = tempfile::tempdir().unwrap();
    let policy = FetchPolicy {
        file_root: Some(root.path().to_owned()),
        ..policy()
    };
    let store = ImageStore::open(host.dir.path(), policy).unwrap();
    let path = root.path().join("x");
    let ask = Request {
        url: format!("file://{}", path.display()),
        ..of(&old)
    };
    let progress = DownloadProgress::default();
    for bytes in [&old, &new] {
        std::fs::write(&path, bytes).unwrap();
        store.import(&ask, &progress).await.unwrap();
        for entry in std::fs::read_dir(host.dir.path().join("sources")).unwrap() {
            age(&entry.unwrap().path(), Duration::from_hours(2));
        }
    }
    for bytes in [&old, &new] {
        let fixed = Request {
            digest: Some(sha256(bytes)),
            ..ask.clone()
        };
        assert_eq!(store.find(&fixed).unwrap().digest, sha256(bytes));
    }
    let never = Request {
        digest: Some(sha256(b"never given")),
        ..ask
    };
    let error = store.import(&never, &progress).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    drop(web);
}

// ---------------------------------------------------------------- what is in it

#[tokio::test]
async fn hostile_and_mistaken_images_are_refused_with_what_they_are() {
    let (web, host) = (Web::start().await, host());
    let secret = host.dir.path().join("secret");
    std::fs::write(&secret, noise(7, MIB)).unwrap();
    let secret = secret.to_str().unwrap();
    let backed = made("qcow2", &["-F", "raw", "-b", secret], "2M");
    let data = host.dir.path().join("data");
    let data_file = format!("data_file={}", data.display());
    let data = made("qcow2", &["-o", &data_file], "2M");
    let qcow2 = made("qcow2", &[], "2M");
    let mut future = qcow2.clone();
    future[79] |= 0x80;
    let page = b"\n<!DOCTYPE html><html>Sign in</html>".to_vec();
    let cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        ("backed", "qcow2", backed.clone(), "backing file"),
        ("backed-raw", "raw", backed, "qcow2 header"),
        ("data", "qcow2", data, "data file"),
        ("as-raw", "raw", qcow2.clone(), "qcow2 header"),
        ("page", "qcow2", page.clone(), "web page"),
        ("page-raw", "raw", page, "web page"),
        ("noise", "qcow2", noise(8, MIB), "no qcow2 header"),
        ("cut", "qcow2", qcow2[..20].to_vec(), "cut short"),
        ("future", "qcow2", future, "qemu-img says"),
        ("empty", "raw", vec![], "empty"),
        ("gz", "raw", b"\x1f\x8b\x08more".to_vec(), "gzip"),
        ("vmdk", "raw", made("vmdk", &[], "2M"), "vmdk"),
        ("vdi", "raw", made("vdi", &[], "2M"), "vdi"),
        ("vdi-said", "vdi", made("vdi", &[], "2M"), "vdi"),
    ];
    for (name, format, bytes, says) in cases {
        web.put(name, bytes.clone());
        let request = Request {
            content: Content::Disk(format.into()),
            ..raw(web.url(&format!("ok/{name}")), sha256(&bytes))
        };
        let error = host.import(&request).await.unwrap_err();
        assert!(error.is_terminal(), "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
    }
    assert!(host.names("images").is_empty() && host.names("partial").is_empty());
    web.put("good", qcow2.clone());
    let good = Request {
        content: Content::Disk("qcow2".into()),
        ..raw(web.url("ok/good"), sha256(&qcow2))
    };
    assert_eq!(host.import(&good).await.unwrap().virtual_size, 2 << 20);
}

#[tokio::test]
async fn the_same_bytes_may_be_a_kernel_and_a_disk() {
    let (web, host) = (Web::start().await, host());
    let bytes = noise(9, MIB);
    web.put("a", bytes.clone());
    let disk = raw(web.url("ok/a"), sha256(&bytes));
    let sum = format!("sha512:{}", hex::encode(Sha512::digest(&bytes)));
    let blob = Request {
        content: Content::Blob,
        ..raw(web.url("ok/a"), sum)
    };
    host.import(&blob).await.unwrap();
    assert_eq!(host.store.find(&disk), None, "never probed");
    host.import(&disk).await.unwrap();
    std::fs::remove_dir_all(host.dir.path().join("sources")).unwrap();
    std::fs::create_dir(host.dir.path().join("sources")).unwrap();
    host.import(&blob).await.unwrap();
    assert!(host.store.find_for_disk(&disk).is_some(), "a probed disk");
}

// ---------------------------------------------------------------- crashes, two at once

#[tokio::test(flavor = "multi_thread")]
async fn two_imports_at_once_fetch_once() {
    let (web, host) = (Web::start().await, host());
    let bytes = noise(10, MIB);
    web.put("a", bytes.clone());
    let request = raw(web.url("slow/a"), sha256(&bytes));
    let other = ImageStore::open(host.dir.path(), policy()).unwrap();
    let (progress, others) = (DownloadProgress::default(), DownloadProgress::default());
    let (a, b) = tokio::join!(
        host.store.import(&request, &progress),
        other.import(&request, &others)
    );
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(web.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_cancelled_leaves_nothing_visible_and_goes_on() {
    let (web, host) = (Web::start().await, host());
    let bytes = noise(11, 4 * MIB);
    web.put("a", bytes.clone());
    let request = raw(web.url("slow/a"), sha256(&bytes));
    for round in 1..4 {
        let (store, ask) = (host.store.clone(), request.clone());
        let task =
            tokio::spawn(async move { store.import(&ask, &DownloadProgress::default()).await });
        let enough = round * (512 << 10);
        // Also its own request: what the server still sent for the last one counts as well.
        let begun = || web.requests().len() >= round;
        while web.files.slow.load(Ordering::Relaxed) < enough || !begun() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        task.abort();
        let _ = task.await;
        assert!(host.store.find(&request).is_none() && host.names("images").is_empty());
    }
    let stored = host.import(&request).await.unwrap();
    let found = std::fs::read(host.store.path(&stored.digest)).unwrap();
    assert_eq!(sha256(&found), sha256(&bytes));
    assert!(web.requests()[3].1.is_some(), "the last one went on");
}

const CHILD: &str = "PILEUS_STORAGE_CHILD";

/// Run in a process of its own by the test below.
#[tokio::test]
async fn child_that_imports() {
    let Ok(ask) = std::env::var(CHILD) else {
        return;
    };
    let parts: Vec<_> = ask.split_whitespace().collect();
    let store = ImageStore::open(Path::new(parts[0]), policy()).unwrap();
    let request = raw(parts[1].into(), parts[2].into());
    let _ = store.import(&request, &DownloadProgress::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_leaves_a_download_to_go_on_with_and_no_lock() {
    let (web, host) = (Web::start().await, host());
    let bytes = noise(12, 4 * MIB);
    web.put("a", bytes.clone());
    let (url, sum) = (web.url("slow/a"), sha256(&bytes));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "storage::child_that_imports"])
        .env(CHILD, format!("{} {url} {sum}", host.dir.path().display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while web.files.slow.load(Ordering::Relaxed) < MIB {
        assert!(started.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let request = raw(url, sum);
    assert!(host.store.find(&request).is_none());
    host.import(&request).await.unwrap();
    let seen = web.requests();
    assert_eq!(seen.len(), 2);
    assert!(seen[1].1.is_some(), "went on: {seen:?}");
}

// ---------------------------------------------------------------- disks

async fn with_image(host: &Host, web: &Web, seed: u8) -> (StoredImage, Request) {
    let bytes = noise(seed, MIB);
    let name = format!("image-{seed}");
    web.put(&name, bytes.clone());
    let request = raw(web.url(&format!("ok/{name}")), sha256(&bytes));
    (host.import(&request).await.unwrap(), request)
}

#[tokio::test]
async fn a_disk_is_an_overlay_of_the_size_asked_for_and_made_once() {
    let (web, host) = (Web::start().await, host());
    let (image, _) = with_image(&host, &web, 20).await;
    let id = Uuid::from_u128(1);
    let make = |size| {
        let (disks, store, image) = (host.disks.clone(), host.store.clone(), image.clone());
        async move {
            disks
                .create(&store, id, &metadata("web"), &image, size)
                .await
        }
    };
    let error = make(MIB as u64 - 512).await.unwrap_err();
    assert!(matches!(error, Error::ImageTooLarge { .. }) && error.is_terminal());
    assert!(error.to_string().contains("1048576") && error.to_string().contains("1048064"));
    assert!(
        !host.disks.contents(id).directory,
        "nothing is made in vain"
    );
    // A process that died while it made the disk.
    std::fs::create_dir_all(host.disks.directory(id)).unwrap();
    std::fs::write(host.disks.directory(id).join("disk.new"), b"QFI\xfb").unwrap();
    make(8 << 20).await.unwrap();
    let disk = host.disks.root_disk(id);
    let written = std::fs::metadata(&disk).unwrap().modified().unwrap();
    make(8 << 20).await.unwrap();
    assert_eq!(
        std::fs::metadata(&disk).unwrap().modified().unwrap(),
        written
    );
    let info = Command::new("qemu-img")
        .args(["info", "--output=json"])
        .arg(&disk)
        .output()
        .unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["virtual-size"], 8 << 20);
    assert_eq!(info["backing-filename-format"], "raw");
    assert_eq!(
        info["backing-filename"].as_str().map(PathBuf::from),
        Some(host.store.path(&image.digest))
    );
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        path.metadata().unwrap().permissions().mode() & 0o7777
    };
    assert_eq!(mode(&disk), 0o600);
    assert_eq!(mode(&host.store.path(&image.digest)), 0o440);
    assert_eq!(mode(&host.dir.path().join("images")), 0o711);
    host.disks.write_config_drive(id, b"one").unwrap();
    host.disks.write_config_drive(id, b"two").unwrap();
    let drive = host.disks.config_drive(id);
    assert_eq!(std::fs::read(&drive).unwrap(), b"one", "written once");
    assert_eq!(mode(&drive), 0o600);
    assert_eq!(host.disks.list(), vec![(id, Some(metadata("web")))]);
    host.disks.remove(id).unwrap();
    host.disks.remove(id).unwrap();
    assert!(host.disks.list().is_empty());
    let space = host.disks.space().unwrap();
    assert!(space.total >= space.available && space.available > 0);
}

#[tokio::test]
async fn another_disk_in_its_place_is_told_and_kept() {
    let (web, host) = (Web::start().await, host());
    let (image, _) = with_image(&host, &web, 21).await;
    let (other, _) = with_image(&host, &web, 22).await;
    let size = 8 << 20;
    let (id, ours) = (Uuid::from_u128(4), metadata("web"));
    let disk = host.disks.root_disk(id);
    let create = async |image: &StoredImage, size| {
        let host = &host;
        host.disks.create(&host.store, id, &ours, image, size).await
    };
    let refused = async |says: &str| {
        let before = std::fs::read(&disk).ok();
        let error = create(&image, size).await.unwrap_err();
        assert!(matches!(error, Error::WrongDisk { .. }) && error.is_terminal());
        let text = error.to_string();
        assert!(text.contains(says), "{text}");
        assert!(text.contains(&disk.display().to_string()), "{text}");
        assert_eq!(std::fs::read(&disk).ok(), before, "untouched");
        assert_eq!(
            host.disks.contents(id).metadata,
            None,
            "not taken for our own"
        );
    };
    std::fs::create_dir_all(host.disks.directory(id)).unwrap();
    std::fs::write(&disk, b"").unwrap();
    refused("no qcow2").await;
    std::fs::write(&disk, b"QFI\xfb").unwrap();
    refused("cut short").await;
    std::fs::remove_file(&disk).unwrap();
    std::os::unix::fs::symlink("/nowhere", &disk).unwrap();
    refused("no regular file").await;
    std::fs::remove_file(&disk).unwrap();
    let qemu_img = |args: &[&str]| {
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .args(args)
            .arg(&disk)
            .arg("8M")
            .status();
        assert!(made.unwrap().success());
    };
    qemu_img(&[]);
    refused("over no image").await;
    let below = host.store.path(&other.digest).display().to_string();
    qemu_img(&["-F", "raw", "-b", &below]);
    refused(&below).await;
    std::fs::remove_file(&disk).unwrap();

    // Moved away, the right one is made; one of another size is none of it either.
    create(&image, 4 << 20).await.unwrap();
    let error = create(&image, size).await.unwrap_err().to_string();
    assert!(
        error.contains("4194304") && error.contains("8388608"),
        "{error}"
    );
    create(&image, 4 << 20).await.unwrap();
}

// ---------------------------------------------------------------- collection

#[tokio::test]
async fn only_what_nothing_needs_is_collected() {
    let (web, host) = (Web::start().await, host());
    let (used, _) = with_image(&host, &web, 30).await;
    let (kernel, _) = with_image(&host, &web, 31).await;
    let (idle, request) = with_image(&host, &web, 32).await;
    let metadata = DirectoryMetadata {
        uses: vec![kernel.digest.clone()],
        ..metadata("web")
    };
    let id = Uuid::from_u128(2);
    let made = host
        .disks
        .create(&host.store, id, &metadata, &used, 0)
        .await;
    made.unwrap();
    let hour = Duration::from_hours(1);
    assert!(host.store.collect(hour).await.unwrap().is_empty(), "young");
    for image in [&used, &kernel, &idle] {
        age(&host.store.path(&image.digest), 2 * hour);
    }
    // The state directory is known by another path since.
    let link = host.dir.path().join("link");
    std::os::unix::fs::symlink(host.dir.path(), &link).unwrap();
    let moved = ImageStore::open(&link, policy()).unwrap();
    assert_eq!(moved.collect(hour).await.unwrap(), vec![idle.digest]);
    assert_eq!(host.store.find(&request), None);
    // A disk or metadata that cannot be read keep everything.
    for (name, bytes) in [("disk.qcow2", &b"QFI\xfb"[..]), ("marks.json", b"{")] {
        let path = host.disks.directory(id).join(name);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        host.store.collect(Duration::ZERO).await.unwrap_err();
        std::fs::write(&path, good).unwrap();
    }
    host.disks.remove(id).unwrap();
    assert_eq!(host.store.collect(Duration::ZERO).await.unwrap().len(), 2);
    assert!(host.names("images").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn collection_never_takes_the_image_of_a_disk_being_made() {
    let (web, host) = (Web::start().await, host());
    let (mut made, mut late) = (0, 0);
    for round in 0..24_u128 {
        let (image, _) = with_image(&host, &web, 40).await;
        let id = Uuid::from_u128(100 + round);
        let metadata = metadata("web");
        let collect = async {
            tokio::time::sleep(Duration::from_millis(u64::try_from(round % 4).unwrap() * 4)).await;
            host.store.collect(Duration::ZERO).await.unwrap()
        };
        let (disk, _) = tokio::join!(
            host.disks.create(&host.store, id, &metadata, &image, 0),
            collect
        );
        match disk {
            Ok(()) => {
                made += 1;
                assert!(host.store.path(&image.digest).is_file());
            }
            // Collected before: reported, and fetched again.
            Err(Error::DownloadFailed { .. }) => late += 1,
            Err(other) => panic!("{other}"),
        }
        host.disks.remove(id).unwrap();
    }
    println!("{made} disks made, {late} images collected before");
    assert!(made > 0);
}

#[tokio::test]
async fn downloads_that_nobody_goes_on_with_are_removed_unless_one_is_running() {
    let (web, host) = (Web::start().await, host());
    let bytes = noise(13, 2 * MIB);
    web.put("a", bytes.clone());
    let request = raw(web.url("broken/a"), sha256(&bytes));
    host.import(&request).await.unwrap_err();
    host.store.collect(Duration::ZERO).await.unwrap();
    assert_eq!(host.names("partial").len(), 2, "young");
    let partial = host.dir.path().join("partial");
    let two_days = Duration::from_hours(48);
    let all = || std::fs::read_dir(&partial).unwrap().map(|e| e.unwrap());
    all().for_each(|e| age(&e.path(), two_days));
    let lock = all().find(|e| e.path().extension().is_some_and(|x| x == "lock"));
    let lock = std::fs::File::open(lock.unwrap().path()).unwrap();
    lock.lock().unwrap();
    host.store.collect(Duration::ZERO).await.unwrap();
    assert_eq!(all().count(), 3, "one is running");
    lock.unlock().unwrap();
    host.store.collect(Duration::ZERO).await.unwrap();
    assert_eq!(all().count(), 0);
}

// ---------------------------------------------------------------- a full file system

/// A small file system; unmounted when dropped.
struct Small(TempDir);

impl Small {
    fn mount(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .status();
        assert!(done.unwrap().success(), "this test must run as root");
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_file_system_is_told_as_such_and_left_with_room() {
    let (web, small) = (Web::start().await, Small::mount("8m"));
    let dir = small.0.path();
    let store = ImageStore::open(dir, policy()).unwrap();
    let progress = DownloadProgress::default();
    // Known beforehand: nothing is written at all.
    let big = noise(14, 9 * MIB);
    web.put("big", big.clone());
    let request = raw(web.url("ok/big"), sha256(&big));
    let error = store.import(&request, &progress).await.unwrap_err();
    assert!(
        matches!(error, Error::NoSpace(_)) && !error.is_terminal(),
        "{error}"
    );
    assert!(error.to_string().contains("9437184"), "{error}");
    // Not known beforehand: found while writing, and what was written goes.
    let endless = raw(web.url("endless/x"), sha256(b""));
    let error = store.import(&endless, &progress).await.unwrap_err();
    assert!(matches!(error, Error::NoSpace(_)), "{error}");
    let free = Disks::new(dir).space().unwrap().available;
    assert!(free > 7 * MIB as u64, "{free} bytes free");
    // A small one still fits; its disk does not, once the rest is full.
    let small = noise(15, MIB);
    web.put("small", small.clone());
    let request = raw(web.url("ok/small"), sha256(&small));
    let image = store.import(&request, &progress).await.unwrap();
    let _ = std::fs::write(dir.join("filler"), vec![1; 8 * MIB]);
    let (disks, id) = (Disks::new(dir), Uuid::from_u128(3));
    let error = disks.create(&store, id, &metadata("web"), &image, 0).await;
    assert!(matches!(error, Err(Error::NoSpace(_))), "{error:?}");
    assert!(!disks.contents(id).disk);
    std::fs::remove_file(dir.join("filler")).unwrap();
    disks
        .create(&store, id, &metadata("web"), &image, 0)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_download_without_a_length_never_takes_what_is_left_for_running_guests() {
    let (web, small) = (Web::start().await, Small::mount("48m"));
    let dir = small.0.path();
    let store = ImageStore::open(dir, policy()).unwrap();
    let progress = DownloadProgress::default();
    let endless = raw(web.url("endless/x"), sha256(b""));
    let usable = Disks::new(dir).space().unwrap().usable();
    let error = store.import(&endless, &progress).await.unwrap_err();
    assert!(matches!(error, Error::NoSpace(_)) && error.is_costly());
    let received = progress.get().0;
    assert!(received < usable, "{received} of {usable} bytes were taken");
    assert!(
        received > usable / 2,
        "it is used as long as there is space"
    );
    // No disk is begun in what is left either.
    let bytes = noise(55, MIB);
    web.put("a", bytes.clone());
    let request = raw(web.url("ok/a"), sha256(&bytes));
    let image = store.import(&request, &progress).await.unwrap();
    let left = Disks::new(dir).space().unwrap().usable();
    std::fs::write(dir.join("filler"), vec![1; usize::try_from(left).unwrap()]).unwrap();
    let (disks, id) = (Disks::new(dir), Uuid::from_u128(9));
    let error = disks.create(&store, id, &metadata("web"), &image, 0).await;
    assert!(matches!(error, Err(Error::NoSpace(_))), "{error:?}");
    assert!(Disks::new(dir).space().unwrap().available > MIB as u64);
}
