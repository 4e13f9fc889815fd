//! Values of flags that say how a command is run, as docker writes them.
//!
//! Invariant: what is not understood is an error that names the flag and the value.

use std::path::{Path, PathBuf};

use builder::sandbox::{Mount, Network, Source, Ulimit};

use crate::report::Usage;

/// `default`, `none` or `host`.
pub(crate) fn network(text: &str) -> Result<Network, Usage> {
    match text {
        "default" => Ok(Network::Default),
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        other => Err(Usage(format!("--network {other:?} is not supported: default, none or host"))),
    }
}

/// `NAME:ADDRESS` as a line of /etc/hosts: address, name.
pub(crate) fn extra_host(text: &str) -> Result<(String, String), Usage> {
    let parts = text.split_once(['=', ':']).filter(|(_, address)| address.parse::<std::net::IpAddr>().is_ok());
    let (name, address) = parts.ok_or_else(|| Usage(format!("--add-host {text:?} is not NAME:ADDRESS")))?;
    Ok((address.to_owned(), name.to_owned()))
}

/// `NAME=SOFT[:HARD]`.
pub(crate) fn ulimit(text: &str) -> Result<Ulimit, Usage> {
    let wrong = || Usage(format!("--ulimit {text:?} is not NAME=SOFT[:HARD]"));
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    let number = |limit: &str| match limit {
        "-1" | "unlimited" => Ok(None),
        limit => limit.parse().map(Some).map_err(|_| wrong()),
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    Ok(Ulimit { name: name.to_owned(), soft: number(soft)?, hard: number(hard)? })
}

/// `SOURCE:TARGET[:ro]`, the source a path that exists.
pub(crate) fn volume(text: &str) -> anyhow::Result<Mount> {
    let wrong = |what: &str| Usage(format!("-v {text:?}: {what}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [source, target] => (source, target, "rw"),
        [source, target, options] => (source, target, options),
        _ => return Err(wrong("it is not SOURCE:TARGET[:ro]").into()),
    };
    let read_only = match options {
        "ro" => true,
        "rw" => false,
        _ => return Err(wrong("only ro and rw are supported").into()),
    };
    if !source.starts_with(['/', '.']) {
        return Err(wrong("named volumes are not supported; give a path that begins with / or .").into());
    }
    if !target.starts_with('/') {
        return Err(wrong("the target is not an absolute path").into());
    }
    let path = Path::new(source).canonicalize().map_err(|error| wrong(&format!("cannot find {source}: {error}")))?;
    Ok(Mount { target: PathBuf::from(target), source: Source::Bind { path, read_only } })
}

/// `NAME=VALUE`; a bare name takes the value that it has here, and is nothing if it has none.
pub(crate) fn variable(text: &str) -> Result<Option<(String, String)>, Usage> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, std::env::var(text).ok()),
    };
    if name.is_empty() {
        return Err(Usage(format!("{text:?} is not NAME=VALUE")));
    }
    Ok(value.map(|value| (name.to_owned(), value)))
}

/// The variables of a file: one a line, `#` begins a comment, blanks at the front do not count.
pub(crate) fn variables(text: &str) -> Result<Vec<(String, String)>, Usage> {
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.filter_map(|line| variable(line).transpose()).collect()
}

/// Processors such as `1.5`, in thousandths.
pub(crate) fn processors(text: &str) -> Result<u64, Usage> {
    /// More than any machine has, and small enough to be counted in thousandths.
    const MOST: f64 = 1e6;
    let number = text.parse::<f64>().ok().filter(|number| (0.001..MOST).contains(number));
    let number = number.ok_or_else(|| Usage(format!("--cpus {text:?} is no number of processors such as 1.5")))?;
    Ok((number * 1000.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_paths_and_say_what_is_not_supported() {
        let mount = volume("/:/host:ro").expect("a volume");
        assert!(matches!(mount.source, Source::Bind { read_only: true, .. }));
        for text in ["data:/data", "/:relative", "/:/x:Z", "/", "/nothing/here:/x"] {
            let error = volume(text).expect_err("not supported").to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn files_of_variables_have_comments_and_keep_values_as_they_are() {
        let found = variables("# one\nA=b=c \n\n  B=\nNACRE_TEST_NOT_SET\n").expect("variables");
        assert_eq!(found, [("A".to_owned(), "b=c ".to_owned()), ("B".to_owned(), String::new())]);
        assert!(variables("=x").is_err());
    }

    #[test]
    fn processors_are_counted_in_thousandths() {
        assert_eq!(processors("1.5").ok(), Some(1500));
        for text in ["0", "-1", "x", "NaN", "inf", "1e9"] {
            assert!(processors(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_and_limits_are_written_as_docker_has_them() {
        assert_eq!(extra_host("db:10.0.0.1").ok(), Some(("10.0.0.1".to_owned(), "db".to_owned())));
        assert_eq!(extra_host("db:::1").ok(), Some(("::1".to_owned(), "db".to_owned())));
        assert!(extra_host("db").is_err());
        let limit = ulimit("nofile=10:unlimited").expect("a limit");
        assert_eq!((limit.soft, limit.hard), (Some(10), None));
    }
}
