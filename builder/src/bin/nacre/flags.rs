//! Values of flags that say how a command is run, as docker writes them.
//!
//! Invariant: what is not understood is an error that names the flag and the value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use builder::fields::{csv_fields, truth};
use builder::sandbox::{Mount, MountSource, Network, Ulimit};

use crate::report::Usage;
use crate::units::parse_size;

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

/// Seconds since 1970, as `--source-date-epoch` and its variable have them; an empty text says nothing.
pub(crate) fn epoch(text: Option<&str>) -> Result<Option<i64>, Usage> {
    let seconds = text.filter(|text| !text.is_empty()).map(|text| {
        let wrong =
            |_| Usage(format!("--source-date-epoch {text:?} is no number of seconds (a build also takes `none`)"));
        text.parse().map_err(wrong)
    });
    seconds.transpose()
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

/// Where SELinux is at work, its settings lie here.
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// `SOURCE:TARGET[:ro]`, the source a path that exists.
pub(crate) fn volume(text: &str) -> anyhow::Result<Mount> {
    let wrong = |what: &str| Usage(format!("-v {text:?}: {what}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [source, target] => (source, target, "rw"),
        [source, target, options] => (source, target, options),
        _ => return Err(wrong("it is not SOURCE:TARGET[:ro]").into()),
    };
    let mut read_only = false;
    for option in options.split(',') {
        match option {
            "ro" => read_only = true,
            "rw" => {}
            // The label of SELinux that a container may use; without SELinux there is none to set, as docker has it.
            "z" | "Z" if !Path::new(SELINUX).exists() => {}
            "z" | "Z" => return Err(wrong("labels of SELinux are not set: chcon -t container_file_t sets one").into()),
            _ => return Err(wrong(&format!("{option} is not supported, only ro, rw, z and Z")).into()),
        }
    }
    if !source.starts_with(['/', '.']) {
        return Err(wrong("named volumes are not supported; give a path that begins with / or .").into());
    }
    bind(source, target, read_only).map_err(|what| wrong(&what).into())
}

fn bind(source: &str, target: &str, read_only: bool) -> Result<Mount, String> {
    let target = absolute(target)?;
    let path = Path::new(source).canonicalize().map_err(|error| format!("cannot find {source}: {error}"))?;
    Ok(Mount { target, source: MountSource::Bind { path, read_only } })
}

fn absolute(target: &str) -> Result<PathBuf, String> {
    let is_absolute = target.starts_with('/') && !target.trim_matches('/').is_empty();
    is_absolute.then(|| target.into()).ok_or_else(|| "the target is not an absolute path below /".to_owned())
}

/// `TARGET[:size=SIZE,mode=MODE]`.
pub(crate) fn tmpfs(text: &str) -> anyhow::Result<Mount> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut memory = Memory::default();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => memory.size("--tmpfs", size)?,
            Some(("mode", mode)) => memory.mode("--tmpfs", mode)?,
            // What it is anyway, but for noexec.
            None if matches!(option, "rw" | "nosuid" | "nodev" | "exec") => {}
            _ => return Err(Usage(format!("--tmpfs {text:?}: {option} is not supported, only size= and mode=")).into()),
        }
    }
    Ok(memory.at(target).map_err(|what| Usage(format!("--tmpfs {text:?}: {what}")))?)
}

