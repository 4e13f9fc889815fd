//! Reads `WWW-Authenticate` (RFC 9110 section 11.6.1).
//!
//! Invariant: any text is read without panic; what is not understood is left out.

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The best challenge among all headers: a token is preferred to a password.
pub(crate) fn best<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut found = None;
    for challenge in headers.flat_map(parse) {
        match challenge {
            Challenge::Bearer { .. } => return Some(challenge),
            Challenge::Basic => found = Some(challenge),
        }
    }
    found
}

/// The challenges in one header that we can answer.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = header;
    loop {
        // A stray `=` is skipped too: each turn makes progress.
        rest = rest.trim_start_matches([' ', '\t', ',', '=']);
        let word_end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        if word.is_empty() {
            break;
        }
        let Some(value) = after.trim_start().strip_prefix('=') else {
            challenges.push((word.to_ascii_lowercase(), Vec::new()));
            rest = after;
            continue;
        };
        let (value, after) = take_value(value.trim_start());
        if let Some((_, parameters)) = challenges.last_mut() {
            parameters.push((word.to_ascii_lowercase(), value));
        }
        rest = after;
    }
    challenges.into_iter().filter_map(|(scheme, parameters)| known(&scheme, &parameters)).collect()
}

/// A token or a quoted string, and what follows it.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

fn known(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    let parameter = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: parameter("realm")?,
            service: parameter("service"),
            scope: parameter("scope").filter(|scope| !scope.is_empty()),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn docker_hubs_challenge_is_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let expected =
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push"));
        assert_eq!(parse(header), [expected]);
    }

    #[test]
    fn several_challenges_in_one_or_more_headers_prefer_the_token() {
        let both = r#"Basic realm="x, y", Bearer realm=https://t/token , service = "s\"q""#;
        assert_eq!(parse(both), [Challenge::Basic, bearer("https://t/token", Some("s\"q"), None)]);
        assert_eq!(best(["Basic realm=x", r#"bearer realm="r""#].into_iter()), Some(bearer("r", None, None)));
        assert_eq!(best(["Negotiate", "Basic"].into_iter()), Some(Challenge::Basic));
    }

    #[test]
    fn what_cannot_be_answered_is_left_out() {
        assert_eq!(parse("Negotiate YII=, Digest realm=\"x\""), []);
        assert_eq!(parse("Bearer service=\"no realm\""), []);
        assert_eq!(parse("= , =\"\", Bearer realm=\"open"), [bearer("open", None, None)]);
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(header in ".{0,80}", pieces in "[Bbearr =,\"\\\\a]{0,40}") {
            let _ = (parse(&header), parse(&pieces));
        }
    }
}
