//! Pure computation over events: no store, no clock, no chance.

/// Who the users are.
pub mod identification;

/// How many different users there were, in 3 KiB.
mod sketch;

/// What a stretch of the log adds to the views.
mod tally;

pub use sketch::{COUNTED_MAX, InvalidSketch, STANDARD_ERROR, Sketch};
pub use tally::{Cell, Grain, Piece, Tally, pieces};
