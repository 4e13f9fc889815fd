//! `nacre run`.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use builder::sandbox::{Exit, Killer, Mount, Streams};
use builder::signals::Signals;
use builder::{Container, RunRequest};
use rustix::process::Signal;

use crate::flags;
use crate::report::{self, Hinted};
use crate::sandboxed::SandboxFlags;
use crate::session::Session;
use crate::terminal::{self, Pair, RawMode};
use crate::wanted::Wanted;

/// Docker's exit code for what fails here, and not in the command.
pub(crate) const OWN_FAILURE: u8 = 125;

/// Run a command in an image
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
#[command(after_help = "What the command changes is forgotten when it ends; \
    `nacre mount` keeps changes. The exit code is the command's; 125: nacre failed, 126: the command cannot be executed, \
    127: it is not there.\n\n\
    Examples:\n  nacre run -it debian:bookworm bash\n  nacre run -v ./src:/src:ro -w /src alpine ls -l")]
pub(crate) struct Args {
    /// Set a variable; a bare name takes its value from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set the variables of a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Where the command starts; made if it is missing
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Whom it runs as
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// What runs in place of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Mount a directory or file of this machine
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    volume: Vec<String>,
    /// Mount memory, with options as size=64m,mode=1777
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Mount as type=bind,source=PATH,target=PATH[,readonly] or type=tmpfs,target=PATH[,tmpfs-size=SIZE] say
    #[arg(long, value_name = "SPEC")]
    mount: Vec<String>,
    /// The host name
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Nothing of the image can be changed
    #[arg(long)]
    read_only: bool,
    /// Hand on standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    sandbox: SandboxFlags,
    /// Always so: what the command changes is forgotten when it ends
    #[arg(long)]
    rm: bool,
    /// Print help; -h is the host name, as docker has it
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    image: Wanted,
    /// The command and its arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs a command in an image; the exit code is the command's.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let exit = run_command(session, args)?;
    if let Exit::OutOfMemory(_) = exit {
        report::show("the kernel killed a process of the command because its memory limit was reached (--memory)\n");
    }
    Ok(ExitCode::from(u8::try_from(exit.code()).unwrap_or(OWN_FAILURE)))
}

fn run_command(session: &Session, args: &Args) -> anyhow::Result<Exit> {
    let request = request(args)?;
    if args.tty && args.interactive && !std::io::stdin().is_terminal() {
        return Err(Hinted::error("standard input is no terminal", "leave -t out to hand on a file or a pipe"));
    }
    let running = Arc::new(OnceLock::new());
    forward_signals(Signals::block().context("cannot block signals")?, Arc::clone(&running));
    let store = session.store()?;
    let container = Container::new(&store, &args.image.open(session, &store)?, &request)?;
    let exit =
        if args.tty { with_terminal(&container, args, &running) } else { with_streams(&container, args, &running) };
    container.end()?;
    exit
}

/// A command that runs.
struct Running {
    killer: Killer,
    terminal: Option<File>,
}

fn with_streams(container: &Container, args: &Args, running: &OnceLock<Running>) -> anyhow::Result<Exit> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = Streams {
        stdin: args.interactive.then(|| stdin.as_fd()),
        stdout: Some(stdout.as_fd()),
        stderr: Some(stderr.as_fd()),
    };
    let step = container.start(streams)?;
    _ = running.set(Running { killer: step.killer(), terminal: None });
    Ok(step.wait()?)
}

fn with_terminal(container: &Container, args: &Args, running: &OnceLock<Running>) -> anyhow::Result<Exit> {
    let Pair { master, slave } = terminal::open()?;
    let side = Some(slave.as_fd());
    let step = container.start(Streams { stdin: side, stdout: side, stderr: side })?;
    // Ours would keep the terminal open after the command's end.
    drop(slave);
    let raw = args.interactive.then(RawMode::enter).transpose()?;
    let shown = terminal::show_output(&master, std::io::stdout())?;
    if args.interactive {
        terminal::forward_input(&master)?;
    }
    _ = running.set(Running { killer: step.killer(), terminal: Some(master) });
    let exit = step.wait();
    _ = shown.join();
    drop(raw);
    Ok(exit?)
}

/// Signals are for the command, but the second Ctrl-C kills it; before there is one, those that end a program end this
/// one.
fn forward_signals(signals: Signals, running: Arc<OnceLock<Running>>) {
    std::thread::spawn(move || {
        let mut interrupts = 0;
        while let Ok(signal) = signals.wait() {
            interrupts += usize::from(signal == Signal::INT);
            match (running.get(), signal) {
                (Some(command), Signal::INT) if interrupts > 1 => command.killer.kill(),
                (_, Signal::CHILD | Signal::PIPE | Signal::URG) => {}
                (Some(Running { terminal: Some(master), .. }), Signal::WINCH) => terminal::resize(master),
                (_, Signal::WINCH) => {}
                (Some(command), signal) => command.killer.signal(signal),
                (None, Signal::INT | Signal::TERM | Signal::HUP | Signal::QUIT) =>
                {
                    #[expect(clippy::exit, reason = "as the signal itself would end it; drafts in the store are swept")]
                    std::process::exit(128 + signal.as_raw())
                }
                (None, _) => {}
            }
        }
    });
}

fn request(args: &Args) -> anyhow::Result<RunRequest> {
    Ok(RunRequest {
        command: args.command.clone(),
        entrypoint: args
            .entrypoint
            .as_ref()
            .map(|program| Some(program.clone()).filter(|p| !p.is_empty()).into_iter().collect()),
        env: variables(args)?,
        working_dir: args.workdir.clone(),
        user: args.user.clone(),
        mounts: mounts(args)?,
        hostname: args.hostname.clone(),
        read_only: args.read_only,
        sandbox: args.sandbox.request()?,
        terminal: args.tty,
    })
}

fn mounts(args: &Args) -> anyhow::Result<Vec<Mount>> {
    let volumes = args.volume.iter().map(|text| flags::volume(text));
    let others =
        args.tmpfs.iter().map(|text| flags::tmpfs(text)).chain(args.mount.iter().map(|text| flags::mount(text)));
    let mut mounts = volumes.chain(others).collect::<Result<Vec<_>, _>>()?;
    // What is mounted inside another mount is not covered by it, whatever the order of the flags.
    mounts.sort_by(|one, other| one.target.cmp(&other.target));
    Ok(mounts)
}

/// Those of files first, so that flags win.
fn variables(args: &Args) -> anyhow::Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for path in &args.env_file {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        variables.extend(flags::variables(&text)?);
    }
    for text in &args.env {
        variables.extend(flags::variable(text)?);
    }
    Ok(variables)
}
