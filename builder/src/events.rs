//! What a build tells while it runs. Nothing here influences the build.

/// Numbers the steps of one build in the order in which they are planned, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepNumber(pub usize);

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepEnd {
    /// It was carried out.
    Done,
    /// An earlier build had carried it out.
    Cached,
    /// It failed; the build's error says why.
    Failed,
}

/// Callbacks of a build, from several threads at once. They must be quick and must not panic.
pub trait Events: Send + Sync {
    /// A step begins. `name` is what a person reads: `[build 2/4] RUN make`.
    fn step_started(&self, step: StepNumber, name: &str);
    /// A step is not in the cache, and this is why; told only where it was asked for.
    fn step_missed(&self, step: StepNumber, reason: &str);
    /// A running step wrote to its standard output or error.
    fn step_output(&self, step: StepNumber, bytes: &[u8]);
    /// A step ended.
    fn step_ended(&self, step: StepNumber, end: StepEnd);
    /// Something that a person should know and that stops nothing.
    fn warning(&self, text: &str);
    /// Where transfers of the build's images tell how far they are.
    fn transfers(&self) -> &dyn registry_client::Progress;
}
