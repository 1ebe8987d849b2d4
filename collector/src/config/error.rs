//! What is wrong with a configuration.

use std::fmt;

/// Every mistake found in a configuration, so that one look is enough to mend it.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    /// The mistakes in the order they were found; never empty.
    pub mistakes: Vec<Mistake>,
}

/// One mistake and the place it was made in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where: a file with its line, a variable or a flag.
    pub place: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Error {
    /// Wraps a single mistake.
    pub(super) fn one(place: impl fmt::Display, message: impl Into<String>) -> Self {
        Self { mistakes: vec![Mistake::new(place, message)] }
    }
}

impl Mistake {
    pub(super) fn new(place: impl fmt::Display, message: impl Into<String>) -> Self {
        Self { place: place.to_string(), message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.mistakes.iter().enumerate() {
            if i > 0 {
                f.write_str("\n  ")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}
