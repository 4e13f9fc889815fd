//! Flags of `nacre build` about how the build goes on; they change no byte of the result.

use builder::EngineRequest;

use crate::report::Usage;

/// Fewer would leave a processor idle while one step waits for the network.
const FEWEST_JOBS: usize = 4;

/// Flags of `nacre build`.
#[derive(clap::Args)]
pub(crate) struct EngineFlags {
    /// Steps carried out at once [default: the number of processors, at least 4]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Carry every step of some stages out, whatever was built before
    #[arg(long, value_delimiter = ',', value_name = "STAGE,...")]
    no_cache_filter: Vec<String>,
    /// Tell for each step that is carried out what differs from the last build
    #[arg(long)]
    explain: bool,
}

impl EngineFlags {
    /// What they ask for.
    pub(crate) fn request(&self) -> Result<EngineRequest, Usage> {
        let jobs = match self.jobs {
            Some(0) => return Err(Usage("--jobs must be at least 1".to_owned())),
            Some(jobs) => jobs,
            None => std::thread::available_parallelism().map_or(1, usize::from).max(FEWEST_JOBS),
        };
        let no_cache_stages = self.no_cache_filter.clone();
        Ok(EngineRequest { jobs, no_cache_stages, explain: self.explain, upload_to: Vec::new() })
    }
}
