//! `--chmod`: an octal mode, or symbolic changes as chmod(1) takes them.
//!
//! Invariant: parsing alone decides whether a mode is valid; applying cannot fail. No umask has a part in it.
//! <https://pubs.opengroup.org/onlinepubs/9699919799/utilities/chmod.html>

/// What `--chmod` does to a mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChange(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Octal(u32),
    Symbolic(Vec<Action>),
}

/// One operator with its permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Action {
    /// The bits of the classes named: 0o700, 0o070, 0o007.
    who: u32,
    operator: char,
    permissions: Permissions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Permissions {
    /// Among 0o7: what `r`, `w` and `x` say.
    rwx: u32,
    /// `X`: execution for directories, and where somebody has it already.
    conditional_x: bool,
    /// `s`.
    set_id: bool,
    /// `t`.
    sticky: bool,
    /// `u`, `g` or `o`: how far its bits are shifted.
    copied_from: Option<u32>,
}

impl ModeChange {
    /// Reads a mode such as `0755` or `u=rwX,go=rX`; `None` if it is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let all_octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| all_octal && *mode <= 0o7777)?;
            return Some(Self(Kind::Octal(mode)));
        }
        let clauses: Option<Vec<Vec<Action>>> = text.split(',').map(clause).collect();
        Some(Self(Kind::Symbolic(clauses?.concat())))
    }

    /// Whether the mode is octal: it replaces all bits and also applies to directories made on the way.
    #[must_use]
    pub fn is_octal(&self) -> bool {
        matches!(self.0, Kind::Octal(_))
    }

    /// The new permission bits (among 0o7777) of a file that has `mode`.
    #[must_use]
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match &self.0 {
            Kind::Octal(mode) => *mode,
            Kind::Symbolic(actions) => {
                actions.iter().fold(mode & 0o7777, |mode, action| action.apply(mode, is_directory))
            }
        }
    }
}

impl Action {
    fn apply(self, mode: u32, is_directory: bool) -> u32 {
        let Permissions { rwx, conditional_x, set_id, sticky, copied_from } = self.permissions;
        let has_x = is_directory || mode & 0o111 != 0;
        let copied = copied_from.map_or(0, |shift| (mode >> shift) & 0o7);
        let three = rwx | copied | u32::from(conditional_x && has_x);
        let set_id_bits =
            (if self.who & 0o700 != 0 { 0o4000 } else { 0 }) | (if self.who & 0o070 != 0 { 0o2000 } else { 0 });
        let sticky_bit = if self.who & 0o007 != 0 { 0o1000 } else { 0 };
        let bits =
            (three * 0o111) & self.who | if set_id { set_id_bits } else { 0 } | if sticky { sticky_bit } else { 0 };
        match self.operator {
            '+' => mode | bits,
            '-' => mode & !bits,
            // On a directory `=` leaves the set-id bits that it does not name, as GNU chmod does.
            _ if is_directory => mode & !(self.who | sticky_bit) | bits,
            _ => mode & !(self.who | set_id_bits | sticky_bit) | bits,
        }
    }
}

/// `who` letters, then at least one operator with its permissions.
fn clause(text: &str) -> Option<Vec<Action>> {
    let start = text.find(['+', '-', '='])?;
    let mut who = 0;
    for class in text[..start].chars() {
        who |= match class {
            'u' => 0o700,
            'g' => 0o070,
            'o' => 0o007,
            'a' => 0o777,
            _ => return None,
        };
    }
    let who = if who == 0 { 0o777 } else { who };
    let mut actions = Vec::new();
    for c in text[start..].chars() {
        if matches!(c, '+' | '-' | '=') {
            actions.push(Action { who, operator: c, permissions: Permissions::default() });
            continue;
        }
        let permissions = &mut actions.last_mut()?.permissions;
        match c {
            'r' => permissions.rwx |= 4,
            'w' => permissions.rwx |= 2,
            'x' => permissions.rwx |= 1,
            'X' => permissions.conditional_x = true,
            's' => permissions.set_id = true,
            't' => permissions.sticky = true,
            'u' | 'g' | 'o' if *permissions == Permissions::default() => {
                permissions.copied_from = Some(match c {
                    'u' => 6,
                    'g' => 3,
                    _ => 0,
                });
            }
            _ => return None,
        }
        if permissions.copied_from.is_some()
            && (permissions.rwx != 0 || permissions.conditional_x || permissions.set_id)
        {
            return None;
        }
    }
    Some(actions)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn chmod_of_the_system_agrees() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (file, subdirectory) = (directory.path().join("file"), directory.path().join("directory"));
        std::fs::write(&file, "").expect("write the file");
        std::fs::create_dir(&subdirectory).expect("make the directory");
        let changes =
            ["u=rwX,go=rX", "a+x", "go-rwx", "u+s,g+s,+t", "o=u", "g=o,u-w", "=", "u=rw,g=r,o=", "a-x+X", "ug=rwxs"];
        for change in changes {
            for mode in [0o644, 0o755, 0o4711, 0o000, 0o1777, 0o2750] {
                for (path, is_directory) in [(&file, false), (&subdirectory, true)] {
                    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set the mode");
                    let status = Command::new("chmod").args(["--", change]).arg(path).status().expect("run chmod");
                    assert!(status.success(), "chmod {change}");
                    let expected = std::fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
                    let parsed = ModeChange::parse(change).expect(change);
                    assert_eq!(
                        parsed.apply(mode, is_directory),
                        expected,
                        "{change} on {mode:o}, directory {is_directory}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_octal_mode_replaces_all_bits() {
        assert_eq!(ModeChange::parse("4755").expect("octal").apply(0o100_644, false), 0o4755);
        for bad in ["", "rwxr-xr-x", "0788", "10000", "u", "x=r", "u=q", "u=gr", "755,u+x", "u+x,", "9"] {
            assert_eq!(ModeChange::parse(bad), None, "{bad}");
        }
    }
}
