//! What became of a schedule, and of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::schedule::Schedule;

/// What became of one schedule.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) holds: bool,
    /// Whether a fault could not be carried out, so that nothing is known.
    #[serde(skip)]
    pub(crate) untried: bool,
    pub(crate) faults: Vec<String>,
    /// Their kinds, for the figures.
    #[serde(skip)]
    kinds: Vec<String>,
    /// Events that were captured, each once however often it was sent.
    pub(crate) events: usize,
    /// What the collector received of them, repeated batches included.
    pub(crate) received: u64,
    /// Events that were dropped because they were old.
    pub(crate) dropped: u64,
    /// Events that were gone when the database was put back.
    pub(crate) undone: u64,
    /// From the last fault until everything held, or until it was given up.
    pub(crate) recovery_ms: u64,
    /// What doesn't hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) complaints: Vec<String>,
}

impl Outcome {
    /// What is known of a schedule before it runs.
    pub(super) fn of(schedule: &Schedule) -> Self {
        let steps = || schedule.steps.iter();
        Self {
            seed: schedule.seed,
            holds: false,
            untried: false,
            faults: steps().map(|step| format!("+{} ms {}", step.pause_ms, step.fault)).collect(),
            kinds: steps().map(|step| step.fault.kind()).collect(),
            events: 0,
            received: 0,
            dropped: 0,
            undone: 0,
            recovery_ms: 0,
            complaints: Vec::new(),
        }
    }
}

/// Adds up a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) schedules: u64,
    pub(crate) held: u64,
    #[serde(skip)]
    pub(crate) untried: u64,
    pub(crate) events: u64,
    pub(crate) received: u64,
    pub(crate) dropped: u64,
    pub(crate) undone: u64,
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) recovery_ms_max: u64,
    #[serde(skip)]
    pub(crate) recoveries_ms: Vec<u64>,
    pub(crate) recovery_ms_median: u64,
    pub(crate) seconds: u64,
    pub(crate) audit_holds: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failing_seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replay: Option<String>,
}

impl Figures {
    /// Adds a schedule.
    pub(crate) fn add(&mut self, outcome: &Outcome) {
        self.schedules += 1;
        self.held += u64::from(outcome.holds);
        self.untried += u64::from(outcome.untried);
        self.events += outcome.events as u64;
        self.received += outcome.received;
        self.dropped += outcome.dropped;
        self.undone += outcome.undone;
        for kind in &outcome.kinds {
            *self.faults.entry(kind.clone()).or_default() += 1;
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
    pub(crate) fn failed(&mut self, seed: u64, replay: String) {
        (self.failing_seed, self.replay) = (Some(seed), Some(replay));
    }

    /// Notes how long it took, and what the audit behind it found.
    pub(crate) fn ended(&mut self, took: Duration, audit_holds: Option<bool>) {
        (self.seconds, self.audit_holds) = (took.as_secs(), audit_holds);
    }

    /// Says whether every schedule held, and in the end the audit.
    pub(crate) fn hold(&self) -> bool {
        self.held == self.schedules && self.audit_holds != Some(false)
    }
}
