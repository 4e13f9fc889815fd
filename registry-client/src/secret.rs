//! Text that must not be seen.
//!
//! Invariant: a [`Secret`] has no way to a log or an error: its `Debug` shows nothing and it has no `Display`. Where
//! others wrote one into a text (a registry into an answer, a person into a name), it is taken out before that is
//! shown.

/// A password or token.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, to be sent to the one party that it is meant for, or stored for it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What stands in place of a secret.
const HIDDEN: &str = "***";
/// A shorter secret guards nothing, and taking it out would leave little of a text.
const SHORTEST_BYTES: usize = 4;

/// A text without these secrets.
pub(crate) fn without<'a>(text: &str, secrets: impl Iterator<Item = &'a str>) -> String {
    let mut secrets: Vec<&str> = secrets.filter(|secret| secret.len() >= SHORTEST_BYTES).collect();
    // A longer one may contain a shorter one.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret, HIDDEN))
}

/// A text without the passwords that people write into names and URLs, and without the signatures of URLs:
/// `https://me:secret@host/?sig=secret` becomes `https://***@host/?sig=***`, `me:secret@host/app` becomes
/// `***@host/app`. A user without password stays (`git@host:x`), unless it is all that an http URL has: there it is
/// mostly a token.
pub fn without_credentials(text: &str) -> String {
    let ends_word = |c: char| c.is_whitespace() || "\"'`<>(){}|".contains(c);
    let shown = text.split_inclusive(ends_word).map(|word| {
        let (word, end) = word.split_at(word.rfind(ends_word).unwrap_or(word.len()));
        let (place, query) = word.split_at(word.find('?').unwrap_or(word.len()));
        let place = if place.contains('@') { hide_user_info(place) } else { place.to_owned() };
        let query = if place.contains("://") { hide_signatures(query) } else { query.to_owned() };
        format!("{place}{query}{end}")
    });
    shown.collect()
}

/// Parts of names of parameters that carry a right: Amazon's, Google's and Azure's signatures, docker-registry's state.
const SIGNING: [&str; 9] = ["sig", "token", "secret", "passw", "credential", "key", "auth", "policy", "_state"];

fn hide_signatures(query: &str) -> String {
    let hide = |parameter: &str| {
        let Some((name, _)) = parameter.split_once('=') else { return parameter.to_owned() };
        let lower = name.to_ascii_lowercase();
        let is_secret = SIGNING.iter().any(|part| lower.contains(part));
        if is_secret { format!("{name}={HIDDEN}") } else { parameter.to_owned() }
    };
    query.split('&').map(hide).collect::<Vec<_>>().join("&")
}

/// What begins the name of a file or directory, which a colon ends.
const PATHS: [&str; 4] = ["oci:", "dir:", "oci-archive:", "docker-archive:"];

fn hide_user_info(word: &str) -> String {
    // A path may hold anything; `oci:me:secret@host` is none that somebody would mean.
    if let Some(path) = PATHS.iter().find_map(|prefix| word.strip_prefix(prefix))
        && path.split(':').next().is_some_and(|path| path.contains('/'))
    {
        let (path, rest) = word.split_at(word.len() - path.len() + path.find(':').map_or(path.len(), |end| end + 1));
        return match rest.contains('@') && !rest.starts_with('@') {
            true => format!("{path}{}", hide_user_info(rest)),
            false => word.to_owned(),
        };
    }
    let (scheme, rest) = word.split_at(word.find("://").map_or(0, |end| end + 3));
    // What pins an image has a `@` too, and comes last.
    let (name, digest) = rest.split_at(rest.rfind("@sha").unwrap_or(rest.len()));
    let Some((user_info, host)) = name.rsplit_once('@') else { return word.to_owned() };
    let is_token = (scheme.ends_with("http://") || scheme.ends_with("https://")) && !user_info.contains('/');
    match (is_token || user_info.contains(':')) && is_authority(host) {
        true => format!("{scheme}{HIDDEN}@{host}{digest}"),
        false => word.to_owned(),
    }
}

/// Whether a text begins with a host; what follows a digest's `@` in vain, `app:1@12ab`, does not.
fn is_authority(text: &str) -> bool {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.:[]".contains(c)).unwrap_or(text.len());
    let first = &text[..end];
    first.contains(['.', ':']) || first == "localhost" || text[end..].starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_password_in_a_name_or_url_is_not_shown() {
        for (text, shown) in [
            ("https://me:hunter2@r.example/v2", "https://***@r.example/v2"),
            ("https://hunter2@r.example/v2", "https://***@r.example/v2"),
            ("cannot read \"me:hunter2@r.example:5000/app\": no", "cannot read \"***@r.example:5000/app\": no"),
            ("docker://me:hun/ter@2@localhost/app", "docker://***@localhost/app"),
            ("a me:hunter2@h/x b u:hunter2@i/y", "a ***@h/x b ***@i/y"),
            ("git@github.com:me/app", "git@github.com:me/app"),
            ("ssh://git@github.com/me", "ssh://git@github.com/me"),
            ("r.example:5000/app:1@sha256:12", "r.example:5000/app:1@sha256:12"),
            ("docker://r.example/app@sha512:12", "docker://r.example/app@sha512:12"),
            ("http://a:b@h.example,http://c:d@i.example", "http://***@i.example"),
            ("https://r.example/@scope/part", "https://r.example/@scope/part"),
            ("me:hunter2@r.example/app@sha256:12", "***@r.example/app@sha256:12"),
            ("\"app:1@12ab\" is", "\"app:1@12ab\" is"),
            ("(https://h/x?ref=1&X-Amz-Signature=ab@c%2F&sig=2)", "(https://h/x?ref=1&X-Amz-Signature=***&sig=***)"),
            ("is it so? token=1 h/x?sig=1", "is it so? token=1 h/x?sig=1"),
            ("at 10:30 @ noon, a@b", "at 10:30 @ noon, a@b"),
            ("no oci:/tmp/me@example.com/lay:1: x", "no oci:/tmp/me@example.com/lay:1: x"),
            ("no \"oci:/tmp/x:@0\": oci:./x:@0: y", "no \"oci:/tmp/x:@0\": oci:./x:@0: y"),
            (
                "dir:/a:b@example.com/c oci-archive:a/b@example.com.tar:1",
                "dir:/a:b@example.com/c oci-archive:a/b@example.com.tar:1",
            ),
            ("docker-archive:/a@b.c/f.tar:me:hunter2@h/x", "docker-archive:/a@b.c/f.tar:***@h/x"),
            ("oci:me:hunter2@r.example/app", "***@r.example/app"),
            ("oci:https://me:hunter2@r.example/app", "oci:https://***@r.example/app"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }

    #[test]
    fn known_secrets_are_taken_out_the_longest_first() {
        let shown = without("a hunter2-long, hunter2, pw", ["hunter2", "hunter2-long", "pw"].into_iter());
        assert_eq!(shown, "a ***, ***, pw");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in ".{0,60}", pieces in "[a:/@.\"é ]{0,40}") {
            let _ = (without_credentials(&text), without_credentials(&pieces));
        }
    }

    #[test]
    fn debug_shows_nothing_of_it() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret");
    }
}
