//! Connections with TLS: both sides prove who they are by certificates of one CA.
//!
//! The server's certificate has to be for the name or address of its endpoint. Open vSwitch's own
//! clients do not ask for that; but hosts have certificates of the same CA, and none of them may
//! pass for the database.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Error;

/// The files of one side, in PEM; read anew for each connection, so that they may be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Our private key.
    pub private_key: PathBuf,
    /// Our certificate.
    pub certificate: PathBuf,
    /// The certificate of the CA that the server's is signed by.
    pub ca_certificate: PathBuf,
}

impl Tls {
    /// Makes a connection to `host` one with TLS.
    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Error> {
        let connector = self.connector()?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Error::Tls(format!("`{host}` is no name and no address of a server")))?;
        let connected = connector.connect(name, stream).await;
        connected.map_err(|error| Error::Tls(format!("no TLS with the server: {error}")))
    }

    fn connector(&self) -> Result<TlsConnector, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca_certificate)? {
            roots
                .add(certificate)
                .map_err(|error| unusable(&self.ca_certificate, &error))?;
        }
        let key = PrivateKeyDer::from_pem_file(&self.private_key)
            .map_err(|error| unreadable(&self.private_key, &error))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Tls(error.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&self.certificate)?, key)
            .map_err(|error| unusable(&self.certificate, &error))?;
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found: Vec<_> = read.map_err(|error| unreadable(path, &error))?;
    if found.is_empty() {
        return Err(unusable(path, &"it holds no certificate"));
    }
    Ok(found)
}

fn unreadable(path: &Path, error: &pem::Error) -> Error {
    // The error of a private key's content is not shown.
    let why = match error {
        pem::Error::Io(error) => error.to_string(),
        _ => "it is no file in PEM of that kind".to_owned(),
    };
    Error::Tls(format!("{} cannot be read: {why}", path.display()))
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Tls(format!("{} cannot be used: {why}", path.display()))
}
