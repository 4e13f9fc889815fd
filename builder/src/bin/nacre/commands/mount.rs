//! `nacre mount`, and the hidden verb that is its server in the background.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use layerfs::Plane;
use serde::Serialize;

use crate::args::Global;
use crate::format::{Format, Table};
use crate::plane::PlaneArgs;
use crate::record::{self, Mounted};
use crate::report::{self, Hinted, Usage};
use crate::server::{self, Answer, Job};
use crate::session::{self, print};

/// What says something of a mount that is made, and nothing of a list.
const OF_A_MOUNT: [&str; 5] = ["places", "read_only", "plane", "foreground", "upper"];

/// Mount an image on a directory, or list what is mounted
#[derive(clap::Args)]
#[command(mut_arg("plane", |plane| plane.requires("places")))]
#[command(
    override_usage = "nacre mount [OPTIONS] IMAGE DIR\n       nacre mount [OPTIONS] --upper ID DIR\n       nacre mount [--all] [--format FORMAT]"
)]
#[command(
    after_help = "Without arguments, mounts are listed. A writable mount prints the id of its upper, which holds what \
    is changed: `nacre commit DIR NAME` makes an image of it, `nacre unmount DIR` ends the mount.\n\n\
    An ordinary user needs fusermount3. Other users, such as those that a container makes, can use the mount if \
    /etc/fuse.conf has the line user_allow_other."
)]
pub(crate) struct Args {
    /// The image of the store, and the directory to mount it on
    #[arg(value_name = "IMAGE DIR", num_args = 0..=2)]
    places: Vec<String>,
    /// Nothing can be changed
    #[arg(long, requires = "places")]
    read_only: bool,
    #[command(flatten)]
    plane: PlaneArgs,
    /// Serve in this process, until it is interrupted or the directory is unmounted
    #[arg(long, requires = "places")]
    foreground: bool,
    /// Mount the changes of an earlier mount again
    #[arg(long, value_name = "ID", requires = "places")]
    upper: Option<String>,
    /// List also the uppers that were kept
    #[arg(short, long, conflicts_with_all = OF_A_MOUNT)]
    all: bool,
    /// How to print the list
    #[arg(long, value_enum, default_value = "table", conflicts_with_all = OF_A_MOUNT)]
    format: Format,
}

/// Arguments of the hidden verb.
#[derive(clap::Args)]
pub(crate) struct ServerArgs {
    directory: PathBuf,
    #[arg(long)]
    image: Option<String>,
    #[arg(long)]
    upper: Option<String>,
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    plane: PlaneArgs,
    /// Who keeps this server, which then works inside a user namespace.
    #[arg(long)]
    keeper: Option<i32>,
}

/// Mounts, or lists what is mounted.
pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let root = session::root(global)?;
    let (image, directory) = match (args.places.as_slice(), &args.upper) {
        ([], _) => return list(&root, &args),
        ([directory], Some(_)) => (None, directory),
        ([image, directory], None) => (Some(image.clone()), directory),
        ([_], None) => {
            return Err(Usage("an image needs a directory to be mounted on: nacre mount IMAGE DIR".to_owned()).into());
        }
        (_, Some(_)) => return Err(Usage("an upper knows its image: nacre mount --upper ID DIR".to_owned()).into()),
        (_, None) => return Err(Usage("one image is mounted on one directory".to_owned()).into()),
    };
    let directory = free_directory(&root, Path::new(directory), args.upper.as_deref())?;
    let (read_only, plane) = (args.read_only, args.plane.plane());
    let job = Job { root, image, directory, read_only, plane, upper: args.upper, debug: global.debug };
    let show = |id: &str| if job.read_only { Ok(()) } else { print(id) };
    if args.foreground {
        server::serve(&job, &show)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = server::server_command(&job, None);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let server = command.spawn().context("cannot start the mount's server")?;
    let answers = server.stdout.context("the mount's server has no standard output")?;
    show(&Answer::read(answers)?.mounted()?)?;
    Ok(ExitCode::SUCCESS)
}

