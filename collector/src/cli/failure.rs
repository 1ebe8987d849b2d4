//! What a command says when it couldn't.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use super::output::{is_coloured, printable};

/// Couldn't do what was asked.
pub(super) const FAILED: u8 = 1;

/// Asked in a way that can't work, a stdout that takes nothing included; clap uses the same code.
pub(super) const USAGE: u8 = 2;

/// `eventbucket: verb the noun: cause`, what to do, and the exit code.
#[derive(Debug)]
pub(super) struct Failure {
    what: String,
    cause: String,
    remedy: Option<String>,
    code: u8,
    silent: bool,
    passing: bool,
}

impl Failure {
    /// Says what was being done, as "verb the noun", and why it couldn't be.
    pub(super) fn new(what: impl Into<String>, cause: impl Error) -> Self {
        Self::because(what, chain(&cause))
    }

    /// As [`Failure::new`] with the cause in words.
    pub(super) fn because(what: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            cause: cause.into(),
            remedy: None,
            code: FAILED,
            silent: false,
            passing: false,
        }
    }

    /// The command was asked in a way that can't work.
    pub(super) fn usage(what: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { code: USAGE, ..Self::because(what, cause) }
    }

    /// Who reads the output went away, as `head` does: nothing is wrong.
    pub(super) fn reader_gone() -> Self {
        Self { code: 0, silent: true, ..Self::because("print", "the reader is gone") }
    }

    /// Marks what may be over by itself: a collector that restarts, a network that is gone for a while.
    pub(super) fn passing(self) -> Self {
        Self { passing: true, ..self }
    }

    /// Says whether the same may succeed a moment later.
    pub(super) fn is_passing(&self) -> bool {
        self.passing
    }

    /// Adds what to do, where the cause doesn't say it.
    pub(super) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// Says why, for a report of several things.
    pub(super) fn cause(&self) -> &str {
        &self.cause
    }

    /// Says whether nothing is wrong but that nobody reads on.
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Replaces the exit code; a silent failure keeps its own.
    pub(super) fn code(self, code: u8) -> Self {
        if self.silent { self } else { Self { code, ..self } }
    }

    /// Prints it and returns the exit code.
    pub(super) fn report(&self) -> ExitCode {
        if !self.silent {
            let colour = is_coloured(std::io::stderr().is_terminal());
            // Nobody is left to tell when stderr is gone too.
            let _ = std::io::stderr().write_all(self.text(colour).as_bytes());
        }
        ExitCode::from(self.code)
    }

    fn text(&self, colour: bool) -> String {
        let (red, dim, off) = if colour { ("\x1b[31;1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
        let mut text = format!("{red}eventbucket:{off} {}: {}\n", self.what, printable_lines(&self.cause));
        if let Some(remedy) = &self.remedy {
            writeln!(text, "  {dim}{remedy}{off}").expect("a String takes every write");
        }
        text
    }
}

/// Says something beside what was asked for. Nobody is left to tell when stderr is gone, and that ends nothing.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "eventbucket: {text}");
}

/// Joins an error and its sources, leaving out a source that its error has already quoted.
fn chain(error: &impl Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.contains(&words) {
            write!(text, ": {words}").expect("a String takes every write");
        }
        source = inner.source();
    }
    text
}

/// A cause may quote what a collector or a file said, so it is cleaned; its own line breaks stay.
fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_reads_as_one_sentence_with_what_to_do_below() {
        let failure = Failure::because("open the store", "it is gone").remedy("check --data");
        assert_eq!(failure.text(false), "eventbucket: open the store: it is gone\n  check --data\n");
        assert!(failure.text(true).contains("\x1b["));
    }

    #[test]
    fn sources_are_joined_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("the outer thing failed")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("the inner thing"));
        assert_eq!(chain(&error), "the outer thing failed: the inner thing");
    }
}
