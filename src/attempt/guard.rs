//! Which addresses may be dialled for a client: public ones, and those that the operator lists. Everything else could be
//! a service that trusts whoever is inside the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::settings::ImageHost;

/// Decides about hosts that clients name.
#[derive(Debug)]
pub(super) struct Guard {
    listed: Vec<ImageHost>,
}

impl Guard {
    /// Admits public addresses and listed hosts.
    pub(super) fn new(listed: Vec<ImageHost>) -> Self {
        Self { listed }
    }

    /// Whether the operator lists this host; IPv6 addresses stand without brackets.
    pub(super) fn lists(&self, host: &str, port: u16) -> bool {
        self.listed.iter().any(|entry| entry.host.eq_ignore_ascii_case(host) && entry.port.is_none_or(|listed| listed == port))
    }

    /// Whether a host that resolved to these addresses may be dialled. One address inside spoils those outside.
    pub(super) fn admits(&self, host: &str, port: u16, addresses: &[SocketAddr]) -> bool {
        self.lists(host, port) || addresses.iter().all(|address| is_public(address.ip()))
    }
}

/// The guard does not let a host be dialled.
#[derive(Debug, thiserror::Error)]
#[error("the host has no public address")]
pub(super) struct NotPublic;

/// Whether an address is on the public internet. Source: the IANA special-purpose address registries, read 2026-11-24.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    // The services of a machine on Azure.
    const WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
    let [a, b, c, _] = address.octets();
    let is_special = match a {
        // This network, private, loopback; multicast and reserved.
        0 | 10 | 127 | 224..=255 => true,
        // Shared by carriers.
        100 => b & 0xc0 == 64,
        // Link-local, with the metadata servers of most clouds.
        169 => b == 254,
        172 => b & 0xf0 == 16,
        // Protocol assignments, documentation, 6to4 relays, private.
        192 => matches!((b, c), (0, 0 | 2) | (88, 99) | (168, _)),
        // Benchmarks and documentation.
        198 => matches!((b, c), (18 | 19, _) | (51, 100)),
        203 => (b, c) == (0, 113),
        _ => false,
    };
    !is_special && address != WIRE_SERVER
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // What a translator of IPv6-only networks stands in for.
    if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = segments {
        return is_public_v4(embedded(high, low));
    }
    match segments {
        // Protocol assignments, among them tunnels; documentation.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        // 6to4.
        [0x2002, ..] => false,
        // Documentation.
        [0x3fff, second, ..] if second < 0x1000 => false,
        // All that is global unicast. Mapped, private, link-local and multicast addresses are outside.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

fn embedded(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_public() {
        for inside in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.1.2.3",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::808:808",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "1.1.1.1",
            "8.8.8.8",
            "11.0.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "169.253.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.1.1",
            "198.20.0.1",
            "203.0.112.1",
            "223.255.255.255",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn a_host_is_refused_for_one_private_address_unless_it_is_listed() {
        let guard = Guard::new(vec![
            ImageHost { host: "images.internal".into(), port: None },
            ImageHost { host: "10.0.0.1".into(), port: Some(8_080) },
        ]);
        let at = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let (public, private) = (at("1.1.1.1:443"), at("10.0.0.1:443"));
        assert!(guard.admits("example.com", 443, &[public]));
        assert!(!guard.admits("example.com", 443, &[public, private]));
        assert!(guard.admits("Images.internal", 1, &[private]));
        assert!(!guard.admits("x.images.internal", 1, &[private]));
        assert!(guard.admits("10.0.0.1", 8_080, &[private]));
        assert!(!guard.admits("10.0.0.1", 443, &[private]));
    }
}
