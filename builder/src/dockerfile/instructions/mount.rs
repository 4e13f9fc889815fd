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
pub struct Mount {
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

/// Kinds of mounts.
const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];

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

impl Mount {
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
            values.0.push((key, value.map_err(|cause| MountError::Expansion { key, cause })?));
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

/// Options with expanded values; the last of a kind counts.
#[derive(Default)]
struct Values(Vec<(&'static str, Option<String>)>);

impl Values {
    /// Takes an option out.
    fn take(&mut self, key: &str) -> Option<Option<String>> {
        let value = self.0.iter().rev().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
        self.0.retain(|(name, _)| *name != key);
        value
    }

    fn text(&mut self, key: &str) -> Option<String> {
        self.take(key).flatten().filter(|text| !text.is_empty())
    }

    /// As Go's strconv.ParseBool; a bare word is true.
    fn boolean(&mut self, key: &str) -> Result<Option<bool>, MountError> {
        match self.take(key) {
            None => Ok(None),
            Some(None) => Ok(Some(true)),
            Some(Some(text)) => match truth(&text) {
                None => invalid(format!("invalid value for {key}: {text}")),
                known => Ok(known),
            },
        }
    }

    fn number(&mut self, key: &str, radix: u32) -> Result<Option<u32>, MountError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match u32::from_str_radix(&text, radix) {
            Ok(number) if key != "mode" || number <= 0o7777 => Ok(Some(number)),
            _ => invalid(format!("invalid value {text} for {key}")),
        }
    }

    fn ownership(&mut self) -> Result<FileOwnership, MountError> {
        Ok(FileOwnership { mode: self.number("mode", 8)?, uid: self.number("uid", 10)?, gid: self.number("gid", 10)? })
    }

    /// Whether the step may write; the last of `readonly` and `readwrite` counts, as they are one switch.
    fn is_writable(&mut self, default: bool) -> Result<bool, MountError> {
        let last = self.0.iter().rev().map(|(key, _)| *key).find(|key| matches!(*key, "readonly" | "readwrite"));
        let (read_only, writable) = (self.boolean("readonly")?, self.boolean("readwrite")?);
        Ok(match last {
            Some("readonly") => !read_only.unwrap_or(true),
            _ => writable.unwrap_or(default),
        })
    }

    /// Without one the mount is at the working directory, as moby's own Dockerfile has it.
    fn target(&mut self) -> String {
        self.text("target").unwrap_or_default()
    }

    /// Takes out what BuildKit accepts for every type, and what says nothing about this one.
    fn drop_what_says_nothing(&mut self, kind: &MountKind) {
        for key in ["id", "env", "readonly", "readwrite", "source", "from"] {
            if key != "from" || !matches!(kind, MountKind::Secret { .. }) {
                self.take(key);
            }
        }
    }

    fn into_kind(mut self) -> Result<MountKind, MountError> {
        let name = self.text("type").unwrap_or_else(|| "bind".to_owned()).to_ascii_lowercase();
        let kind = match name.as_str() {
            "bind" => MountKind::Bind {
                target: self.target(),
                is_writable: self.is_writable(false)?,
                from: self.text("from"),
                source: self.text("source"),
            },
            "cache" => self.cache()?,
            "tmpfs" => {
                // BuildKit takes the switch for every type; a tmpfs that nobody can write makes no sense.
                if !self.is_writable(true)? {
                    return invalid("a tmpfs mount cannot be read-only".to_owned());
                }
                MountKind::Tmpfs { target: self.target(), size_bytes: self.size()? }
            }
            "secret" => self.secret()?,
            "ssh" if self.text("source").is_some() => return invalid("ssh does not support source".to_owned()),
            "ssh" => MountKind::Ssh {
                id: self.text("id").unwrap_or_else(|| "default".to_owned()),
                target: self.text("target"),
                is_required: self.boolean("required")?.unwrap_or(false),
                ownership: self.ownership()?,
            },
            _ => {
                let near = closest(&name, &TYPES).map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
                return invalid(format!("unsupported mount type {name:?}{near}: one of {}", TYPES.join(", ")));
            }
        };
        self.drop_what_says_nothing(&kind);
        match self.0.first() {
            Some((key, _)) => invalid(format!("unexpected key '{key}' for mount type '{name}'")),
            None => Ok(kind),
        }
    }

    fn cache(&mut self) -> Result<MountKind, MountError> {
        let sharing = match self.text("sharing").map(|text| text.to_ascii_lowercase()).as_deref() {
            None | Some("shared") => Sharing::Shared,
            Some("private") => Sharing::Private,
            Some("locked") => Sharing::Locked,
            Some(other) => {
                return invalid(format!("unsupported sharing value {other:?}: one of shared, private, locked"));
            }
        };
        Ok(MountKind::Cache(CacheMount {
            target: self.target(),
            id: self.text("id"),
            from: self.text("from"),
            source: self.text("source"),
            sharing,
            is_read_only: !self.is_writable(true)?,
            ownership: self.ownership()?,
        }))
    }

    fn secret(&mut self) -> Result<MountKind, MountError> {
        let (id, source) = (self.text("id"), self.text("source"));
        if id.is_some() && source.is_some() {
            return invalid("both source and id can't be set".to_owned());
        }
        let (target, env) = (self.text("target"), self.text("env"));
        let Some(id) = id.or(source).or_else(|| target.as_deref().map(last_component)) else {
            return invalid("invalid secret mount. one of source, target required".to_owned());
        };
        let target = match (&target, &env) {
            (None, None) => Some(format!("/run/secrets/{}", last_component(&id))),
            _ => target,
        };
        let is_required = self.boolean("required")?.unwrap_or(false);
        Ok(MountKind::Secret { id, target, env, is_required, ownership: self.ownership()? })
    }

    /// Bytes in Docker's notation: a number and an optional binary unit, as `64m` or `1.5GiB`.
    fn size(&mut self) -> Result<Option<u64>, MountError> {
        let Some(text) = self.text("size") else { return Ok(None) };
        match parse_size(&text.to_ascii_lowercase()) {
            Some(bytes) => Ok(Some(bytes)),
            None => invalid(format!("invalid value for size: {text}")),
        }
    }
}

fn last_component(path: &str) -> String {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

fn parse_size(text: &str) -> Option<u64> {
    let text = text.strip_suffix('b').unwrap_or(text);
    let text = text.strip_suffix('i').unwrap_or(text);
    let shift = match text.chars().last()? {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        'p' => 50,
        _ => 0,
    };
    let number = if shift == 0 { text } else { text[..text.len() - 1].trim_end() };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let bytes = number.parse::<f64>().ok()? * (1_u64 << shift) as f64;
    // Beyond 2^53 a float is no longer exact, and no machine has that much memory.
    (bytes < (1_u64 << 53) as f64).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(text: &str) -> Result<MountKind, String> {
        let source = Source::new("D", text.as_bytes());
        let word = Word { text: text.to_owned(), span: Span { start: 0, end: text.len() } };
        let mount = Mount::parse(&source, &word).map_err(|error| error.message)?;
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
        assert!(matches!(evaluate("type=cache,id=a"), Ok(MountKind::Cache(cache)) if cache.target.is_empty()));
    }

    #[test]
    fn an_option_that_says_nothing_about_a_type_is_taken_as_buildkit_takes_it() {
        for text in ["target=/x,id=a", "type=tmpfs,target=/x,id=a,from=b", "type=secret,id=a,ro", "type=ssh,source=,ro"]
        {
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
            ("type=tmpfs,target=/x,ro", "read-only"),
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
        for bad in ["", "m", "-1", "1x", "1e9", "nan", "99999999p", "1é"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
