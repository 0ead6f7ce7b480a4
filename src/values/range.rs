//! Ranges of IP addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An inclusive range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// The address as a number; families keep apart by [`IpAddr::is_ipv4`].
#[must_use]
pub fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn from_number(number: u128, v4: bool) -> IpAddr {
    if v4 {
        // Callers stay inside a range of the family, so nothing is cut off.
        IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)))
    } else {
        IpAddr::V6(Ipv6Addr::from(number))
    }
}

impl AddressRange {
    /// A range from `first` to `last`; `None` when they are of two families or in the
    /// wrong order.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The addresses of `net` that hosts can have: without network and broadcast
    /// address in IPv4 (below /31), without the subnet-router anycast address in IPv6.
    #[must_use]
    pub fn hosts(net: IpNet) -> Self {
        let (mut first, mut last) = (to_number(net.network()), to_number(net.broadcast()));
        let v4 = matches!(net, IpNet::V4(_));
        let bits = net.max_prefix_len() - net.prefix_len();
        if bits >= 2 {
            first += 1;
            if v4 {
                last -= 1;
            }
        }
        Self {
            first: from_number(first, v4),
            last: from_number(last, v4),
        }
    }

    /// First address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Last address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether `address` lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    /// Number of addresses; saturates for the whole of IPv6.
    #[must_use]
    pub fn len(&self) -> u128 {
        (to_number(self.last) - to_number(self.first)).saturating_add(1)
    }

    /// Never true: a range holds at least one address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The address at `index`, counted from the first; `None` past the end.
    #[must_use]
    pub fn nth(&self, index: u128) -> Option<IpAddr> {
        let number = to_number(self.first).checked_add(index)?;
        (number <= to_number(self.last)).then(|| from_number(number, self.first.is_ipv4()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(net: &str) -> (String, String) {
        let range = AddressRange::hosts(net.parse().unwrap());
        (range.first().to_string(), range.last().to_string())
    }

    #[test]
    fn network_and_broadcast_addresses_are_no_hosts() {
        assert_eq!(
            hosts("10.0.0.0/24"),
            ("10.0.0.1".into(), "10.0.0.254".into())
        );
        assert_eq!(hosts("10.0.0.0/31"), ("10.0.0.0".into(), "10.0.0.1".into()));
        assert_eq!(hosts("10.0.0.7/32"), ("10.0.0.7".into(), "10.0.0.7".into()));
        assert_eq!(hosts("fd00::/126"), ("fd00::1".into(), "fd00::3".into()));
    }

    #[test]
    fn ranges_count_and_index() {
        let range = AddressRange::hosts("10.0.0.0/29".parse().unwrap());
        assert_eq!(range.len(), 6);
        assert_eq!(range.nth(5), Some(range.last()));
        assert_eq!(range.nth(6), None);
        assert!(!range.contains("fd00::1".parse().unwrap()));
        assert!(AddressRange::new(range.last(), range.first()).is_none());
    }
}
