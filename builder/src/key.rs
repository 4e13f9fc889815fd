//! What keys are digests of: fields, written down one after another.
//!
//! Invariant: two lists of fields that differ never give the same bytes, whatever the fields hold. No type says by itself
//! how it is written (neither `Debug` nor `serde`), so that no key changes because something was renamed or derived.

use std::fmt::Display;

use layerfs::digest_of;

/// Fields in order, each with its length before it.
#[derive(Debug, Clone)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// A key of this kind of thing; keys of two kinds are never the same.
    pub(crate) fn of(kind: &str) -> Self {
        Self(Vec::new()).bytes(kind)
    }

    /// One field.
    pub(crate) fn bytes(mut self, field: impl AsRef<[u8]>) -> Self {
        let field = field.as_ref();
        // Eight bytes on every machine.
        self.0.extend((field.len() as u64).to_le_bytes());
        self.0.extend(field);
        self
    }

    /// A number or a truth value, as its text.
    pub(crate) fn value(self, field: impl Display) -> Self {
        self.bytes(field.to_string())
    }

    /// As many fields as there are, and before them how many; an `Option` is a list of one or none.
    pub(crate) fn list(self, fields: impl IntoIterator<Item: Display>) -> Self {
        let fields: Vec<String> = fields.into_iter().map(|field| field.to_string()).collect();
        fields.iter().fold(self.value(fields.len()), Self::bytes)
    }

    /// 64 hexadecimal digits.
    pub(crate) fn digest(&self) -> String {
        digest_of(&self.0).digest().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_read_alike_in_a_row_are_told_apart() {
        let keys = [
            Key::of("a").bytes("b").bytes(""),
            Key::of("a").bytes("").bytes("b"),
            Key::of("ab"),
            Key::of("a").list(["b", ""]),
            Key::of("a").list(["b"]).list([""; 0]),
            Key::of("a").list([""; 0]).list(["b"]),
        ];
        let digests: std::collections::BTreeSet<String> = keys.iter().map(Key::digest).collect();
        assert_eq!(digests.len(), keys.len());
    }
}
