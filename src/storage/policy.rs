//! What may be fetched: no loopback, link-local, private or cluster addresses unless the
//! configuration allows them, `http://` only with a checksum, `file://` only below one
//! directory. Pure, except that a file's real path is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use reqwest::Url;

use super::{Error, Limits};

/// The rules of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchPolicy {
    /// Addresses that are allowed although they are not public.
    pub allow: Vec<IpNet>,
    /// Directory that `file://` URLs must lie below; none are allowed when absent.
    pub file_root: Option<PathBuf>,
    /// How much and how slowly.
    pub limits: Limits,
}

/// Where bytes come from, once the URL has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file of the host.
    File(PathBuf),
    /// A web server.
    Web(Url),
}

/// The URL without the parts that may be secret: user, password, query, fragment.
#[must_use]
pub fn redact(url: &str) -> String {
    match Url::parse(url) {
        Ok(mut parsed) => {
            // These fail only for URLs that have no such part.
            let _ = parsed.set_username("");
            let _ = parsed.set_password(None);
            parsed.set_query(None);
            parsed.set_fragment(None);
            parsed.to_string()
        }
        Err(_) => "(not a URL)".to_owned(),
    }
}

impl FetchPolicy {
    /// Checks a URL before anything is looked up.
    ///
    /// # Errors
    /// When the URL breaks a rule; says which.
    pub fn check(&self, url: &str, has_checksum: bool) -> Result<Location, Error> {
        let forbidden = |why: &str| Error::ForbiddenUrl {
            url: redact(url),
            why: why.to_owned(),
        };
        let parsed = Url::parse(url).map_err(|e| forbidden(&format!("it is no URL ({e})")))?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(forbidden("it has credentials in it"));
        }
        match parsed.scheme() {
            "https" => {}
            "http" if has_checksum => {}
            "http" => return Err(forbidden("http:// needs a checksum beside it")),
            "file" => return self.check_file(url, &parsed).map(Location::File),
            other => {
                return Err(forbidden(&format!(
                    "{other}:// is none of https://, http://, file://"
                )));
            }
        }
        // A literal address never goes through the resolver, so it is checked here.
        let literal = match parsed.host() {
            Some(url::Host::Ipv4(a)) => Some(IpAddr::V4(a)),
            Some(url::Host::Ipv6(a)) => Some(IpAddr::V6(a)),
            Some(url::Host::Domain(_)) => None,
            None => return Err(forbidden("it names no host")),
        };
        if let Some(address) = literal
            && !self.allows(address)
        {
            return Err(Error::ForbiddenAddress {
                url: redact(url),
                address,
            });
        }
        Ok(Location::Web(parsed))
    }

    fn check_file(&self, url: &str, parsed: &Url) -> Result<PathBuf, Error> {
        let forbidden = |why: &str| Error::ForbiddenUrl {
            url: url.to_owned(),
            why: why.to_owned(),
        };
        let Some(root) = &self.file_root else {
            return Err(forbidden(
                "this host's configuration allows no file:// URLs",
            ));
        };
        let path = parsed
            .to_file_path()
            .map_err(|()| forbidden("it names no path of this host; write file:///path"))?;
        let missing = |_| Error::NotFound {
            url: url.to_owned(),
            status: "no such file".to_owned(),
        };
        let outside = || forbidden(&format!("it does not lie below {}", root.display()));
        // Checked by its text first, so that the answer reveals nothing of other files.
        if !path.starts_with(root) || path.components().any(|c| c.as_os_str() == "..") {
            return Err(outside());
        }
        let real = path.canonicalize().map_err(missing)?;
        let real_root = root.canonicalize().unwrap_or_else(|_| root.clone());
        if !real.starts_with(&real_root) {
            return Err(outside());
        }
        if !Path::is_file(&real) {
            return Err(forbidden("it is no regular file"));
        }
        Ok(real)
    }

    /// Whether an address may be reached.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = match address {
            IpAddr::V6(a) => embedded_v4(a).map_or(address, IpAddr::V4),
            IpAddr::V4(_) => address,
        };
        self.allow.iter().any(|net| net.contains(&address)) || is_public(address)
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, NAT64 or 6to4.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let from = |hi: u16, lo: u16| Ipv4Addr::from((u32::from(hi) << 16) | u32::from(lo));
    if let Some(mapped) = address.to_ipv4_mapped() {
        Some(mapped)
    } else if s[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        Some(from(s[6], s[7]))
    } else if s[0] == 0x2002 {
        Some(from(s[1], s[2]))
    } else {
        None
    }
}

