//! `nacre build`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use builder::fields::csv_fields;
use builder::sandbox::Network;
use builder::{BuildRequest, Built, Entitlement, Secret, Times};
use layerfs::Packing;
use registry_client::Platform;

use super::call::CallFlags;
use super::engine::EngineFlags;
use crate::agent::Agent;
use crate::attestations::AttestationFlags;
use crate::contexts::{ContextArgs, Opened};
use crate::flags;
use crate::outputs::OutputArgs;
use crate::progress::Display;
use crate::report::Usage;
use crate::sandboxed::SandboxFlags;
use crate::session::{self, Session};
use crate::shell::FailureFlags;
use crate::trust::TrustFlags;

/// Build an image from a Dockerfile
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  nacre build -t app .\n  nacre build -t ghcr.io/me/app:1.0 --push .\n  \
    nacre build --target test -o type=local,dest=out .")]
pub(crate) struct Args {
    #[command(flatten)]
    contexts: ContextArgs,
    /// A name for the image; may be given again
    #[arg(short, long = "tag", value_name = "NAME")]
    tags: Vec<String>,
    /// Set a build argument; without a value it is taken from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// The stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
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
    #[command(flatten)]
    outputs: OutputArgs,
    /// The newest time in the layers, in seconds since 1970; `none` keeps real times
    /// [default: that of the base image]
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS|none", allow_hyphen_values = true)]
    source_date_epoch: Option<String>,
    #[command(flatten)]
    sandbox: SandboxFlags,
    #[command(flatten)]
    failure: FailureFlags,
    /// A secret for RUN --mount=type=secret: id=NAME[,src=FILE|,env=VARIABLE]
    #[arg(long, value_name = "SPEC")]
    secret: Vec<String>,
    /// An agent for RUN --mount=type=ssh and git over ssh, by its socket or the keys that it has:
    /// default | NAME[=SOCKET|KEY[,KEY]]
    #[arg(long, value_name = "SPEC")]
    ssh: Vec<String>,
    /// Permit what a Dockerfile may not do by itself
    #[arg(long, value_name = "network.host|security.insecure")]
    allow: Vec<String>,
    #[command(flatten)]
    attestations: AttestationFlags,
    #[command(flatten)]
    trust: TrustFlags,
    #[command(flatten)]
    call: CallFlags,
    /// Show nothing but errors, and the digest: --progress=quiet
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Threads that compress [default: all processors]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Builds, and writes all outputs.
pub(crate) fn run(session: &Session, args: Args) -> anyhow::Result<ExitCode> {
    // They live as long as the build.
    let agents = args.ssh.iter().map(|text| Agent::open(text)).collect::<Result<Vec<_>, _>>()?;
    let mut request = request(session, &args, &agents)?;
    request.on_failure = args.failure.on_failure(session)?;
    args.call.refuse_outputs(&args.outputs)?;
    if let Some(code) = args.call.answer(session, &request)? {
        return Ok(code);
    }
    let outputs = args.outputs.plan(&args.tags, &mut request)?;
    let store = session.store()?;
    let started = Instant::now();
    let built = builder::build(&request, &store, &session.client, session.display.as_ref())?;
    summarize(session.display.as_ref(), started, &built);
    outputs.write(&built, session, &store, request.threads)
}

/// Layers that several images share are counted once.
fn summarize(display: &Display, started: Instant, built: &Built) {
    let layers = built.images.iter().flat_map(|built| &built.image.layers);
    let layers: BTreeMap<_, _> = layers.map(|layer| (layer.diff_id.to_string(), layer.descriptor.size())).collect();
    display.summary(started.elapsed(), layers.len(), layers.values().sum());
}

fn request(session: &Session, args: &Args, agents: &[Agent]) -> anyhow::Result<BuildRequest> {
    // What makes no sense is told before a file is read or fetched.
    let (attestations, trust, sandbox) = (args.attestations.asked()?, args.trust.policy()?, args.sandbox.request()?);
    let build_args = args.build_arg.iter().filter_map(|text| flags::variable(text).transpose());
    let build_args = build_args.collect::<Result<BTreeMap<_, _>, _>>()?;
    let secrets = args.secret.iter().map(|text| secret(text)).collect::<Result<_, _>>()?;
    let ssh = agents.iter().map(|agent| (agent.id.clone(), agent.socket.clone())).collect();
    let keep_git_dir = build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR").map(String::as_str);
    let fetch = session::fetch_access().keeping_git_dir(keep_git_dir);
    // An argument that is given counts before the environment's variable.
    let is_given = build_args.contains_key("SOURCE_DATE_EPOCH") && args.source_date_epoch == session::epoch();
    let epoch = args.source_date_epoch.as_deref().filter(|_| !is_given);
    let named_contexts = args.contexts.named()?;
    let Opened { dockerfile, dockerfile_path, context } = args.contexts.open(session, &fetch, &secrets, &ssh)?;
    let threads = match args.threads {
        Some(0) => return Err(Usage("--threads must be at least 1".to_owned()).into()),
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    Ok(BuildRequest {
        dockerfile,
        dockerfile_path,
        context,
        named_contexts,
        fetch,
        target: args.target.clone(),
        build_args,
        labels: args.label.iter().map(|text| pair("--label", text)).collect::<Result<_, _>>()?,
        platforms: platforms(&args.platform)?,
        are_platforms_given: !args.platform.is_empty(),
        build_platform: Platform::host(),
        no_cache: args.no_cache,
        pull: args.pull,
        times: times(epoch)?,
        allow: allowed(args, sandbox.network)?,
        sandbox,
        on_failure: None,
        secrets,
        ssh,
        cache: args.outputs.cache_request(&args.build_arg),
        attestations,
        // The outputs say it.
        packing: Packing::default(),
        threads,
        engine: args.engine.request()?,
        trust,
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

fn pair(flag: &str, text: &str) -> Result<(String, String), Usage> {
    let (name, value) = text.split_once('=').ok_or_else(|| Usage(format!("{flag} {text:?} is not NAME=VALUE")))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn times(text: Option<&str>) -> Result<Times, Usage> {
    match text {
        Some("none") => Ok(Times::Real),
        text => Ok(flags::epoch(text)?.map_or(Times::Base, Times::Epoch)),
    }
}

/// What `--allow` says. Who asks for the host's network on the command line allows it.
fn allowed(args: &Args, network: Network) -> Result<BTreeSet<Entitlement>, Usage> {
    let mut allowed = args.allow.iter().map(|text| entitlement(text)).collect::<Result<BTreeSet<_>, _>>()?;
    if network == Network::Host {
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
    let fields = csv_fields(text).ok_or_else(|| Usage(format!("--secret {text:?}: its quotes do not match")))?;
    for field in &fields {
        let (key, value) = pair("--secret", field)?;
        match key.as_str() {
            "id" => id = Some(value),
            "src" | "source" => source = Some(value),
            "env" => variable = Some(value),
            "type" if matches!(value.as_str(), "file" | "env") => kind = Some(value),
            "type" => {
                let what = format!("--secret {text:?}: type={value} is not supported: file or env");
                return Err(Usage(what).into());
            }
            other => return Err(Usage(format!("--secret {text:?}: {other}= is not supported")).into()),
        }
    }
    if kind.as_deref() == Some("file") && variable.is_some() {
        return Err(Usage(format!("--secret {text:?}: env= is not of type=file")).into());
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
