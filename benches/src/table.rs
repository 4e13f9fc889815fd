//! Times of several contenders side by side, as ratios to the first one.

use std::io::Write;
use std::time::Duration;

/// Rows of times, one column a contender.
pub(crate) struct Table {
    contenders: Vec<String>,
    rows: Vec<(String, Vec<Option<Duration>>)>,
}

impl Table {
    /// No rows yet. The first contender is what the others are compared with.
    pub(crate) fn new(contenders: &[&str]) -> Self {
        Self { contenders: contenders.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    /// Adds a row; `None` where a contender could not do it.
    pub(crate) fn push(&mut self, name: &str, times: Vec<Option<Duration>>) {
        // Long runs show where they are.
        _ = writeln!(std::io::stderr(), "{name}: {times:?}");
        self.rows.push((name.to_owned(), times));
    }

    /// Prints times in milliseconds, ratios, and their geometric means.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        write!(out, "| workload |")?;
        for contender in &self.contenders {
            write!(out, " {contender} ms |")?;
        }
        for contender in &self.contenders[1..] {
            write!(out, " {contender} / {} |", self.contenders[0])?;
        }
        writeln!(out, "\n|---|{}", "---:|".repeat(2 * self.contenders.len() - 1))?;
        for (name, times) in &self.rows {
            write!(out, "| {name} |")?;
            for time in times {
                match time {
                    Some(time) => write!(out, " {:.1} |", time.as_secs_f64() * 1e3)?,
                    None => write!(out, " - |")?,
                }
            }
            for column in 1..times.len() {
                match ratio(times, column) {
                    Some(ratio) => write!(out, " {ratio:.2} |")?,
                    None => write!(out, " - |")?,
                }
            }
            writeln!(out)?;
        }
        write!(out, "| geometric mean |{}", " |".repeat(self.contenders.len()))?;
        for column in 1..self.contenders.len() {
            let ratios: Vec<f64> = self.rows.iter().filter_map(|(_, times)| ratio(times, column)).collect();
            let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len().max(1) as f64).exp();
            write!(out, " {mean:.2} |")?;
        }
        writeln!(out)?;
        Ok(())
    }
}

fn ratio(times: &[Option<Duration>], column: usize) -> Option<f64> {
    Some(times[column]?.as_secs_f64() / times[0]?.as_secs_f64())
}

/// The middle one of several times.
pub(crate) fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort();
    times.get(times.len() / 2).copied()
}
