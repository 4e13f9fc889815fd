//! `--chmod`: an octal mode, or symbolic changes as BSD's setmode(3) takes them, which is what BuildKit uses.
//!
//! Invariant: parsing alone decides whether a mode is valid; applying cannot fail. No umask has a part in it. Not GNU's
//! rules: `=` clears the set-id bits of directories, too, only `t` touches the sticky bit, and `X` looks at the mode
//! before any change. <https://man.freebsd.org/cgi/man.cgi?query=setmode&sektion=3>

/// What `--chmod` does to a mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChange(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Octal(u32),
    Symbolic(Vec<Change>),
}

/// One change of some bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Set(u32),
    Clear(u32),
    /// `X`: set for directories, and where somebody could execute the file before the first change.
    SetIfExecutable(u32),
    /// `u`, `g` or `o` behind the operator: what the class has goes to, or is taken from, each of `to`. Set-id bits
    /// are no part of it.
    Copy {
        from: u32,
        operator: char,
        to: u32,
    },
}

const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
const STICKY: u32 = 0o1000;
/// All that a clause is about that names nobody, and all that `a` names.
const ALL: u32 = SET_USER | SET_GROUP | 0o777;

impl ModeChange {
    /// Reads a mode such as `0755` or `u=rwX,go=rX`; `None` if it is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let all_octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| all_octal && *mode <= 0o7777)?;
            return Some(Self(Kind::Octal(mode)));
        }
        let mut changes = Vec::new();
        text.split(',').try_for_each(|text| clause(text, &mut changes))?;
        Some(Self(Kind::Symbolic(changes)))
    }

    /// What the key of a step has of it, the same for modes that do the same in the same order; another word is another
    /// key.
    pub(crate) fn key_word(&self) -> String {
        let changes = match &self.0 {
            Kind::Octal(mode) => return format!("{mode:o}"),
            Kind::Symbolic(changes) => changes,
        };
        let word = |change: &Change| match change {
            Change::Set(bits) => format!("+{bits:o}"),
            Change::Clear(bits) => format!("-{bits:o}"),
            Change::SetIfExecutable(bits) => format!("X{bits:o}"),
            Change::Copy { from, operator, to } => format!("{from:o}{operator}{to:o}"),
        };
        changes.iter().map(word).collect::<Vec<_>>().join(",")
    }

    /// Whether the mode is octal: it replaces all bits and also applies to directories made on the way.
    #[must_use]
    pub fn is_octal(&self) -> bool {
        matches!(self.0, Kind::Octal(_))
    }

    /// The new permission bits (among 0o7777) of a file that has `mode`.
    #[must_use]
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        let changes = match &self.0 {
            Kind::Octal(mode) => return *mode,
            Kind::Symbolic(changes) => changes,
        };
        let is_executable = is_directory || mode & 0o111 != 0;
        changes.iter().fold(mode & 0o7777, |mode, change| match *change {
            Change::Set(bits) => mode | bits,
            Change::Clear(bits) => mode & !bits,
            Change::SetIfExecutable(bits) => mode | if is_executable { bits } else { 0 },
            Change::Copy { from, operator, to } => {
                let copied = (((mode >> from) & 0o7) * 0o111) & to;
                match operator {
                    '+' => mode | copied,
                    '-' => mode & !copied,
                    _ => mode & !to | copied,
                }
            }
        })
    }
}

/// `who` letters, then at least one operator with its permissions.
fn clause(text: &str, changes: &mut Vec<Change>) -> Option<()> {
    let start = text.find(['+', '-', '='])?;
    let mut who = 0;
    for class in text[..start].chars() {
        who |= match class {
            'u' => SET_USER | 0o700,
            'g' => SET_GROUP | 0o070,
            'o' => 0o007,
            'a' => ALL,
            _ => return None,
        };
    }
    let mut rest = &text[start..];
    while let Some(operator) = rest.chars().next() {
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
        Permissions { who, operator, bits: 0, conditional: 0, is_pending: operator == '=' }
            .read(&rest[1..end], changes)?;
        rest = &rest[end..];
    }
    Some(())
}

/// What stands behind one operator, as far as it is read.
struct Permissions {
    /// Whom it is about; nobody is everybody.
    who: u32,
    operator: char,
    /// What the letters since the last change say, for all classes.
    bits: u32,
    /// The same of `X`.
    conditional: u32,
    /// Whether an `=` has not changed anything yet: it clears also if nothing follows.
    is_pending: bool,
}

