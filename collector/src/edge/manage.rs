//! Projects, keys, limits, audit and rebuild. A secret key lists and makes projects of its account: their names, limits and how
//! many events each has are what the account's owner manages by. What a project holds stays its own, so a secret key replaces
//! the keys of its own project alone: with another's it could read them. Its limits too: it could stop another.

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{self, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use eventbucket_protocol::codec::Format;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::SemaphorePermit;

use super::limits::DOCUMENT_BYTES_MAX;
use super::problem::{Cause, Refusal};
use super::{State, body, decode, key, reply};
use crate::project::{Grant, KeyKind, LimitsChange, OwnLimits, Project, ProjectId};
use crate::query::{self, ChangedLimits, Node, Rebuilt, RotatedKey};

/// When to ask again while another audit or rebuild runs.
const LONG_WORK_RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(5);

/// What the key of a request is.
#[derive(Serialize)]
struct KeyDocument {
    project_id: ProjectId,
    kind: KeyKind,
    browser: bool,
}

/// `GET /v1/key`: every key may ask what it is, so that whoever is given one can check it.
pub(super) async fn key(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let grant = key::sender(&edge, &headers).await?;
    let document = KeyDocument { project_id: grant.project, kind: grant.kind, browser: grant.browser };
    Ok(reply::json(StatusCode::OK, &document))
}

#[derive(Serialize)]
struct NodesDocument {
    nodes: Vec<Node>,
}

/// `GET /v1/nodes`: a write key sees where events may be sent, a secret key every process.
pub(super) async fn nodes(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let grant = key::sender(&edge, &headers).await?;
    let Some(mut nodes) = edge.query.nodes().await else {
        let detail = "the registry of nodes can't be read at the moment; try again";
        return Err(Refusal::new(Cause::Unavailable, detail));
    };
    if grant.kind == KeyKind::Write {
        nodes.retain(|node| node.address.is_some() && node.roles.iter().any(|role| role == "edge"));
    }
    Ok(reply::json(StatusCode::OK, &NodesDocument { nodes }))
}

#[derive(Serialize)]
struct ProjectsDocument {
    projects: Vec<Project>,
}

/// `GET /v1/projects`
pub(super) async fn projects(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let projects = edge.query.projects(grant.account).await?;
    Ok(reply::json(StatusCode::OK, &ProjectsDocument { projects }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateProject {
    name: String,
}

/// A project and its keys, shown this one time.
#[derive(Serialize)]
struct NewProjectDocument {
    project_id: ProjectId,
    name: String,
    write_key: String,
    secret_key: String,
}

/// `POST /v1/projects`
pub(super) async fn create_project(
    extract::State(edge): extract::State<State>,
    request: Request,
) -> Response {
    let (head, mut body) = request.into_parts();
    let answer = async {
        let grant = key::reader(&edge, &head.headers).await?;
        let asked: CreateProject = document(&edge, &head, &mut body).await?;
        let made = edge.query.create_project(grant.account, &asked.name).await.map_err(of_document)?;
        let document = NewProjectDocument {
            project_id: made.project.id,
            name: made.project.name,
            write_key: made.write_key.text,
            secret_key: made.secret_key.text,
        };
        Ok(reply::json(StatusCode::CREATED, &document))
    };
    answered(answer.await, &head, body).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateKey {
    kind: KeyKind,
    /// Left out, the new key is what the old one was.
    browser: Option<bool>,
}

/// A key, shown this one time.
#[derive(Serialize)]
struct NewKeyDocument {
    project_id: ProjectId,
    kind: KeyKind,
    key: String,
}

/// `POST /v1/projects/{id}/keys/rotate`
pub(super) async fn rotate_key(
    extract::State(edge): extract::State<State>,
    project: Result<Path<u32>, PathRejection>,
    request: Request,
) -> Response {
    let (head, mut body) = request.into_parts();
    let answer = async {
        let grant = key::reader(&edge, &head.headers).await?;
        require_own(grant, project, "replaces keys")?;
        let RotateKey { kind, browser } = document(&edge, &head, &mut body).await?;
        if browser == Some(true) && kind == KeyKind::Secret {
            let detail =
                "a secret key can't be for browsers: everybody could read it there; rotate the write key";
            return Err(Refusal::new(Cause::MalformedBody, detail));
        }
        let RotatedKey { key, told } = edge.query.rotate_key(grant.project, kind, browser).await?;
        if !told {
            tracing::warn!(project = %grant.project, "Redis couldn't be told of revoked keys: others may believe them for a minute");
        }
        let document = NewKeyDocument { project_id: grant.project, kind: key.kind, key: key.text };
        Ok(reply::json(StatusCode::CREATED, &document))
    };
    answered(answer.await, &head, body).await
}

/// What a project may send where that is its own.
#[derive(Serialize)]
struct LimitsDocument {
    project_id: ProjectId,
    limits: OwnLimits,
}

/// `PATCH /v1/projects/{id}/limits`
pub(super) async fn set_limits(
    extract::State(edge): extract::State<State>,
    project: Result<Path<u32>, PathRejection>,
    request: Request,
) -> Response {
    let (head, mut body) = request.into_parts();
    let answer = async {
        let grant = key::reader(&edge, &head.headers).await?;
        require_own(grant, project, "changes limits")?;
        let change: LimitsChange = document(&edge, &head, &mut body).await?;
        let ChangedLimits { limits, told } = edge.query.set_limits(grant.project, change).await?;
        if !told {
            tracing::warn!(project = %grant.project, "Redis couldn't be told of new limits: others may know the old ones for a minute");
        }
        Ok(reply::json(StatusCode::OK, &LimitsDocument { project_id: grant.project, limits }))
    };
    answered(answer.await, &head, body).await
}

fn require_own(grant: Grant, project: Result<Path<u32>, PathRejection>, does: &str) -> Result<(), Refusal> {
    if project.is_ok_and(|Path(id)| ProjectId(id) == grant.project) {
        return Ok(());
    }
    let detail = format!("a secret key {does} of its own project alone, which is {}", grant.project);
    Err(Refusal::new(Cause::NotFound, detail))
}

/// `GET /v1/audit`
pub(super) async fn audit(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let _turn = turn(&edge)?;
    Ok(reply::json(StatusCode::OK, &edge.query.audit(grant.project).await?))
}

#[derive(Serialize)]
struct RebuiltDocument {
    view: &'static str,
    generation: u64,
    applied_to: u64,
    identifications: GenerationDocument,
}

#[derive(Serialize)]
struct GenerationDocument {
    generation: u64,
    applied_to: u64,
}

/// `POST /v1/rebuild`
pub(super) async fn rebuild(
    extract::State(edge): extract::State<State>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let grant = key::reader(&edge, &headers).await?;
    let _turn = turn(&edge)?;
    let Rebuilt { counts, identifications: who } = edge.query.rebuild(grant.project).await?;
    let identifications = GenerationDocument { generation: who.generation, applied_to: who.applied_to };
    let (generation, applied_to) = (counts.generation, counts.applied_to);
    let document = RebuiltDocument { view: "counts", generation, applied_to, identifications };
    Ok(reply::json(StatusCode::OK, &document))
}

fn turn(edge: &State) -> Result<SemaphorePermit<'_>, Refusal> {
    edge.limits.long_work.try_acquire().map_err(|_| {
        let detail =
            "an audit or a rebuild is running, and there is one at a time; ask again when it is done";
        Refusal::new(Cause::Busy, detail).retry_after(LONG_WORK_RETRY_AFTER)
    })
}

/// Reads a small JSON document.
async fn document<T: DeserializeOwned>(edge: &State, head: &Parts, body: &mut Body) -> Result<T, Refusal> {
    if decode::format(&head.headers)? != Format::Json {
        return Err(Refusal::new(Cause::UnsupportedMediaType, "this path takes application/json alone"));
    }
    let held =
        body::read_up_to(DOCUMENT_BYTES_MAX, head, body, &edge.limits, edge.config.body_timeout).await?;
    serde_json::from_slice(&held.bytes).map_err(|error| {
        let cause = if error.is_eof() { Cause::TruncatedBody } else { Cause::MalformedBody };
        Refusal::new(cause, format!("the body can't be used: {error}"))
    })
}

/// What is wrong with a value in a document is wrong with the document.
fn of_document(error: query::Error) -> Refusal {
    match error.status() {
        400 => Refusal::new(Cause::MalformedBody, error.to_string()),
        _ => error.into(),
    }
}

async fn answered(answer: Result<Response, Refusal>, head: &Parts, body: Body) -> Response {
    match answer {
        Ok(response) => response,
        Err(refusal) => {
            body::discard_rest(head, body).await;
            refusal.into_response()
        }
    }
}
