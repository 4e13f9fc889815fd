//! `--provenance`, `--sbom` and `--attest`: what is to be said about an image.
//!
//! Invariant: what cannot be said is an error that names itself; without a flag nothing is said.

use builder::fields::{self, csv_fields};
use builder::{Attestations, Provenance};

use crate::report::Usage;

/// Flags of `nacre build`.
#[derive(clap::Args)]
pub(crate) struct AttestationFlags {
    /// Attach a statement of how the image was built: true, false, mode=min|max[,builder-id=URI]
    #[arg(long, value_name = "SPEC")]
    provenance: Option<String>,
    /// Attach a list of the packages in the image, those of dpkg and apk: true, false
    #[arg(long, value_name = "SPEC")]
    sbom: Option<String>,
    /// The same in one flag: type=provenance[,mode=min|max][,...] or type=sbom; may be given again
    #[arg(long, value_name = "SPEC")]
    attest: Vec<String>,
}

const PACKAGES_HINT: &str =
    "the packages of dpkg and apk are listed by nacre itself; `nacre attach` attaches what another tool finds";

impl AttestationFlags {
    /// What they ask for. As in buildx, the flags of their own count after `--attest`.
    pub(crate) fn asked(&self) -> Result<Attestations, Usage> {
        let mut asked = Attestations::default();
        for text in &self.attest {
            let words = words("--attest", text)?;
            let kind = words.iter().find_map(|word| word.strip_prefix("type="));
            let others = words.iter().map(String::as_str).filter(|word| !word.starts_with("type="));
            match kind {
                Some("provenance") => asked.provenance = provenance("--attest", others)?,
                Some("sbom") => asked.packages = packages("--attest", others)?,
                Some(kind) => return Err(Usage(format!("--attest type={kind} is not supported: provenance or sbom"))),
                None => return Err(Usage(format!("--attest {text:?} has no type=provenance or type=sbom"))),
            }
        }
        if let Some(text) = &self.provenance {
            asked.provenance = provenance("--provenance", words("--provenance", text)?.iter().map(String::as_str))?;
        }
        if let Some(text) = &self.sbom {
            asked.packages = packages("--sbom", words("--sbom", text)?.iter().map(String::as_str))?;
        }
        Ok(asked)
    }
}

/// The words of a specification, each said once.
fn words(flag: &str, text: &str) -> Result<Vec<String>, Usage> {
    let words = csv_fields(text).ok_or_else(|| Usage(format!("{flag} {text:?}: its quotes do not match")))?;
    let key = |word: &str| match word.split_once('=') {
        Some((key, _)) if key != "disabled" => key.to_owned(),
        // All others say whether it is wanted.
        _ => String::new(),
    };
    let again = words.iter().enumerate().find(|(at, word)| words[..*at].iter().any(|other| key(other) == key(word)));
    match again {
        Some((_, word)) => Err(Usage(format!("{flag} {text} says twice what {word} is about"))),
        None => Ok(words),
    }
}

fn provenance<'a>(flag: &str, words: impl Iterator<Item = &'a str>) -> Result<Option<Provenance>, Usage> {
    let (mut provenance, mut is_wanted) = (Provenance::default(), true);
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("mode", "min") => provenance.is_whole = false,
            ("mode", "max") => provenance.is_whole = true,
            ("mode", other) => return Err(Usage(format!("{flag} mode={other} is not min or max"))),
            ("builder-id", "") => return Err(Usage(format!("{flag} builder-id needs a URI"))),
            ("builder-id", id) => id.clone_into(&mut provenance.builder),
            ("version", "v1") => {}
            ("version", other) => return Err(Usage(format!("{flag} version={other} is not supported: SLSA v1 is"))),
            _ => is_wanted = truth(flag, word, "mode=min|max, builder-id=URI or version=v1")?,
        }
    }
    Ok(is_wanted.then_some(provenance))
}

fn packages<'a>(flag: &str, words: impl Iterator<Item = &'a str>) -> Result<bool, Usage> {
    let mut is_wanted = true;
    for word in words {
        if word.starts_with("generator=") {
            return Err(Usage(format!("{flag} {word} is not supported: {PACKAGES_HINT}")));
        }
        is_wanted = truth(flag, word, "nothing else")?;
    }
    Ok(is_wanted)
}

/// Whether a word wants it at all.
fn truth(flag: &str, word: &str, others: &str) -> Result<bool, Usage> {
    let is_wanted = match word.strip_prefix("disabled=") {
        Some(text) => fields::truth(text).map(|is_disabled| !is_disabled),
        None if word.is_empty() => Some(true),
        None => fields::truth(word),
    };
    is_wanted.ok_or_else(|| Usage(format!("{flag} {word} is not supported: true, false, {others}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(provenance: Option<&str>, sbom: Option<&str>, attest: &[&str]) -> Result<Attestations, Usage> {
        let text = |text: &str| text.to_owned();
        let attest = attest.iter().map(|spec| text(spec)).collect();
        AttestationFlags { provenance: provenance.map(text), sbom: sbom.map(text), attest }.asked()
    }

    #[test]
    fn flags_ask_for_what_buildx_understands_by_them() {
        let whole = |is_whole| Some(Provenance { is_whole, builder: String::new() });
        let cases = [
            (asked(None, None, &[]), None, false),
            (asked(Some("T"), None, &[]), whole(false), false),
            (asked(Some("true"), None, &[]), whole(false), false),
            (asked(Some("false"), Some("false"), &["type=provenance,mode=max", "type=sbom"]), None, false),
            (asked(Some("mode=max"), Some("true"), &[]), whole(true), true),
            (asked(None, None, &["type=sbom", "type=provenance,mode=max,version=v1"]), whole(true), true),
            (asked(None, None, &["type=provenance,disabled=true"]), None, false),
        ];
        for (asked, provenance, packages) in cases {
            assert_eq!(asked.map_err(|error| error.0), Ok(Attestations { provenance, packages }));
        }
    }

    #[test]
    fn what_cannot_be_said_names_itself() {
        let cases = [
            (asked(Some("mode=some"), None, &[]), "mode=some"),
            (asked(Some("version=v0.2"), None, &[]), "v0.2"),
            (asked(Some("inline-only=true"), None, &[]), "inline-only"),
            (asked(None, Some("generator=me/scanner"), &[]), "me/scanner"),
            (asked(None, None, &["type=vex"]), "vex"),
            (asked(None, None, &["mode=max"]), "mode=max"),
            (asked(None, None, &["type=sbom,type=provenance"]), "type=provenance"),
            (asked(None, Some("false,true"), &[]), "true"),
            (asked(Some("builder-id"), None, &[]), "builder-id"),
        ];
        for (asked, name) in cases {
            let error = asked.expect_err(name).0;
            assert!(error.contains(name), "{error}");
        }
    }
}
