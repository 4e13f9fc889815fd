//! `RUN --mount`: its options as written, and the typed mount they become once variables are known.
//!
//! Invariant: `from` never holds a variable, so that the graph of stages is known before any value is. All else is
//! checked when it is evaluated: as in BuildKit a stage that nobody needs may say what it likes.
//! <https://docs.docker.com/reference/dockerfile/#run---mount>

use crate::dockerfile::error::{DockerfileError, closest};
use crate::dockerfile::expansion::{Expander, ExpansionError};
use crate::dockerfile::source::{Source, Span, Word};
use crate::fields::{csv_fields, truth};

/// One `--mount`, not evaluated yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFlag {
    /// Options in order.
    pub options: Vec<MountOption>,
    /// The flag's value in the source.
    pub span: Span,
}

/// One option of `--mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOption {
    /// What it is called, in lower case.
    pub key: String,
    /// The value, unexpanded; `None` for a bare word.
    pub value: Option<String>,
}

/// A mount whose values are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// Files of a stage, an image, a named context or (without `from`) the build context.
    Bind {
        /// Where the files come from.
        from: Option<String>,
        /// The path there; absent for its root.
        source: Option<String>,
        /// The path in the sandbox, from the working directory; empty for that directory itself.
        target: String,
        /// Whether the step may write; what it writes is dropped.
        is_writable: bool,
    },
    /// A directory that outlives the build.
    Cache(CacheMount),
    /// Memory.
    Tmpfs {
        /// The path in the sandbox, as that of a bind mount.
        target: String,
        /// The limit, if any.
        size_bytes: Option<u64>,
        /// Whether the step may not write.
        is_read_only: bool,
    },
    /// A secret, as a file, an environment variable or both.
    Secret {
        /// Which secret.
        id: String,
        /// The file's path, absent only where `env` is given without a target.
        target: Option<String>,
        /// The environment variable.
        env: Option<String>,
        /// Whether it is an error not to have the secret.
        is_required: bool,
        /// Mode and owner of the file; the mode's default is 0400.
        ownership: FileOwnership,
    },
    /// A socket to an SSH agent.
    Ssh {
        /// Which agent; `default` where none is named.
        id: String,
        /// The socket's path, if one is asked for.
        target: Option<String>,
        /// Whether it is an error not to have the agent.
        is_required: bool,
        /// Mode and owner of the socket; the mode's default is 0600.
        ownership: FileOwnership,
    },
}

/// `type=cache`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// Which cache; `None`: the one named like the target.
    pub id: Option<String>,
    /// The path in the sandbox, as that of a bind mount.
    pub target: String,
    /// What a new cache begins with: a stage, an image or a named context.
    pub from: Option<String>,
    /// The path in `from`.
    pub source: Option<String>,
    /// What happens when two steps want it.
    pub sharing: Sharing,
    /// Whether the step may not write.
    pub is_read_only: bool,
    /// Mode and owner of a new cache's directory; the mode's default is 0755.
    pub ownership: FileOwnership,
}

/// Who may use a cache at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// Everybody.
    #[default]
    Shared,
    /// A second writer gets another cache.
    Private,
    /// A second writer waits.
    Locked,
}

/// `mode`, `uid` and `gid`, each where given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileOwnership {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Numeric owner.
    pub uid: Option<u32>,
    /// Numeric group.
    pub gid: Option<u32>,
}

/// What is wrong with a `--mount`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// A value does not expand.
    #[error("mount option {key}: {cause}")]
    Expansion {
        /// The option.
        key: &'static str,
        /// What is wrong with its value.
        cause: ExpansionError,
    },
    /// A value or a combination that makes no sense; a sentence.
    #[error("{0}")]
    Invalid(String),
}

/// What `type=` can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Type {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

const TYPES: [(&str, Type); 5] = [
    ("bind", Type::Bind),
    ("cache", Type::Cache),
    ("tmpfs", Type::Tmpfs),
    ("secret", Type::Secret),
    ("ssh", Type::Ssh),
];

