//! `nacre sign`.

use std::path::PathBuf;
use std::process::ExitCode;

use registry_client::{
    Destination, GpgKey, ImageName, Manifest, ManifestContent, Payload, Platform, PrivateKey, Reference,
    RegistryDestination, RegistrySource, Source, choose_image, sign, sign_bundle, sign_with_gpg,
};

use super::key::PasswordFlag;
use crate::flags;
use crate::report::Usage;
use crate::session::{self, Session};
use crate::transfer::{Place, Places};

/// In one index, with those in it: more than any has.
const MOST_MANIFESTS: usize = 1000;

/// Sign an image with a key
#[derive(clap::Args)]
#[command(after_help = "The signature lies beside the image, as cosign and podman have it: under the tag \
    sha256-....sig. What is signed is the digest and the name with its tag or, without one, with its digest. The password of the key \
    comes from --password-file, else $NACRE_KEY_PASSWORD, else $COSIGN_PASSWORD, else it is asked for.\n\n\
    Who pulls an index with podman needs --recursive; `cosign verify` needs --insecure-ignore-tlog, for a key's signature \
    is in no public log.\n\n\
    With --gpg-key GPG signs, as `skopeo copy --sign-by` has it. The signature lies in the directory that registries.d \
    names as lookaside-staging or lookaside, and a policy demands it as signedBy. GPG asks for a password by itself, \
    where --password-file names none.\n\n\
    Examples:\n  nacre sign --key release.key ghcr.io/me/app:1.0\n  nacre verify --key release.pub ghcr.io/me/app:1.0")]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// The private key: cosign's form, or PKCS#8
    #[arg(long, value_name = "FILE", required_unless_present = "gpg_key", conflicts_with = "gpg_key")]
    key: Option<PathBuf>,
    /// Sign with this key of GPG, in its way: an id, a fingerprint or an address
    #[arg(long, value_name = "ID", conflicts_with = "referrer")]
    gpg_key: Option<String>,
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
    /// Sign as cosign 3 does: a bundle among the referrers, which says the digest and no name
    #[arg(long, conflicts_with_all = ["gpg_key", "identity", "referrer"])]
    bundle: bool,
}

/// What signs.
enum Key<'a> {
    Own(PrivateKey),
    /// With the name whose store the signatures go to.
    Gpg(GpgKey, &'a Reference),
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
        _ if args.bundle => None,
        (Some(identity), _) => Some(identity.clone()),
        (None, ImageName::Registry(reference)) => Some(signed_name(reference)),
        (None, ImageName::Store(name)) => Some(name.clone()),
        (None, other) => {
            let what = format!("{other}: what lies there has no name of its own; --identity NAME says what is signed");
            return Err(Usage(what).into());
        }
    };
    let key = match (&args.key, &args.gpg_key, &name) {
        (Some(file), ..) => Key::Own(args.password.open(session, file)?),
        (None, Some(id), ImageName::Registry(reference)) => {
            Key::Gpg(GpgKey::find(id, args.password.for_others()?, &session::path())?, reference)
        }
        _ => return Err(Usage(format!("{name}: GPG signs what lies at a registry")).into()),
    };
    for manifest in signed(args, source.as_ref())? {
        let (digest, annotations) = (manifest.digest().clone(), annotations.clone());
        let payload = match &identity {
            Some(identity) => Payload::new(digest, identity, annotations)?,
            None => Payload::nameless(digest, annotations),
        };
        match &key {
            Key::Own(key) if args.bundle => {
                sign_bundle(source.as_ref(), destination.as_ref(), &manifest, &payload, key)?
            }
            Key::Own(key) => sign(source.as_ref(), destination.as_ref(), &manifest, &payload, key, args.referrer)?,
            Key::Gpg(key, reference) => sign_with_gpg(&session.client, reference, &manifest, &payload, key)?,
        };
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
