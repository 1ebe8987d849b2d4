use axum::extract;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;

use super::parameters::{Parameters, PathId, in_path};
use super::problem::{Cause, Refusal};
use super::read::EventsDocument;
use super::{State, key, reply};
use crate::project::Grant;
use crate::query::{UserLookup, UsersQuery};

/// `GET /v1/users`
pub(super) async fn list(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let mut parameters = Parameters::of(&uri)?;
    let mut lookups = [
        parameters.text("id")?.map(UserLookup::Id),
        parameters.text("email")?.map(UserLookup::Email),
        parameters.text("search")?.map(UserLookup::Beginning),
    ]
    .into_iter()
    .flatten();
    let (cursor, limit) = parameters.page()?;
    let query = UsersQuery { lookup: lookups.next(), cursor, limit };
    parameters.finish()?;
    if lookups.next().is_some() {
        return Err(Refusal::new(Cause::InvalidQuery, "id, email and search exclude each other; give one"));
    }
    Ok(reply::json(StatusCode::OK, &edge.query.users(grant.project, query).await?))
}

/// `GET /v1/users/by-id?id=ID`: every id that is taken can be asked for here.
pub(super) async fn show_by_parameter(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let mut parameters = Parameters::of(&uri)?;
    let id = parameters.required("id")?;
    parameters.finish()?;
    shown(&edge, grant, &id).await
}

/// `GET /v1/users/{id}`
pub(super) async fn show(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
    id: PathId,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    Parameters::of(&uri)?.finish()?;
    shown(&edge, grant, &in_path(id)?).await
}

async fn shown(edge: &State, grant: Grant, id: &str) -> Result<Response, Refusal> {
    Ok(reply::json(StatusCode::OK, &edge.query.user(grant.project, id).await?))
}

/// `GET /v1/users/by-id/events?id=ID`
pub(super) async fn timeline_by_parameter(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let mut parameters = Parameters::of(&uri)?;
    let id = parameters.required("id")?;
    events(&edge, grant, &id, parameters).await
}

/// `GET /v1/users/{id}/events`
pub(super) async fn timeline(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
    uri: Uri,
    id: PathId,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let parameters = Parameters::of(&uri)?;
    events(&edge, grant, &in_path(id)?, parameters).await
}

async fn events(
    edge: &State,
    grant: Grant,
    id: &str,
    mut parameters: Parameters,
) -> Result<Response, Refusal> {
    let (cursor, limit) = parameters.page()?;
    parameters.finish()?;
    let page = edge.query.timeline(grant.project, id, cursor, limit).await?;
    Ok(reply::json(StatusCode::OK, &EventsDocument::from(&page)))
}
