//! Which hosts are reached without a proxy: the rules of `NO_PROXY` as Go has them, and so Docker and podman
//! (<https://pkg.go.dev/golang.org/x/net/http/httpproxy#Config>).
//!
//! Invariant: loopback is never proxied, whatever the list says. An entry that is not understood covers nothing.

use std::net::IpAddr;

use crate::url::Origin;

/// Whether a host is reached directly by such a list.
pub(crate) fn is_direct(list: &str, origin: &Origin) -> bool {
    origin.is_loopback() || list.split(',').any(|entry| covers(&entry.trim().to_ascii_lowercase(), origin))
}

fn covers(entry: &str, origin: &Origin) -> bool {
    if entry == "*" {
        return true;
    }
    let address = origin.address();
    if let Some((network, bits)) = entry.split_once('/') {
        let parsed = network.parse::<IpAddr>().ok().zip(bits.parse::<u32>().ok());
        return parsed.zip(address).is_some_and(|((network, bits), address)| contains(network, bits, address));
    }
    let (host, port) = match entry.rsplit_once(':') {
        // The colons of an IPv6 address that stands without brackets are its own.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (entry, None),
    };
    if port.is_some_and(|port| port.parse() != Ok(origin.port)) {
        return false;
    }
    if let Ok(listed) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return address == Some(listed);
    }
    let name = origin.host.trim_end_matches('.');
    let domain = host.strip_prefix('*').unwrap_or(host);
    match domain.strip_prefix('.') {
        Some(domain) => name.strip_suffix(domain).is_some_and(|rest| !domain.is_empty() && rest.ends_with('.')),
        None => {
            let is_below = |rest: &str| rest.is_empty() || rest.ends_with('.');
            !domain.is_empty() && name.strip_suffix(domain).is_some_and(is_below)
        }
    }
}

fn contains(network: IpAddr, bits: u32, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) if bits <= 32 => {
            let differing = u32::from(network) ^ u32::from(address);
            differing.checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) if bits <= 128 => {
            let differing = u128::from(network) ^ u128::from(address);
            differing.checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url::Url;
    use proptest::prelude::*;

    fn is_direct_to(list: &str, host: &str) -> bool {
        is_direct(list, Url::parse(&format!("https://{host}/")).expect("valid").origin())
    }

    #[test]
    fn hosts_are_left_out_as_go_leaves_them_out() {
        for (list, host) in [
            ("*", "any.example"),
            ("corp.example", "corp.example"),
            ("corp.example", "registry.corp.example:5000"),
            (" other.example , CORP.example", "Registry.corp.example"),
            (".corp.example", "registry.corp.example"),
            ("*.corp.example", "registry.corp.example"),
            ("corp.example:5000", "registry.corp.example:5000"),
            ("10.1.0.0/16", "10.1.2.3:5000"),
            ("10.1.2.3", "10.1.2.3:5000"),
            ("10.1.2.3:5000", "10.1.2.3:5000"),
            ("fd00::/8", "[fd12::1]"),
            ("fd12::1", "[fd12::1]:5000"),
            ("[fd12::1]:5000", "[fd12::1]:5000"),
            ("0.0.0.0/0", "8.8.8.8"),
            ("", "localhost:5000"),
            ("", "a.localhost"),
            ("", "127.0.0.2"),
            ("", "[::1]:5000"),
        ] {
            assert!(is_direct_to(list, host), "{list} {host}");
        }
        for (list, host) in [
            ("", "corp.example"),
            (",", "corp.example"),
            (".", "corp.example"),
            ("corp.example", "mycorp.example"),
            (".corp.example", "corp.example"),
            ("*.corp.example", "corp.example"),
            ("corp.example:5000", "corp.example"),
            ("10.1.0.0/16", "10.2.0.1"),
            ("10.1.0.0/33", "10.1.0.0"),
            ("10.1.0.0/16", "corp.example"),
            ("::/0", "10.1.0.0"),
        ] {
            assert!(!is_direct_to(list, host), "{list} {host}");
        }
    }

    proptest! {
        #[test]
        fn any_list_is_read_without_panic(list in ".{0,40}", pieces in "[0-9a-f.:/*,\\[\\]]{0,40}") {
            for host in ["corp.example", "10.1.2.3", "[fd00::1]"] {
                let _ = (is_direct_to(&list, host), is_direct_to(&pieces, host));
            }
        }
    }
}
