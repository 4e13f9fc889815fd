//! `nacre build`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use builder::dockerfile::Source;
use builder::{
    BuildError, BuildRequest, Built, Entitlement, Events, NamedContext, Output, SandboxRequest, Secret, Times,
};
use registry_client::Platform;

use super::check;
use crate::flags;
use crate::format::Format;
use crate::report::Usage;
use crate::session::Session;
use crate::units::parse_size;

/// Arguments of `nacre build`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  nacre build -t app .\n  nacre build -t ghcr.io/me/app:1.0 --push .\n  \
    nacre build --target test -o type=local,dest=out .")]
pub(crate) struct Args {
    /// The build context: a directory
    #[arg(value_name = "CONTEXT")]
    context: PathBuf,
    /// A name for the image; may be given again
    #[arg(short, long = "tag", value_name = "NAME")]
    tags: Vec<String>,
    /// The Dockerfile; `-` reads standard input [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Set a build argument; without a value it is taken from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// The stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// One more build context: a directory, oci-layout://DIR[:TAG] or docker-image://NAME
    #[arg(long, value_name = "NAME=PLACE")]
    build_context: Vec<String>,
    /// Set a label of the image
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// The platforms to build for, as os/architecture[/variant]; several make an index [default: this machine's]
    #[arg(long, value_delimiter = ',', value_name = "PLATFORM,...")]
    platform: Vec<Platform>,
    /// Carry every step out, whatever was built before
    #[arg(long)]
    no_cache: bool,
    /// Ask the registry for the base images even if the store has them
    #[arg(long)]
    pull: bool,
    /// Push the image to the registries that its names tell
    #[arg(long)]
    push: bool,
    /// Where the result goes: type=oci|docker|local|tar|image|registry,dest=PATH [default: the store]
    #[arg(short, long, value_name = "SPEC")]
    output: Vec<Output>,
    /// Write the image's digest to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Write the result as JSON to a file
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// The newest time in the layers, in seconds since 1970; `none` keeps real times
    /// [default: that of the base image]
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS|none", allow_hyphen_values = true)]
    source_date_epoch: Option<String>,
    /// The network of RUN steps
    #[arg(long, value_name = "default|none|host")]
    network: Option<String>,
    /// Add a line to /etc/hosts of RUN steps
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// The size of /dev/shm of RUN steps, as 64m
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// A resource limit of RUN steps, as nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// A secret for RUN --mount=type=secret: id=NAME[,src=FILE|,env=VARIABLE]
    #[arg(long, value_name = "SPEC")]
    secret: Vec<String>,
    /// An agent's socket for RUN --mount=type=ssh: default | NAME[=SOCKET]
    #[arg(long, value_name = "SPEC")]
    ssh: Vec<String>,
    /// Permit what a Dockerfile may not do by itself
    #[arg(long, value_name = "network.host|security.insecure")]
    allow: Vec<String>,
    /// Only check the Dockerfile, and build nothing
    #[arg(long, conflicts_with_all = ["push", "output"])]
    check: bool,
    /// How to show what --check finds
    #[arg(long, value_enum, default_value = "table", requires = "check")]
    format: Format,
    /// Threads that compress [default: all processors]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Builds, and writes all outputs.
pub(crate) fn run(session: &Session, args: Args) -> anyhow::Result<ExitCode> {
    let request = request(&args)?;
    if args.check {
        return check::run(session, &request, args.format);
    }
    let store = session.store()?;
    let display = session.display.as_ref();
    let built = builder::build(&request, &store, &session.client, display)?;
    let mut outputs = args.output;
    if outputs.is_empty() || args.push {
        outputs.push(Output::Image { names: Vec::new(), push: args.push });
    }
    if args.push && args.tags.is_empty() {
        return Err(Usage("--push needs a name: -t REGISTRY/NAME".to_owned()).into());
    }
    for output in outputs {
        write(output, &built, &args.tags, session, &store)?;
    }
    let digest = built.manifest.digest().to_string();
    if let Some(path) = &args.iidfile {
        std::fs::write(path, &digest).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.metadata_file {
        write_metadata(path, &built, &args.tags)?;
    }
    session.print(&digest)?;
    Ok(ExitCode::SUCCESS)
}

/// A tar for `-` is made whole before the first byte of it goes to standard output.
fn write(
    mut output: Output,
    built: &Built,
    tags: &[String],
    session: &Session,
    store: &layerfs::Store,
) -> anyhow::Result<()> {
    let spool = match output.file_mut() {
        Some(path) if path == Path::new("-") => {
            let spool = tempfile::Builder::new().prefix("nacre-").tempdir()?;
            *path = spool.path().join("out.tar");
            Some((spool, path.clone()))
        }
        _ => None,
    };
    output.write(built, tags, store, &session.client, session.display.transfers())?;
    if let Some((_spool, path)) = spool {
        std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::stdout().lock())?;
    }
    Ok(())
}

fn write_metadata(path: &Path, built: &Built, tags: &[String]) -> anyhow::Result<()> {
    let mut metadata = serde_json::json!({
        "containerimage.descriptor": built.manifest,
        "containerimage.digest": built.manifest.digest().to_string(),
        "image.name": tags.join(","),
    });
    // An index has no configuration of its own.
    if let [only] = built.images.as_slice() {
        metadata["containerimage.config.digest"] = only.config.digest().to_string().into();
    }
    let mut text = serde_json::to_string_pretty(&metadata)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn request(args: &Args) -> anyhow::Result<BuildRequest> {
    let (dockerfile, dockerfile_path) = read_dockerfile(args)?;
    let threads = match args.threads {
        Some(0) => return Err(Usage("--threads must be at least 1".to_owned()).into()),
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    Ok(BuildRequest {
        dockerfile,
        dockerfile_path,
        context: args.context.clone(),
        named_contexts: args.build_context.iter().map(|text| named_context(text)).collect::<Result<_, _>>()?,
        target: args.target.clone(),
        build_args: args
            .build_arg
            .iter()
            .filter_map(|text| flags::variable(text).transpose())
            .collect::<Result<_, _>>()?,
        labels: args.label.iter().map(|text| pair("--label", text)).collect::<Result<_, _>>()?,
        platforms: platforms(&args.platform)?,
        build_platform: Platform::host(),
        no_cache: args.no_cache,
        pull: args.pull,
        times: times(args.source_date_epoch.as_deref())?,
        sandbox: sandbox(args)?,
        secrets: args.secret.iter().map(|text| secret(text)).collect::<Result<_, _>>()?,
        ssh: args.ssh.iter().map(|text| agent(text)).collect::<Result<BTreeMap<_, _>, _>>()?,
        allow: allowed(args)?,
        threads,
    })
}

fn platforms(given: &[Platform]) -> Result<Vec<Platform>, Usage> {
    for (position, platform) in given.iter().enumerate() {
        if given[..position].contains(platform) {
            return Err(Usage(format!("--platform names {platform} twice")));
        }
    }
    Ok(if given.is_empty() { vec![Platform::host()] } else { given.to_vec() })
}

fn read_dockerfile(args: &Args) -> anyhow::Result<(Source, Option<PathBuf>)> {
    if args.file.as_deref() == Some(Path::new("-")) {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("cannot read the Dockerfile from standard input")?;
        return Ok((Source::new("-", &bytes), None));
    }
    let path = args.file.clone().unwrap_or_else(|| args.context.join("Dockerfile"));
    let bytes = std::fs::read(&path).map_err(BuildError::file("read the Dockerfile", &path))?;
    Ok((Source::new(&path.to_string_lossy(), &bytes), Some(path)))
}

fn pair(flag: &str, text: &str) -> Result<(String, String), Usage> {
    let (name, value) = text.split_once('=').ok_or_else(|| Usage(format!("{flag} {text:?} is not NAME=VALUE")))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn named_context(text: &str) -> Result<(String, NamedContext), Usage> {
    let (name, place) = pair("--build-context", text)?;
    if let Some(layout) = place.strip_prefix("oci-layout://") {
        let (directory, digest) = layout.split_once('@').map_or((layout, None), |(d, digest)| (d, Some(digest)));
        let after_slash = directory.rfind('/').map_or(0, |slash| slash + 1);
        let (directory, tag) = match directory[after_slash..].find(':') {
            Some(colon) => (&directory[..after_slash + colon], Some(&directory[after_slash + colon + 1..])),
            None => (directory, None),
        };
        let wanted = digest.or(tag).map(str::to_owned);
        return Ok((name, NamedContext::OciLayout(directory.into(), wanted)));
    }
    if let Some(image) = place.strip_prefix("docker-image://") {
        return Ok((name, NamedContext::Image(image.to_owned())));
    }
    if place.contains("://") {
        return Err(Usage(format!(
            "--build-context {text:?}: only directories, oci-layout:// and docker-image:// are supported"
        )));
    }
    Ok((name, NamedContext::Directory(place.into())))
}

fn times(text: Option<&str>) -> Result<Times, Usage> {
    match text {
        None | Some("") => Ok(Times::Base),
        Some("none") => Ok(Times::Real),
        Some(seconds) => match seconds.parse() {
            Ok(seconds) => Ok(Times::Epoch(seconds)),
            Err(_) => Err(Usage(format!("--source-date-epoch {seconds:?} is neither a number of seconds nor `none`"))),
        },
    }
}

fn sandbox(args: &Args) -> Result<SandboxRequest, Usage> {
    Ok(SandboxRequest {
        network: args.network.as_deref().map(flags::network).transpose()?.unwrap_or_default(),
        extra_hosts: args.add_host.iter().map(|text| flags::extra_host(text)).collect::<Result<_, _>>()?,
        shm_size_bytes: args.shm_size.as_deref().map(|text| parse_size("--shm-size", text)).transpose()?,
        ulimits: args.ulimit.iter().map(|text| flags::ulimit(text)).collect::<Result<_, _>>()?,
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").ok(),
    })
}

/// What `--allow` says. Who asks for the host's network on the command line allows it.
fn allowed(args: &Args) -> Result<BTreeSet<Entitlement>, Usage> {
    let mut allowed = args.allow.iter().map(|text| entitlement(text)).collect::<Result<BTreeSet<_>, _>>()?;
    if args.network.as_deref() == Some("host") {
        allowed.insert(Entitlement::NetworkHost);
    }
    Ok(allowed)
}

fn entitlement(text: &str) -> Result<Entitlement, Usage> {
    match text {
        "network.host" => Ok(Entitlement::NetworkHost),
        "security.insecure" => Ok(Entitlement::SecurityInsecure),
        other => Err(Usage(format!("--allow {other:?} is not supported: network.host or security.insecure"))),
    }
}

/// `id=NAME,src=FILE`, `id=NAME,env=VARIABLE`, or `id=NAME` for a variable or else a file of that name.
fn secret(text: &str) -> anyhow::Result<(String, Secret)> {
    let (mut id, mut source, mut variable, mut kind) = (None, None, None, None);
    for field in text.split(',') {
        let (key, value) = pair("--secret", field)?;
        match key.as_str() {
            "id" => id = Some(value),
            "src" | "source" => source = Some(value),
            "env" => variable = Some(value),
            "type" => kind = Some(value),
            other => return Err(Usage(format!("--secret {text:?}: {other}= is not supported")).into()),
        }
    }
    let id = id.or_else(|| source.clone()).ok_or_else(|| Usage(format!("--secret {text:?} has no id=")))?;
    if variable.is_none() && (kind.as_deref() == Some("env") || (source.is_none() && std::env::var_os(&id).is_some())) {
        variable = Some(source.take().unwrap_or_else(|| id.clone()));
    }
    let bytes = match variable {
        Some(name) => std::env::var_os(&name)
            .map(std::os::unix::ffi::OsStringExt::into_vec)
            .ok_or_else(|| Usage(format!("--secret {text:?}: the variable {name} is not set")))?,
        None => {
            let path = source.unwrap_or_else(|| id.clone());
            std::fs::read(&path).with_context(|| format!("cannot read the secret {id} from {path}"))?
        }
    };
    Ok((id, Secret(Arc::from(bytes))))
}

fn agent(text: &str) -> Result<(String, PathBuf), Usage> {
    if let Some((id, socket)) = text.split_once('=') {
        return Ok((id.to_owned(), socket.into()));
    }
    let socket = std::env::var_os("SSH_AUTH_SOCK");
    let socket =
        socket.ok_or_else(|| Usage(format!("--ssh {text}: SSH_AUTH_SOCK is not set; name a socket: {text}=PATH")))?;
    Ok((text.to_owned(), socket.into()))
}
