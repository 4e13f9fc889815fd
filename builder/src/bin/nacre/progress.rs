//! Progress for people and for programs: bars and a log tail on a terminal, plain lines in CI,
//! JSON lines for tools. All of it goes to standard error; results go to standard output.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use builder::{Events, StepEnd, StepNumber};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use oci_spec::image::{Descriptor, Digest};
use registry_client::{Copied, Progress, without_credentials};

use crate::blobs::{Blobs, Position};
use crate::lines::Lines;
use crate::units::human_size;

/// How many of the last lines of a running step a terminal shows.
const TAIL_LINES: usize = 6;

/// `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// `tty` on a terminal, otherwise `plain`.
    Auto,
    /// Bars and a log tail.
    Tty,
    /// One line an event.
    Plain,
    /// One JSON object an event.
    Rawjson,
    /// Nothing but errors.
    #[value(alias = "none")]
    Quiet,
}

/// Shows progress in one of the modes.
pub(crate) struct Display {
    view: View,
    state: Mutex<State>,
    /// Someone else has the terminal.
    is_silent: AtomicBool,
}

enum View {
    Tty(MultiProgress),
    Plain,
    Json,
    Quiet,
}

#[derive(Default)]
struct State {
    steps: HashMap<StepNumber, Step>,
    blobs: Blobs,
    bars: Bars,
    /// What was said once, in order; shown in the end, where it is not scrolled away.
    warnings: Vec<String>,
    tally: Tally,
}

/// What the summary tells.
#[derive(Default)]
struct Tally {
    carried_out: usize,
    cached: usize,
    longest: Option<(Duration, String)>,
}

struct Step {
    name: String,
    started: Instant,
    lines: Lines,
    bars: Vec<ProgressBar>,
    tail: Vec<String>,
}

/// What a terminal shows of blobs: a bar for each that moves, and below them one for all.
#[derive(Default)]
struct Bars {
    each: HashMap<String, ProgressBar>,
    all: Option<ProgressBar>,
}

