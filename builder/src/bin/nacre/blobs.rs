//! The blobs that move: how far each has come, how far all of them have, how fast, and how long it takes yet.
//!
//! Invariant: nothing here writes. What counts is what went through to the other end: of a blob that begins anew the
//! bytes go back, of one that is gone on with they begin where it was.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use oci_spec::image::{Descriptor, Digest};

use crate::units::human_size;

/// How far one blob, or all of them, have come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Position {
    pub(crate) moved_bytes: u64,
    pub(crate) size_bytes: u64,
    /// Bytes a second, lately; none before there is something to measure.
    pub(crate) rate: Option<f64>,
}

impl Position {
    /// How long the rest takes if it goes on like this.
    pub(crate) fn seconds_left(&self) -> Option<u64> {
        let rate = self.rate.filter(|rate| *rate >= 1.0)?;
        Some((self.size_bytes.saturating_sub(self.moved_bytes) as f64 / rate).ceil() as u64)
    }

    /// `12.3 MB of 500 MB, 8.1 MB/s, 61s left`.
    pub(crate) fn words(&self) -> String {
        let mut words = format!("{} of {}", human_size(self.moved_bytes), human_size(self.size_bytes));
        if let Some(rate) = self.rate {
            words.push_str(&format!(", {}/s", human_size(rate as u64)));
        }
        if let Some(seconds) = self.seconds_left() {
            words.push_str(&format!(", {seconds}s left"));
        }
        words
    }
}

/// The rate of the last seconds: a whole average would tell of a fast beginning for minutes.
#[derive(Debug, Clone, Copy)]
struct Meter {
    /// Two moments with what had moved by then; measured is from the older one.
    older: (Instant, u64),
    newer: (Instant, u64),
}

/// Long enough to smooth the pieces in which content arrives.
const WINDOW: Duration = Duration::from_secs(3);

impl Meter {
    fn new(now: Instant, bytes: u64) -> Self {
        Self { older: (now, bytes), newer: (now, bytes) }
    }

    fn rate(&mut self, now: Instant, bytes: u64) -> Option<f64> {
        if bytes < self.newer.1 {
            // It began anew.
            *self = Self::new(now, bytes);
        }
        if now.duration_since(self.newer.0) >= WINDOW {
            (self.older, self.newer) = (self.newer, (now, bytes));
        }
        let (since, from_bytes) = self.older;
        let seconds = now.duration_since(since).as_secs_f64();
        // Sooner it tells of chance.
        (seconds >= 0.2).then(|| bytes.saturating_sub(from_bytes) as f64 / seconds)
    }
}

#[derive(Debug)]
struct Blob {
    size_bytes: u64,
    moved_bytes: u64,
    /// None before it begins.
    begun: Option<(Instant, Meter)>,
    is_done: bool,
}

/// All blobs of the transfers that run.
#[derive(Debug, Default)]
pub(crate) struct Blobs {
    blobs: BTreeMap<String, Blob>,
    meter: Option<Meter>,
    told: Option<Instant>,
}

impl Blobs {
    /// These will move, or turn out to be there.
    pub(crate) fn plan(&mut self, blobs: &[Descriptor]) {
        for descriptor in blobs {
            self.blobs.entry(descriptor.digest().to_string()).or_insert_with(|| Blob::of(descriptor));
        }
    }

    /// These are not waited for any more, unless they are there.
    pub(crate) fn abandon(&mut self, blobs: &[Descriptor]) {
        for descriptor in blobs {
            if self.blobs.get(descriptor.digest().as_ref()).is_some_and(|blob| !blob.is_done) {
                self.blobs.remove(descriptor.digest().as_ref());
            }
        }
        self.forget_if_over();
    }

    /// One begins to move.
    pub(crate) fn start(&mut self, descriptor: &Descriptor, now: Instant) {
        let blob = self.blobs.entry(descriptor.digest().to_string()).or_insert_with(|| Blob::of(descriptor));
        blob.begun = Some((now, Meter::new(now, 0)));
        blob.is_done = false;
        self.meter.get_or_insert_with(|| Meter::new(now, 0));
        self.told.get_or_insert(now);
    }

    /// So much of one has moved; how far it is.
    pub(crate) fn advance(&mut self, digest: &Digest, moved_bytes: u64, now: Instant) -> Option<Position> {
        let blob = self.blobs.get_mut(digest.as_ref())?;
        blob.moved_bytes = moved_bytes.min(blob.size_bytes);
        blob.position(now)
    }

    /// One is there, all of it: its size, and how long it took if it moved.
    pub(crate) fn finish(&mut self, digest: &Digest, now: Instant) -> Option<(u64, Duration)> {
        let blob = self.blobs.get_mut(digest.as_ref())?;
        blob.moved_bytes = blob.size_bytes;
        blob.is_done = true;
        let ended = blob.begun.map(|(begun, _)| (blob.size_bytes, now.duration_since(begun)));
        self.forget_if_over();
        ended
    }

    fn forget_if_over(&mut self) {
        if self.blobs.values().all(|blob| blob.is_done) {
            *self = Self::default();
        }
    }

