//! Collectors that others name.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventbucket::transport::{Answer, Attempt, Inquiry, Sending};
use eventbucket::{Bucket, Builder, Fault, Transport};

/// A cluster in which every collector takes everything and names whom the test says.
#[derive(Default)]
struct Cluster {
    names: Mutex<Vec<&'static str>>,
    asked: Mutex<Vec<String>>,
    sent: Mutex<Vec<String>>,
    draining: Mutex<Option<&'static str>>,
}

impl Cluster {
    fn naming(names: &[&'static str]) -> Arc<Self> {
        Arc::new(Self { names: Mutex::new(names.to_vec()), ..Self::default() })
    }

    /// Delivers one batch after the other, and says where they went.
    fn deliver(&self, bucket: &Bucket, batches: usize) -> Vec<String> {
        self.sent.lock().unwrap().clear();
        for _ in 0..batches {
            bucket.capture("n");
            let report = bucket.flush_blocking(Duration::from_secs(60));
            assert_eq!((report.timed_out, report.still_pending), (false, 0));
        }
        self.sent.lock().unwrap().clone()
    }

    fn bucket(self: &Arc<Self>, set: impl FnOnce(Builder) -> Builder, url: &str) -> Bucket {
        let transport = Arc::clone(self) as Arc<dyn Transport>;
        set(Bucket::builder(url, "key").transport(transport)).build().unwrap()
    }
}

impl Transport for Cluster {
    fn send<'a>(&'a self, attempt: &'a Attempt) -> Sending<'a> {
        assert_eq!(attempt.key, "key");
        self.sent.lock().unwrap().push(attempt.endpoint.clone());
        let reply = format!(r#"{{"batch_id":"b","events":{},"all":{{"verdict":"stored"}}}}"#, attempt.events);
        let answer = Answer::new(200).with_body(reply);
        let drains = self.draining.lock().unwrap().is_some_and(|url| url == attempt.endpoint);
        Box::pin(std::future::ready(Ok(if drains { answer.with_draining() } else { answer })))
    }

    fn discover<'a>(&'a self, inquiry: &'a Inquiry) -> Sending<'a> {
        assert_eq!(inquiry.key, "key");
        self.asked.lock().unwrap().push(inquiry.endpoint.clone());
        let names = self.names.lock().unwrap().clone();
        let nodes: Vec<_> =
            names.iter().map(|name| serde_json::json!({ "roles": ["edge"], "address": name })).collect();
        let body = serde_json::json!({ "nodes": nodes }).to_string();
        Box::pin(std::future::ready(Ok(Answer::new(200).with_body(body))))
    }
}

const GIVEN: &str = "https://a.example.org";

#[test]
fn learned_collectors_get_their_share() {
    let cluster = Cluster::naming(&["https://b.example.org", "https://a.example.org/"]);
    let bucket = cluster.bucket(|builder| builder.discover(true), GIVEN);
    cluster.deliver(&bucket, 2);
    let sent = cluster.deliver(&bucket, 4);
    for url in [GIVEN, "https://b.example.org"] {
        assert_eq!(sent.iter().filter(|sent| *sent == url).count(), 2, "{sent:?}");
    }
    assert_eq!(*cluster.asked.lock().unwrap(), [GIVEN], "not again before some minutes have passed");
}

#[test]
fn unless_it_is_wanted_nobody_is_asked() {
    let cluster = Cluster::naming(&["https://b.example.org"]);
    let bucket = cluster.bucket(|builder| builder, GIVEN);
    let sent = cluster.deliver(&bucket, 3);
    assert!(sent.iter().all(|url| url == GIVEN), "{sent:?}");
    assert!(cluster.asked.lock().unwrap().is_empty());
}

#[test]
fn a_bucket_with_nothing_to_send_asks_nobody() {
    let cluster = Cluster::naming(&["https://b.example.org"]);
    let bucket = cluster.bucket(|builder| builder.discover(true), GIVEN);
    drop(bucket.shutdown_blocking(Duration::from_secs(60)));
    assert!(cluster.asked.lock().unwrap().is_empty());
}

#[test]
fn a_key_that_travels_with_tls_is_never_sent_without() {
    let faults = Arc::<Mutex<Vec<Fault>>>::default();
    let told = Arc::clone(&faults);
    let cluster = Cluster::naming(&["https://b.example.org", "http://c.example.org"]);
    let hook = move |fault: &Fault| told.lock().unwrap().push(fault.clone());
    let bucket = cluster.bucket(|builder| builder.discover(true).on_error(hook), GIVEN);
    cluster.deliver(&bucket, 1);
    let sent = cluster.deliver(&bucket, 4);
    assert!(sent.iter().all(|url| url == GIVEN), "{sent:?}");
    let faults = faults.lock().unwrap();
    let [Fault::Discovery { endpoint, message }] = &faults[..] else { panic!("{faults:?}") };
    assert!(endpoint == GIVEN && message.contains("no TLS"), "{message}");
}

#[test]
fn a_collector_that_says_it_stops_is_spared_and_no_fault_is_told() {
    let faults = Arc::<Mutex<Vec<Fault>>>::default();
    let told = Arc::clone(&faults);
    let cluster = Cluster::naming(&[]);
    let hook = move |fault: &Fault| told.lock().unwrap().push(fault.clone());
    let bucket = cluster.bucket(|builder| builder.endpoint("https://b.example.org").on_error(hook), GIVEN);
    *cluster.draining.lock().unwrap() = Some(GIVEN);
    let sent = cluster.deliver(&bucket, 6);
    assert_eq!(sent.iter().filter(|url| *url == GIVEN).count(), 1, "{sent:?}");
    assert_eq!(bucket.stats().delivered.stored, 6);
    assert!(faults.lock().unwrap().is_empty());
}

#[cfg(feature = "http")]
mod over_http {
    use super::*;
    use crate::server::{Fault as Order, Server};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_cluster_is_found_from_one_of_its_collectors() {
        let (first, second) = (Server::start(), Server::start());
        let node = |url: &str| format!(r#"{{"id":"1","roles":["edge"],"address":"{url}","version":"0"}}"#);
        first.state().nodes = Some(format!(r#"{{"nodes":[{},{}]}}"#, node(&first.url), node(&second.url)));
        let bucket = Bucket::builder(&first.url, "eb_write_key").discover(true).build().unwrap();
        bucket.capture("n");
        first.wait_until("the inquiry", |state| state.inquiries == ["Bearer eb_write_key"]);
        while second.state().requests.is_empty() {
            bucket.capture("n");
            assert!(!bucket.flush_blocking(LONG).timed_out);
        }
        let ledger = bucket.shutdown_blocking(LONG).ledger;
        assert_eq!(ledger.delivered.stored, ledger.captured, "{ledger:?}");
        assert_eq!(second.state().requests[0].key, "Bearer eb_write_key");
    }

    #[test]
    fn a_server_that_names_nobody_is_told_of_once_and_delivery_goes_on() {
        let server = Server::start();
        let faults = Arc::<Mutex<Vec<String>>>::default();
        let told = Arc::clone(&faults);
        let hook = move |fault: &Fault| told.lock().unwrap().push(fault.to_string());
        let bucket =
            Bucket::builder(&server.url, "eb_write_key").discover(true).on_error(hook).build().unwrap();
        server.fault(Order::Status(503, None));
        for _ in 0..5 {
            bucket.capture("n");
            assert!(!bucket.flush_blocking(LONG).timed_out);
        }
        assert_eq!(bucket.shutdown_blocking(LONG).ledger.delivered.stored, 5);
        let faults = faults.lock().unwrap();
        let discovery: Vec<_> = faults.iter().filter(|fault| fault.contains("names no collectors")).collect();
        assert!(discovery.len() == 1 && discovery[0].contains("404"), "{faults:?}");
    }

    #[test]
    fn a_collector_that_stops_says_so_over_http() {
        let (first, second) = (Server::start(), Server::start());
        first.state().draining = true;
        let bucket = Bucket::builder(&first.url, "eb_write_key").endpoint(&second.url).build().unwrap();
        for _ in 0..6 {
            bucket.capture("n");
            assert!(!bucket.flush_blocking(LONG).timed_out);
        }
        assert_eq!((first.state().requests.len(), second.state().requests.len()), (1, 5));
    }
}
