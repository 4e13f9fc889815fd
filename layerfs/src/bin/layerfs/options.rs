//! What the `-o` options mean.
//!
//! Invariant: every option of fuse-overlayfs and of the kernel's overlayfs that is known is either in the result, or in
//! the list of those without an effect, or an error that names it; what is unknown is ignored with a warning, as other
//! mount programs do, because callers pass on options that are meant for others. Nothing is opened here.

use std::{ffi::OsString, path::PathBuf};

use anyhow::{Context as _, bail};
use layerfs::{IdMapping, IdRange};
use rustix::mount::MountFlags;

use crate::arguments::path;

/// A mount, as asked for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Topmost first; at least one, but for a remount.
    pub(crate) lower: Vec<PathBuf>,
    /// Upper and work directory; none for a read-only mount.
    pub(crate) upper: Option<(PathBuf, PathBuf)>,
    pub(crate) ids: IdMapping,
    /// Owner and mode may be in an attribute.
    pub(crate) has_overrides: bool,
    only_user: Option<u32>,
    only_group: Option<u32>,
    pub(crate) flags: MountFlags,
    /// SELinux contexts, for the kernel.
    pub(crate) contexts: Vec<String>,
    pub(crate) durable: bool,
    pub(crate) renames_directories: bool,
    /// Marks are kept in `user.` whatever we may do.
    pub(crate) user_marks: bool,
    /// Access control lists are kept, and not enforced.
    pub(crate) ignores_acls: bool,
    /// What /proc/mounts shows as mounted, instead of the place that the command line names.
    pub(crate) source: Option<OsString>,
    /// Only the flags of a mount that is there already are changed.
    pub(crate) is_remount: bool,
}

/// Accepted, because what they ask for cannot be told from outside: they choose between ways to the same result (all
/// `threaded`, `writeback`, `fast_ino`, `static_nlink`, `max_*`, `timeout`), ask for what is always so
/// (`default_permissions`, `allow_other` as root, `noatime`), or forbid what is never done (`metacopy`, `index`).
/// `private` is buildah's, for a mount that it makes itself; `user_id` and `group_id` are what /proc/mounts
/// shows, which mount(8) gives back at a remount.
const WITHOUT_EFFECT: &[&str] = &[
    "rw",
    "suid",
    "dev",
    "exec",
    "async",
    "atime",
    "diratime",
    "norelatime",
    "nostrictatime",
    "nolazytime",
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "private",
    "rprivate",
    "default_permissions",
    "allow_other",
    "threaded",
    "writeback",
    "fast_ino",
    "fast_ino_check",
    "static_nlink",
    "xino",
    "index",
    "nfs_export",
    "metacopy",
    "uuid",
    "max_write",
    "max_read",
    "max_readahead",
    "max_background",
    "timeout",
    "entry_timeout",
    "attr_timeout",
    "negative_timeout",
    "ac_attr_timeout",
    "big_writes",
    "kernel_cache",
    "auto_cache",
    "splice_read",
    "splice_write",
    "splice_move",
    "sync_read",
    "async_read",
    "subtype",
    "nonempty",
    "user_id",
    "group_id",
    "auto_unmount",
    "volatile_ok",
];

/// Refused, with the reason.
const REFUSED: &[(&str, &str)] = &[
    ("noxattrs", "extended attributes are always served"),
    ("ino32_t", "inode numbers have 64 bits"),
    ("plugins", "there are no plugins"),
    ("allow_root", "use allow_other"),
    ("datadir+", "data-only layers are not supported"),
    ("lowerdir+", "give all layers in one lowerdir"),
    ("verity", "fs-verity digests are not checked"),
];

const FLAGS: &[(&str, MountFlags)] = &[
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("lazytime", MountFlags::LAZYTIME),
];

/// Which flag an option takes back.
const UNSET: &[(&str, MountFlags)] = &[
    ("rw", MountFlags::RDONLY),
    ("suid", MountFlags::NOSUID),
    ("dev", MountFlags::NODEV),
    ("exec", MountFlags::NOEXEC),
    ("async", MountFlags::SYNCHRONOUS),
];