const SHARINGS: [(&str, Sharing); 3] =
    [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

/// Every spelling of every option, and its canonical name.
const KEYS: [(&str, &str); 19] = [
    ("type", "type"),
    ("from", "from"),
    ("source", "source"),
    ("src", "source"),
    ("target", "target"),
    ("dst", "target"),
    ("destination", "target"),
    ("readonly", "readonly"),
    ("ro", "readonly"),
    ("readwrite", "readwrite"),
    ("rw", "readwrite"),
    ("required", "required"),
    ("size", "size"),
    ("id", "id"),
    ("sharing", "sharing"),
    ("mode", "mode"),
    ("uid", "uid"),
    ("gid", "gid"),
    ("env", "env"),
];

impl MountKind {
    /// The path in the sandbox, if the mount has one.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        match self {
            Self::Bind { target, .. } | Self::Tmpfs { target, .. } => Some(target),
            Self::Cache(cache) => Some(&cache.target),
            Self::Secret { target, .. } | Self::Ssh { target, .. } => target.as_deref(),
        }
    }
}

impl MountFlag {
    /// Reads the value of a `--mount` flag.
    pub(super) fn parse(source: &Source, word: &Word) -> Result<Self, DockerfileError> {
        let error = |message: String| source.error(word.span, message);
        let fields =
            csv_fields(&word.text).ok_or_else(|| error(format!("failed to parse csv mount {:?}", word.text)))?;
        let mut options = Vec::new();
        for field in fields {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (field.as_str(), None),
            };
            let key = key.to_ascii_lowercase();
            if key == "from" && value.as_deref().is_some_and(has_variable) {
                return Err(error("'from' doesn't support variable expansion, define alias stage instead".to_owned()));
            }
            options.push(MountOption { key, value });
        }
        Ok(Self { options, span: word.span })
    }

    /// The stage, image or named context that the mount reads, which never holds a variable.
    #[must_use]
    pub fn from(&self) -> Option<&str> {
        let from = self.options.iter().rev().find(|option| option.key == "from" && option.value.is_some())?;
        from.value.as_deref().filter(|from| !from.is_empty())
    }

    /// Expands and checks all values.
    ///
    /// # Errors
    /// A value that does not expand or is not of its type; an option that there is not, or not for the type of mount.
    pub fn evaluate(&self, expander: &Expander<'_>) -> Result<MountKind, MountError> {
        let mut values = Values::default();
        for option in &self.options {
            let key = option.canonical_key()?;
            let value = option.value.as_deref().map(|value| expander.expand(value)).transpose();
            values.set(key, value.map_err(|cause| MountError::Expansion { key, cause })?)?;
        }
        values.into_kind()
    }

    /// Checks what can be checked before any variable is known: all of a mount that names none.
    pub(super) fn check_constants(&self) -> Result<(), MountError> {
        match self.options.iter().filter_map(|option| option.value.as_deref()).any(has_variable) {
            true => Ok(()),
            false => self.evaluate(&Expander::new('\\', &|_| None)).map(drop),
        }
    }
}

impl MountOption {
    /// `source` for `src`, `target` for `dst` and `destination`, `readonly`, `readwrite`.
    fn canonical_key(&self) -> Result<&'static str, MountError> {
        let Self { key, value } = self;
        let field = value.as_ref().map_or_else(|| key.clone(), |value| format!("{key}={value}"));
        match KEYS.iter().find(|(name, _)| name == key) {
            Some((_, known)) if value.is_some() || matches!(*known, "readonly" | "readwrite" | "required") => Ok(known),
            Some(_) => invalid(format!("invalid field '{field}' must be a key=value pair")),
            None => {
                let near = closest(key, &KEYS.map(|(name, _)| name));
                let meant = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
                invalid(format!("unexpected key '{key}' in '{field}'{meant}"))
            }
        }
    }
}

/// Whether BuildKit would see a variable: a dollar with anything behind it.
pub(super) fn has_variable(value: &str) -> bool {
    value.find('$').is_some_and(|at| at + 1 < value.len())
}

