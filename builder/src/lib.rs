//! Builds container images from Dockerfiles, bit for bit reproducible.
//!
//! ```text
//! dockerfile/  the language                   plan.rs      which stages, on what
//! context/     the files of a directory       build.rs     plan, cache, steps, image: one readable page
//! fetch/       files from elsewhere           building.rs  one stage, and step/: one instruction carried out
//! graph.rs     stages side by side            sandbox/     where a RUN runs
//! packing.rs   layers to blobs, meanwhile
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
mod building;
mod built;
mod cache;
mod cache_mounts;
mod causes;
mod changeset;
mod check;
mod clearing;
mod commit;
mod container;
pub mod context;
pub mod difference;
pub mod dockerfile;
mod epoch;
mod error;
mod events;
mod explain;
mod export;
mod failure;
pub mod fetch;
pub mod fields;
mod flights;
mod frontend;
mod graph;
pub mod host;
mod image;
mod input;
mod key;
mod listing;
mod machine;
mod manifest;
mod materials;
mod media;
pub mod names;
mod open_files;
mod origins;
pub mod outline;
mod output;
mod packing;
mod paths;
mod place;
mod plan;
mod pulled;
mod remote_cache;
mod request;
pub mod rootless;
pub mod sandbox;
mod schedule;
mod secret;
mod shared;
pub mod signals;
mod stage;
mod step;
mod surroundings;
mod sys;
mod upper;

pub use build::build;
pub use built::{Built, BuiltImage};
pub use cache_mounts::{CacheMount, cache_mounts, export_cache_mount, import_cache_mount, remove_cache_mount};
pub use causes::full_disk;
pub use check::{Bases, Checked, check};
pub use commit::CommitError;
pub use container::{CommitRequest, Container, ContainerError, RunRequest, commit_image, open_image};
pub use error::{BuildError, GitError};
pub use events::{Events, StepEnd, StepNumber};
pub use export::{write_files, write_whole};
pub use failure::{FailedStep, OnFailure};
pub use image::{Healthcheck, History, ImageConfig, RootFs, RunConfig};
pub use origins::{base_at_hand, stored_image};
pub use output::{Annotation, AnnotationPlace, Archive, Delivery, ImageForm, Naming, Output, OutputTarget};
pub use place::{StorePlace, StoredImage};
pub use pulled::{Pulled, pull};
pub use remote_cache::export_cache;
pub use request::{
    Attestations, BuildRequest, CacheExport, CacheImport, CachePlace, CacheRequest, CacheScope, EngineRequest,
    Entitlement, MainContext, NamedContext, Provenance, SandboxRequest, Times,
};
pub use secret::Secret;
pub use upper::{UpperError, open_union, read_changes};