/// The options as they come.
#[derive(Default)]
struct Raw {
    lower: Option<Vec<PathBuf>>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    users: Vec<IdRange>,
    groups: Vec<IdRange>,
}

impl Options {
    /// Reads comma-separated options, and says which were ignored.
    pub(crate) fn parse(text: &[u8]) -> anyhow::Result<(Self, Vec<String>)> {
        let mut options = Self {
            lower: Vec::new(),
            upper: None,
            ids: IdMapping::default(),
            has_overrides: false,
            only_user: None,
            only_group: None,
            flags: MountFlags::empty(),
            contexts: Vec::new(),
            durable: true,
            renames_directories: true,
            user_marks: false,
            ignores_acls: false,
            source: None,
            is_remount: false,
        };
        let (mut raw, mut warnings) = (Raw::default(), Vec::new());
        for option in split(text, b',') {
            let mut parts = option.splitn(2, |byte| *byte == b'=');
            let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
            if name.is_empty() {
                continue;
            }
            if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
                bail!("option {name} is not supported: {why}");
            }
            let known = options.set(&mut raw, &name, parts.next()).with_context(|| format!("option {name}"))?;
            if !known && !name.starts_with("x-") && !WITHOUT_EFFECT.contains(&name.as_str()) {
                warnings.push(format!("unknown option {name} is ignored"));
            }
        }
        options.lower = match raw.lower {
            None if options.is_remount => Vec::new(),
            given => given.context("option lowerdir is missing")?,
        };
        options.upper = match (raw.upper, raw.work) {
            (Some(upper), Some(work)) => Some((upper, work)),
            (Some(_), None) => bail!("option upperdir needs a workdir, on the same file system"),
            (None, None) => None,
            (None, Some(_)) => {
                warnings.push("workdir without upperdir is ignored".into());
                None
            }
        };
        options.ids = IdMapping::of_ranges(raw.users, raw.groups).squashed(options.only_user, options.only_group);
        Ok((options, warnings))
    }

    /// The mapping without its ranges, for layers to which these were applied already.
    pub(crate) fn squashed_ids(&self) -> IdMapping {
        IdMapping::default().squashed(self.only_user, self.only_group)
    }

    /// Takes one option; false if it is not one of those with an effect.
    fn set(&mut self, raw: &mut Raw, name: &str, value: Option<&[u8]>) -> anyhow::Result<bool> {
        let given = || value.context("needs a value");
        if let (Some((_, flag)), None) = (FLAGS.iter().find(|(known, _)| *known == name), value) {
            self.flags |= *flag;
            return Ok(true);
        }
        if let Some((_, flag)) = UNSET.iter().find(|(known, _)| *known == name) {
            self.flags -= *flag;
            return Ok(true);
        }
        match name {
            "lowerdir" => raw.lower = Some(lower_paths(given()?)?),
            "upperdir" => raw.upper = Some(one_path(given()?)?),
            "workdir" => raw.work = Some(one_path(given()?)?),
            "uidmapping" => raw.users = ranges(given()?)?,
            "gidmapping" => raw.groups = ranges(given()?)?,
            "squash_to_uid" => self.only_user = Some(number(given()?)?),
            "squash_to_gid" => self.only_group = Some(number(given()?)?),
            "squash_to_root" => (self.only_user, self.only_group) = (Some(0), Some(0)),
            "volatile" => self.durable = false,
            "fsync" => self.durable = is_on(given()?)?,
            "userxattr" => self.user_marks = true,
            "noacl" => self.ignores_acls = true,
            "fsname" => self.source = Some(name_of_source(given()?)?),
            "remount" => self.is_remount = true,
            "redirect_dir" => self.renames_directories = renames(given()?)?,
            "xattr_permissions" => self.has_overrides = overrides(given()?)?,
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                let value = std::str::from_utf8(given()?).context("is not text")?;
                self.contexts.push(format!("{name}={value}"));
            }
            // They choose nothing, but what is no time is a mistake.
            "timeout" | "entry_timeout" | "attr_timeout" | "negative_timeout" | "ac_attr_timeout" => {
                return seconds(given()?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Splits at a separator that is neither behind a backslash nor within double quotes. Backslashes are kept but those
/// before a comma, so that what is split again still has its own.
fn split(text: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut quoted = false;
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        let part = parts.last_mut().expect("there is always a last part");
        match byte {
            b'\\' => match bytes.next() {
                Some(b',') if separator == b',' => part.push(b','),
                Some(next) => part.extend([b'\\', next]),
                None => part.push(b'\\'),
            },
            b'"' => {
                quoted = !quoted;
                part.push(byte);
            }
            _ if byte == separator && !quoted => parts.push(Vec::new()),
            _ => part.push(byte),
        }
    }
    parts
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
    }
    plain
}

fn one_path(value: &[u8]) -> anyhow::Result<PathBuf> {
    match unescape(value) {
        empty if empty.is_empty() => bail!("is empty"),
        bytes => Ok(path(bytes)),
    }
}

fn name_of_source(value: &[u8]) -> anyhow::Result<OsString> {
    one_path(value).map(PathBuf::into_os_string)
}

fn lower_paths(value: &[u8]) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for part in split(value, b':') {
        // `//plugin/data/path` of fuse-overlayfs. As a path it would be another one.
        if part.is_empty() {
            bail!("holds an empty path");
        }
        paths.push(one_path(&part)?);
    }
    Ok(paths)
}

