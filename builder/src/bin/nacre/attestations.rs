//! `--provenance` and `--sbom`: attestations are not made, and who says so is right.
//!
//! Invariant: asking for one is an error.

use crate::report::Usage;

/// Flags that scripts for docker have in order to turn something off.
#[derive(clap::Args)]
pub(crate) struct AttestationFlags {
    /// Only `false`: no statement about the build is made
    #[arg(long, value_name = "false")]
    provenance: Option<String>,
    /// Only `false`: no bill of materials is made
    #[arg(long, value_name = "false")]
    sbom: Option<String>,
}

impl AttestationFlags {
    /// Refuses what is not made.
    pub(crate) fn check(&self) -> Result<(), Usage> {
        for (flag, value) in [("--provenance", &self.provenance), ("--sbom", &self.sbom)] {
            if let Some(value) = value.as_deref().filter(|value| !matches!(*value, "false" | "0" | "disabled=true")) {
                let way = "attestations are not made; `nacre attach` attaches files to a pushed image";
                return Err(Usage(format!("{flag} {value} is not supported: {way}")));
            }
        }
        Ok(())
    }
}