/// Whether an address is one of the public Internet: by IANA's special-purpose registries.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let [x, y, z, _] = a.octets();
            !(x == 0
                || x >= 224
                || a.is_loopback()
                || a.is_private()
                || a.is_link_local()
                || a.is_documentation()
                || (x == 100 && (64..128).contains(&y))
                || (x == 192 && y == 0 && z == 0)
                || (x == 198 && (y == 18 || y == 19)))
        }
        // Global unicast is 2000::/3; documentation lies inside it.
        IpAddr::V6(a) => {
            let s = a.segments();
            (s[0] & 0xe000) == 0x2000
                && !(s[0] == 0x2001 && (s[1] == 0x0db8 || s[1] < 0x0200))
                && !(s[0] == 0x3fff && s[1] < 0x1000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(address: &str) -> bool {
        FetchPolicy::default().allows(address.parse().unwrap())
    }

    #[test]
    fn only_public_addresses_are_allowed() {
        for address in ["1.1.1.1", "93.184.216.34", "2606:4700::1111"] {
            assert!(allowed(address), "{address}");
        }
        for address in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "2001:db8::1",
        ] {
            assert!(!allowed(address), "{address}");
        }
    }

    #[test]
    fn the_configuration_can_allow_more() {
        let policy = FetchPolicy {
            allow: vec!["127.0.0.0/8".parse().unwrap()],
            ..FetchPolicy::default()
        };
        assert!(policy.allows("127.0.0.1".parse().unwrap()));
        assert!(policy.allows("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!policy.allows("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn urls_are_checked_by_scheme_and_credentials() {
        let policy = FetchPolicy::default();
        assert!(policy.check("https://example.org/x", false).is_ok());
        assert!(policy.check("http://example.org/x", true).is_ok());
        for (url, sum) in [
            ("http://example.org/x", false),
            ("ftp://example.org/x", true),
            ("https://user:secret@example.org/", true),
            ("file:///etc/passwd", true),
            ("nonsense", true),
        ] {
            let error = policy.check(url, sum).unwrap_err();
            assert!(matches!(error, Error::ForbiddenUrl { .. }), "{url}");
            assert!(!error.to_string().contains("secret"));
        }
        for url in [
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://2130706433/",
            "https://0x7f.1/",
        ] {
            assert!(
                matches!(policy.check(url, true), Err(Error::ForbiddenAddress { .. })),
                "{url}"
            );
        }
    }

    #[test]
    fn files_must_lie_below_the_directory_also_by_their_real_path() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("images");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("a"), "x").unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("link")).unwrap();
        let policy = FetchPolicy {
            file_root: Some(root.clone()),
            ..FetchPolicy::default()
        };
        let url = |name: &str| format!("file://{}/{name}", root.display());
        assert!(policy.check(&url("a"), false).is_ok());
        for name in ["link", "../secret", "%2e%2e/secret", ""] {
            assert!(
                matches!(
                    policy.check(&url(name), false),
                    Err(Error::ForbiddenUrl { .. })
                ),
                "{name}"
            );
        }
        assert!(matches!(
            policy.check(&url("none"), false),
            Err(Error::NotFound { .. })
        ));
    }

    #[test]
    fn secrets_in_urls_are_never_shown() {
        assert_eq!(redact("https://u:p@h/x?token=t#f"), "https://h/x");
    }
}
