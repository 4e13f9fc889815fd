//! Builds container images from Dockerfiles, bit for bit reproducible.
//!
//! ```text
//! dockerfile/  the language                   plan.rs     which stages, on what
//! context/     the files a build may see      build.rs    plan, cache, steps, image: one readable page
//! graph.rs     stages side by side            step/       one instruction carried out
//! packing.rs   layers to blobs, meanwhile             sandbox/    where a RUN runs
//! ```
//!
//! Invariant: nothing here prints, exits or reads the environment; the binary `nacre` does.
//!
//! ```no_run
//! use builder::{BuildRequest, Events, dockerfile::Source};
//! use registry_client::{Client, ClientOptions};
//!
//! # fn show(events: &dyn Events) -> Result<(), Box<dyn std::error::Error>> {
//! let dockerfile = Source::new("Dockerfile", b"FROM scratch\nCOPY . /\n");
//! let store = layerfs::Store::open("store".as_ref())?;
//! let client = Client::new(ClientOptions::default());
//! let built = builder::build(&BuildRequest::new(dockerfile, "."), &store, &client, events)?;
//! println!("{}", built.manifest.digest());
//! # Ok(())
//! # }
//! ```

mod accounts;
mod attestation;
mod build;
mod cache;
mod cache_mounts;
mod causes;
mod changeset;
mod check;
mod commit;
mod container;
pub mod context;
pub mod dockerfile;
mod epoch;
mod error;
mod events;
mod explain;
mod export;
mod failure;
pub mod fields;
mod flights;
mod frontend;
mod graph;
pub mod host;
mod image;
mod key;
mod machine;
mod manifest;
mod materials;
mod names;
mod open_files;
mod origins;
mod outline;
mod output;
mod packing;
mod place;
mod plan;
mod pulled;
mod remote_cache;
mod request;
pub mod rootless;
pub mod sandbox;
mod schedule;
pub mod signals;
mod stage;
mod step;
mod surroundings;
mod sys;
mod upper;

pub use attestation::{Attestations, Provenance};
pub use build::{Built, BuiltImage, build};
pub use cache_mounts::{CacheMount, cache_mounts, export_cache_mount, import_cache_mount, remove_cache_mount};
pub use causes::full_disk;
pub use check::{Bases, Checked, check};
pub use commit::CommitError;
pub use container::{CommitRequest, Container, ContainerError, RunRequest, commit_image, open_image};
pub use error::BuildError;
pub use events::{Events, StepEnd, StepNumber};
pub use failure::{FailedStep, OnFailure};
pub use image::{Healthcheck, History, ImageConfig, RootFs, RunConfig};
pub use names::{find, lookup, set};
pub use origins::{base_at_hand, stored};
pub use outline::{Argument, Lines, Needed, Outline, Target, outline, targets};
pub use output::{Annotation, AnnotationPlace, Archive, Delivery, ImageForm, Naming, Output, OutputTarget};
pub use place::{StorePlace, StoredImage};
pub use pulled::{Pulled, pull};
pub use remote_cache::{CacheExport, CacheImport, CachePlace, CacheRequest, CacheScope, export_cache};
pub use request::{BuildRequest, EngineRequest, Entitlement, MainContext, NamedContext, SandboxRequest, Secret, Times};
pub use upper::{UpperError, open_union, read_changes};