/// The directory without links; one that has a mount of ours gets no second one by accident. After umount(8) the
/// server there, or of the upper that is to be mounted, may be writing to the disk still: it is waited for.
fn free_directory(root: &Path, directory: &Path, upper: Option<&str>) -> anyhow::Result<PathBuf> {
    /// A server that is seen elsewhere, in another mount namespace, does not end.
    const LONGEST_WAIT: Duration = Duration::from_secs(10);
    let path = record::absolute(directory)?;
    for mounted in record::all(root)?.into_iter().filter(|mounted| mounted.record.server.is_some()) {
        let (is_there, is_wanted) = (mounted.record.directory == path, upper == Some(&mounted.id));
        if !(is_there || is_wanted) {
            continue;
        }
        let is_visible = mounted.is_visible()?;
        let has_ended = || Ok::<_, anyhow::Error>(!is_visible && mounted.wait_for_server(LONGEST_WAIT)?);
        if is_there && is_visible || mounted.is_live && !has_ended()? {
            let at = mounted.record.directory.display();
            let what = format!("{} is mounted on {at} already", mounted.record.image);
            return Err(Hinted::error(what, format!("`nacre unmount {at}` ends that mount")));
        }
    }
    if !path.is_dir() {
        return Err(Usage(format!("{} is no directory", path.display())).into());
    }
    Ok(path)
}

/// The server in the background.
pub(crate) fn run_server(global: &Global, args: ServerArgs) -> anyhow::Result<ExitCode> {
    let root = session::root(global)?;
    let ServerArgs { directory, image, upper, read_only, plane, keeper } = args;
    let job = Job { root, image, directory, read_only, plane: plane.plane(), upper, debug: global.debug };
    let served = match keeper {
        Some(keeper) => server::serve_inside(&job, keeper),
        None => {
            // Away from the terminal and its signals. It fails only for a process that has its own session already.
            _ = rustix::process::setsid();
            let ready = |id: &str| {
                print(&serde_json::to_string(&Answer::Mounted(id.to_owned()))?)?;
                server::log_beside(&job.root, id)
            };
            server::serve(&job, &ready).map(|()| ExitCode::SUCCESS)
        }
    };
    served.or_else(|error| {
        let (text, code) = report::render(&error);
        // Whoever started us reads the first answer only; later, standard output is /dev/null and the log has it.
        report::show(&text);
        print(&serde_json::to_string(&Answer::Failed(text, code))?)?;
        Ok(ExitCode::from(code))
    })
}

#[derive(Serialize)]
struct Row {
    directory: String,
    image: String,
    digest: String,
    upper: Option<String>,
    read_only: bool,
    plane: Plane,
    state: &'static str,
    pid: Option<i32>,
}

fn list(root: &Path, args: &Args) -> anyhow::Result<ExitCode> {
    let mut rows = Vec::new();
    for mounted in record::all(root)? {
        let row = row(&mounted)?;
        if row.state != "kept" || args.all {
            rows.push(row);
        }
    }
    if args.format == Format::Json {
        print(&serde_json::to_string_pretty(&rows)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["DIRECTORY", "IMAGE", "UPPER", "PLANE", "STATE", "PID"]);
    for row in rows {
        let upper = row.upper.unwrap_or_else(|| "read-only".to_owned());
        let pid = row.pid.map_or("-".to_owned(), |pid| pid.to_string());
        table.push([row.directory, row.image, upper, row.plane.to_string(), row.state.to_owned(), pid]);
    }
    print(&table.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// `mounted`; `dead` if the server was killed; `kept` if it was unmounted.
fn row(mounted: &Mounted) -> anyhow::Result<Row> {
    let Mounted { id, record, is_live, .. } = mounted;
    let state = match record.server {
        Some(_) if *is_live => "mounted",
        Some(_) => "dead",
        None => "kept",
    };
    Ok(Row {
        directory: record.directory.display().to_string(),
        image: record.image.clone(),
        digest: record.manifest.digest().to_string(),
        upper: (!record.read_only).then(|| id.clone()),
        read_only: record.read_only,
        plane: record.plane,
        state,
        pid: record.server.filter(|_| *is_live).map(|server| server.pid),
    })
}
