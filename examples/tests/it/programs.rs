//! The two small programs: what they print is what became of their events.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use eventbucket_collector::app::{self, Running};
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::{EventFilter, EventOrder, NewProject};

use crate::{collector, example};

/// A program that is told by its environment where to send.
fn sending(name: &str, collector: &Running, made: &NewProject) -> Command {
    let mut program = example(name);
    program.env("EVENTBUCKET_URL", format!("http://{}", collector.address()));
    program.env("EVENTBUCKET_KEY", &made.write_key.text);
    program
}

/// Names of what is stored, sorted.
async fn names(data: &Path, project: ProjectId) -> Vec<String> {
    let (store, _reader) = app::beside(data, false).unwrap();
    let order = EventOrder::ByPosition { after: 0 };
    let page = store.events(project, &EventFilter::default(), order, 100).await.unwrap();
    let mut names: Vec<String> = page.events.into_iter().map(|one| one.event.name).collect();
    names.sort();
    names
}

/// Ends with the test, also when that fails.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Posts JSON and returns the status.
fn post(address: &str, path: &str, body: &serde_json::Value) -> String {
    let (mut stream, body) = (TcpStream::connect(address).unwrap(), body.to_string());
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n").unwrap();
    write!(stream, "content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply.split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quickstart_delivers_its_event_and_fails_when_it_can_not() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (running, made) = collector(&[], &data).await;
    let mut quickstart = sending("quickstart", &running, &made);
    let ran = tokio::task::block_in_place(|| quickstart.output().unwrap());
    assert_eq!(
        (&*String::from_utf8(ran.stdout).unwrap(), ran.status.code()),
        ("1 delivered, 0 lost\n", Some(0))
    );
    running.stop().await.unwrap();
    assert_eq!(names(&data, made.project.id).await, ["order_paid"]);

    let ran = tokio::task::block_in_place(|| quickstart.output().unwrap());
    assert_eq!(
        (&*String::from_utf8(ran.stdout).unwrap(), ran.status.code()),
        ("0 delivered, 1 lost\n", Some(1))
    );
    assert!(!ran.stderr.is_empty(), "why is said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_delivers_everything_before_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (running, made) = collector(&[], &data).await;
    let mut service = sending("axum_service", &running, &made);
    service.env("LISTEN", "127.0.0.1:0").env("TMPDIR", folder.path());
    let mut service = Service(service.stdout(Stdio::piped()).spawn().unwrap());
    let mut printed = BufReader::new(service.0.stdout.take().unwrap());
    let mut line = String::new();
    printed.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on http://").unwrap();
    for (customer, expected) in [("ada", "201"), ("", "422")] {
        let order = serde_json::json!({"customer": customer, "amount": 12.5});
        let status = tokio::task::block_in_place(|| post(address, "/orders", &order));
        assert_eq!(status, expected, "of {order}");
    }
    let pid = rustix::process::Pid::from_child(&service.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let (said, status) = tokio::task::block_in_place(|| {
        let mut said = String::new();
        printed.read_to_string(&mut said).unwrap();
        (said, service.0.wait().unwrap())
    });
    assert_eq!((&*said, status.code()), ("delivered 3, left in the spool 0, dropped 0\n", Some(0)));
    running.stop().await.unwrap();
    assert_eq!(names(&data, made.project.id).await, ["order_placed", "request_served", "request_served"]);
}