/// `type=bind,source=PATH,target=PATH[,readonly]` or `type=tmpfs,target=PATH[,tmpfs-size=SIZE][,tmpfs-mode=MODE]`.
pub(crate) fn mount(text: &str) -> anyhow::Result<Mount> {
    let wrong = |what: &str| Usage(format!("--mount {text:?}: {what}"));
    let (mut kind, mut source, mut target, mut read_only, mut memory) = (None, None, None, false, None);
    let options = csv_fields(text).ok_or_else(|| wrong("its quotes do not match"))?;
    for option in &options {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match (key, truth(value)) {
            ("type", _) => kind = Some(value),
            ("source" | "src", _) => source = Some(value),
            ("target" | "dst" | "destination", _) => target = Some(value),
            ("readonly" | "ro", _) if value.is_empty() => read_only = true,
            ("readonly" | "ro", Some(is_wanted)) => read_only = is_wanted,
            ("tmpfs-size", _) => memory.get_or_insert_with(Memory::default).size("--mount tmpfs-size", value)?,
            ("tmpfs-mode", _) => memory.get_or_insert_with(Memory::default).mode("--mount tmpfs-mode", value)?,
            _ => return Err(wrong(&format!("{option} is not supported")).into()),
        }
    }
    let target = target.ok_or_else(|| wrong("target= is missing"))?;
    let mount = match (kind, source, memory) {
        (Some("bind"), Some(source), None) => bind(source, target, read_only),
        (Some("bind"), None, _) => Err("source= is missing".to_owned()),
        (Some("tmpfs"), None, memory) if !read_only => memory.unwrap_or_default().at(target),
        (Some("bind" | "tmpfs"), ..) => Err("an option is not of this type of mount".to_owned()),
        (None | Some("volume"), ..) => Err("named volumes are not supported: type=bind or type=tmpfs".to_owned()),
        (Some(other), ..) => Err(format!("type={other} is not supported: bind or tmpfs")),
    };
    Ok(mount.map_err(|what| wrong(&what))?)
}

/// A tmpfs without its place.
struct Memory {
    size_bytes: Option<u64>,
    mode: u32,
}

impl Default for Memory {
    fn default() -> Self {
        Self { size_bytes: None, mode: 0o1777 }
    }
}

impl Memory {
    fn size(&mut self, flag: &str, text: &str) -> Result<(), Usage> {
        self.size_bytes = Some(parse_size(flag, text)?);
        Ok(())
    }

    fn mode(&mut self, flag: &str, text: &str) -> Result<(), Usage> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
        self.mode = mode.ok_or_else(|| Usage(format!("{flag}: {text:?} is no mode such as 1777")))?;
        Ok(())
    }

    fn at(self, target: &str) -> Result<Mount, String> {
        let source = MountSource::Tmpfs { size_bytes: self.size_bytes, mode: Some(self.mode), read_only: false };
        Ok(Mount { target: absolute(target)?, source })
    }
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

/// Annotations, each `KEY=VALUE`; of one that is given twice the last counts.
pub(crate) fn annotations(typed: &[String]) -> Result<BTreeMap<String, String>, Usage> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Usage(format!("--annotation {text:?} is not KEY=VALUE"))),
    };
    typed.iter().map(pair).collect()
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
        assert!(matches!(mount.source, MountSource::Bind { read_only: true, .. }));
        if !Path::new(SELINUX).exists() {
            assert!(matches!(
                volume("/:/host:z,ro").expect("a volume").source,
                MountSource::Bind { read_only: true, .. }
            ));
        }
        for text in ["data:/data", "/:relative", "/:/x:rslave", "/:/x:ro,", "/", "/nothing/here:/x"] {
            let error = volume(text).expect_err("not supported").to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn mounts_are_written_as_docker_has_them() {
        let directory = tempfile::Builder::new().prefix("a,b").tempdir().expect("a directory");
        let source = directory.path().to_str().expect("text");
        for (option, is_read_only) in [("readonly", true), ("ro=T", true), ("readonly=False", false)] {
            let mount = mount(&format!("type=bind,\"source={source}\",target=/x,{option}")).expect("a mount");
            assert!(
                matches!(mount.source, MountSource::Bind { read_only, .. } if read_only == is_read_only),
                "{option}"
            );
        }
        for text in ["type=bind,\"source=/,target=/x", "type=bind,source=/,target=/x,ro=maybe", "type=bind,target=/x"] {
            assert!(mount(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_empty_epoch_is_none() {
        assert_eq!(
            [epoch(None).ok(), epoch(Some("")).ok(), epoch(Some("-5")).ok()],
            [Some(None), Some(None), Some(Some(-5))]
        );
        assert!(epoch(Some("now")).is_err() && epoch(Some("none")).is_err());
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
