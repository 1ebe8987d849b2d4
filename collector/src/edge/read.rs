use std::time::Duration;

use axum::extract;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use eventbucket_protocol::{BatchId, Reply, Timestamp};
use serde::Serialize;

use super::parameters::{Parameters, PathId, in_path};
use super::problem::{Cause, Refusal};
use super::{State, key, reply};
use crate::project::Grant;
use crate::query::{
    self, BatchRecord, CountRow, CountsBy, CountsQuery, EventFilter, EventShape, EventsPage, EventsQuery,
    Order, WAIT_S_MAX,
};

#[derive(Serialize)]
pub(super) struct EventsDocument<'a> {
    events: Vec<EventShape<'a>>,
    /// The cursor of the next page, null on the last.
    next: Option<String>,
    /// The position through which everything was looked at.
    through: u64,
    /// When the event arrived that was looked at last.
    looked_to: Option<Timestamp>,
}

impl<'a> From<&'a EventsPage> for EventsDocument<'a> {
    fn from(page: &'a EventsPage) -> Self {
        Self {
            events: page.events.iter().map(EventShape::from).collect(),
            next: page.next.map(|cursor| cursor.to_string()),
            through: page.through,
            looked_to: page.looked_to,
        }
    }
}

/// `GET /v1/events`
pub(super) async fn events(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let mut parameters = Parameters::of(&uri)?;
    let order = parameters.word("order", &[("newest", Order::Newest), ("position", Order::Position)])?;
    let (cursor, limit) = parameters.page()?;
    let query = EventsQuery {
        order,
        cursor,
        limit,
        filter: EventFilter {
            names: parameters.texts("name")?.into_iter().collect(),
            user: parameters.text("user")?,
            from: parameters.time("from")?,
            to: parameters.time("to")?,
            after: parameters.number("after")?.unwrap_or(0),
            before: parameters.number("before")?,
            conditions: parameters.conditions()?,
        },
    };
    let at_least = parameters.number("at_least")?.unwrap_or(0);
    parameters.finish()?;
    if at_least > 0 {
        unless_draining(&edge, edge.query.log_reaches(grant.project, at_least)).await?;
    }
    let page = edge.query.events(grant.project, query).await?;
    Ok(reply::json(StatusCode::OK, &EventsDocument::from(&page)))
}

/// Waits for something to be reached. A process that stops holds up nobody: another one answers.
async fn unless_draining(
    edge: &State,
    reached: impl Future<Output = Result<(), query::Error>>,
) -> Result<(), Refusal> {
    tokio::select! {
        reached = reached => Ok(reached?),
        () = edge.draining.cancelled() => {
            let told = "this process stops before what was asked for is there; ask again, another one answers";
            Err(Refusal::new(Cause::Behind, told).retry_after(Duration::from_secs(1)))
        }
    }
}

/// `GET /v1/events/by-id?id=ID`: every id that is taken can be asked for here. In a path `.` and `..` are folders to clients, and
/// `tail` is a neighbour's name.
pub(super) async fn event_by_parameter(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let mut parameters = Parameters::of(&uri)?;
    let id = parameters.required("id")?;
    parameters.finish()?;
    found(&edge, grant, &id).await
}

/// `GET /v1/events/{id}`
pub(super) async fn event(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
    id: PathId,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    Parameters::of(&uri)?.finish()?;
    found(&edge, grant, &in_path(id)?).await
}

async fn found(edge: &State, grant: Grant, id: &str) -> Result<Response, Refusal> {
    let event = edge.query.event(grant.project, id).await?;
    Ok(reply::json(StatusCode::OK, &EventShape::from(&event)))
}

#[derive(Serialize)]
struct PendingDocument<'a> {
    batch_id: &'a str,
    /// Always `pending`: the final answer has the form of the answer to the batch.
    state: &'static str,
}

/// `GET /v1/batches/{id}`: the final verdicts, for whoever may send.
pub(super) async fn batch(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
    id: PathId,
) -> Result<Response, Refusal> {
    let grant = key::sender(&edge, &headers).await?;
    let mut parameters = Parameters::of(&uri)?;
    let wait_s: u64 = parameters.number("wait")?.unwrap_or(0);
    parameters.finish()?;
    if wait_s > WAIT_S_MAX {
        return Err(Refusal::new(
            Cause::InvalidQuery,
            format!("wait: {wait_s} is over {WAIT_S_MAX} seconds"),
        ));
    }
    let id = in_path(id)?;
    // A draining edge answers what it knows and holds up nobody.
    let record = tokio::select! {
        record = edge.query.batch(grant.project, &id, Duration::from_secs(wait_s)) => record?,
        () = edge.draining.cancelled() => edge.query.batch(grant.project, &id, Duration::ZERO).await?,
    };
    Ok(match record {
        BatchRecord::Final(verdicts) => {
            reply::json(StatusCode::OK, &Reply::new(BatchId::from_text(&id), verdicts))
        }
        BatchRecord::Pending => {
            reply::json(StatusCode::ACCEPTED, &PendingDocument { batch_id: &id, state: "pending" })
        }
    })
}

#[derive(Serialize)]
struct CountsDocument {
    counts: Vec<CountRow>,
    /// The sum over the rows.
    total: u64,
    /// How many different users the rows have together; null when that wasn't asked or isn't known.
    users: Option<u64>,
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
        by: parameters
            .word("by", &[("total", CountsBy::Total), ("day", CountsBy::Day), ("hour", CountsBy::Hour)])?,
        users: parameters.word("users", &[("false", false), ("true", true)])?,
    };
    let at_least = parameters.number("at_least")?.unwrap_or(0);
    parameters.finish()?;
    if at_least > 0 {
        unless_draining(&edge, edge.query.counts_reach(grant.project, at_least)).await?;
    }
    let counts = edge.query.counts_through(grant.project, query, at_least).await?;
    let document = CountsDocument {
        total: counts.rows.iter().map(|row| row.count).sum(),
        counts: counts.rows,
        users: counts.users,
        applied_to: counts.applied_to,
        position: counts.position,
    };
    Ok(reply::json(StatusCode::OK, &document))
}
