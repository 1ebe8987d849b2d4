use std::io::{IsTerminal, Read, stderr};
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// How many departures lie between two lines on a pipe: seven lines for a year of New York.
const LINE_EVERY: u64 = 50_000;

/// How many lie between two updates of the bar, which costs more than a capture.
const BAR_EVERY: u64 = 500;

/// A bar over the file's bytes on a terminal, plain lines elsewhere; both on stderr.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(file_bytes: u64) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {percent:>3}% {elapsed} {msg}");
            ProgressBar::new(file_bytes).with_style(style.expect("the template is valid"))
        });
        Self { bar }
    }

    /// Counts what is read from the file.
    pub(crate) fn reading(&self, file: impl Read + 'static) -> Box<dyn Read> {
        match &self.bar {
            Some(bar) => Box::new(bar.wrap_read(file)),
            None => Box::new(file),
        }
    }

    pub(crate) fn captured(&self, departures: u64) {
        match &self.bar {
            Some(bar) if departures.is_multiple_of(BAR_EVERY) => {
                bar.set_message(format!("{} departures captured", HumanCount(departures)));
            }
            None if departures.is_multiple_of(LINE_EVERY) => {
                eprintln!("{} departures captured", HumanCount(departures));
            }
            _ => {}
        }
    }

    pub(crate) fn delivering(&self, pending: u64) {
        let message = format!("{} still to be delivered", HumanCount(pending));
        match &self.bar {
            Some(bar) => bar.set_message(message),
            None => eprintln!("{message}"),
        }
    }

    pub(crate) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }

    /// How long to wait between two calls of `delivering`.
    pub(crate) fn pace(&self) -> Duration {
        if self.bar.is_some() { Duration::from_millis(200) } else { Duration::from_secs(5) }
    }
}