impl Permissions {
    fn read(mut self, letters: &str, changes: &mut Vec<Change>) -> Option<()> {
        // `s` and `t` say nothing about others alone.
        let is_others = self.who == 0o007;
        for letter in letters.chars() {
            match letter {
                'r' => self.bits |= 0o444,
                'w' => self.bits |= 0o222,
                'x' => self.bits |= 0o111,
                'X' if self.operator == '-' => self.bits |= 0o111,
                'X' => self.conditional = 0o111,
                's' if !is_others => self.bits |= SET_USER | SET_GROUP,
                't' if !is_others => {
                    // As there, nobody becomes somebody by it: what else `+rt` names is lost.
                    self.who |= STICKY;
                    self.bits |= STICKY;
                }
                's' | 't' => {}
                'u' | 'g' | 'o' => {
                    self.is_pending = false;
                    self.finish_bits(changes);
                    let from = match letter {
                        'u' => 6,
                        'g' => 3,
                        _ => 0,
                    };
                    let to = if self.who == 0 { 0o777 } else { self.who & 0o777 };
                    changes.push(Change::Copy { from, operator: self.operator, to });
                }
                _ => return None,
            }
        }
        self.finish_bits(changes);
        Some(())
    }

    fn finish_bits(&mut self, changes: &mut Vec<Change>) {
        let who = if self.who == 0 { ALL } else { self.who };
        if self.bits != 0 || self.is_pending {
            changes.extend((self.operator == '=').then_some(Change::Clear(who)));
            changes.push(if self.operator == '-' {
                Change::Clear(self.bits & who)
            } else {
                Change::Set(self.bits & who)
            });
        }
        if self.conditional != 0 {
            changes.push(Change::SetIfExecutable(self.conditional & who));
        }
        (self.bits, self.conditional, self.is_pending) = (0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change, a mode, and what BuildKit's library makes of it for a file and for a directory.
    const TABLE: [(&str, u32, u32, u32); 34] = [
        ("u=rwx,g=rx,o=rx", 0o2775, 0o755, 0o755),
        ("u=rwx,g=rx,o=rx", 0o1777, 0o1755, 0o1755),
        ("a=rx", 0o1777, 0o1555, 0o1555),
        ("a=rx", 0o4755, 0o555, 0o555),
        ("u=rwX,go=rX", 0o1777, 0o1755, 0o1755),
        ("u=rwX,go=rX", 0o644, 0o644, 0o755),
        ("u=rwX,go=rX", 0o4755, 0o755, 0o755),
        ("u+t", 0o644, 0o1644, 0o1644),
        ("o+t", 0o644, 0o644, 0o644),
        ("a+t", 0o644, 0o1644, 0o1644),
        ("+rt", 0o200, 0o1200, 0o1200),
        ("o+s", 0o755, 0o755, 0o755),
        ("+s", 0o644, 0o6644, 0o6644),
        ("u+s,g+s,+t", 0o644, 0o7644, 0o7644),
        ("a-x,a+X", 0o755, 0o755, 0o755),
        ("a-x+X", 0o644, 0o644, 0o755),
        ("-X", 0o1777, 0o1666, 0o1666),
        ("u=g", 0o4755, 0o4555, 0o4555),
        ("u=g", 0o2775, 0o2775, 0o2775),
        ("u=gr", 0o755, 0o455, 0o455),
        ("u=gr", 0o4755, 0o455, 0o455),
        ("u=rg", 0o4755, 0o555, 0o555),
        ("go=u-w", 0o2775, 0o2755, 0o2755),
        ("g=o,u-w", 0o1777, 0o1577, 0o1577),
        ("o-u", 0o755, 0o750, 0o750),
        ("o+ug", 0o4640, 0o4646, 0o4646),
        ("=", 0o2775, 0, 0),
        ("=", 0o1777, 0o1000, 0o1000),
        ("o=", 0o4755, 0o4750, 0o4750),
        ("=X", 0o644, 0, 0o111),
        ("=t", 0o6777, 0o7777, 0o7777),
        ("ug=rwxs", 0o755, 0o6775, 0o6775),
        ("u+", 0o644, 0o644, 0o644),
        ("go-rwx", 0o6755, 0o6700, 0o6700),
    ];

    #[test]
    fn modes_have_the_words_in_keys_that_they_had() {
        let word = |text: &str| ModeChange::parse(text).expect("a mode").key_word();
        assert_eq!([word("0755"), word("u=rwX,go-w"), word("g=u")], ["755", "-4700,+600,X100,-22", "6=70"]);
        assert_eq!(word("a+r"), word("ugo+r"), "what does the same is the same");
    }

    #[test]
    fn symbolic_modes_are_those_of_setmode() {
        for (change, mode, file, directory) in TABLE {
            let parsed = ModeChange::parse(change).expect(change);
            let found = (parsed.apply(mode, false), parsed.apply(mode, true));
            assert_eq!(found, (file, directory), "{change} on {mode:o} gives {:o} and {:o}", found.0, found.1);
        }
    }
    #[test]
    fn an_octal_mode_replaces_all_bits() {
        assert_eq!(ModeChange::parse("4755").expect("octal").apply(0o100_644, false), 0o4755);
        for bad in ["", "rwxr-xr-x", "0788", "10000", "u", "x=r", "u=q", "u+a", "755,u+x", "u+x,", ",u+x", "u,g+x", "9"]
        {
            assert_eq!(ModeChange::parse(bad), None, "{bad}");
        }
    }
}
