//! A collector, over HTTP.

use std::path::Path;
use std::time::Duration;

use eventbucket_protocol::{Problem, Timestamp};
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;

use crate::config::KEY_VARIABLE;
use crate::project::{KeyKind, LimitsChange, Project, ProjectId};
use crate::query::{EventsQuery, LIMIT_MAX, LetterDeed, LetterShape, Order, UserLookup, UsersQuery};
use crate::store::{CountsBy, CountsQuery, EventFilter};

use super::certificates;
use super::document::{
    AuditDocument, CountsDocument, EventDocument, EventsDocument, LettersDocument, LimitsDocument,
    NewKeyDocument, NewProjectDocument, ProjectsDocument, RebuildDocument, UserProfileDocument,
    UsersDocument,
};
use super::failure::Failure;
use super::follow;
use super::source::OnEvent;

/// How long a connection may take: a host that is up answers within a round trip, lost packets double from 1 s.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long nothing may arrive: four of the lines a collector sends on an idle tail, one every 15 s. An audit or a rebuild
/// of a large log is silent for longer and has no such limit.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A collector's address with a secret key.
pub(super) struct Remote {
    client: Client,
    base: Url,
    key: String,
    silence_max: Duration,
}

impl Remote {
    pub(super) fn new(url: &str, key: Option<String>, ca_file: Option<&Path>) -> Result<Self, Failure> {
        let what = || format!("use the address {url}");
        let wrong =
            |cause: String| Failure::usage(what(), cause).remedy("write it like http://127.0.0.1:4000");
        let base = Url::parse(url).map_err(|error| wrong(error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(wrong("it doesn't begin with http:// or https://".to_owned()));
        }
        let Some(key) = key else {
            let cause = "a secret key is needed to read and manage";
            return Err(
                Failure::usage(what(), cause).remedy(format!("put it into {KEY_VARIABLE}, or give --key"))
            );
        };
        let key = key.trim().to_owned();
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::usage("use the key", "it holds characters that no key has"));
        }
        let client = certificates::client(&base, ca_file)?;
        Ok(Self { client, base, key, silence_max: SILENCE_MAX })
    }

    pub(super) async fn projects(&self) -> Result<Vec<Project>, Failure> {
        let request = self.request(Method::GET, &["projects"], &[]);
        let document: ProjectsDocument = self.document("list the projects", self.brief(request)).await?;
        Ok(document.projects)
    }

    pub(super) async fn create_project(&self, name: &str) -> Result<NewProjectDocument, Failure> {
        let request = self.request(Method::POST, &["projects"], &[]).json(&json!({ "name": name }));
        self.document("create the project", self.brief(request)).await
    }

    pub(super) async fn rotate_key(
        &self,
        name: &str,
        kind: KeyKind,
        browser: Option<bool>,
    ) -> Result<NewKeyDocument, Failure> {
        let projects = self.projects().await?;
        let Some(project) = projects.iter().find(|project| project.name == name) else {
            let cause = format!("there is no project {name:?} in this key's account");
            return Err(Failure::because("find the project", cause)
                .remedy("`eventbucket project list` shows those there are"));
        };
        let id = project.id.to_string();
        let request = self.request(Method::POST, &["projects", &id, "keys", "rotate"], &[]);
        let request = request.json(&json!({ "kind": kind, "browser": browser }));
        self.document("rotate the key", self.brief(request)).await
    }

    pub(super) async fn set_limits(
        &self,
        project: ProjectId,
        change: LimitsChange,
    ) -> Result<LimitsDocument, Failure> {
        let request = self.request(Method::PATCH, &["projects", &project.to_string(), "limits"], &[]);
        self.document("change the limits", self.brief(request.json(&change))).await
    }

    pub(super) async fn events(&self, query: EventsQuery) -> Result<EventsDocument, Failure> {
        let mut parameters = of_filter(query.filter);
        parameters.push(("limit", query.limit.to_string()));
        let order = match query.order {
            Order::Newest => "newest",
            Order::Position => "position",
        };
        parameters.push(("order", order.to_owned()));
        parameters.extend(query.cursor.map(|cursor| ("cursor", cursor)));
        let request = self.request(Method::GET, &["events"], &parameters);
        self.document("list the events", self.brief(request)).await
    }

    pub(super) async fn event(&self, id: &str) -> Result<EventDocument, Failure> {
        // In a path `.` and `..` would be taken for folders, and `tail` is a neighbour's name.
        let request = self.request(Method::GET, &["events", "by-id"], &[("id", id.to_owned())]);
        self.document("show the event", self.brief(request)).await
    }

    pub(super) async fn tail(
        &self,
        filter: EventFilter,
        after: Option<u64>,
        on_event: OnEvent<'_>,
    ) -> Result<(), Failure> {
        let parameters = of_filter(filter);
        let open = |after: Option<u64>| {
            let request = self.request(Method::GET, &["events", "tail"], &parameters);
            let request = match after {
                Some(position) => request.header("last-event-id", position.to_string()),
                None => request,
            };
            async move {
                let opened =
                    tokio::time::timeout(self.silence_max, self.send("follow the log", request)).await;
                opened.unwrap_or_else(|_| Err(self.silent("follow the log")))
            }
        };
        follow::run(open, after, on_event).await
    }

    pub(super) async fn users(&self, query: UsersQuery) -> Result<UsersDocument, Failure> {
        let mut parameters = vec![("limit", query.limit.to_string())];
        parameters.extend(query.cursor.map(|cursor| ("cursor", cursor)));
        parameters.extend(query.lookup.map(|lookup| match lookup {
            UserLookup::Id(id) => ("id", id),
            UserLookup::Email(email) => ("email", email),
            UserLookup::Beginning(text) => ("search", text),
        }));
        let request = self.request(Method::GET, &["users"], &parameters);
        self.document("list the users", self.brief(request)).await
    }

    pub(super) async fn user(&self, id: &str) -> Result<UserProfileDocument, Failure> {
        let request = self.request(Method::GET, &["users", "by-id"], &[("id", id.to_owned())]);
        self.document("show the user", self.brief(request)).await
    }

    pub(super) async fn timeline(
        &self,
        id: &str,
        cursor: Option<String>,
        limit: usize,
    ) -> Result<EventsDocument, Failure> {
        let mut parameters = vec![("id", id.to_owned()), ("limit", limit.to_string())];
        parameters.extend(cursor.map(|cursor| ("cursor", cursor)));
        let request = self.request(Method::GET, &["users", "by-id", "events"], &parameters);
        self.document("list the user's events", self.brief(request)).await
    }

    pub(super) async fn counts(&self, query: CountsQuery) -> Result<CountsDocument, Failure> {
        let mut parameters = Vec::new();
        parameters.extend(query.name.map(|name| ("name", name)));
        parameters.extend(time("from", query.from_hour));
        parameters.extend(time("to", query.to_hour));
        let by = match query.by {
            CountsBy::Total => "total",
            CountsBy::Day => "day",
            CountsBy::Hour => "hour",
        };
        parameters.push(("by", by.to_owned()));
        parameters.push(("users", query.users.to_string()));
        let request = self.request(Method::GET, &["counts"], &parameters);
        self.document("count the events", self.brief(request)).await
    }

    pub(super) async fn audit(&self) -> Result<AuditDocument, Failure> {
        self.document("audit the store", self.request(Method::GET, &["audit"], &[])).await
    }

    pub(super) async fn rebuild(&self) -> Result<RebuildDocument, Failure> {
        self.document("rebuild the counts", self.request(Method::POST, &["rebuild"], &[])).await
    }

    /// Lists the dead letters of the key's project, page after page.
    pub(super) async fn dead_letters(&self) -> Result<Vec<LetterShape>, Failure> {
        let (mut letters, mut cursor) = (Vec::new(), None);
        loop {
            let mut parameters = vec![("limit", LIMIT_MAX.to_string())];
            parameters.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let request = self.request(Method::GET, &["dead-letters"], &parameters);
            let page: LettersDocument = self.document("list the dead letters", self.brief(request)).await?;
            letters.extend(page.dead_letters);
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(letters),
            }
        }
    }

    /// Reads a dead letter with everything in it.
    pub(super) async fn dead_letter(&self, id: &str) -> Result<Box<RawValue>, Failure> {
        let request = self.request(Method::GET, &["dead-letters", id], &[]);
        self.document("show the message", self.brief(request)).await
    }

    pub(super) async fn deal_with_dead_letter(&self, id: &str, deed: LetterDeed) -> Result<(), Failure> {
        let path = ["dead-letters", id, "replay"];
        let (what, request) = match deed {
            LetterDeed::Show => return Ok(()),
            LetterDeed::Replay => (format!("replay {id}"), self.request(Method::POST, &path, &[])),
            LetterDeed::Discard => (format!("discard {id}"), self.request(Method::DELETE, &path[..2], &[])),
        };
        let _: LetterShape = self.document(&what, self.brief(request)).await?;
        Ok(())
    }

    /// Limits a request whose answer is short and made at once.
    fn brief(&self, request: RequestBuilder) -> RequestBuilder {
        request.timeout(self.silence_max)
    }

    fn request(&self, method: Method, path: &[&str], parameters: &[(&str, String)]) -> RequestBuilder {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("http and https addresses have a path")
            .pop_if_empty()
            .push("v1")
            .extend(path);
        if !parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        self.client.request(method, url).bearer_auth(&self.key)
    }

    async fn document<T: DeserializeOwned>(&self, what: &str, request: RequestBuilder) -> Result<T, Failure> {
        let response = self.send(what, request).await?;
        let body = response.bytes().await.map_err(|error| self.unanswered(what, &error))?;
        serde_json::from_slice(&body).map_err(|error| {
            let cause = format!("the answer can't be read ({error})");
            Failure::because(what, cause).remedy("does --url name an Event Bucket collector of this version?")
        })
    }

    async fn send(&self, what: &str, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.unanswered(what, &error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let problem =
            response.bytes().await.ok().and_then(|body| serde_json::from_slice::<Problem>(&body).ok());
        let failure = match problem {
            Some(problem) => refused(what, problem),
            None => Failure::because(what, format!("{} answered {status}", self.base))
                .remedy("does --url name an Event Bucket collector?"),
        };
        let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
        Err(if passing { failure.passing() } else { failure })
    }

    fn silent(&self, what: &str) -> Failure {
        let cause = format!("{} did not answer within {} s", self.base, self.silence_max.as_secs_f64());
        Failure::because(what, cause).remedy("is it an Event Bucket collector, and is it well?").passing()
    }

    fn unanswered(&self, what: &str, error: &reqwest::Error) -> Failure {
        if error.is_timeout() && !error.is_connect() {
            return self.silent(what);
        }
        unanswered(what, &self.base, error)
    }
}

