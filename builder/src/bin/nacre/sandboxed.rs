//! Flags that say where a command runs, for the RUN steps of a build and for `nacre run` alike.
//!
//! Invariant: what is not understood is an error that names the flag and the value, before anything runs.

use std::path::PathBuf;

use builder::SandboxRequest;
use layerfs::Plane;

use crate::flags;
use crate::limits::LimitFlags;
use crate::plane::PlaneName;
use crate::report::Usage;
use crate::units::parse_size;

/// Where commands run, and what they may use.
#[derive(clap::Args)]
pub(crate) struct SandboxFlags {
    /// The network of commands [default: default, or what a RUN says]
    #[arg(long, alias = "net", value_name = "default|none|host")]
    network: Option<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// The size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// A limit of each process, such as nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Run commands with an OCI runtime, such as crun or runc, and not in the sandbox of our own
    #[arg(long, value_name = "PROGRAM")]
    oci_runtime: Option<PathBuf>,
    /// Who serves the root directory: `fuse` works wherever /dev/fuse does, `overlay` writes through the kernel's
    /// overlayfs, `auto` takes the faster one that works here. What comes out is the same
    #[arg(long, value_enum, default_value = "auto", value_name = "fuse|overlay|auto", hide_possible_values = true)]
    plane: PlaneName,
    #[command(flatten)]
    limits: LimitFlags,
}

impl SandboxFlags {
    /// What the flags ask for. Names are looked up as on this machine.
    pub(crate) fn request(&self) -> anyhow::Result<SandboxRequest> {
        Ok(SandboxRequest {
            network: self.network.as_deref().map(flags::network).transpose()?.unwrap_or_default(),
            extra_hosts: self.add_host.iter().map(|text| flags::extra_host(text)).collect::<Result<_, _>>()?,
            shm_size_bytes: self.shm_size.as_deref().map(|text| parse_size("--shm-size", text)).transpose()?,
            ulimits: self.ulimit.iter().map(|text| flags::ulimit(text)).collect::<Result<_, _>>()?,
            resolv_conf: std::fs::read_to_string("/etc/resolv.conf").ok(),
            plane: Plane::from(self.plane),
            limits: self.limits.limits()?,
            runtime: self.runtime()?,
        })
    }

    /// Where the OCI runtime lies: a name without a slash is looked up in PATH.
    fn runtime(&self) -> Result<Option<PathBuf>, Usage> {
        let Some(program) = &self.oci_runtime else { return Ok(None) };
        let is_program =
            |path: &PathBuf| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
        let directories = match program.components().count() {
            1 if !program.as_os_str().as_encoded_bytes().contains(&b'/') => {
                std::env::var_os("PATH").unwrap_or_default()
            }
            _ => ".".into(),
        };
        let found = std::env::split_paths(&directories).map(|directory| directory.join(program)).find(is_program);
        let found = found.and_then(|path| std::path::absolute(path).ok());
        let found =
            found.ok_or_else(|| Usage(format!("--oci-runtime {}: there is no such program", program.display())))?;
        Ok(Some(found))
    }
}
