//! What names a git repository, and what of it: `https://host/repo.git#ref:directory`, `git@host:repo.git?tag=v1`.
//!
//! The grammar is BuildKit's (its `dfgitutil` and `gitutil`, told by tables in the tests). Invariant: no part that goes
//! to git as an argument begins with a dash. Nothing here asks anybody: that a text names a repository is told by its
//! form.

use std::fmt;

use crate::fields::truth;

/// A repository, and what of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GitReference {
    /// What git is given: the URL without query and fragment.
    pub remote: String,
    /// A branch, a tag, a whole ref or a commit id; `None` is the default branch.
    pub reference: Option<String>,
    /// The directory that counts as the root.
    pub directory: String,
    /// What the commit id, or that of an annotated tag, has to begin with.
    pub checksum: Option<String>,
    /// Whether `.git` is kept; `None` where the text does not say.
    pub keep_git_dir: Option<bool>,
    /// Whether submodules are left out.
    pub skip_submodules: bool,
    /// Take the commit that `checksum` names without asking which one the reference names.
    pub fetch_by_commit: bool,
    /// Files have the time of the checkout instead of the commit's.
    pub checkout_times: bool,
    /// `github.com/...`: only a build context may be named so, a file of that path looks the same.
    pub is_like_a_path: bool,
}

/// A text that names a repository, but in a way that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} in the git URL {url}")]
pub struct GitUrlError {
    /// The URL without its secrets.
    pub url: String,
    /// What is wrong.
    pub what: String,
}

/// The four transports that a repository may come through.
const SCHEMES: [&str; 4] = ["http", "https", "git", "ssh"];

impl GitReference {
    /// Reads a text; `None` if it does not name a repository.
    ///
    /// # Errors
    /// If it names one with a query that is not understood or contradicts itself.
    pub fn parse(text: &str) -> Result<Option<Self>, GitUrlError> {
        let Some(parts) = Parts::of(text) else { return Ok(None) };
        let (reference, directory) = match parts.fragment.split_once(':') {
            Some((reference, directory)) => (reference.to_owned(), directory.to_owned()),
            None => (parts.fragment, String::new()),
        };
        let mut found = Self {
            reference: Some(reference).filter(|reference| !reference.is_empty()),
            directory,
            checksum: None,
            keep_git_dir: None,
            skip_submodules: false,
            fetch_by_commit: false,
            checkout_times: false,
            is_like_a_path: parts.is_like_a_path,
            remote: parts.remote,
        };
        let wrong = |what: String| GitUrlError { url: found_url(text), what };
        if let Some(query) = parts.query {
            found.take_query(&query).map_err(wrong)?;
        }
        found.directory = clean(&found.directory);
        if let Some(bad) =
            found.checksum.iter().find(|sum| sum.is_empty() || !sum.bytes().all(|c| c.is_ascii_hexdigit()))
        {
            return Err(wrong(format!("invalid checksum {bad:?}, expected the begin of a hexadecimal commit id,")));
        }
        let words = [Some(&found.remote), found.reference.as_ref()];
        if let Some(bad) = words.into_iter().flatten().find(|word| word.starts_with('-') || word.contains(['\n', '\0']))
        {
            return Err(wrong(format!("invalid part {bad:?}")));
        }
        Ok(Some(found))
    }

    /// The remote as git takes it.
    pub(crate) fn address(&self) -> String {
        if self.is_like_a_path { format!("https://{}", self.remote) } else { self.remote.clone() }
    }

    /// The remote with the password in it hidden.
    #[must_use]
    pub fn shown(&self) -> String {
        redacted(&self.remote)
    }

