//! The program `layerfs`: mounts directories as a copy-on-write union, with the command line of fuse-overlayfs, so that
//! podman and buildah (`mount_program`), `mount -t fuse.layerfs` and scripts can use it in its place.
//!
//! Invariant: an option is honoured, is without an effect that could be seen, or is an error that names it; when the
//! program returns without `-f`, the mount is there and served. What a union shows is decided in the library.

mod arguments;
mod background;
mod handover;
mod idmapped;
mod options;
mod served;

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use arguments::{Arguments, Request};

/// Versions of the interface that this one stands in for, which callers look for in the first line.
const VERSION: &str = concat!("fuse-overlayfs: version 1.13 (layerfs ", env!("CARGO_PKG_VERSION"), ")");

const HELP: &str = "\
usage: layerfs [SOURCE] TARGET -o lowerdir=DIR[:DIR...][,upperdir=DIR,workdir=DIR][,OPTION...]

Mounts the union of the lower directories, the topmost first, on TARGET; writable with an upper directory.

  -o OPTION[,OPTION...]  options; a backslash protects a comma or a colon
  -f                     stay in the foreground
  -d, --debug            stay in the foreground and say what happens
  -h, --help             this text
  -V, --version          the version

  lowerdir=  upperdir=  workdir=           what is merged
  uidmapping=INSIDE:OUTSIDE:COUNT[:...]    show these users as others; gidmapping= for groups
  squash_to_uid=ID  squash_to_gid=ID       show everything as owned by one user, or group
  squash_to_root                           show everything as owned by root
  volatile, fsync=0                        do not write to the disk when asked to
  redirect_dir=off                         renaming a directory of a lower layer gives EXDEV
  userxattr                                keep the upper's marks in user.overlay.*
  ro, nosuid, nodev, noexec, ...           as for any mount
  remount                                  change these of what is mounted; its layers stay
  fsname=NAME                              show NAME as the source in /proc/mounts; root only
";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    match run(&program, arguments.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("layerfs: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(program: &OsString, words: Vec<OsString>) -> anyhow::Result<()> {
    let Arguments { request, is_child } = Arguments::parse(&words)?;
    match request {
        Request::Help => print(HELP)?,
        Request::Version => print(&format!("{VERSION}\n"))?,
        Request::Mount { source, target, options, foreground, debug } => {
            let (mut options, warnings) = options::Options::parse(&options)?;
            options.source = options.source.or(source);
            if !is_child {
                warnings.iter().for_each(|warning| say(&format!("layerfs: {warning}")));
            }
            if debug {
                let subscriber = tracing_subscriber::fmt().with_writer(io::stderr);
                subscriber.with_max_level(tracing_subscriber::filter::LevelFilter::TRACE).init();
            }
            if options.is_remount {
                served::remount(&options, &target)?;
            } else if foreground || is_child {
                served::Served::mount(&options, &target)?.until_unmounted(is_child)?;
            } else {
                background::start(program, &words)?;
            }
        }
    }
    Ok(())
}

fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn say(line: &str) {
    // There is nobody to tell if standard error is closed.
    drop(writeln!(io::stderr(), "{line}"));
}
