use axum::extract::rejection::PathRejection;
use axum::extract::{self, Path};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use serde::Serialize;

use super::parameters::Parameters;
use super::problem::{Cause, Refusal};
use super::{State, key, reply};
use crate::query::{
    CountRow, CountsBy, CountsQuery, EventFilter, EventShape, EventsQuery, LIMIT_DEFAULT, Order,
};

#[derive(Serialize)]
struct EventsDocument<'a> {
    events: Vec<EventShape<'a>>,
    /// The cursor of the next page, null on the last.
    next: Option<String>,
}

/// `GET /v1/events`
pub(super) async fn events(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let mut parameters = Parameters::of(&uri)?;
    let query = EventsQuery {
        order: parameters.word("order", &[("newest", Order::Newest), ("position", Order::Position)])?,
        cursor: parameters.text("cursor")?,
        limit: parameters.number("limit")?.unwrap_or(LIMIT_DEFAULT),
        filter: EventFilter {
            name: parameters.text("name")?,
            user: parameters.text("user")?,
            from: parameters.time("from")?,
            to: parameters.time("to")?,
        },
    };
    parameters.finish()?;
    let page = edge.query.events(grant.project, query).await?;
    let document = EventsDocument {
        events: page.events.iter().map(EventShape::from).collect(),
        next: page.next.map(|cursor| cursor.to_string()),
    };
    Ok(reply::json(StatusCode::OK, &document))
}

/// `GET /v1/events/{id}`
pub(super) async fn event(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    Parameters::of(&uri)?.finish()?;
    let Path(id) = id.map_err(|error| Refusal::new(Cause::InvalidQuery, format!("id: {error}")))?;
    let event = edge.query.event(grant.project, &id).await?;
    Ok(reply::json(StatusCode::OK, &EventShape::from(&event)))
}

#[derive(Serialize)]
struct CountsDocument {
    counts: Vec<CountRow>,
    /// The sum over the rows.
    total: u64,
    /// The position through which at least they are counted; at rest it is `position`.
    applied_to: u64,
    /// The last position of the log.
    position: u64,
}

/// `GET /v1/counts`
pub(super) async fn counts(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let mut parameters = Parameters::of(&uri)?;
    let query = CountsQuery {
        name: parameters.text("name")?,
        from_hour: parameters.time("from")?,
        to_hour: parameters.time("to")?,
        by: parameters.word("by", &[("total", CountsBy::Total), ("hour", CountsBy::Hour)])?,
    };
    parameters.finish()?;
    let counts = edge.query.counts(grant.project, query).await?;
    let document = CountsDocument {
        total: counts.rows.iter().map(|row| row.count).sum(),
        counts: counts.rows,
        applied_to: counts.applied_to,
        position: counts.position,
    };
    Ok(reply::json(StatusCode::OK, &document))
}
