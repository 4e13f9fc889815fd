//! The command `nacre`.

mod agent;
mod args;
mod ask;
mod attestations;
mod blobs;
mod commands;
mod contexts;
mod flags;
mod format;
mod interrupt;
mod limits;
mod lines;
mod outputs;
mod piped;
mod plane;
mod progress;
mod record;
mod repacking;
mod report;
mod sandboxed;
mod server;
mod session;
mod shell;
mod terminal;
mod transfer;
mod trust;
mod units;
mod usage;
mod wanted;

use std::process::ExitCode;

use builder::rootless::{self, Entered, Mapping};
use builder::sandbox;

use crate::args::{Cli, Verb};
use crate::session::Session;

fn main() -> ExitCode {
    // The sandbox starts this program again as its helper, before anything else may happen.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == sandbox::HELPER_VERB) {
        return ExitCode::from(sandbox::init_main());
    }
    if std::env::args_os().nth(1).is_some_and(|verb| verb == interrupt::SWEEPER_VERB) {
        return interrupt::sweep();
    }
    let mut cli = match usage::parse(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(cli) => cli,
        Err(error) => return usage::answer(error),
    };
    if let Verb::Image(verb) = cli.verb {
        cli.verb = verb.into();
    }
    let is_quiet = match &cli.verb {
        Verb::Build(args) => args.quiet,
        Verb::Pull(args) => args.quiet,
        Verb::Push(args) => args.quiet,
        Verb::Save(args) => args.quiet,
        Verb::Load(args) => args.quiet,
        _ => false,
    };
    if is_quiet {
        cli.global.progress = progress::Mode::Quiet;
    }
    let is_run = matches!(cli.verb, Verb::Run(_));
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            let code = report::report(&error);
            if is_run { ExitCode::from(commands::run::OWN_FAILURE) } else { code }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Some(options) = needed_root(&cli.verb) {
        match rootless::enter(options) {
            Ok(Entered::Finished(code)) => return Ok(ExitCode::from(code)),
            Ok(Entered::Inside(_)) => {}
            // Without subordinate ids there are no files of others to remove.
            Err(rootless::Error::NoRange { .. }) if matches!(cli.verb, Verb::Prune(_) | Verb::Diff(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    start_log(cli.global.debug);
    // A mount outlives this process, or ends with another one: these verbs choose their namespaces themselves.
    match cli.verb {
        Verb::Mount(args) => commands::mount::run(&cli.global, args),
        Verb::MountServer(args) => commands::mount::run_server(&cli.global, args),
        Verb::Unmount(args) => commands::unmount::run(&cli.global, &args),
        Verb::Commit(args) => commands::commit::run(&cli.global, &args),
        Verb::Completions(args) => commands::completions::run(&args),
        Verb::Unshare(args) => commands::unshare::run(&args),
        Verb::Doctor(args) => commands::doctor::run(&cli.global, &args),
        other => with_session(Session::new(&cli.global)?, other),
    }
}

fn with_session(mut session: Session, verb: Verb) -> anyhow::Result<ExitCode> {
    // There, signals are the command's.
    if !matches!(verb, Verb::Run(_)) {
        session.catch_signals(matches!(verb, Verb::Build(_)))?;
    }
    let result = carry_out(&session, verb);
    session.interrupts.hold();
    session.display.finish();
    result
}

fn carry_out(session: &Session, verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Build(args) => commands::build::run(session, *args),
        Verb::Run(args) => commands::run::run(session, &args),
        Verb::Push(args) => commands::push::run(session, &args),
        Verb::Pull(args) => commands::pull::run(session, &args),
        Verb::Copy(args) => commands::copy::run(session, &args),
        Verb::Save(args) => commands::save::run(session, &args),
        Verb::Load(args) => commands::load::run(session, &args),
        Verb::Export(args) => commands::export::run(session, &args),
        Verb::Sync(args) => commands::sync::run(session, &args),
        Verb::Tags(args) => commands::tags::run(session, &args),
        Verb::Catalog(args) => commands::catalog::run(session, &args),
        Verb::Delete(args) => commands::delete::run(session, &args),
        Verb::Referrers(args) => commands::referrers::run(session, &args),
        Verb::Sign(args) => commands::sign::run(session, &args),
        Verb::Key(args) => commands::key::run(session, &args),
        Verb::Attach(args) => commands::attach::run(session, &args),
        Verb::Artifact(args) => commands::artifact::run(session, &args),
        Verb::Manifest(args) => commands::manifest::run(session, &args),
        Verb::Limits(args) => commands::limits::run(session, &args),
        Verb::Login(args) => commands::login::run(session, &args),
        Verb::Logout(args) => commands::logout::run(session, &args),
        Verb::Images(args) => commands::images::run(session, &args),
        Verb::Inspect(args) => commands::inspect::run(session, &args),
        Verb::Digest(args) => commands::digest::run(session, &args),
        Verb::History(args) => commands::history::run(session, &args),
        Verb::Diff(args) => commands::diff::run(session, &args),
        Verb::Tag(args) => commands::tag::run(session, &args),
        Verb::Remove(args) => commands::remove::run(session, &args),
        Verb::Prune(args) => commands::prune::run(session, &args),
        Verb::Verify(args) => commands::verify::run(session, &args),
        Verb::CacheMount(args) => commands::cache_mount::run(session, &args),
        Verb::Mount(_)
        | Verb::MountServer(_)
        | Verb::Unmount(_)
        | Verb::Commit(_)
        | Verb::Completions(_)
        | Verb::Doctor(_)
        | Verb::Unshare(_) => unreachable!("they were carried out without a session"),
        Verb::Image(_) => unreachable!("it stands for another one"),
    }
}

/// What a verb needs that works with files of many owners, or with mounts of its own.
fn needed_root(verb: &Verb) -> Option<rootless::Options> {
    let (private_mounts, mapping) = match verb {
        Verb::Build(_) | Verb::Run(_) => (true, Mapping::Ranges),
        Verb::Unshare(args) if args.single_id => (true, Mapping::SingleId),
        Verb::Unshare(_) => (true, Mapping::Ranges),
        Verb::Commit(_) | Verb::Diff(_) | Verb::Prune(_) | Verb::CacheMount(_) => (false, Mapping::Ranges),
        _ => return None,
    };
    Some(rootless::Options { private_mounts, mapping })
}

fn start_log(debug: bool) {
    if debug {
        let most = tracing_subscriber::filter::LevelFilter::DEBUG;
        tracing_subscriber::fmt().with_max_level(most).with_writer(std::io::stderr).init();
    }
}
