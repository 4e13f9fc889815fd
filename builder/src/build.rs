//! A build from begin to end: plan the stages, carry out their steps, make an image of the last one.

use std::collections::BTreeMap;
use std::time::Duration;

use layerfs::Store;
use registry_client::Client;

use crate::attestation;
use crate::building::tell;
use crate::built::Built;
use crate::check;
use crate::dockerfile::Dockerfile;
use crate::epoch;
use crate::error::BuildError;
use crate::events::Events;
use crate::fetch::Fetcher;
use crate::graph::build_all;
use crate::manifest;
use crate::materials::Materials;
use crate::media::Types;
use crate::origins;
use crate::plan::Plan;
use crate::remote_cache::RemoteCaches;
use crate::request::{BuildRequest, MainContext};
use crate::schedule::Schedule;
use crate::shared::Shared;

/// What a registry gets to end an upload that comes to nothing, before nobody is waited for any more: some round trips.
const TIDYING: Duration = Duration::from_secs(1);

/// Builds what is asked for into the store.
///
/// # Errors
/// The first thing that fails; what was finished before it is kept for the next build. The client is stopped then: no
/// server is waited for any more.
pub fn build(request: &BuildRequest, store: &Store, client: &Client, events: &dyn Events) -> Result<Built, BuildError> {
    let dockerfile = checked(request, store, events)?;
    let schedule = Schedule::new(request.engine.jobs);
    let requests = client.clone();
    let _stopped = schedule.watch(move || {
        requests.end_streams(TIDYING);
        requests.stop();
    });
    let materials = Materials::default();
    let fetcher = Fetcher::new(store, client, &request.fetch, &request.secrets, &request.ssh);
    let fetcher = fetcher.stopped_by(&schedule).noting(&materials);
    let request = &*epoch::resolve(request, &dockerfile, &fetcher)?;
    // All are planned before any runs: a mistake in one of them costs no time.
    let plan = |platform| Plan::new(&dockerfile, request, platform);
    let plans = request.platforms.iter().map(plan).collect::<Result<Vec<_>, _>>()?;
    let caches = RemoteCaches::new(request, store, client, events);
    let shared = Shared::new(request, store, client, events, &dockerfile, &caches, (&fetcher, &schedule))?;
    let makes_index = shared.frontend.makes_index;
    let mut images = build_all(shared, &plans)?;
    if let MainContext::Fetched(fetched) = &request.context {
        fetched.material.iter().for_each(|material| materials.note(material.clone()));
    }
    for image in &mut images {
        image.predicates = attestation::predicates(request, store, &materials, image)?;
    }
    let manifest = match images.as_slice() {
        [one] if !makes_index => one.image.manifest.clone(),
        several => {
            let entries: Vec<_> = several.iter().map(|image| (image, BTreeMap::new())).collect();
            manifest::store_index(store, &entries, Types::Oci, &BTreeMap::new())?
        }
    };
    Ok(Built { manifest, images, packing: request.packing, attached: Vec::new(), steps: caches.steps() })
}

/// Parses the Dockerfile and tells what the build checks find; an error if the Dockerfile says that they are one.
fn checked(request: &BuildRequest, store: &Store, events: &dyn Events) -> Result<Dockerfile, BuildError> {
    let (dockerfile, checked) = check::check_file(request, &|name| origins::base_at_hand(Some(store), request, name))?;
    tell(checked, &dockerfile, events)?;
    Ok(dockerfile)
}