fn number(value: &[u8]) -> anyhow::Result<u32> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    text.parse().with_context(|| format!("{} is no number of an owner", value.escape_ascii()))
}

/// Triples `inside:outside:count`, one behind the other; containers/storage begins with a colon.
fn ranges(value: &[u8]) -> anyhow::Result<Vec<IdRange>> {
    let value = value.strip_prefix(b":").unwrap_or(value);
    let numbers = value.split(|byte| *byte == b':').map(number).collect::<anyhow::Result<Vec<u32>>>()?;
    let (triples, rest) = numbers.as_chunks::<3>();
    if !rest.is_empty() {
        bail!("{} is no list of INSIDE:OUTSIDE:COUNT", value.escape_ascii());
    }
    let ranges: Vec<_> = triples.iter().map(|&[inside, outside, count]| IdRange { inside, outside, count }).collect();
    for (number, range) in ranges.iter().enumerate() {
        let meets = |of: fn(&IdRange) -> u32, other: &IdRange| {
            of(range) <= of(other).saturating_add(other.count - 1)
                && of(other) <= of(range).saturating_add(range.count - 1)
        };
        // The last id of 32 bits is that of nobody: https://man7.org/linux/man-pages/man2/chown.2.html
        let fits = |first: u32| range.count > 0 && first.checked_add(range.count).is_some();
        let IdRange { inside, outside, count } = range;
        if !fits(*inside) || !fits(*outside) {
            bail!("{inside}:{outside}:{count} is no range of ids");
        }
        if ranges[..number]
            .iter()
            .any(|other| meets(|range| range.inside, other) || meets(|range| range.outside, other))
        {
            bail!("{inside}:{outside}:{count} overlaps another range");
        }
    }
    Ok(ranges)
}

fn seconds(value: &[u8]) -> anyhow::Result<bool> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<f64>().ok());
    match number {
        Some(number) if number.is_finite() && number >= 0.0 => Ok(false),
        _ => bail!("{} is no number of seconds", value.escape_ascii()),
    }
}

fn is_on(value: &[u8]) -> anyhow::Result<bool> {
    match value {
        b"1" => Ok(true),
        b"0" => Ok(false),
        _ => bail!("is 0 or 1, not {}", value.escape_ascii()),
    }
}

fn renames(value: &[u8]) -> anyhow::Result<bool> {
    match value {
        b"on" => Ok(true),
        // Redirects that are there are followed always.
        b"off" | b"follow" | b"nofollow" => Ok(false),
        _ => bail!("is on or off, not {}", value.escape_ascii()),
    }
}

