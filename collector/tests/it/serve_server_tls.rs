//! The collector's own connections to RabbitMQ and Redis over TLS, with an authority that nobody else knows.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use eventbucket_servers::{RabbitMq, Redis};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;

use crate::harness::{Collector, eventbucket, eventually, run};

/// Servers that speak TLS as `localhost`, by an authority of their own.
struct Encrypted {
    folder: tempfile::TempDir,
    amqps: u16,
    rediss: u16,
    _rabbitmq: RabbitMq,
    _redis: Redis,
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Encrypted {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            file.display().to_string()
        };
        let issuer = authority();
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        let own = write("own.pem", issuer.pem());
        write("other.pem", authority().pem());
        let (certificate, key) =
            (write("server.pem", certificate.pem()), write("server.key", key.serialize_pem()));
        let (amqps, rediss) = (free_port(), free_port());
        let lines = [
            format!("listeners.ssl.1 = 127.0.0.1:{amqps}"),
            format!("ssl_options.cacertfile = {own}"),
            format!("ssl_options.certfile = {certificate}"),
            format!("ssl_options.keyfile = {key}"),
            "ssl_options.verify = verify_none".to_owned(),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let rabbitmq = RabbitMq::start_with(&lines, "[].").unwrap();
        let port = rediss.to_string();
        let redis = Redis::start_with(&[
            "--tls-port",
            &port,
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &own,
            "--tls-auth-clients",
            "no",
        ])
        .unwrap();
        Self { folder, amqps, rediss, _rabbitmq: rabbitmq, _redis: redis }
    }

    /// A configuration file that names the servers by this host, and these files of authorities beside itself.
    fn config(&self, host: &str, bus_ca: Option<&str>, cache_ca: Option<&str>) -> PathBuf {
        let line = |ca: Option<&str>| ca.map(|file| format!("ca_file = \"{file}\"\n")).unwrap_or_default();
        let text = format!(
            "[bus]\nurl = \"amqps://guest:guest@{host}:{}/%2f\"\n{}[cache]\nurl = \"rediss://localhost:{}/0\"\n{}",
            self.amqps,
            line(bus_ca),
            self.rediss,
            line(cache_ca),
        );
        let file = self.folder.path().join("collector.toml");
        fs::write(&file, text).unwrap();
        file
    }
}

/// The store is the one that the broker knows.
fn refused(data: &Path, config: &Path, parts: &[&str]) {
    let mut command = eventbucket(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(data).arg("--config").arg(config);
    run(command).assert_failed(1, parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_speaks_tls_to_its_servers_and_believes_only_those_it_was_told_to() {
    let servers = tokio::task::spawn_blocking(Encrypted::start).await.unwrap();
    let config = servers.config("localhost", Some("own.pem"), Some("own.pem"));
    let data = servers.folder.path().join("data");
    let collector = Collector::start_in(&data, &["--config", config.to_str().unwrap()]);
    let answer =
        collector.send(json!({"events": [{"id": "a", "name": "sent"}, {"id": "b", "name": "sent"}]})).await;
    assert!(answer.to_string().contains("accepted"), "{answer}");
    eventually("it is stored and counted", || {
        collector.over_http(&["count", "--json"]).json().to_string().contains("\"count\":2")
    });
    drop(collector);

    let signed_by_nobody =
        ["RabbitMQ at amqps://guest:***@localhost", "invalid peer certificate", "[bus] ca_file"];
    refused(&data, &servers.config("localhost", Some("other.pem"), Some("own.pem")), &signed_by_nobody);
    refused(&data, &servers.config("localhost", None, Some("own.pem")), &signed_by_nobody);
    let another_name = ["not valid for name", "[bus] ca_file"];
    refused(&data, &servers.config("127.0.0.1", Some("own.pem"), Some("own.pem")), &another_name);
    let by_nobody = ["redis at localhost", "invalid peer certificate", "[cache] ca_file"];
    refused(&data, &servers.config("localhost", Some("own.pem"), Some("other.pem")), &by_nobody);
    refused(&data, &servers.config("localhost", Some("own.pem"), None), &by_nobody);
}