    fn take_query(&mut self, query: &str) -> Result<(), String> {
        let (mut tag, mut branch) = (None, None);
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |text| decode(text, true).ok_or_else(|| format!("invalid query {pair:?}"));
            let (key, value) = (decoded(key)?, decoded(value)?);
            if seen.contains(&key) {
                return Err(format!("query {key:?} has multiple values"));
            }
            if value.is_empty() && !matches!(key.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit") {
                return Err(format!("query {key:?} has no value"));
            }
            match key.as_str() {
                "ref" => agree("ref", &mut self.reference, value)?,
                "subdir" if !self.directory.is_empty() && clean(&self.directory) != value => {
                    return Err(format!("subdir conflicts: {:?} vs {value:?}", clean(&self.directory)));
                }
                "subdir" => self.directory = value,
                "tag" => tag = Some(value),
                "branch" => branch = Some(value),
                "checksum" | "commit" => self.checksum = Some(value),
                "keep-git-dir" => self.keep_git_dir = Some(flag(&key, &value)?),
                "submodules" => self.skip_submodules = !flag(&key, &value)?,
                "fetch-by-commit" => self.fetch_by_commit = flag(&key, &value)?,
                "mtime" if value == "commit" => self.checkout_times = false,
                "mtime" if value == "checkout" => self.checkout_times = true,
                "mtime" => return Err(format!("invalid mtime value: {value:?} (\"checkout\" or \"commit\")")),
                _ => return Err(format!("unexpected query {key:?}")),
            }
            seen.push(key);
        }
        if tag.is_some() && branch.is_some() {
            return Err("branch conflicts with tag".to_owned());
        }
        for (name, prefix) in [(tag, "refs/tags/"), (branch, "refs/heads/")] {
            if let Some(name) = name {
                let whole = if name.starts_with(prefix) { name } else { format!("{prefix}{name}") };
                agree("ref", &mut self.reference, whole)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for GitReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.shown())?;
        match (&self.reference, self.directory.as_str()) {
            (None, "") => Ok(()),
            (reference, "") => write!(f, "#{}", reference.as_deref().unwrap_or_default()),
            (reference, directory) => write!(f, "#{}:{directory}", reference.as_deref().unwrap_or_default()),
        }
    }
}

/// A URL without the password in it. A user alone is one, too, in front of a web server: tokens are given so.
pub(crate) fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    match authority.rsplit_once('@').map(|(user, host)| (user.split_once(':'), host)) {
        Some((Some((user, _)), host)) => format!("{scheme}://{user}:xxxxx@{host}{path}"),
        Some((None, host)) if scheme.to_ascii_lowercase().starts_with("http") => {
            format!("{scheme}://xxxxx@{host}{path}")
        }
        _ => url.to_owned(),
    }
}

/// A text without the passwords of the URLs in it.
pub(crate) fn without_passwords(text: &str) -> String {
    text.split_inclusive(char::is_whitespace).map(redacted_within).collect()
}

/// A word that may hold a URL, in quotes for example, without the password.
fn redacted_within(word: &str) -> String {
    let Some(at) = word.find("://") else { return word.to_owned() };
    let begin = word[..at].rfind(|c: char| !c.is_ascii_alphanumeric()).map_or(0, |before| before + 1);
    format!("{}{}", &word[..begin], redacted(&word[begin..]))
}

fn found_url(text: &str) -> String {
    redacted(text.split(['?', '#']).next().unwrap_or_default())
}

/// A text cut at its marks, if its form is that of a repository.
struct Parts {
    remote: String,
    query: Option<String>,
    fragment: String,
    is_like_a_path: bool,
}

impl Parts {
    fn of(text: &str) -> Option<Self> {
        let (whole, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (before, query) = whole.split_once('?').map_or((whole, None), |(before, query)| (before, Some(query)));
        let query = query.map(str::to_owned);
        let fragment = decode(fragment, false)?;
        if before.starts_with("github.com/") {
            return Some(Self { remote: before.to_owned(), query, fragment, is_like_a_path: true });
        }
        let Some((scheme, rest)) = before.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
            return is_like_ssh(before).then(|| Self {
                remote: before.to_owned(),
                query,
                fragment,
                is_like_a_path: false,
            });
        };
        let scheme = scheme.to_ascii_lowercase();
        if !SCHEMES.contains(&scheme.as_str()) || rest.contains([' ', '\n', '\0']) {
            return None;
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let port = authority.rsplit_once(']').map_or(authority, |(_, after)| after).rsplit_once(':');
        let has_port = port.is_none_or(|(_, port)| authority.contains('@') || port.bytes().all(|c| c.is_ascii_digit()));
        let is_repository = !scheme.starts_with("http") || decode(path, false)?.ends_with(".git");
        (has_port && is_repository && !authority.is_empty()).then(|| Self {
            remote: format!("{scheme}://{rest}"),
            query,
            fragment,
            is_like_a_path: false,
        })
    }
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric())
}