/// Says why nothing came back from an address.
pub(super) fn unanswered(what: &str, base: &Url, error: &reqwest::Error) -> Failure {
    if let Some(failure) = certificates::refused(what, base, error) {
        return failure;
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if let Some(failure) = certificates::mismatched(what, base, error, cause) {
        return failure;
    }
    let cause = if error.is_timeout() {
        format!("{base} can't be reached within {} s", CONNECT_TIMEOUT.as_secs())
    } else if error.is_body() || error.is_decode() {
        format!("the answer of {base} broke off: {cause}")
    } else {
        format!("{base} can't be reached: {cause}")
    };
    Failure::because(what, cause)
        .remedy("is the collector running there? `eventbucket serve` starts one")
        .passing()
}

/// Says what the collector said, and what to do where the key is the reason.
pub(super) fn refused(what: &str, problem: Problem) -> Failure {
    let failure = Failure::because(what, problem.detail);
    match problem.status {
        401 | 403 => failure.remedy(format!("give the project's secret key, in {KEY_VARIABLE} or by --key")),
        _ => failure,
    }
}

fn of_filter(filter: EventFilter) -> Vec<(&'static str, String)> {
    let mut parameters = Vec::new();
    parameters.extend(filter.names.into_iter().map(|name| ("name", name)));
    parameters.extend(filter.user.map(|user| ("user", user)));
    parameters.extend(time("from", filter.from));
    parameters.extend(time("to", filter.to));
    parameters.extend((filter.after > 0).then(|| ("after", filter.after.to_string())));
    parameters.extend(filter.before.map(|before| ("before", before.to_string())));
    parameters.extend(filter.conditions.into_iter().map(|condition| ("where", condition.to_string())));
    parameters
}

fn time(name: &'static str, time: Option<Timestamp>) -> Option<(&'static str, String)> {
    time.map(|time| (name, time.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_parameters_are_escaped() {
        let remote = Remote::new("http://127.0.0.1:1/behind/", Some("k".into()), None).unwrap();
        let request = remote.request(Method::GET, &["events", "by-id"], &[("id", "../x&y=z".into())]);
        let url = request.build().unwrap().url().to_string();
        assert_eq!(url, "http://127.0.0.1:1/behind/v1/events/by-id?id=..%2Fx%26y%3Dz");
    }

    #[test]
    fn an_address_that_can_not_work_is_refused_before_it_is_tried() {
        for url in ["nonsense", "ftp://x", "http://", "127.0.0.1:4000"] {
            assert!(Remote::new(url, Some("k".into()), None).is_err(), "{url}");
        }
        assert!(Remote::new("http://x", None, None).is_err());
        assert!(Remote::new("http://x", Some("k\u{e9}y".into()), None).is_err());
        assert!(Remote::new("http://x", Some("key\n".into()), None).is_ok(), "files end in a line break");
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_or_does_not_end_is_given_up() {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let answers = ["", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n: x\r\n"];
            answers.map(|answer| {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
                stream.write_all(answer.as_bytes()).unwrap();
                stream
            })
        });
        let remote = Remote::new(&url, Some("k".into()), None).unwrap();
        let remote = Remote { silence_max: Duration::from_millis(200), ..remote };
        for _ in 0..2 {
            let failure = remote.event("tail").await.unwrap_err();
            assert!(
                failure.is_passing() && format!("{failure:?}").contains("did not answer within 0.2 s"),
                "{failure:?}"
            );
        }
        drop(server.join().unwrap());
    }
}
