//! `nacre verify`: whether an image is signed as it must be, and whether the store is what it was.
//!
//! One verb for both, so that `cosign verify --key KEY NAME` works as it is typed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use registry_client::{
    Accepted, Demands, GpgKeyring, ImageName, Manifest, ManifestContent, Platform, PublicKey, SignedIdentity, Source,
    TrustedKeys, choose_image,
};
use serde::Serialize;

use crate::flags;
use crate::format::{Format, Table};
use crate::report::{Hinted, Usage};
use crate::session::{self, Session};
use crate::transfer::{Places, image_of, place_name};
use crate::trust::TrustFlags;

/// Check the signatures of an image; without one, read the whole store and tell what is damaged
#[derive(clap::Args)]
#[command(
    after_help = "With NAME: the signatures beside an image, or beside the index that it is taken from, are checked with \
    the keys that are named, else as the policy wants it. A signature counts if it is of one of the keys, of this \
    digest, and for a name in the same repository (--identity: for another one); cosign 3's bundles are for no name: they \
    count with keys where no --identity is given, and under a policy with --nameless. The exit code is 0 if one counts, else \
    1.\n\n\
    Without NAME: all of the store is read; each blob and layer is digested, each index compared with its layers, and each \
    image's manifests, configs and layers are looked for. The exit code is 0 if all is as it was written, else 1. \
    A file that is damaged may be removed: what can be made again is, and `nacre pull` brings the rest.\n\n\
    Examples:\n  nacre verify --key release.pub ghcr.io/me/app:1.0\n  nacre verify"
)]
pub(crate) struct Args {
    /// The image whose signatures are checked: at a registry, or in a layout as oci:DIR[:TAG]
    #[arg(value_name = "NAME", value_parser = place_name)]
    name: Option<String>,
    /// Take the name for one of the store
    #[arg(long, requires = "name")]
    store: bool,
    /// A public key; of several one must have signed [default: as the policy wants it]
    #[arg(long, value_name = "FILE", requires = "name", conflicts_with = "signature_policy", group = "keys")]
    key: Vec<PathBuf>,
    /// Public keys of GPG, as gpg --export writes them; one of them must have signed in its way
    #[arg(long, value_name = "FILE", requires = "name", conflicts_with_all = ["signature_policy", "key"], group = "keys")]
    gpg_key: Vec<PathBuf>,
    /// The name that must have been signed; without tag and digest, any of that repository [default: that of NAME]
    #[arg(long, value_name = "NAME", requires = "keys")]
    identity: Option<String>,
    /// Under a policy, also count what is for no name (cosign 3's bundles); `nacre pull` does not
    #[arg(long, requires = "name", conflicts_with = "keys")]
    nameless: bool,
    /// What must have been signed besides
    #[arg(long, value_name = "KEY=VALUE", requires = "keys")]
    annotation: Vec<String>,
    /// Check this image of an index, not the index
    #[arg(long, requires = "name")]
    platform: Option<Platform>,
    #[command(flatten)]
    trust: TrustFlags,
    /// How to print what was found
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Checks an image, or the store.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    match &args.name {
        Some(name) => check_image(session, args, &image_of(name, args.store)?),
        None if args.trust.is_given() => {
            Err(Usage("--signature-policy is about an image: give its name".to_owned()).into())
        }
        None => check_store(session, args.format),
    }
}

#[derive(Serialize)]
struct SignatureRow {
    digest: String,
    /// Bundles have none.
    identity: Option<String>,
    key: String,
    annotations: BTreeMap<String, String>,
}

/// Prints the signatures of an image that count.
fn check_image(session: &Session, args: &Args, name: &ImageName) -> anyhow::Result<ExitCode> {
    let demands = demands(args, name)?;
    let places = Places::new(session);
    let source = places.source(name)?;
    let accepted = checked(source.as_ref(), &demands, args.platform.as_ref())?;
    let row = |one: Accepted| SignatureRow {
        digest: one.payload.digest.to_string(),
        identity: one.payload.identity,
        key: one.signer.to_string(),
        annotations: one.payload.annotations,
    };
    let rows: Vec<SignatureRow> = accepted.into_iter().map(row).collect();
    match args.format {
        Format::Json => session.print(&serde_json::to_string_pretty(&rows)?)?,
        Format::Table => {
            let mut table = Table::new(["DIGEST", "SIGNED AS", "KEY", "ANNOTATIONS"]);
            for row in rows {
                let annotations = row.annotations.iter().map(|(key, value)| format!("{key}={value}"));
                table.push([
                    row.digest,
                    row.identity.unwrap_or_default(),
                    row.key,
                    annotations.collect::<Vec<_>>().join(" "),
                ]);
            }
            session.print(&table.to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn demands(args: &Args, name: &ImageName) -> anyhow::Result<Demands> {
    if args.key.is_empty() && args.gpg_key.is_empty() {
        let demands = args.trust.policy()?.demands(name)?;
        if demands.is_empty() {
            return Err(Hinted::error(
                format!("no policy demands a signature of {name}"),
                "--key FILE names a public key",
            ));
        }
        return Ok(if args.nameless { demands.or_nameless() } else { demands });
    }
    let keys = match args.gpg_key.as_slice() {
        [] => args.key.iter().map(|path| PublicKey::open(path)).collect::<Result<Vec<_>, _>>()?.into(),
        files => TrustedKeys::from(GpgKeyring::open(files, &session::path())?),
    };
    let identity = match &args.identity {
        Some(identity) => SignedIdentity::exactly(identity)?,
        None if !matches!(name, ImageName::Registry(_) | ImageName::Store(_)) => {
            let what =
                format!("{name}: what lies there has no name of its own; --identity NAME says what must be signed");
            return Err(Usage(what).into());
        }
        None => SignedIdentity::MatchRepository {},
    };
    let demands = Demands::of_keys(name, keys, identity, flags::annotations(&args.annotation)?)?;
    // As cosign has it: the digest is what counts, where nobody asks for a name.
    Ok(if args.identity.is_none() { demands.or_nameless() } else { demands })
}

/// The signatures that count: of what is named, or of an image in it, which a signature of the index speaks for.
fn checked(source: &dyn Source, demands: &Demands, platform: Option<&Platform>) -> anyhow::Result<Vec<Accepted>> {
    let top: Manifest = source.manifest(None)?;
    let of_top = demands.check(source, &top);
    match platform.filter(|_| matches!(top.content(), ManifestContent::Index(_))) {
        Some(platform) => {
            let image = choose_image(source, platform)?;
            Ok(of_top.or_else(|_| demands.check(source, &image))?)
        }
        None => Ok(of_top?),
    }
}

#[derive(Serialize)]
struct Row {
    path: String,
    problem: String,
}

/// Reads the whole store, and prints which files are not what their names say.
fn check_store(session: &Session, format: Format) -> anyhow::Result<ExitCode> {
    let damage = session.store()?.verify()?.into_iter();
    let rows: Vec<Row> =
        damage.map(|damage| Row { path: damage.path.display().to_string(), problem: damage.problem }).collect();
    let code = if rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    match format {
        Format::Json => session.print(&serde_json::to_string_pretty(&rows)?)?,
        Format::Table if rows.is_empty() => session.print("nothing is damaged")?,
        Format::Table => {
            let mut table = Table::new(["FILE", "PROBLEM"]);
            rows.into_iter().for_each(|row| table.push([row.path, row.problem]));
            session.print(&table.to_string())?;
        }
    }
    Ok(code)
}
