//! What a run prints: a line a schedule while it goes, the figures at the end.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::failure::{FAILED, Failure};
use crate::cli::output::{Output, Paint, grouped};

use super::COULD_NOT_TRY;
use super::schedule::Schedule;

/// What became of one schedule.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) seed: u64,
    pub(super) holds: bool,
    /// Whether a fault could not be carried out, so that nothing is known.
    #[serde(skip)]
    pub(super) untried: bool,
    pub(super) faults: Vec<String>,
    /// Events that were captured, each once however often it was sent.
    pub(super) events: usize,
    /// What the collector received of them, repeated batches included.
    pub(super) received: u64,
    /// From the last fault until everything held, or until it was given up.
    pub(super) recovery_ms: u64,
    /// What doesn't hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) complaints: Vec<String>,
}

/// Adds up a run.
#[derive(Debug, Default, Serialize)]
pub(super) struct Figures {
    schedules: u64,
    held: u64,
    #[serde(skip)]
    untried: u64,
    events: u64,
    received: u64,
    faults: BTreeMap<String, u64>,
    recovery_ms_max: u64,
    #[serde(skip)]
    recoveries_ms: Vec<u64>,
    recovery_ms_median: u64,
    seconds: u64,
    audit_holds: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failing_seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<String>,
}

impl Figures {
    pub(super) fn add(&mut self, schedule: &Schedule, outcome: &Outcome) {
        self.schedules += 1;
        self.held += u64::from(outcome.holds);
        self.untried += u64::from(outcome.untried);
        self.events += outcome.events as u64;
        self.received += outcome.received;
        for step in &schedule.steps {
            *self.faults.entry(step.fault.kind()).or_default() += 1;
        }
        // What never held took no time to do so.
        if !outcome.holds {
            return;
        }
        self.recovery_ms_max = self.recovery_ms_max.max(outcome.recovery_ms);
        self.recoveries_ms.push(outcome.recovery_ms);
        self.recoveries_ms.sort_unstable();
        self.recovery_ms_median = self.recoveries_ms[self.recoveries_ms.len() / 2];
    }

    /// Notes the schedule that ended the run, and the one command that replays it.
    pub(super) fn failed(&mut self, seed: u64, replay: String) {
        (self.failing_seed, self.replay) = (Some(seed), Some(replay));
    }

    pub(super) fn ended(&mut self, took: Duration, audit_holds: Option<bool>) {
        (self.seconds, self.audit_holds) = (took.as_secs(), audit_holds);
    }

    /// Says whether every schedule held, and in the end the audit.
    pub(super) fn hold(&self) -> bool {
        self.held == self.schedules && self.audit_holds != Some(false)
    }

    /// What it comes to: everything held, something didn't, or it couldn't be tried.
    pub(super) fn code(&self) -> u8 {
        match (self.hold(), self.untried) {
            (true, _) => 0,
            (false, 0) => FAILED,
            (false, _) => COULD_NOT_TRY,
        }
    }

    pub(super) fn print(&self, output: Output) -> Result<(), Failure> {
        if output.is_json() {
            return output.document_line(self);
        }
        let faults: Vec<String> =
            self.faults.iter().map(|(kind, count)| format!("{} {kind}", grouped(*count))).collect();
        output.line(&format!("{} of {} schedules held in {} s", self.held, self.schedules, self.seconds))?;
        let once = if self.held == self.schedules { "each stored once" } else { "captured" };
        output.line(&format!(
            "{} events, {once}; {} received with what was repeated",
            grouped(self.events),
            grouped(self.received)
        ))?;
        output.line(&format!("faults: {}", faults.join(", ")))?;
        if !self.recoveries_ms.is_empty() {
            output.line(&format!(
                "everything held {:.1} s after the last fault in the median, {:.1} s at most",
                seconds(self.recovery_ms_median),
                seconds(self.recovery_ms_max)
            ))?;
        }
        if let Some(holds) = self.audit_holds {
            let word = if holds { "holds" } else { "FAILS: `eventbucket audit --url …` tells what" };
            output.line(&format!("the audit of the whole store {word}"))?;
        }
        match &self.replay {
            Some(replay) => output.line(&format!("replay with: {replay}")),
            None => Ok(()),
        }
    }
}

/// How often an unmoving bar shows that a schedule is under way.
const TICK: Duration = Duration::from_millis(120);

/// A bar on stderr while the schedules run; nothing at all unless stderr is a terminal.
pub(super) fn bar(schedules: u64) -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(schedules), target);
    let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} {eta}");
    bar.set_style(style.expect("the template is part of the program"));
    if terminal {
        bar.enable_steady_tick(TICK);
    }
    bar
}

/// One line a schedule; what doesn't hold, and the faults that led there, below it.
pub(super) fn print(output: Output, outcome: &Outcome) -> Result<(), Failure> {
    if output.is_json() {
        return output.document_line(outcome);
    }
    let (word, mark) = match (outcome.holds, outcome.untried) {
        (true, _) => ("holds", output.paint(Paint::Good, "✓")),
        (false, true) => ("untried", output.paint(Paint::Bad, "✗")),
        (false, false) => ("fails", output.paint(Paint::Bad, "✗")),
    };
    let (faults, events) = (outcome.faults.len(), grouped(outcome.events as u64));
    if output.is_terminal() {
        let detail =
            format!("{faults:>2} faults  {events:>6} events  {:>5.1} s", seconds(outcome.recovery_ms));
        output.line(&format!("{mark} seed {:<12} {}", outcome.seed, output.paint(Paint::Faint, &detail)))?;
    } else {
        output.line(&format!("{}\t{word}\t{faults}\t{events}\t{}", outcome.seed, outcome.recovery_ms))?;
    }
    if outcome.holds {
        return Ok(());
    }
    for fault in &outcome.faults {
        output.line(&format!("  fault: {fault}"))?;
    }
    outcome.complaints.iter().try_for_each(|complaint| output.line(&format!("  {word}: {complaint}")))
}

#[expect(clippy::cast_precision_loss, reason = "a schedule takes minutes, not aeons")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_could_not_be_carried_out_is_no_failure_of_the_collector() {
        let code = |holds, untried| {
            let outcome = Outcome {
                seed: 1,
                holds,
                untried,
                faults: Vec::new(),
                events: 0,
                received: 0,
                recovery_ms: 0,
                complaints: Vec::new(),
            };
            let mut figures = Figures::default();
            figures.add(&Schedule::draw(1, &[]), &outcome);
            figures.code()
        };
        assert_eq!([code(true, false), code(false, false), code(false, true)], [0, 1, 2]);
    }
}