/// `user@host:path`, as ssh's own programs have it.
fn is_like_ssh(text: &str) -> bool {
    let is_name = |text: &str, more: &[u8]| {
        !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || more.contains(&c))
    };
    text.split_once('@')
        .and_then(|(user, rest)| Some((user, rest.split_once(':')?)))
        .is_some_and(|(user, (host, path))| is_name(user, b"-_") && is_name(host, b"-.") && !path.contains('\n'))
}

fn agree(what: &str, old: &mut Option<String>, new: String) -> Result<(), String> {
    match old {
        Some(old) if *old != new => Err(format!("{what} conflicts: {old:?} vs {new:?}")),
        _ => {
            *old = Some(new);
            Ok(())
        }
    }
}

/// The value of a flag; nothing at all is true.
fn flag(key: &str, value: &str) -> Result<bool, String> {
    if value.is_empty() { Some(true) } else { truth(value) }.ok_or_else(|| format!("invalid {key} value: {value:?}"))
}

/// A directory without leading slash, dots and double slashes; what leads above the root stays in the root.
fn clean(directory: &str) -> String {
    String::from_utf8_lossy(&crate::paths::clean(directory.as_bytes())).into_owned()
}

/// Undoes percent-encoding; `None` if there is a percent sign that begins none.
fn decode(text: &str, plus_is_blank: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'%' => {
                let digits = rest.get(..2).filter(|two| two.iter().all(u8::is_ascii_hexdigit))?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = &rest[2..];
            }
            b'+' if plus_is_blank => bytes.push(b' '),
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        match GitReference::parse(text) {
            Ok(None) => "none".to_owned(),
            Err(error) => format!("error: {}", error.what),
            Ok(Some(found)) => {
                let mut shown = found.remote;
                let mut add = |name: &str, value: Option<String>| {
                    if let Some(value) = value.filter(|value| !value.is_empty()) {
                        shown += &format!(" {name}={value}");
                    }
                };
                add("ref", found.reference);
                add("dir", Some(found.directory));
                add("sum", found.checksum);
                add("keep", found.keep_git_dir.map(|keep| keep.to_string()));
                add("flat", found.skip_submodules.then(|| "yes".to_owned()));
                add("by-commit", found.fetch_by_commit.then(|| "yes".to_owned()));
                add("times", found.checkout_times.then(|| "checkout".to_owned()));
                add("path", found.is_like_a_path.then(|| "yes".to_owned()));
                shown
            }
        }
    }

    #[test]
    fn repositories_are_told_by_their_form_as_buildkit_does() {
        for (text, expected) in [
            ("https://h.test/", "none"),
            ("https://h.test/a", "none"),
            ("https://h.test/a.git", "https://h.test/a.git"),
            ("HTTPS://h.test/a.git", "https://h.test/a.git"),
            ("https://h.test/a.git#deadbeef", "https://h.test/a.git ref=deadbeef"),
            ("https://h.test/a.git#release/1.2", "https://h.test/a.git ref=release/1.2"),
            ("https://h.test/a.git/", "none"),
            ("https://h.test/a.git.b", "none"),
            ("git://h.test/a", "git://h.test/a"),
            ("github.com/o/a", "github.com/o/a path=yes"),
            ("github.com/o/a#main", "github.com/o/a ref=main path=yes"),
            ("github.com/o/a?tag=v1", "github.com/o/a ref=refs/tags/v1 path=yes"),
            ("other.test/o/a.git", "none"),
            ("https://u:p@h.test/o/a.git", "https://u:p@h.test/o/a.git"),
            ("git@h.test:o/a", "git@h.test:o/a"),
            ("git@h.test:o/a.git", "git@h.test:o/a.git"),
            ("somebody@h.test:/srv/a.git", "somebody@h.test:/srv/a.git"),
            ("ssh://git@h.test:22/o/a.git", "ssh://git@h.test:22/o/a.git"),
            ("ssh://u@192.0.2.1:456/~/a.git", "ssh://u@192.0.2.1:456/~/a.git"),
            ("https://h.test/o/a.git#b/c:d/e", "https://h.test/o/a.git ref=b/c dir=d/e"),
            ("http://h.test/o/a.git:#b", "none"),
            ("https://h.test/o/a.git#:d", "https://h.test/o/a.git dir=d"),
            ("https://h.test/o/a.git#:../../d/./e", "https://h.test/o/a.git dir=d/e"),
            ("httpx://h.test/o/a.git", "none"),
            ("ftp://h.test/a.git", "none"),
            ("./.git", "none"),
            (".git", "none"),
            ("../a.git", "none"),
            ("a b@h:c", "none"),
            ("dir/git@h:c", "none"),
            ("https://h.test/%zz.git", "none"),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn queries_say_the_same_as_fragments_and_may_not_contradict_them() {
        for (query, expected) in [
            ("?ref=v1.0&subdir=/d", " ref=v1.0 dir=d"),
            ("?subdir=/d#v1.0", " ref=v1.0 dir=d"),
            ("?tag=v1.0", " ref=refs/tags/v1.0"),
            ("?tag=refs/tags/v1.0", " ref=refs/tags/v1.0"),
            ("?branch=v1.0", " ref=refs/heads/v1.0"),
            ("?ref=a#a", " ref=a"),
            ("?mtime=commit", ""),
            ("?mtime=checkout", " times=checkout"),
            ("?commit=dead", " sum=dead"),
            ("?keep-git-dir", " keep=true"),
            ("?keep-git-dir=0&submodules=false", " keep=false flat=yes"),
            ("?fetch-by-commit&checksum=dead", " sum=dead by-commit=yes"),
            ("?fetch-by-commit=false", ""),
            ("?", ""),
        ] {
            assert_eq!(parsed(&format!("git@h:a.git{query}")), format!("git@h:a.git{expected}"), "{query}");
        }
        for (query, expected) in [
            ("?ref=v1#v2", "ref conflicts"),
            ("?ref=v1&tag=v2", "ref conflicts"),
            ("?ref=v1&branch=v1", "ref conflicts"),
            ("?tag=v1&branch=v1", "branch conflicts with tag"),
            ("?subdir=a#m:b", "subdir conflicts"),
            ("?mtime=never", "invalid mtime value"),
            ("?submodules=maybe", "invalid submodules value"),
            ("?fetch-by-commit=invalid", "invalid fetch-by-commit value"),
            ("?invalid=123", "unexpected query \"invalid\""),
            ("?ref=", "query \"ref\" has no value"),
            ("?ref=a&ref=a", "query \"ref\" has multiple values"),
            ("?checksum=xyz", "invalid checksum"),
            ("?ref=--upload-pack=x", "invalid part"),
            ("#-x", "invalid part"),
            ("?ref=%zz", "invalid query"),
        ] {
            let found = parsed(&format!("https://h/a.git{query}"));
            assert!(found.starts_with("error: ") && found.contains(expected), "{query}: {found}");
        }
        assert!(parsed("-oProxyCommand=x@h:a").starts_with("none"));
        assert!(parsed("-u@h:a").contains("invalid part"));
    }

    #[test]
    fn a_password_is_never_shown() {
        let found = GitReference::parse("https://u:secret@h/a.git#main:d").expect("valid").expect("a repository");
        assert_eq!(found.to_string(), "https://u:xxxxx@h/a.git#main:d");
        let error = GitReference::parse("https://u:secret@h/a.git?x=secret").expect_err("unknown").to_string();
        assert!(!error.contains("secret"), "{error}");
        assert_eq!(without_passwords("ADD \"https://u:secret@h/a.git\" /b"), "ADD \"https://u:xxxxx@h/a.git\" /b");
        assert_eq!(redacted("https://token@h/a.git"), "https://xxxxx@h/a.git");
        assert_eq!(redacted("ssh://git@h/a.git"), "ssh://git@h/a.git");
    }
}
