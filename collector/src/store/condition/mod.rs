//! Conditions on the properties of an event: one way to write them and one to judge them, whatever store the event comes from.

/// How a condition is written.
mod syntax;

/// Whether a value meets a condition.
mod judge;

/// The order of numbers of any size.
mod number;

use std::fmt;

pub use syntax::BadCondition;

/// Conditions in one question: each costs another walk over the properties of every event that meets those before it.
pub const CONDITIONS_MAX: usize = 8;

/// A condition on one property: `plan=pro`, `price>10`, `note~sale`, `coupon`. How it is written is told in docs/PROTOCOL.md.
///
/// Numbers are compared by their digits, so none is too large or too fine; texts by their code points. What is of another type
/// than the value asked for is neither equal nor greater nor less. A list stands for each of its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// As it was written.
    text: String,
    /// The keys that lead to the value.
    path: Vec<String>,
    /// What is asked of the value; nothing when it only has to be there.
    test: Option<(Operator, Scalar)>,
}

impl Condition {
    /// Returns it as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Says whether properties, the text of a JSON object, meet it.
    ///
    /// # Errors
    /// When they aren't JSON.
    pub fn is_met_by(&self, properties: &str) -> Result<bool, serde_json::Error> {
        judge::meets(properties, &self.path, self.test.as_ref())
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Contains,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

/// The value asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scalar {
    Null,
    Bool(bool),
    /// As JSON writes it.
    Number(String),
    Text(String),
}
