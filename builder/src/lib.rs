//! Builds container images from Dockerfiles, bit for bit reproducible.
//!
//! ```text
//! dockerfile/  the language                   plan.rs     which stages, on what
//! context/     the files a build may see      build.rs    plan, cache, steps, image: one readable page
//! request.rs   what is asked for              step/       one instruction carried out
//! events.rs    what a build tells             sandbox/    where a RUN runs
//! ```
//!
//! Invariant: nothing here prints, exits or reads the environment; the binary `nacre` does.

mod accounts;
mod build;
mod cache;
mod changeset;
mod check;
mod commit;
mod container;
pub mod context;
pub mod dockerfile;
mod error;
mod events;
mod export;
mod image;
mod machine;
mod manifest;
mod names;
mod origins;
mod output;
mod place;
mod plan;
mod request;
pub mod rootless;
pub mod sandbox;
pub mod signals;
mod stage;
mod step;
mod sys;
mod upper;

pub use build::{Built, BuiltImage, build};
pub use check::{Checked, check};
pub use commit::{CommitError, CommitOptions, commit_upper};
pub use container::{CommitRequest, Container, ContainerError, RunRequest, commit_image, open_image};
pub use error::BuildError;
pub use events::{Events, StepEnd, StepNumber};
pub use export::{Ownership, to_directory, to_tar};
pub use image::{Healthcheck, History, ImageConfig, RootFs, RunConfig};
pub use names::{find, lookup, set};
pub use origins::{fetch, stored};
pub use output::Output;
pub use place::{StorePlace, StoredImage};
pub use request::{BuildRequest, Entitlement, NamedContext, SandboxRequest, Secret, Times};
pub use upper::{UpperError, open_union, read_changes};
