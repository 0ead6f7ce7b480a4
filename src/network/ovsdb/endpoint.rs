//! Where a database server listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Address of a database server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket, written `unix:/run/ovn/ovnnb_db.sock`.
    Unix(PathBuf),
    /// A TCP port, written `tcp:192.0.2.1:6641` or `tcp:[2001:db8::1]:6641`.
    Tcp {
        /// Address or name of the host.
        host: String,
        /// The port.
        port: u16,
    },
    /// A TCP port with TLS, written `ssl:192.0.2.1:6641` or `ssl:[2001:db8::1]:6641`.
    Ssl {
        /// Address or name of the host, which its certificate is for.
        host: String,
        /// The port.
        port: u16,
    },
}

/// Why a text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a database endpoint; write unix:PATH, ssl:ADDRESS:PORT or tcp:ADDRESS:PORT")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = || EndpointError(text.to_owned());
        match text.split_once(':').ok_or_else(bad)? {
            ("unix", path) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            (scheme @ ("tcp" | "ssl"), rest) => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
                let port = port.parse().map_err(|_| bad())?;
                let host = match host.strip_prefix('[') {
                    Some(inner) => inner.strip_suffix(']').ok_or_else(bad)?,
                    None if host.contains(':') => return Err(bad()),
                    None => host,
                };
                if host.is_empty() || port == 0 {
                    return Err(bad());
                }
                let host = host.to_owned();
                Ok(match scheme {
                    "ssl" => Self::Ssl { host, port },
                    _ => Self::Tcp { host, port },
                })
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Unix(path) => return write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } => ("tcp", host, port),
            Self::Ssl { host, port } => ("ssl", host, port),
        };
        if host.contains(':') {
            write!(f, "{scheme}:[{host}]:{port}")
        } else {
            write!(f, "{scheme}:{host}:{port}")
        }
    }
}

/// Reads a list of endpoints with commas between them, as `ovn-nbctl --db` reads it; the
/// members of a cluster, tried in turn.
///
/// # Errors
/// Names the part that is no endpoint.
pub fn parse_endpoints(text: &str) -> Result<Vec<Endpoint>, EndpointError> {
    text.split(',').map(|part| part.trim().parse()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_shown_the_same() {
        for text in [
            "unix:/run/nb.sock",
            "tcp:192.0.2.1:6641",
            "tcp:[2001:db8::1]:6641",
            "tcp:nb:1",
            "ssl:192.0.2.1:6641",
            "ssl:[2001:db8::1]:6641",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!(parse_endpoints("tcp:a:1, tcp:b:2").unwrap().len(), 2);
    }

    #[test]
    fn malformed_endpoints_are_refused() {
        for text in [
            "",
            "unix:",
            "tcp:host",
            "tcp::6641",
            "tcp:h:0",
            "tcp:2001:db8::1:6641",
            "ssl:h",
            "tls:h:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