fn invalid<T>(message: String) -> Result<T, MountError> {
    Err(MountError::Invalid(message))
}

/// What the options say so far; the last of a kind counts. As in BuildKit, an option of one type of mount has to come
/// behind its `type=`.
#[derive(Default)]
struct Values {
    kind: Type,
    from: Option<String>,
    source: Option<String>,
    target: Option<String>,
    id: Option<String>,
    env: Option<String>,
    is_writable: Option<bool>,
    is_required: bool,
    size_bytes: Option<u64>,
    sharing: Option<Sharing>,
    ownership: FileOwnership,
}

impl Values {
    /// Takes the next option, by its canonical name; without a value it is a bare word.
    fn set(&mut self, key: &'static str, value: Option<String>) -> Result<(), MountError> {
        let is_file = matches!(self.kind, Type::Secret | Type::Ssh);
        if (key == "required" && !is_file) || (key == "size" && self.kind != Type::Tmpfs) {
            return invalid(format!("unexpected key '{key}' for mount type '{}'", self.kind.name()));
        }
        // Only switches can be bare words, which are true.
        let truth = || value.as_deref().map_or(Some(true), truth);
        let text = value.clone().unwrap_or_default();
        let wrong = || MountError::Invalid(format!("invalid value for {key}: {text}"));
        let some = Some(text.clone()).filter(|text| !text.is_empty());
        match key {
            "type" => self.kind = named(&TYPES, "mount type", &text)?,
            "sharing" => self.sharing = Some(named(&SHARINGS, "sharing value", &text)?),
            "from" => self.from = some,
            "source" => self.source = some,
            "target" => self.target = some,
            "id" => self.id = some,
            "env" => self.env = Some(text),
            "readonly" => self.is_writable = Some(!truth().ok_or_else(wrong)?),
            "readwrite" => self.is_writable = Some(truth().ok_or_else(wrong)?),
            "required" => self.is_required = truth().ok_or_else(wrong)?,
            "size" => self.size_bytes = Some(parse_size(&text).ok_or_else(wrong)?),
            // Permissions only: what else the number says is lost in BuildKit, too.
            "mode" => self.ownership.mode = Some(number(&text, 8).ok_or_else(wrong)? & 0o777),
            "uid" => self.ownership.uid = Some(number(&text, 10).ok_or_else(wrong)?),
            "gid" => self.ownership.gid = Some(number(&text, 10).ok_or_else(wrong)?),
            other => unreachable!("KEYS has no {other}"),
        }
        Ok(())
    }

    fn into_kind(self) -> Result<MountKind, MountError> {
        let name = self.kind.name();
        if self.ownership != FileOwnership::default() && matches!(self.kind, Type::Bind | Type::Tmpfs) {
            return invalid(format!("mode, uid and gid are not allowed for {name:?} type mounts"));
        }
        if self.sharing.is_some() && self.kind != Type::Cache {
            return invalid(format!("invalid cache sharing set for {name} mount"));
        }
        if self.source.is_some() && self.kind == Type::Tmpfs {
            return invalid(format!("source is not allowed for {name:?} type mounts"));
        }
        let is_writable = self.is_writable.unwrap_or(matches!(self.kind, Type::Cache | Type::Tmpfs));
        // Without one the mount is at the working directory, as moby's own Dockerfile has it.
        let target = self.target.clone().unwrap_or_default();
        Ok(match self.kind {
            Type::Bind => MountKind::Bind { target, is_writable, from: self.from, source: self.source },
            Type::Tmpfs => MountKind::Tmpfs { target, size_bytes: self.size_bytes, is_read_only: !is_writable },
            Type::Cache => MountKind::Cache(CacheMount {
                target,
                id: self.id,
                from: self.from,
                source: self.source,
                sharing: self.sharing.unwrap_or_default(),
                is_read_only: !is_writable,
                ownership: self.ownership,
            }),
            Type::Secret => self.secret()?,
            Type::Ssh if self.source.is_some() => return invalid("ssh does not support source".to_owned()),
            Type::Ssh => MountKind::Ssh {
                id: self.id.unwrap_or_else(|| "default".to_owned()),
                target: self.target,
                is_required: self.is_required,
                ownership: self.ownership,
            },
        })
    }

