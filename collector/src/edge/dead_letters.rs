//! The dead letters of a key's project: messages that nobody could process.

use axum::extract;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use serde::Serialize;
use tokio::sync::SemaphorePermit;

use super::parameters::{Parameters, PathId, in_path};
use super::problem::{Cause, Refusal};
use super::{State, key, reply};
use crate::query::{LetterDeed, LetterShape, WholeLetterShape};

/// When to ask again while somebody else looks at the letters.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

#[derive(Serialize)]
struct LettersDocument {
    dead_letters: Vec<LetterShape>,
    /// The cursor of the next page, null on the last.
    next: Option<String>,
}

/// `GET /v1/dead-letters`
pub(super) async fn list(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let mut parameters = Parameters::of(&uri)?;
    let (cursor, limit) = parameters.page()?;
    parameters.finish()?;
    let _turn = turn(&edge)?;
    let page = edge.query.dead_letters(grant.project, cursor.as_deref(), limit).await?;
    Ok(reply::json(StatusCode::OK, &LettersDocument { dead_letters: page.letters, next: page.next }))
}

/// `GET /v1/dead-letters/{id}`
pub(super) async fn show(
    state: extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
    id: PathId,
) -> Result<Response, Refusal> {
    done(state, headers, uri, id, LetterDeed::Show).await
}

/// `POST /v1/dead-letters/{id}/replay`
pub(super) async fn replay(
    state: extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
    id: PathId,
) -> Result<Response, Refusal> {
    done(state, headers, uri, id, LetterDeed::Replay).await
}

/// `DELETE /v1/dead-letters/{id}`
pub(super) async fn discard(
    state: extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
    id: PathId,
) -> Result<Response, Refusal> {
    done(state, headers, uri, id, LetterDeed::Discard).await
}

async fn done(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
    id: PathId,
    deed: LetterDeed,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    Parameters::of(&uri)?.finish()?;
    let id = in_path(id)?;
    let _turn = turn(&edge)?;
    let letter = edge.query.dead_letter(grant.project, &id, deed).await?;
    if deed != LetterDeed::Show {
        tracing::info!(project = %grant.project, letter = letter.id, ?deed, "a dead letter was dealt with");
        return Ok(reply::json(StatusCode::OK, &LetterShape::from(&letter)));
    }
    Ok(reply::json(StatusCode::OK, &WholeLetterShape::from(&letter)))
}

/// A walk hides what it comes by from the next, and holds a message of up to 1 MiB: one at a time.
fn turn(edge: &State) -> Result<SemaphorePermit<'_>, Refusal> {
    edge.limits.dead_letters.try_acquire().map_err(|_| {
        Refusal::new(Cause::Busy, "somebody else looks at the dead letters; ask again")
            .retry_after(RETRY_AFTER)
    })
}
