use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

const EVENTS: &str = "eventbucket_events_total";
const EVENTS_RECEIVED: &str = "eventbucket_events_received_total";
const REQUESTS: &str = "eventbucket_http_requests_total";
const REQUEST_SECONDS: &str = "eventbucket_http_request_duration_seconds";
const BODY_BYTES: &str = "eventbucket_http_body_bytes_total";
const CONNECTIONS: &str = "eventbucket_http_connections";
const CONNECTIONS_REFUSED: &str = "eventbucket_http_connections_refused_total";
const FREE_DISK: &str = "eventbucket_disk_free_bytes";
/// Set where the broker is.
const DEAD_LETTERS: &str = "eventbucket_dead_letters";
const SPOOL_BATCHES: &str = "eventbucket_spool_batches";
const SPOOL_BYTES: &str = "eventbucket_spool_bytes";
const SPOOL_OLDEST: &str = "eventbucket_spool_oldest_seconds";

/// Upper bounds of the request durations, in seconds: from what a cached answer takes to the body timeout.
const REQUEST_SECONDS_BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

const METADATA: Metadata<'static> = Metadata::new("eventbucket", Level::INFO, None);

/// The collector's figures for Prometheus. Labels are routes, statuses and verdicts: never a user id, an event's name or a
/// project's, so their number is bounded whatever arrives. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Figures>);

struct Figures {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    body_bytes: Counter,
    connections: Gauge,
    connections_refused: Counter,
}

