//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// A unicast Ethernet address, shown in lower case with colons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

/// Why a text is no usable Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six pairs of hexadecimal digits with colons between them.
    #[error("`{0}` is not an Ethernet address; write it as fa:16:3e:00:00:01")]
    Malformed(String),
    /// Group addresses cannot belong to one port.
    #[error("`{0}` is a multicast address; the first byte must be even")]
    Multicast(String),
    /// All zeros stands for "none" in many guests.
    #[error("the Ethernet address of all zeros cannot be used")]
    Zero,
}

impl Mac {
    /// An address below OpenStack's prefix `fa:16:3e`, derived from `seed`; `attempt`
    /// picks another one when the first is taken.
    #[must_use]
    pub fn derive(seed: &str, attempt: u32) -> Self {
        let hash = Sha256::digest(format!("{seed}/{attempt}").as_bytes());
        Self([0xfa, 0x16, 0x3e, hash[0], hash[1], hash[2]])
    }

    /// The six bytes.
    #[must_use]
    pub fn octets(&self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let malformed = || MacError::Malformed(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(malformed)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        if bytes[0] & 1 == 1 {
            return Err(MacError::Multicast(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_any_case_and_shown_in_lower_case() {
        assert_eq!(
            "FA:16:3e:00:0A:ff".parse::<Mac>().unwrap().to_string(),
            "fa:16:3e:00:0a:ff"
        );
    }

    #[test]
    fn unusable_addresses_are_refused_with_the_reason() {
        assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::Zero));
        assert!(matches!(
            "01:00:5e:00:00:01".parse::<Mac>(),
            Err(MacError::Multicast(_))
        ));
        for text in [
            "",
            "fa:16:3e:00:00",
            "fa:16:3e:00:00:01:02",
            "fa-16-3e-00-00-01",
            "fa:16:3e:0:0:1",
            "gg:16:3e:00:00:01",
            "+a:16:3e:00:00:01",
        ] {
            assert!(
                matches!(text.parse::<Mac>(), Err(MacError::Malformed(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn derived_addresses_are_stable_and_vary_by_attempt() {
        assert_eq!(Mac::derive("p", 0), Mac::derive("p", 0));
        assert_ne!(Mac::derive("p", 0), Mac::derive("p", 1));
        assert!(Mac::derive("p", 0).to_string().starts_with("fa:16:3e:"));
    }
}
