//! `nacre sign`.

use std::path::PathBuf;
use std::process::ExitCode;

use registry_client::{
    Destination, ImageName, Manifest, ManifestContent, Payload, Platform, Reference, RegistryDestination,
    RegistrySource, Source, choose_image, sign,
};

use super::key::PasswordFlag;
use crate::flags;
use crate::report::Usage;
use crate::session::Session;
use crate::transfer::{Place, Places};

/// In one index, with those in it: more than any has.
const MOST_MANIFESTS: usize = 1000;

/// Arguments of `nacre sign`.
#[derive(clap::Args)]
#[command(after_help = "The signature lies beside the image, as cosign and podman have it: under the tag \
    sha256-....sig. What is signed is the digest and the name with its tag or, without one, with its digest. The password of the key \
    comes from --password-file, else $NACRE_KEY_PASSWORD, else $COSIGN_PASSWORD, else it is asked for.\n\n\
    Who pulls an index with podman needs --recursive; `cosign verify` needs --insecure-ignore-tlog, for a key's signature \
    is in no public log.\n\n\
    Examples:\n  nacre sign --key release.key ghcr.io/me/app:1.0\n  nacre verify --key release.pub ghcr.io/me/app:1.0")]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// The private key: cosign's form, or PKCS#8
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    password: PasswordFlag,
    /// The name that is signed [default: NAME]
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    /// What is signed besides
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// Sign this image of an index, not the index
    #[arg(long, conflicts_with = "recursive")]
    platform: Option<Platform>,
    /// Sign an index and each image in it
    #[arg(short, long)]
    recursive: bool,
    /// Also attach the signature as a referrer, which registries list
    #[arg(long)]
    referrer: bool,
}

/// The name with its tag, if it has one: a digest that is typed besides says which image, and is signed anyway.
fn signed_name(reference: &Reference) -> String {
    match reference.tag() {
        Some(tag) => format!("{}/{}:{tag}", reference.registry(), reference.repository()),
        None => reference.to_string(),
    }
}

/// Signs an image where it lies, and prints the digests of what was signed.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let name = args.place.image()?;
    let annotations = flags::annotations(&args.annotation)?;
    let places = Places::new(session);
    let (source, destination): (Box<dyn Source>, Box<dyn Destination>) = match &name {
        // A mirror may not have yet what was signed a moment ago.
        ImageName::Registry(reference) => (
            Box::new(RegistrySource::new(&session.client, reference)?.without_mirrors()),
            Box::new(RegistryDestination::new(&session.client, reference)?),
        ),
        ImageName::OciLayout { .. } | ImageName::Store(_) => (places.source(&name)?, places.destination(&name)?),
        other => {
            return Err(Usage(format!("{other}: signatures lie at registries, in layouts and in the store")).into());
        }
    };
    let identity = match (&args.identity, &name) {
        (Some(identity), _) => identity.clone(),
        (None, ImageName::Registry(reference)) => signed_name(reference),
        (None, ImageName::Store(name)) => name.clone(),
        (None, other) => {
            let what = format!("{other}: what lies there has no name of its own; --identity NAME says what is signed");
            return Err(Usage(what).into());
        }
    };
    let key = args.password.open(session, &args.key)?;
    for manifest in signed(args, source.as_ref())? {
        let payload = Payload::new(manifest.digest().clone(), &identity, annotations.clone())?;
        sign(source.as_ref(), destination.as_ref(), &manifest, &payload, &key, args.referrer)?;
        session.print(manifest.digest().as_ref())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The manifests that are to be signed, each once.
fn signed(args: &Args, source: &dyn Source) -> anyhow::Result<Vec<Manifest>> {
    if let Some(platform) = &args.platform {
        return Ok(vec![choose_image(source, platform)?]);
    }
    let mut manifests = vec![source.manifest(None)?];
    let mut looked_into = 0;
    while args.recursive && looked_into < manifests.len() {
        let content = manifests[looked_into].content();
        looked_into += 1;
        let ManifestContent::Index(entries) = content else { continue };
        for entry in entries {
            if manifests.iter().all(|known| known.digest() != entry.digest()) {
                anyhow::ensure!(manifests.len() < MOST_MANIFESTS, "it holds more than {MOST_MANIFESTS} manifests");
                manifests.push(source.manifest(Some(entry.digest()))?);
            }
        }
    }
    Ok(manifests)
}
