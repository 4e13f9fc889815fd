//! Absolute http and https URLs, as far as registries use them.
//!
//! Invariant: shown to a person, a URL has no query, because storage locations carry signatures there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::secret::without_credentials;

/// `scheme://host[:port]/path[?query]`; never with user information or fragment.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    origin: Origin,
    path_and_query: String,
}

/// Who is spoken to: credentials given for one origin never go to another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) is_https: bool,
    /// Lowercase; an IPv6 address in brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Url {
    /// Parses an absolute URL; the message says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let shown = without_credentials(text.split(['?', '#']).next().unwrap_or_default());
        let fail = |what: &str| Err(format!("{shown:?} is not a usable URL: {what}"));
        let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
        let (is_https, rest) = if lower.starts_with("https://") {
            (true, &text[8..])
        } else if lower.starts_with("http://") {
            (false, &text[7..])
        } else {
            return fail("it does not begin with http:// or https://");
        };
        if text.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
            return fail("it holds spaces, control or non-ASCII characters");
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err("a URL with user information is refused".to_owned());
        }
        let Some(origin) = Origin::parse(is_https, authority) else { return fail("its host or port is invalid") };
        let path_and_query = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { origin, path_and_query })
    }

    /// The URL that `location` means, seen from this one (RFC 3986 section 5.2, without dot segments).
    pub(crate) fn join(&self, location: &str) -> Result<Self, String> {
        let scheme = if self.origin.is_https { "https" } else { "http" };
        if location.contains("://") && !location.starts_with(['/', '?']) {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        let path = self.path();
        let joined = match location {
            "" => self.path_and_query.clone(),
            _ if location.starts_with('/') => location.to_owned(),
            _ if location.starts_with('?') => format!("{path}{location}"),
            _ => format!("{}/{location}", path.rsplit_once('/').map_or("", |(directory, _)| directory)),
        };
        Self::parse(&format!("{}{joined}", self.origin))
    }

    /// This origin with another path, which begins with a slash.
    pub(crate) fn at(&self, path: &str) -> Self {
        Self { origin: self.origin.clone(), path_and_query: path.to_owned() }
    }

    /// With one more query parameter, percent-encoded.
    pub(crate) fn with_parameter(mut self, key: &str, value: &str) -> Self {
        self.path_and_query.push(if self.path_and_query.contains('?') { '&' } else { '?' });
        self.path_and_query.push_str(key);
        self.path_and_query.push('=');
        self.path_and_query.push_str(&percent_encode(value));
        self
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The whole URL, for the wire and nowhere else.
    pub(crate) fn to_wire(&self) -> String {
        format!("{}{}", self.origin, self.path_and_query)
    }

    pub(crate) fn path(&self) -> &str {
        self.path_and_query.split('?').next().unwrap_or_default()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

impl Origin {
    fn parse(is_https: bool, authority: &str) -> Option<Self> {
        let default_port = if is_https { 443 } else { 80 };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (authority, default_port),
        };
        let is_ipv6 = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok());
        let is_name = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        // The system takes `127.1`, `2130706433` and `0x7f.1` for addresses, too; nobody writes such a registry.
        let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
        let is_number = hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
            || last.bytes().all(|b| b.is_ascii_digit());
        if is_name && is_number && host.parse::<Ipv4Addr>().is_err() {
            return None;
        }
        (is_ipv6 || is_name).then(|| Self { is_https, host: host.to_ascii_lowercase(), port })
    }

    /// The address, where the host is written as one; of one of IPv4 in IPv6 that.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        let address: IpAddr = self.host.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
        let IpAddr::V6(v6) = address else { return Some(address) };
        // Mapped, of NAT64 (RFC 6052), and compatible (RFC 4291), whose first addresses are IPv6's own.
        let is_embedded = matches!(v6.segments(), [0x64, 0xff9b, 0, 0, 0, 0, _, _])
            || (matches!(v6.segments(), [0, 0, 0, 0, 0, 0, _, _]) && !v6.is_loopback() && !v6.is_unspecified());
        let [.., a, b, c, d] = v6.octets();
        Some(if is_embedded { Ipv4Addr::new(a, b, c, d).into() } else { v6.to_canonical() })
    }

    pub(crate) fn is_loopback(&self) -> bool {
        let name = self.host.trim_end_matches('.');
        name == "localhost" || name.ends_with(".localhost") || self.address().is_some_and(|a| a.is_loopback())
    }

    /// Whether the host is a literal address inside a machine, a link or a private network, or a name for the machine.
    pub(crate) fn is_internal_address(&self) -> bool {
        let is_internal = match self.address() {
            Some(IpAddr::V4(a)) => {
                // "This network" (RFC 1122) and the carriers' own (RFC 6598).
                let [first, second, ..] = a.octets();
                a.is_private() || a.is_link_local() || first == 0 || (first == 100 && second & 0xc0 == 64)
            }
            Some(IpAddr::V6(a)) => a.is_unspecified() || a.is_unicast_link_local() || a.is_unique_local(),
            None => false,
        };
        is_internal || self.is_loopback()
    }

    /// Host and, where it is not the scheme's own, port.
    pub(crate) fn authority(&self) -> String {
        match (self.is_https, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            _ => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_https { "https" } else { "http" }, self.authority())
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986, and `:/,` which registries expect to read.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The bytes that a percent-encoded text stands for; what is no encoding stays.
pub fn percent_decode(text: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, behind @ ..] = rest {
        let two = behind.get(..2).filter(|two| *first == b'%' && two.iter().all(u8::is_ascii_hexdigit));
        let byte = two.and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &behind[2..] } else { behind };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(location: &str) -> String {
        let base = Url::parse("http://r.example:5000/v2/a/blobs/uploads/?x=1").expect("valid");
        base.join(location).expect("joins").to_wire()
    }

    #[test]
    fn locations_join_as_rfc_3986_says() {
        assert_eq!(joined("/v2/u?s=2"), "http://r.example:5000/v2/u?s=2");
        assert_eq!(joined("https://Other.example/u"), "https://other.example/u");
        assert_eq!(joined("//other.example/u"), "http://other.example/u");
        assert_eq!(joined("id?s=1"), "http://r.example:5000/v2/a/blobs/uploads/id?s=1");
        assert_eq!(joined("?s=1"), "http://r.example:5000/v2/a/blobs/uploads/?s=1");
        assert_eq!(joined("/u?next=http://x"), "http://r.example:5000/u?next=http://x");
    }

    #[test]
    fn the_query_is_never_shown() {
        let url = Url::parse("https://cdn.example/blob?X-Signature=secret").expect("valid");
        assert_eq!(format!("{url} {url:?}"), "https://cdn.example/blob Url(https://cdn.example/blob)");
        assert!(!Url::parse("ftp://cdn.example/blob?X-Signature=secret").unwrap_err().contains("secret"));
        assert!(!Url::parse("ftp://me:secret@cdn.example/blob").unwrap_err().contains("secret"));
    }

    #[test]
    fn default_ports_make_the_same_origin() {
        let a = Url::parse("https://h.example:443/x").expect("valid");
        assert_eq!(a.origin(), Url::parse("https://h.example").expect("valid").origin());
        assert_ne!(a.origin(), Url::parse("http://h.example:443").expect("valid").origin());
    }

    #[test]
    fn addresses_are_told_apart() {
        let origin = |text: &str| Url::parse(text).expect("valid").origin().clone();
        assert!(origin("http://[::1]:5000/").is_loopback());
        assert!(origin("http://169.254.169.254/").is_internal_address());
        for internal in [
            "[::ffff:127.0.0.1]:5000",
            "[::ffff:10.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[::127.0.0.1]",
            "[::]",
            "0.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "a.localhost",
            "localhost.",
            "LOCALHOST",
            "[fe80::1]",
            "[fd00::1]",
        ] {
            assert!(origin(&format!("http://{internal}/")).is_internal_address(), "{internal}");
        }
        for public in ["1.1.1.1", "100.128.0.1", "[2606:4700::1111]", "[::ffff:1.1.1.1]", "localhost.example"] {
            assert!(!origin(&format!("http://{public}/")).is_internal_address(), "{public}");
        }
        for other_form in ["127.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.0.0.1.", "a.0x1"] {
            assert!(Url::parse(&format!("http://{other_form}:5000/")).is_err(), "{other_form}");
        }
        assert!(Url::parse("http://user:pw@h/").is_err());
        assert!(Url::parse("http://[::zz]/").is_err());
        assert!(Url::parse("http://h:99999/").is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_without_panic(text in ".{0,60}", location in ".{0,60}") {
            let _ = Url::parse(&text);
            let base = Url::parse("http://h/a/b").expect("valid");
            if let Ok(url) = base.join(&location) {
                prop_assert!(Url::parse(&url.to_wire()).is_ok());
            }
        }
    }
}