impl Display {
    /// A display on standard error.
    pub(crate) fn new(mode: Mode) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let view = match mode {
            Mode::Tty => View::Tty(MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10))),
            Mode::Auto if is_terminal => {
                View::Tty(MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)))
            }
            Mode::Auto | Mode::Plain => View::Plain,
            Mode::Rawjson => View::Json,
            Mode::Quiet => View::Quiet,
        };
        Self { view, state: Mutex::default(), is_silent: AtomicBool::new(false) }
    }

    /// Shows nothing any more, and takes the bars off the terminal.
    pub(crate) fn close(&self) {
        self.is_silent.store(true, Ordering::SeqCst);
        if let View::Tty(bars) = &self.view {
            _ = bars.clear();
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
    }

    /// The terminal is ours again.
    pub(crate) fn resume(&self) {
        if let View::Tty(bars) = &self.view {
            bars.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        }
        self.is_silent.store(false, Ordering::SeqCst);
    }

    /// Shows the warnings, each once. Call it when the work is over.
    pub(crate) fn finish(&self) {
        // Of a transfer that failed some are left.
        let bars = std::mem::take(&mut self.lock().bars);
        bars.each.into_values().chain(bars.all).for_each(|bar| bar.finish_and_clear());
        let warnings = std::mem::take(&mut self.lock().warnings);
        warnings.iter().for_each(|text| self.line(&format!("warning: {text}")));
    }

    /// The warnings, and one line about a build that succeeded: how long it took, and what it made.
    pub(crate) fn summary(&self, took: Duration, layers: usize, size_bytes: u64) {
        self.finish();
        let Tally { carried_out, cached, longest } = std::mem::take(&mut self.lock().tally);
        let mut text = format!("built in {:.1}s: {} steps, {cached} cached", took.as_secs_f64(), carried_out + cached);
        // A single step that was carried out is the longest anyway, and a short one nobody wonders about.
        if let Some((duration, name)) = longest.filter(|(duration, _)| carried_out > 1 && duration.as_secs() >= 1) {
            text.push_str(&format!(", longest {:.1}s {}", duration.as_secs_f64(), clipped(&name, 60)));
        }
        let plural = if layers == 1 { "" } else { "s" };
        text.push_str(&format!("; {layers} layer{plural}, {}", human_size(size_bytes)));
        self.line(&text);
        let fields = serde_json::json!({
            "seconds": took.as_secs_f64(), "steps": carried_out + cached, "cached": cached, "layers": layers, "size": size_bytes,
        });
        self.json("summary", fields);
    }

    /// One line about an image that was copied: from where to where, and how much of it had to move.
    pub(crate) fn copied(&self, from: &str, to: &str, copied: &Copied) {
        let Copied { sent, skipped, .. } = copied;
        let plural = if *sent == 1 { "" } else { "s" };
        let rest = if *skipped > 0 { format!(", {skipped} already there") } else { String::new() };
        self.line(&format!("{from} -> {to}: {sent} blob{plural} moved{rest}"));
        let fields = serde_json::json!({ "source": from, "destination": to, "moved": sent, "skipped": skipped });
        self.json("copied", fields);
    }

    /// The same about one that was there as it is.
    pub(crate) fn unchanged(&self, from: &str, to: &str) {
        self.line(&format!("{from} -> {to}: unchanged"));
        self.json("copied", serde_json::json!({ "source": from, "destination": to, "moved": 0, "skipped": 0 }));
    }

    fn write(&self, text: &str) {
        if !self.is_silent.load(Ordering::SeqCst) {
            // Standard error that is closed is no reason to stop a build.
            _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    fn line(&self, text: &str) {
        match &self.view {
            View::Tty(bars) => {
                // Where standard error is no terminal after all, `println` would say nothing.
                if bars.is_hidden() {
                    self.write(text);
                } else {
                    _ = bars.println(text);
                }
            }
            View::Plain => self.write(text),
            View::Json | View::Quiet => {}
        }
    }

    fn json(&self, event: &str, mut fields: serde_json::Value) {
        if matches!(self.view, View::Json) {
            fields["event"] = event.into();
            self.write(&fields.to_string());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A blob is there: it has no bar any more, and counts in the one for all.
    fn end_blob(&self, digest: &Digest) -> Option<(u64, Duration)> {
        let now = Instant::now();
        let mut state = self.lock();
        let ended = state.blobs.finish(digest, now);
        if let Some(bar) = state.bars.each.remove(digest.as_ref()) {
            bar.finish_and_clear();
        }
        if let View::Tty(bars) = &self.view {
            let all = state.blobs.all(now);
            self.show_all(bars, &mut state, all);
        }
        ended
    }

    /// The bar for all blobs, as long as there are several.
    fn show_all(&self, bars: &MultiProgress, state: &mut State, all: Option<Position>) {
        let Some(all) = all else {
            return state.bars.all.take().into_iter().for_each(|bar| bar.finish_and_clear());
        };
        let bar = state.bars.all.get_or_insert_with(|| bars.add(ProgressBar::new(0).with_style(style(BAR))));
        let (done, of) = state.blobs.counts();
        bar.set_prefix(format!("{:<12}", format!("{done} of {of}")));
        place(bar, &all);
    }

    /// How far a blob, or all of them, have come; without a terminal.
    fn tell(&self, digest: Option<&str>, position: &Position) {
        let Position { moved_bytes, size_bytes, rate } = *position;
        self.line(&format!("{} {}", digest.map_or("all blobs".to_owned(), short), position.words()));
        let fields = serde_json::json!({
            "digest": digest, "position": moved_bytes, "size": size_bytes, "rate": rate, "seconds_left": position.seconds_left(),
        });
        self.json("progress", fields);
    }

    fn show_output_line(&self, number: StepNumber, step: &mut Step, line: &[u8]) {
        let text = &*String::from_utf8_lossy(line);
        match &self.view {
            View::Plain => {
                self.write(&format!("#{} {:.3} {text}", number.0, step.started.elapsed().as_secs_f64()));
            }
            View::Tty(bars) if bars.is_hidden() => self.write(text),
            View::Tty(bars) => step.show_tail(bars, text),
            View::Json => self.json("output", serde_json::json!({ "step": number.0, "line": text })),
            View::Quiet => {}
        }
    }
}

impl Step {
    fn show_tail(&mut self, bars: &MultiProgress, text: &str) {
        // Control characters would move the cursor out of our lines.
        let clean: String = text.chars().filter(|c| !c.is_control()).collect();
        self.tail.push(clean);
        if self.tail.len() > TAIL_LINES {
            self.tail.remove(0);
        }
        if self.bars.len() <= self.tail.len() {
            let bar = ProgressBar::new_spinner().with_style(style("   {wide_msg:.dim}"));
            let last = self.bars.last().expect("a step on a terminal has its head line");
            let bar = bars.insert_after(last, bar);
            self.bars.push(bar);
        }
        for (bar, line) in self.bars.iter().skip(1).zip(&self.tail) {
            bar.set_message(line.clone());
        }
    }
}

impl Events for Display {
    fn step_started(&self, number: StepNumber, name: &str) {
        let name = &without_credentials(name);
        let mut step = Step {
            name: name.to_owned(),
            started: Instant::now(),
            lines: Lines::default(),
            bars: Vec::new(),
            tail: Vec::new(),
        };
        match &self.view {
            View::Tty(bars) => {
                let head =
                    bars.add(ProgressBar::new_spinner().with_style(style("{spinner:.cyan} {elapsed:>6}  {wide_msg}")));
                head.set_message(name.to_owned());
                head.enable_steady_tick(Duration::from_millis(120));
                step.bars.push(head);
            }
            View::Plain => self.write(&format!("#{} {name}", number.0)),
            View::Json => self.json("step", serde_json::json!({ "step": number.0, "name": name })),
            View::Quiet => {}
        }
        self.lock().steps.insert(number, step);
    }

    fn step_missed(&self, number: StepNumber, reason: &str) {
        let state = self.lock();
        let name = state.steps.get(&number).map_or("", |step| step.name.as_str());
        match &self.view {
            View::Tty(_) => self.line(&format!("{name}: {reason}")),
            View::Plain => self.write(&format!("#{} {reason}", number.0)),
            View::Json => self.json("step-missed", serde_json::json!({ "step": number.0, "reason": reason })),
            // It was asked for.
            View::Quiet => self.write(&format!("{name}: {reason}")),
        }
    }

    fn step_output(&self, number: StepNumber, bytes: &[u8]) {
        let mut state = self.lock();
        let Some(step) = state.steps.get_mut(&number) else { return };
        let mut lines = std::mem::take(&mut step.lines);
        lines.push(bytes, |line| self.show_output_line(number, step, line));
        step.lines = lines;
    }

    fn step_ended(&self, number: StepNumber, end: StepEnd) {
        let Some(mut step) = self.lock().steps.remove(&number) else { return };
        if let Some(rest) = std::mem::take(&mut step.lines).finish() {
            self.show_output_line(number, &mut step, &rest);
        }
        let took = step.started.elapsed();
        let seconds = took.as_secs_f64();
        self.lock().tally.count(end, took, &step.name);
        for bar in &step.bars {
            bar.finish_and_clear();
        }
        let (plain, mark) = match end {
            StepEnd::Done => (format!("DONE {seconds:.1}s"), format!("{seconds:.1}s")),
            StepEnd::Cached => ("CACHED".to_owned(), "cached".to_owned()),
            StepEnd::Failed => ("FAILED".to_owned(), "FAILED".to_owned()),
        };
        match &self.view {
            View::Tty(_) => {
                let width = terminal_width().saturating_sub(MARK_WIDTH + 2);
                self.line(&format!("{mark:>MARK_WIDTH$}  {}", clipped(&step.name, width)));
            }
            View::Plain => self.write(&format!("#{} {plain}", number.0)),
            View::Json => self.json(
                "step-end",
                serde_json::json!({ "step": number.0, "result": format!("{end:?}").to_lowercase(), "seconds": seconds }),
            ),
            View::Quiet => {}
        }
    }

    fn warning(&self, text: &str) {
        let text = without_credentials(text);
        let mut state = self.lock();
        // Several platforms say the same.
        if state.warnings.contains(&text) {
            return;
        }
        state.warnings.push(text.clone());
        drop(state);
        self.json("warning", serde_json::json!({ "text": text }));
    }

    fn transfers(&self) -> &dyn Progress {
        self
    }
}

impl Progress for Display {
    fn planned(&self, blobs: &[Descriptor]) {
        self.lock().blobs.plan(blobs);
    }

    fn abandoned(&self, blobs: &[Descriptor]) {
        let mut state = self.lock();
        state.blobs.abandon(blobs);
        for descriptor in blobs {
            if let Some(bar) = state.bars.each.remove(descriptor.digest().as_ref()) {
                bar.finish_and_clear();
            }
        }
        if let View::Tty(bars) = &self.view {
            let all = state.blobs.all(Instant::now());
            self.show_all(bars, &mut state, all);
        }
    }

    fn blob_started(&self, descriptor: &Descriptor) {
        let digest = descriptor.digest().to_string();
        let mut state = self.lock();
        state.blobs.start(descriptor, Instant::now());
        if let View::Tty(bars) = &self.view {
            let bar = ProgressBar::new(descriptor.size()).with_style(style(BAR)).with_prefix(short(&digest));
            let bar = match &state.bars.all {
                Some(all) => bars.insert_before(all, bar),
                None => bars.add(bar),
            };
            state.bars.each.insert(digest.clone(), bar);
        }
        drop(state);
        self.json("blob", serde_json::json!({ "digest": digest, "size": descriptor.size() }));
    }

    fn blob_moved(&self, digest: &Digest, position_bytes: u64) {
        let now = Instant::now();
        let mut state = self.lock();
        let position = state.blobs.advance(digest, position_bytes, now);
        let all = state.blobs.all(now);
        if let View::Tty(bars) = &self.view {
            if let Some((bar, position)) = state.bars.each.get(digest.as_ref()).zip(position) {
                place(bar, &position);
            }
            self.show_all(bars, &mut state, all);
            return;
        }
        let every = if matches!(self.view, View::Json) { JSON_INTERVAL } else { PLAIN_INTERVAL };
        let Some(moving) = state.blobs.due(now, every) else { return };
        drop(state);
        for (digest, position) in &moving {
            self.tell(Some(digest), position);
        }
        if let Some(all) = &all {
            self.tell(None, all);
        }
    }

    fn blob_done(&self, digest: &Digest) {
        let Some((size, took)) = self.end_blob(digest) else { return };
        let (digest, seconds) = (digest.to_string(), took.as_secs_f64());
        let rate = human_size((size as f64 / seconds.max(0.001)) as u64);
        self.line(&format!("{} {} {seconds:.1}s {rate}/s", short(&digest), human_size(size)));
        self.json("blob-end", serde_json::json!({ "digest": digest, "size": size, "seconds": seconds }));
    }

    fn blob_skipped(&self, descriptor: &Descriptor) {
        self.end_blob(descriptor.digest());
        let digest = descriptor.digest().to_string();
        self.line(&format!("{} {} already there", short(&digest), human_size(descriptor.size())));
        self.json("blob-skipped", serde_json::json!({ "digest": digest, "size": descriptor.size() }));
    }

    fn retrying(&self, what: &str, cause: &str, wait: Duration) {
        let text = without_credentials(&format!("{what}: {cause}; trying again in {:.1} s", wait.as_secs_f64()));
        self.line(&format!("warning: {text}"));
        self.json("warning", serde_json::json!({ "text": text }));
    }

    fn warning(&self, registry: &str, text: &str) {
        Events::warning(self, &format!("{registry} says: {text}"));
    }
}

impl Tally {
    fn count(&mut self, end: StepEnd, took: Duration, name: &str) {
        match end {
            StepEnd::Cached => self.cached += 1,
            StepEnd::Done | StepEnd::Failed => {
                self.carried_out += 1;
                if self.longest.as_ref().is_none_or(|(longest, _)| *longest < took) {
                    self.longest = Some((took, name.to_owned()));
                }
            }
        }
    }
}

/// How often programs are told of what moves, and how often a log of CI is.
const JSON_INTERVAL: Duration = Duration::from_secs(1);
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// The line of a blob. Rate and time left are ours: the library's do not know of blobs that begin anew.
const BAR: &str = "{prefix} {wide_bar:.cyan/dim} {msg}";

fn place(bar: &ProgressBar, position: &Position) {
    bar.set_length(position.size_bytes);
    bar.set_position(position.moved_bytes);
    bar.set_message(position.words());
}

/// Columns for the time of a step, or how it ended: `1234.5s`.
const MARK_WIDTH: usize = 8;

/// The beginning of a text that is longer than a line has room for.
fn clipped(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

fn terminal_width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    // A terminal that does not know its width is as wide as the first ones were.
    size.map(|size| usize::from(size.ws_col)).ok().filter(|width| *width > 0).unwrap_or(80)
}

fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("templates are constants, seen to work")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_clipped_and_short_ones_are_not() {
        assert_eq!(clipped("RUN true", 8), "RUN true");
        assert_eq!(clipped("RUN träum", 8), "RUN trä…");
        assert_eq!(clipped("x", 0), "…");
    }

    #[test]
    fn warnings_are_kept_once_until_the_end() {
        let display = Display::new(Mode::Quiet);
        for text in ["a", "b", "a"] {
            Events::warning(&display, text);
        }
        assert_eq!(display.lock().warnings, ["a", "b"]);
        display.finish();
        assert!(display.lock().warnings.is_empty());
    }
}