impl Metrics {
    /// Makes a set of figures that belongs to nobody else in the process.
    ///
    /// # Panics
    /// Never: the buckets are not empty.
    #[must_use]
    pub fn new() -> Self {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(REQUEST_SECONDS.to_owned()), &REQUEST_SECONDS_BUCKETS)
            .expect("the buckets are not empty");
        let recorder = Arc::new(builder.build_recorder());
        describe(&recorder);
        Self(Arc::new(Figures {
            handle: recorder.handle(),
            body_bytes: recorder.register_counter(&Key::from_static_name(BODY_BYTES), &METADATA),
            connections: recorder.register_gauge(&Key::from_static_name(CONNECTIONS), &METADATA),
            connections_refused: recorder
                .register_counter(&Key::from_static_name(CONNECTIONS_REFUSED), &METADATA),
            recorder,
        }))
    }

    /// Lets the macros of the `metrics` crate record here too. The first set of figures in a process wins; the answer says
    /// whether it was this one.
    pub fn install(&self) -> bool {
        metrics::set_global_recorder(Arc::clone(&self.0.recorder)).is_ok()
    }

    /// Counts a request that was answered.
    pub fn request_answered(&self, route: &str, status: u16, took: Duration) {
        let route = Label::new("route", route.to_owned());
        let status = Label::new("status", status.to_string());
        let key = Key::from_parts(REQUESTS, vec![route.clone(), status]);
        self.0.recorder.register_counter(&key, &METADATA).increment(1);
        let key = Key::from_parts(REQUEST_SECONDS, vec![route]);
        self.0.recorder.register_histogram(&key, &METADATA).record(took.as_secs_f64());
    }

    /// Counts the bytes of a body as they came over the wire.
    pub fn body_received(&self, bytes: usize) {
        self.0.body_bytes.increment(bytes as u64);
    }

    /// Counts a connection until what is returned is dropped.
    #[must_use]
    pub fn connection(&self) -> OpenConnection {
        self.0.connections.increment(1.0);
        OpenConnection(self.0.connections.clone())
    }

    /// Counts a connection that was turned away.
    pub fn connection_refused(&self) {
        self.0.connections_refused.increment(1);
    }

    /// Sets how much room the disk has; a process without one has no such figure.
    pub fn free_disk(&self, bytes: u64) {
        let gauge = self.0.recorder.register_gauge(&Key::from_static_name(FREE_DISK), &METADATA);
        #[expect(clippy::cast_precision_loss, reason = "a gauge; exact below 8 PiB")]
        gauge.set(bytes as f64);
    }

    /// Sets how much waits in the spool, where there is one.
    pub fn spool(&self, batches: u64, bytes: u64, oldest_s: u64) {
        for (name, value) in [(SPOOL_BATCHES, batches), (SPOOL_BYTES, bytes), (SPOOL_OLDEST, oldest_s)] {
            #[expect(clippy::cast_precision_loss, reason = "a gauge; exact below 8 PiB")]
            self.0.recorder.register_gauge(&Key::from_static_name(name), &METADATA).set(value as f64);
        }
    }

    /// Sets the collector's ledger to what the store says.
    pub fn ledger(&self, received: u64, verdicts: &[(&'static str, u64)]) {
        let key = Key::from_static_name(EVENTS_RECEIVED);
        self.0.recorder.register_counter(&key, &METADATA).absolute(received);
        for (verdict, count) in verdicts {
            let key = Key::from_parts(EVENTS, vec![Label::new("verdict", *verdict)]);
            self.0.recorder.register_counter(&key, &METADATA).absolute(*count);
        }
    }

    /// Writes everything in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.handle.render()
    }

    /// Folds recorded durations into their buckets; without it they pile up until somebody reads the figures.
    pub fn fold(&self) {
        self.0.handle.run_upkeep();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A connection while it is open.
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

fn describe(recorder: &PrometheusRecorder) {
    let counter = |name: &'static str, unit, text: &'static str| {
        recorder.describe_counter(name.into(), Some(unit), text.into());
    };
    counter(EVENTS, Unit::Count, "events by what became of them, from the store");
    counter(EVENTS_RECEIVED, Unit::Count, "events in batches that were answered, from the store");
    counter(REQUESTS, Unit::Count, "requests answered, by route and status");
    counter(BODY_BYTES, Unit::Bytes, "bytes of batches as they came over the wire");
    counter(CONNECTIONS_REFUSED, Unit::Count, "connections turned away because too many were open");
    let gauge = |name: &'static str, unit, text: &'static str| {
        recorder.describe_gauge(name.into(), Some(unit), text.into());
    };
    gauge(CONNECTIONS, Unit::Count, "connections open");
    gauge(
        SPOOL_BATCHES,
        Unit::Count,
        "batches that were accepted and wait for the broker on this edge's disk",
    );
    gauge(DEAD_LETTERS, Unit::Count, "messages among the dead letters, as this storage process saw it last");
    gauge(SPOOL_BYTES, Unit::Bytes, "bytes they take");
    gauge(SPOOL_OLDEST, Unit::Seconds, "how long the oldest has waited");
    gauge(FREE_DISK, Unit::Bytes, "free bytes on the disk of the data folder");
    recorder.describe_histogram(
        REQUEST_SECONDS.into(),
        Some(Unit::Seconds),
        "time from a request's headers to its answer's, by route".into(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_appear_under_their_names() {
        let metrics = Metrics::new();
        let open = metrics.connection();
        metrics.ledger(7, &[("stored", 4), ("rejected", 3)]);
        metrics.request_answered("/v1/events", 200, Duration::from_millis(3));
        let text = metrics.render();
        for line in [
            "eventbucket_events_received_total 7",
            "eventbucket_events_total{verdict=\"stored\"} 4",
            "eventbucket_http_connections 1",
            "eventbucket_http_requests_total{route=\"/v1/events\",status=\"200\"} 1",
            "eventbucket_http_request_duration_seconds_bucket{route=\"/v1/events\",le=\"0.005\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("eventbucket_disk_free_bytes"), "no disk was looked at");
        metrics.free_disk(5);
        assert!(metrics.render().contains("eventbucket_disk_free_bytes 5"));
        drop(open);
        assert!(metrics.render().contains("eventbucket_http_connections 0"));
    }
}
