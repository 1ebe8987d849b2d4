use serde::{Deserialize, Serialize};

/// The error document of a request that failed as a whole
/// ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457), `application/problem+json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// A stable code for programs, e.g. `unknown_key`; listed in docs/PROTOCOL.md.
    pub code: String,
    /// What is wrong, the same for every occurrence.
    pub title: String,
    /// What is wrong here and what to do.
    pub detail: String,
}

impl Problem {
    /// The media type of the document.
    pub const CONTENT_TYPE: &str = "application/problem+json";
}