    /// How far all have come; none where there are fewer than two.
    pub(crate) fn all(&mut self, now: Instant) -> Option<Position> {
        let (moved_bytes, size_bytes) = self.sums()?;
        let rate = self.meter.as_mut()?.rate(now, moved_bytes);
        Some(Position { moved_bytes, size_bytes, rate })
    }

    /// How many blobs are there, of how many.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.blobs.values().filter(|blob| blob.is_done).count(), self.blobs.len())
    }

    /// The blobs that move, if nobody was told for so long.
    pub(crate) fn due(&mut self, now: Instant, every: Duration) -> Option<Vec<(String, Position)>> {
        self.told.filter(|told| now.duration_since(*told) >= every)?;
        self.told = Some(now);
        let moving = self.blobs.iter_mut().filter(|(_, blob)| blob.begun.is_some() && !blob.is_done);
        Some(moving.filter_map(|(digest, blob)| Some((digest.clone(), blob.position(now)?))).collect())
    }

    fn sums(&self) -> Option<(u64, u64)> {
        let sum = |part: fn(&Blob) -> u64| self.blobs.values().map(part).fold(0, u64::saturating_add);
        (self.blobs.len() > 1).then(|| (sum(|blob| blob.moved_bytes), sum(|blob| blob.size_bytes)))
    }
}

impl Blob {
    fn of(descriptor: &Descriptor) -> Self {
        Self { size_bytes: descriptor.size(), moved_bytes: 0, begun: None, is_done: false }
    }

    fn position(&mut self, now: Instant) -> Option<Position> {
        let (_, meter) = self.begun.as_mut()?;
        let rate = meter.rate(now, self.moved_bytes);
        Some(Position { moved_bytes: self.moved_bytes, size_bytes: self.size_bytes, rate })
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;
    use registry_client::digest_of;

    use super::*;

    fn blob(name: &str, size_bytes: u64) -> Descriptor {
        Descriptor::new(MediaType::ImageLayer, size_bytes, digest_of(name.as_bytes()))
    }

    #[test]
    fn all_blobs_count_those_that_are_there_too() {
        let (a, b, c) = (blob("a", 1000), blob("b", 3000), blob("c", 6000));
        let (mut blobs, start) = (Blobs::default(), Instant::now());
        blobs.plan(&[a.clone(), b.clone(), c.clone()]);
        assert_eq!(blobs.all(start), None, "nothing moves yet");
        assert_eq!(blobs.finish(a.digest(), start), None, "it was there");
        blobs.start(&b, start);
        let now = start + Duration::from_secs(1);
        let position = blobs.advance(b.digest(), 2000, now).expect("it moves");
        assert_eq!(position.words(), "2.0 kB of 3.0 kB, 2.0 kB/s, 1s left");
        let all = blobs.all(now).expect("several");
        assert_eq!((all.moved_bytes, all.size_bytes), (3000, 10_000));
        assert_eq!(blobs.counts(), (1, 3));
        assert_eq!(blobs.finish(b.digest(), now), Some((3000, Duration::from_secs(1))));
        blobs.start(&c, now);
        assert_eq!(blobs.due(now, Duration::from_secs(2)), None);
        let due = blobs.due(now + Duration::from_secs(1), Duration::from_secs(2)).expect("it is time");
        assert_eq!(due.len(), 1);
        blobs.finish(c.digest(), now);
        assert_eq!(blobs.counts(), (0, 0), "the next transfer begins from nothing");
    }

    #[test]
    fn what_failed_counts_no_more_and_what_goes_on_beside_it_does() {
        let (a, b, c) = (blob("a", 1000), blob("b", 3000), blob("c", 6000));
        let (mut blobs, now) = (Blobs::default(), Instant::now());
        blobs.plan(&[a.clone(), b.clone()]);
        blobs.plan(std::slice::from_ref(&c));
        [&a, &b, &c].iter().for_each(|blob| blobs.start(blob, now));
        blobs.finish(a.digest(), now);
        blobs.abandon(&[a.clone(), b]);
        assert_eq!(blobs.all(now).map(|all| all.size_bytes), Some(7000));
        blobs.abandon(&[a, c]);
        assert_eq!(blobs.counts(), (0, 0));
    }

    #[test]
    fn a_blob_that_begins_anew_goes_back_and_is_measured_anew() {
        let (a, start) = (blob("a", 10_000_000), Instant::now());
        let mut blobs = Blobs::default();
        blobs.start(&a, start);
        let mut at =
            |bytes, seconds| blobs.advance(a.digest(), bytes, start + Duration::from_secs(seconds)).expect("it moves");
        assert_eq!(at(8_000_000, 4).rate, Some(2_000_000.0));
        assert_eq!((at(0, 5).moved_bytes, at(0, 5).rate), (0, None));
        assert_eq!(at(1_000_000, 6).seconds_left(), Some(9));
        assert_eq!(at(20_000_000, 7).moved_bytes, 10_000_000, "more than its size is a lie");
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let mut meter = Meter::new(start, 0);
        let mut bytes = 0;
        let rates: Vec<_> = (1..=20)
            .map(|second| {
                bytes += if second <= 10 { 1000 } else { 10 };
                meter.rate(start + Duration::from_secs(second), bytes).expect("measured")
            })
            .collect();
        assert!(rates[9] > 900.0 && rates[19] < 20.0, "{rates:?}");
    }
}