    fn secret(self) -> Result<MountKind, MountError> {
        let Self { from, source, target, id, env, is_required, ownership, .. } = self;
        if from.is_some() {
            return invalid("secret mount should not have a from".to_owned());
        }
        if id.is_some() && source.is_some() {
            return invalid("both source and id can't be set".to_owned());
        }
        if env.as_deref() == Some("") {
            return invalid("env of a secret mount needs the name of a variable".to_owned());
        }
        let Some(id) = id.or(source).or_else(|| target.as_deref().map(last_component)) else {
            return invalid("invalid secret mount. one of source, target required".to_owned());
        };
        let target = match (&target, &env) {
            (None, None) => Some(format!("/run/secrets/{}", last_component(&id))),
            _ => target,
        };
        Ok(MountKind::Secret { id, target, env, is_required, ownership })
    }
}

impl Type {
    fn name(self) -> &'static str {
        TYPES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// What a word names, in any case.
fn named<T: Copy>(known: &[(&str, T)], what: &str, text: &str) -> Result<T, MountError> {
    let lower = text.to_lowercase();
    if let Some((_, value)) = known.iter().find(|(name, _)| *name == lower) {
        return Ok(*value);
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let near = closest(&lower, &names).map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
    invalid(format!("unsupported {what} {text:?}{near}: one of {}", names.join(", ")))
}

/// As Go's strconv.ParseUint, which takes no sign.
fn number(text: &str, radix: u32) -> Option<u32> {
    u32::from_str_radix(text, radix).ok().filter(|_| !text.starts_with('+'))
}

fn last_component(path: &str) -> String {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

/// Bytes in Docker's notation: a number and an optional binary unit, as `64m` or `1.5GiB`.
fn parse_size(text: &str) -> Option<u64> {
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')? + 1;
    let (number, unit) = (text[..end].strip_suffix(' ').unwrap_or(&text[..end]), text[end..].to_ascii_lowercase());
    let shift = match unit.as_bytes() {
        [] | [b'b'] => 0,
        [letter] | [letter, b'b'] | [letter, b'i', b'b'] => {
            10 * (b"kmgtp".iter().position(|other| other == letter)? + 1)
        }
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok().filter(|number| *number >= 0.0)? * (1_u64 << shift) as f64;
    // Beyond 2^53 a float is no longer exact, and no machine has that much memory.
    (bytes < (1_u64 << 53) as f64).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(text: &str) -> Result<MountKind, String> {
        let source = Source::new("D", text.as_bytes());
        let word = Word { text: text.to_owned(), span: Span { start: 0, end: text.len() } };
        let mount = MountFlag::parse(&source, &word).map_err(|error| error.message)?;
        mount.evaluate(&Expander::new('\\', &|_| Some("var".to_owned()))).map_err(|error| error.to_string())
    }

    #[test]
    fn bind_is_the_default_and_read_only() {
        let expected = MountKind::Bind { from: None, source: None, target: "/x".into(), is_writable: false };
        assert_eq!(evaluate("target=/x"), Ok(expected.clone()));
        assert_eq!(evaluate("TYPE=bind,dst=/x,ro"), Ok(expected.clone()));
        assert_eq!(evaluate("destination=/x,rw,readonly=true"), Ok(expected));
        assert!(matches!(evaluate("dst=/x,rw=true"), Ok(MountKind::Bind { is_writable: true, .. })));
    }

    #[test]
    fn a_comma_needs_inner_quotes() {
        let mount = evaluate("type=bind,\"source=a,b\",\"target=/c,\"\"d\"\"\"");
        assert!(matches!(mount, Ok(MountKind::Bind { source: Some(source), .. }) if source == "a,b"));
        assert!(evaluate("type=bind,tar\"get=x").is_err());
        assert!(evaluate("\"target=/x").is_err());
    }

    #[test]
    fn a_secret_goes_to_run_secrets_unless_only_its_variable_is_wanted() {
        let target = |text| match evaluate(text) {
            Ok(MountKind::Secret { target, id, .. }) => (id, target),
            other => panic!("{other:?}"),
        };
        assert_eq!(target("type=secret,id=a/b"), ("a/b".into(), Some("/run/secrets/b".into())));
        assert_eq!(target("type=secret,target=/etc/tok"), ("tok".into(), Some("/etc/tok".into())));
        assert_eq!(target("type=secret,id=a,env=A"), ("a".into(), None));
        assert_eq!(target("type=secret,id=a,env=A,dst=/x"), ("a".into(), Some("/x".into())));
    }

    #[test]
    fn a_mount_without_a_target_is_at_the_working_directory() {
        assert!(matches!(evaluate("from=x"), Ok(MountKind::Bind { target, .. }) if target.is_empty()));
        assert!(matches!(evaluate("type=tmpfs"), Ok(MountKind::Tmpfs { target, .. }) if target.is_empty()));
        assert!(evaluate("type=tmpfs,target=/t,source=/s").is_err());
        assert!(matches!(evaluate("type=cache,id=a"), Ok(MountKind::Cache(cache)) if cache.target.is_empty()));
    }

    #[test]
    fn an_option_that_says_nothing_about_a_type_is_taken_as_buildkit_takes_it() {
        for text in [
            "target=/x,id=a",
            "type=tmpfs,ro",
            "type=cache,from=a,from=",
            "type=tmpfs,target=/x,id=a,from=b",
            "type=secret,id=a,ro",
            "type=ssh,source=,ro",
        ] {
            assert_eq!(evaluate(text).err(), None, "{text}");
        }
    }

    #[test]
    fn an_option_of_another_type_is_refused() {
        for (text, word) in [
            ("type=bind,target=/x,size=1m", "size"),
            ("type=bind,target=/x,mode=0755", "mode"),
            ("type=secret,id=a,from=b", "from"),
            ("type=tmpfs,target=/x,required", "required"),
            ("type=ssh,source=b", "ssh does not support source"),
            ("type=bind,target=/x,sharing=locked", "sharing"),
            ("type=disk,target=/x", "disk"),
            ("target=/x,colour=red", "colour"),
            ("type=cache,target=/x,sharing=never", "never"),
            ("target", "key=value"),
            ("type=cache,target=/x,uid=-1", "uid"),
            ("from=$x,target=/x", "from"),
            ("required,type=secret,id=a", "for mount type 'bind'"),
            ("size=1m,type=tmpfs", "size"),
            ("type=tmpfs,size=", "size"),
            ("type=tmpfs,uid=1", "uid"),
            ("type=secret,id=a,required=maybe", "maybe"),
            ("type=secret,id=a,sharing=shared", "sharing"),
            ("type=cache,uid=", "uid"),
            ("type=cache,gid=+1", "gid"),
            ("type=cache,sharing=", "sharing"),
            ("type=,target=/x", "mount type"),
        ] {
            assert!(evaluate(text).expect_err(text).contains(word), "{text}");
        }
    }

    #[test]
    fn variables_wait_for_evaluation() {
        let mount = evaluate("type=cache,target=/$t,id=$i");
        assert!(matches!(mount, Ok(MountKind::Cache(CacheMount { target, .. })) if target == "/var"));
        assert!(evaluate("type=$t,target=/x").expect_err("var is no type").contains("var"));
    }

    #[test]
    fn sizes_are_dockers() {
        assert_eq!(parse_size("1m"), Some(1 << 20));
        assert_eq!(parse_size("1.5gib"), Some(3 << 29));
        assert_eq!(parse_size("42"), Some(42));
        assert_eq!(parse_size("2 k"), Some(2048));
        assert_eq!((parse_size("1e3"), parse_size("3B"), parse_size("3 kb")), (Some(1000), Some(3), Some(3072)));
        for bad in ["", "m", "-1", "1x", "1bk", "1ib", "1kk", "1kkb", "2  k", "nan", "99999999p", "1é", "é1"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
