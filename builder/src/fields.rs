//! `key=value` fields of a comma-separated text, as docker's flags and `RUN --mount` have them.
//!
//! Invariant: a key that nobody takes is an error that names it.

use layerfs::Packing;
/// The fields of one text; what is taken is removed.
#[derive(Debug)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Splits a text; a field with a comma in it is quoted: `"name=a,b"`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let fields = csv_fields(text).ok_or("its quotes do not match")?;
        let mut parsed: Vec<(String, String)> = Vec::new();
        for field in fields {
            let (key, value) = field.split_once('=').ok_or(format!("{field:?} is not key=value"))?;
            // As in buildx, letters count alike; what follows in `annotation.NAME` is a name of the user's.
            let key = key.trim();
            let key = if key.contains('.') { key.to_owned() } else { key.to_ascii_lowercase() };
            if parsed.iter().any(|(known, _)| *known == key) {
                return Err(format!("{key}= is there twice"));
            }
            parsed.push((key, value.to_owned()));
        }
        Ok(Self(parsed))
    }

    /// The value of a key; an empty one counts as none.
    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        let position = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(position).1).filter(|value| !value.is_empty())
    }

    /// A value that is true or false.
    pub(crate) fn boolean(&mut self, key: &str) -> Result<Option<bool>, String> {
        let Some(text) = self.take(key) else { return Ok(None) };
        truth(&text).map(Some).ok_or_else(|| format!("{key}={text} is neither true nor false"))
    }

    /// All fields whose key begins so, in order, with what follows.
    pub(crate) fn take_prefixed(&mut self, prefix: &str) -> Vec<(String, String)> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(key, _)| key.starts_with(prefix));
        self.0 = left;
        let taken: Vec<(String, String)> = taken;
        taken.into_iter().map(|(key, value)| (key[prefix.len()..].to_owned(), value)).collect()
    }

    /// Nothing may be left; `kind` is what it is for, as `type=oci`.
    pub(crate) fn finish(self, kind: &str) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("{key}= is not supported with {kind}")),
        }
    }
}

/// A truth value as Go's `strconv.ParseBool` reads it, which docker and BuildKit use wherever they take one.
pub fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The fields of one CSV record: a quoted field may hold commas, and doubled quotes for one.
/// `None` where quotes do not match. <https://www.rfc-editor.org/rfc/rfc4180>
pub fn csv_fields(text: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let (field, behind) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
                if field.contains('"') {
                    return None;
                }
                (field.to_owned(), behind)
            }
        };
        fields.push(field);
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            None if behind.is_empty() => return Some(fields),
            None => return None,
        }
    }
}

fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (part, behind) = rest.split_once('"')?;
        field.push_str(part);
        match behind.strip_prefix('"') {
            Some(next) => rest = next,
            None => return Some((field, behind)),
        }
        field.push('"');
    }
}

/// `compression=` and `compression-level=`.
pub(crate) fn packing(fields: &mut Fields) -> Result<Packing, String> {
    let compression: Packing = match fields.take("compression") {
        None => Packing::default(),
        // A level is written in a field of its own.
        Some(text) if text.contains(':') => return Err(format!("compression={text} is not supported")),
        Some(text) => text.parse().map_err(|error: layerfs::PackingError| error.to_string())?,
    };
    match fields.take("compression-level") {
        None => Ok(compression),
        Some(level) => {
            let number = level.parse().map_err(|_| format!("compression-level={level} is no level"))?;
            Packing::new(compression.compression(), number).map_err(|error| error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_split_as_csv_and_taken_once() {
        let mut fields = Fields::parse(r#"type=image,"name=a,b",PUSH=True,x.A=2"#).expect("well formed");
        assert_eq!(fields.take("name").as_deref(), Some("a,b"));
        assert_eq!(fields.take("name"), None);
        assert_eq!(fields.boolean("push"), Ok(Some(true)));
        assert_eq!(fields.take_prefixed("x."), [("A".to_owned(), "2".to_owned())]);
        assert_eq!(fields.finish("that"), Err("type= is not supported with that".to_owned()));
        for wrong in ["a", "a=1,A=2", r#""a=1"#] {
            assert!(Fields::parse(wrong).is_err(), "{wrong}");
        }
    }
}
