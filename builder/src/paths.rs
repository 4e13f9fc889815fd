//! Paths inside an image or a context, as bytes: relative to its root, without slashes around them.
//!
//! Invariant: nothing here looks at a file system; what links lead to is the business of whoever has one.

/// The names in a path, without empty ones and `.`.
pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

/// `directory/name`, or `name` in the root.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, name].join(&b'/') }
}

/// A clean path's directory; empty for the root and what lies in it.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |slash| &path[..slash])
}

/// A clean path's last component.
pub(crate) fn base_name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(path, |slash| &path[slash + 1..])
}

/// The path with `.` and `..` taken away, never above the root, without slashes around it: what
/// Go's `path.Clean("/" + path)` gives, less the leading slash.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in components(path) {
        if name == b".." {
            names.pop();
        } else {
            names.push(name);
        }
    }
    names.join(&b'/')
}

/// As Go's path.Clean: <https://pkg.go.dev/path#Clean>.
pub(crate) fn go_clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let is_absolute = path.starts_with('/');
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if is_absolute => {}
            _ => parts.push(part),
        }
    }
    match (is_absolute, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_clean_is_gos() {
        for (path, cleaned) in [("a//b/./c/..", "a/b"), ("../a", "../a"), ("/..", "/"), ("a/..", "."), ("", ".")] {
            assert_eq!(go_clean(path), cleaned);
        }
    }
}
