//! TLS to a real `ovsdb-server`, and what a host's certificate may do in the Southbound database.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::ovn::{desired, nothing, port_name, token, topology};
use super::ovn_hosts::wait_bound;
use pileus_network::northbound::{Northbound, NorthboundDb};
use pileus_network::ovsdb::{ConnectionState, Endpoint, Options, Tls, View};
use pileus_tests::chassis::Chassis;
use pileus_tests::ovn::Ovn;

/// An authority with the certificates that it has signed, in a directory of its own.
struct Authority(PathBuf);

impl Authority {
    fn new(ovn: &Ovn, name: &str) -> Self {
        let dir = ovn.path(name);
        std::fs::create_dir(&dir).unwrap();
        let own = Self(dir);
        let subject = format!("/CN={name}");
        let args = [
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ];
        let files = ["-subj", &subject, "-keyout", "ca.key", "-out", "ca.crt"];
        own.openssl(&[&args as &[_], &files].concat());
        own
    }

    fn openssl(&self, args: &[&str]) {
        let done = Command::new("openssl")
            .current_dir(&self.0)
            .args(args)
            .output();
        let done = done.expect("openssl");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    /// Signs a certificate for a common name, and for an address when one is given.
    fn sign(&self, name: &str, address: Option<&str>) -> Tls {
        let file = |suffix: &str| format!("{name}.{suffix}");
        let (key, request, certificate) = (file("key"), file("csr"), file("crt"));
        let subject = format!("/CN={name}");
        let args = [
            "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", &subject,
        ];
        self.openssl(&[&args as &[_], &["-keyout", &key, "-out", &request]].concat());
        let names = address.map_or_else(|| format!("DNS:{name}"), |a| format!("IP:{a}"));
        let extensions = file("ext");
        std::fs::write(
            self.0.join(&extensions),
            format!("extendedKeyUsage=clientAuth,serverAuth\nsubjectAltName={names}\n"),
        )
        .unwrap();
        let args = [
            "x509", "-req", "-in", &request, "-CA", "ca.crt", "-CAkey", "ca.key",
        ];
        let files = [
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ];
        self.openssl(&[&args as &[_], &files].concat());
        Tls {
            private_key: self.0.join(key),
            certificate: self.0.join(certificate),
            ca_certificate: self.0.join("ca.crt"),
        }
    }
}

fn files(tls: &Tls) -> [String; 3] {
    [&tls.private_key, &tls.certificate, &tls.ca_certificate].map(|file| file.display().to_string())
}

fn connect(port: u16, tls: Option<Tls>) -> Northbound {
    let endpoint = Endpoint::Ssl {
        host: "127.0.0.1".into(),
        port,
    };
    let options = Options {
        tls,
        ..Options::default()
    };
    Northbound::start(vec![endpoint], options)
}

/// Why there is no connection.
async fn refused(northbound: &Northbound) -> String {
    let mut watch = northbound.watch();
    let why = watch.wait_for(|view| match &view.state {
        ConnectionState::Disconnected { reason } => reason != "still connecting",
        ConnectionState::Connected => true,
    });
    let view = tokio::time::timeout(Duration::from_secs(20), why)
        .await
        .unwrap()
        .unwrap();
    match &view.state {
        ConnectionState::Disconnected { reason } => reason.clone(),
        ConnectionState::Connected => panic!("it is connected"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_peers_of_the_same_authority_with_the_right_name_talk() {
    let ovn = Ovn::start();
    let (good, bad) = (Authority::new(&ovn, "good"), Authority::new(&ovn, "bad"));
    let port = ovn.listen_tls("nb", &files(&good.sign("nb", Some("127.0.0.1"))));
    let client = good.sign("manager", None);
    let nb = connect(port, Some(client.clone()));
    let mut watch = nb.watch();
    let connected = watch.wait_for(View::is_connected);
    drop(
        tokio::time::timeout(Duration::from_secs(20), connected)
            .await
            .unwrap()
            .unwrap(),
    );
    let token = token("a");
    nb.claim(&token).await.unwrap();
    nb.apply(&token, &desired(&topology(100)), &nothing())
        .await
        .unwrap();
    assert_eq!(nb.view().replica.len("Logical_Switch_Port"), 100);

    let stranger = bad.sign("manager", None);
    // The server is not who it should be, by our authority.
    let distrusting = Tls {
        ca_certificate: stranger.ca_certificate.clone(),
        ..client.clone()
    };
    let why = refused(&connect(port, Some(distrusting))).await;
    assert!(why.contains("UnknownIssuer"), "{why}");
    // We are not who we should be, by the server's.
    let untrusted = Tls {
        ca_certificate: client.ca_certificate.clone(),
        ..stranger
    };
    let untrusted = connect(port, Some(untrusted));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        !untrusted.view().is_connected(),
        "{}",
        refused(&untrusted).await
    );
    // A host's certificate does not make it the database.
    let host = ovn.listen_tls("sb", &files(&good.sign("h1", None)));
    let why = refused(&connect(host, Some(client.clone()))).await;
    assert!(why.contains("not valid for name"), "{why}");

    let why = refused(&connect(port, None)).await;
    assert!(why.contains("needs a private key"), "{why}");
    let missing = Tls {
        private_key: "/nonexistent/key".into(),
        ..client
    };
    let why = refused(&connect(port, Some(missing))).await;
    assert!(why.contains("/nonexistent/key cannot be read"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_may_not_write_what_is_another_hosts() {
    let ovn = Ovn::start();
    let authority = Authority::new(&ovn, "authority");
    let port = ovn.listen_tls("sb", &files(&authority.sign("sb", Some("127.0.0.1"))));
    let southbound = format!("ssl:127.0.0.1:{port}");
    let hosts = [1_u8, 2].map(|number| {
        let name = format!("h{number}");
        let certificate = files(&authority.sign(&name, None));
        let ssl = [0, 1, 2].map(|n: usize| certificate[n].as_str());
        let chassis = Chassis::start(&ovn, &name, number, &southbound, Some(ssl));
        (chassis, certificate)
    });
    // With the role, each host makes its own chassis.
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while ovn
        .sbctl(&["--bare", "--columns=name", "list", "Chassis"])
        .split_whitespace()
        .count()
        < 2
    {
        assert!(std::time::Instant::now() < until, "{}", hosts[0].0.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The role suffices for a guest's port.
    let nb = ovn.connect().await;
    let token = token("a");
    nb.claim(&token).await.unwrap();
    nb.apply(&token, &desired(&topology(1)), &nothing())
        .await
        .unwrap();
    hosts[0].0.plug(&port_name(0));
    wait_bound(&ovn, &port_name(0), "h1").await;
    let write = |[key, certificate, ca]: &[String; 3], args: &[&str]| {
        let done = Command::new("ovn-sbctl")
            .args([&format!("--db={southbound}"), "--timeout=10"])
            .args(["-p", key, "-c", certificate, "-C", ca])
            .args(args)
            .output()
            .unwrap();
        (
            done.status.success(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    let (done, error) = write(&hosts[0].1, &["set", "Chassis", "h1", "external_ids:x=1"]);
    assert!(done, "{error}");
    for forbidden in [
        ["set", "Chassis", "h2", "external_ids:x=1"],
        ["set", "SB_Global", ".", "external_ids:x=1"],
    ] {
        let (done, error) = write(&hosts[0].1, &forbidden);
        assert!(
            !done && error.contains("permission error"),
            "{forbidden:?}: {error}"
        );
    }
    let (done, _) = write(&hosts[0].1, &["destroy", "Chassis", "h2"]);
    assert!(!done);
}
