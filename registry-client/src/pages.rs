//! Lists that a registry gives in pages, each with a `Link` to the next.
//!
//! Invariant: a list ends: links in a circle, endless pages and links to other hosts are errors.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use crate::error::Cause;
use crate::repository::Repository;
use crate::transport::Method;
use crate::url::Url;

/// Ends a list whose links go in a circle: a hundred million tags.
const PAGES_LIMIT: usize = 100_000;
/// A page is at most this long: a thousand tags of the longest kind, or a manifest.
const PAGE_LIMIT_BYTES: u64 = 8 << 20;
/// A million names of usual length; they are held in memory.
const NAMES_LIMIT_BYTES: usize = 64 << 20;

/// Hands the pages of a list to `take` one by one, until it says that it wants no more.
pub(crate) fn follow(
    repository: &Repository,
    doing: &str,
    first: Url,
    headers: &[(&'static str, String)],
    mut take: impl FnMut(&Url, Vec<u8>) -> Result<bool, Cause>,
) -> Result<(), Cause> {
    let mut url = first;
    // Not the URLs themselves: a page may name one of many thousand characters.
    let (hasher, mut seen) = (RandomState::new(), HashSet::new());
    for _ in 0..PAGES_LIMIT {
        if !seen.insert(hasher.hash_one(url.to_wire())) {
            return Err(Cause::Malformed(format!("{url} goes on with a page that was there before")));
        }
        let response = repository.request(doing, Method::Get, url.clone(), headers.to_vec())?;
        let next = response.headers("link").find_map(next_link).map(|link| url.join(link)).transpose();
        let next = next.map_err(Cause::Malformed)?;
        let page = response.read_up_to(PAGE_LIMIT_BYTES, &url.origin().authority())?;
        let page = page.ok_or_else(|| Cause::Malformed(format!("{url} answered with an endless page")))?;
        if !take(&url, page)? {
            return Ok(());
        }
        match next {
            Some(next) if next.origin() == url.origin() && next != url => url = next,
            Some(next) if next != url => {
                return Err(Cause::Unsafe(format!("{url} continues its list at another host, {next}")));
            }
            _ => return Ok(()),
        }
    }
    Err(Cause::Malformed(format!("the list has more than {PAGES_LIMIT} pages")))
}

/// The names in a list of pages, `limit` of them at most; `of_page` gives those of a page, if it is one.
pub(crate) fn names(
    repository: &Repository,
    doing: &str,
    first: Url,
    limit: usize,
    of_page: impl Fn(&[u8]) -> Option<Vec<String>>,
) -> Result<Vec<String>, Cause> {
    let (mut names, mut held_bytes) = (Vec::new(), 0);
    follow(repository, doing, first, &[], |url, page| {
        let more = of_page(&page).ok_or_else(|| Cause::Malformed(format!("{url} did not answer with such a list")))?;
        held_bytes += more.iter().map(|name| name.len() + size_of::<String>()).sum::<usize>();
        if held_bytes > NAMES_LIMIT_BYTES {
            return Err(Cause::Malformed(format!("the list is larger than {} MiB", NAMES_LIMIT_BYTES >> 20)));
        }
        names.extend(more);
        Ok(names.len() < limit)
    })?;
    names.truncate(limit);
    Ok(names)
}

/// The target of `<...>; rel="next"` among the links of a header (RFC 8288).
pub(crate) fn next_link(header: &str) -> Option<&str> {
    let mut rest = header;
    loop {
        let (target, after) = rest.trim().strip_prefix('<')?.split_once('>')?;
        let end = end_of_link(after);
        let is_next = after[..end].split(';').any(|parameter| {
            parameter.split_once('=').is_some_and(|(key, value)| {
                key.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
            })
        });
        if is_next {
            return Some(target);
        }
        rest = after.get(end + 1..)?;
    }
}

/// Where the parameters of a link end: at a comma, unless that is quoted.
fn end_of_link(parameters: &str) -> usize {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in parameters.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => return at,
            _ => {}
        }
    }
    parameters.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn next_links_are_read() {
        assert_eq!(next_link(r#"</v2/a/tags/list?last=x&n=2>; rel="next""#), Some("/v2/a/tags/list?last=x&n=2"));
        assert_eq!(next_link("<https://h/x>;title=y;rel=next"), Some("https://h/x"));
        assert_eq!(next_link(r#"</x>; rel="prev""#), None);
        assert_eq!(next_link(r#"</x,y>; rel="prev", </z>; rel="next""#), Some("/z"));
        assert_eq!(next_link("/x; rel=next"), None);
        assert_eq!(next_link(r#"</x>;rel="prev",</z>;rel="next""#), Some("/z"));
        assert_eq!(next_link(r#"</x>; title="a\", <b>"; rel=prev ,  </z>; rel=next"#), Some("/z"));
    }

    #[test]
    fn a_header_of_very_many_links_is_read_too() {
        assert_eq!(next_link(&"</x>; rel=\"prev\", ".repeat(100_000)), None);
    }

    proptest! {
        #[test]
        fn any_link_is_read_without_panic(header in ".{0,60}", pieces in "[<>,; \"=/relnxt]{0,40}") {
            let _ = (next_link(&header), next_link(&pieces));
        }
    }
}
