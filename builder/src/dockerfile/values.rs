//! Values that are checked once they are expanded: the ports of EXPOSE and the signal of STOPSIGNAL.
//!
//! Invariant: what is accepted here is what the Docker Engine accepts.

/// A value that makes no sense; a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(String);

/// The ports that one expanded word of EXPOSE stands for, as an image's config names them: `80/tcp`.
/// `8000-8002/udp` is a range; of `ip:host:container` only the last part counts, but all of it has to make sense.
///
/// # Errors
/// A port that is no number below 65536, a range that runs backwards or does not fit that of the host, an address that
/// is none, a protocol other than tcp, udp or sctp.
pub fn exposed_ports(word: &str) -> Result<Vec<String>, ValueError> {
    let invalid = |what: &str| ValueError(format!("invalid port: {word:?}: {what}"));
    let (mapping, container) = word.rsplit_once(':').unwrap_or(("", word));
    let (address, host) = mapping.rsplit_once(':').unwrap_or(("", mapping));
    let (container, protocol) = container.split_once('/').unwrap_or((container, ""));
    if container.is_empty() {
        return Err(invalid("no port specified"));
    }
    let protocol = match protocol.to_lowercase() {
        none if none.is_empty() => "tcp".to_owned(),
        known if matches!(known.as_str(), "tcp" | "udp" | "sctp") => known,
        _ => return Err(invalid(&format!("invalid proto: {protocol}"))),
    };
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if !bare.is_empty() && bare.parse::<std::net::IpAddr>().is_err() {
        return Err(ValueError(format!("invalid IP address: {bare}")));
    }
    let wrong = |which: &str, ports: &str| ValueError(format!("invalid {which}: {ports}"));
    let (first, last) = port_range(container).ok_or_else(|| wrong("containerPort", container))?;
    if !host.is_empty() {
        let (host_first, host_last) = port_range(host).ok_or_else(|| wrong("hostPort", host))?;
        if first != last && host_last - host_first != last - first {
            return Err(ValueError(format!(
                "invalid ranges specified for container and host Ports: {container} and {host}"
            )));
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// A number or a range that runs forwards.
fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// Linux signals without the real-time ones: `man 7 signal`.
const SIGNALS: [&str; 34] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// Checks the expanded value of STOPSIGNAL: any number but zero, as it is not known where the image will run, or a name with or without `SIG`, in any case. The image's config
/// keeps it as it is written.
///
/// # Errors
/// No such signal.
pub fn check_signal(text: &str) -> Result<(), ValueError> {
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // The Engine counts RTMIN+1 to RTMIN+15 and RTMAX-14 to RTMAX-1.
    let is_offset = |prefix: &str, most: u8| {
        let offset = name.strip_prefix(prefix);
        offset.is_some_and(|offset| (1..=most).any(|number| number.to_string() == offset))
    };
    let is_known = text.parse::<i64>().is_ok_and(|number| number != 0)
        || SIGNALS.contains(&name)
        || matches!(name, "RTMIN" | "RTMAX")
        || is_offset("RTMIN+", 15)
        || is_offset("RTMAX-", 14);
    if is_known { Ok(()) } else { Err(ValueError(format!("invalid signal: {text}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_protocol_and_a_range_is_all_its_ports() {
        assert_eq!(exposed_ports("80").expect("valid"), ["80/tcp"]);
        assert_eq!(exposed_ports("443/TCP").expect("valid"), ["443/tcp"]);
        assert_eq!(exposed_ports("8000-8002/udp").expect("valid"), ["8000/udp", "8001/udp", "8002/udp"]);
        assert_eq!(exposed_ports("127.0.0.1:8080:80/sctp").expect("valid"), ["80/sctp"]);
        assert_eq!(exposed_ports("80/").expect("valid"), ["80/tcp"]);
        for address in ["[2001:4860:0:2001::68]::", "2001:4860:0:2001::68::", "[::1]:80:", "::1:80:", "::::"] {
            assert_eq!(exposed_ports(&format!("{address}80")).expect(address), ["80/tcp"]);
        }
        assert_eq!(exposed_ports("0.0.0.0:1234-1235:3333-3334/tcp").expect("valid"), ["3333/tcp", "3334/tcp"]);
        assert_eq!(exposed_ports("1-9:80").expect("valid"), ["80/tcp"]);
        for bad in [
            "eighty",
            "",
            "80/icmp",
            "9-8",
            "65536",
            "-1",
            "1-",
            "80/tcp/udp",
            "localhost:1:1",
            "1.2.3.4:1-2:",
            "1-3:1-2",
        ] {
            assert!(exposed_ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_signal_is_a_number_or_a_name() {
        for good in ["9", "100", "-1", "+65", "QUIT", "SIGTERM", "sigusr1", "RTMIN+3", "SIGRTMAX-14", "RTMAX"] {
            assert_eq!(check_signal(good), Ok(()), "{good}");
        }
        for bad in ["SIGNOTHING", "0", "-0", "9x", "", "SIG", "RTMIN+16", "RTMIN+", "RTMIN+01", "RTMAX-+1"] {
            assert!(check_signal(bad).is_err(), "{bad}");
        }
    }
}