fn overrides(value: &[u8]) -> anyhow::Result<bool> {
    match value {
        b"0" => Ok(false),
        // What containers/storage asks for with force_mask.
        b"2" => Ok(true),
        _ => bail!("must be 0 or 2"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<(Options, Vec<String>)> {
        Options::parse(text.as_bytes())
    }

    fn options(text: &str) -> Options {
        let (options, warnings) = parse(text).expect("options");
        assert_eq!(warnings, [""; 0], "{text}");
        options
    }

    #[test]
    fn a_mount_of_containers_storage_is_understood() {
        let text = "lowerdir=/g/l/A:/g/l/B,upperdir=/g/X/diff,workdir=/g/X/work,uidmapping=:0:100000:65536,\
                    gidmapping=:0:1000:1:1:100000:65535,fsync=0";
        let options = options(text);
        assert_eq!(options.lower, [PathBuf::from("/g/l/A"), PathBuf::from("/g/l/B")]);
        assert_eq!(options.upper, Some((PathBuf::from("/g/X/diff"), PathBuf::from("/g/X/work"))));
        let range = |inside, outside, count| IdRange { inside, outside, count };
        let groups = vec![range(0, 1000, 1), range(1, 100_000, 65535)];
        assert_eq!(options.ids, IdMapping::of_ranges(vec![range(0, 100_000, 65536)], groups));
        assert!(!options.durable);
    }

    #[test]
    fn escaped_commas_and_colons_belong_to_paths() {
        let options = options(r"lowerdir=/a\:b\,c:/d\\e,upperdir=/u\:v,workdir=/w\,x");
        assert_eq!(options.lower, [PathBuf::from("/a:b,c"), PathBuf::from(r"/d\e")]);
        assert_eq!(options.upper, Some((PathBuf::from("/u:v"), PathBuf::from("/w,x"))));
    }

    #[test]
    fn a_quoted_context_keeps_its_commas() {
        let options = options(r#"lowerdir=a,context="u:r:t:s0:c1,c2",nodev"#);
        assert_eq!(options.contexts, [r#"context="u:r:t:s0:c1,c2""#]);
        assert_eq!(options.flags, MountFlags::NODEV);
    }

    #[test]
    fn later_flags_win() {
        assert_eq!(options("lowerdir=a,ro,rw,nosuid").flags, MountFlags::NOSUID);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let refused = [
            "noxattrs",
            "plugins=x",
            "ino32_t",
            "xattr_permissions=1",
            "uidmapping=0:1",
            "gidmapping=a:b:c",
            "uidmapping=0:1:0",
            "uidmapping=0:4294967295:2",
            "uidmapping=0:1000:10:9:2000:10",
            "gidmapping=0:1000:10:20:1009:10",
            "timeout=x",
            "attr_timeout=-1",
            "fsync=2",
            "squash_to_uid=-1",
            "redirect_dir=maybe",
            "allow_root",
            "lowerdir",
            "upperdir=u",
            "lowerdir=a::b",
        ];
        for option in refused {
            let error = parse(&format!("lowerdir=a,{option}")).expect_err(option);
            let name = option.split('=').next().expect("a name");
            assert!(format!("{error:#}").contains(name), "{option}: {error:#}");
        }
        assert!(format!("{:#}", parse("upperdir=u,workdir=w").expect_err("no lower")).contains("lowerdir"));
    }

    #[test]
    fn a_remount_needs_no_layers() {
        let (options, warnings) = parse("remount,ro").expect("options");
        assert!(options.is_remount && options.flags.contains(MountFlags::RDONLY) && warnings.is_empty());
    }

    #[test]
    fn unknown_options_are_ignored_with_a_warning() {
        let (_, warnings) = parse("lowerdir=a,shiny=1,x-systemd.automount,noacl,xino=auto,private").expect("options");
        assert_eq!(warnings, ["unknown option shiny is ignored"]);
    }
}
