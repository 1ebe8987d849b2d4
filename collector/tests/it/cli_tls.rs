//! The commands over TLS, with certificates that no public authority signed.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::harness::{Collector, Ran, eventbucket, run};

/// A folder with an authority's certificate, and a server's that it signed.
struct Made {
    folder: TempDir,
    authority: PathBuf,
}

fn params() -> CertificateParams {
    CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap()
}

fn made() -> Made {
    let folder = tempfile::tempdir().unwrap();
    let mut of_authority = CertificateParams::new(Vec::new()).unwrap();
    of_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(of_authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = params().signed_by(&key, &issuer).unwrap();
    let authority = folder.path().join("authority.pem");
    fs::write(&authority, issuer.pem()).unwrap();
    write_server(folder.path(), &server.pem(), &key.serialize_pem());
    Made { folder, authority }
}

fn write_server(folder: &Path, certificate: &str, key: &str) {
    fs::write(folder.join("server.pem"), certificate).unwrap();
    fs::write(folder.join("key.pem"), key).unwrap();
    let config = "[tls]\ncertificate = \"server.pem\"\nkey = \"key.pem\"\n";
    fs::write(folder.join("given.toml"), config).unwrap();
}

fn start(folder: &Path) -> Collector {
    Collector::start_with(&["--config", folder.join("given.toml").to_str().unwrap()])
}

fn count(collector: &Collector, authority: Option<&Path>) -> Ran {
    let mut command = eventbucket(&["count", "--url", collector.url()]);
    command.env("EVENTBUCKET_KEY", &collector.keys().secret).env_remove("SSL_CERT_FILE");
    if let Some(file) = authority {
        command.arg("--ca-file").arg(file);
    }
    run(command)
}

#[test]
fn a_private_authority_is_trusted_when_it_is_given() {
    let made = made();
    let collector = start(made.folder.path());
    assert!(collector.url().starts_with("https://"), "{}", collector.url());
    count(&collector, None).assert_failed(1, &["certificate", "--ca-file", "EVENTBUCKET_CA_FILE"]);
    let ran = count(&collector, Some(&made.authority));
    assert_eq!(ran.code, 0, "{ran:#?}");
    let mut command = eventbucket(&["count", "--url", collector.url()]);
    command.env("EVENTBUCKET_KEY", &collector.keys().secret).env("EVENTBUCKET_CA_FILE", &made.authority);
    assert_eq!(run(command).code, 0);
}

#[test]
fn a_file_that_holds_no_certificate_is_named_before_anything_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (absent, empty) = (folder.path().join("absent.pem"), folder.path().join("empty.pem"));
    fs::write(&empty, "hello").unwrap();
    for file in [&absent, &empty] {
        let file = file.to_str().unwrap();
        let args = ["count", "--url", "https://127.0.0.1:1", "--key", "k", "--ca-file", file];
        run(eventbucket(&args)).assert_failed(2, &[file, "PEM"]);
    }
}

#[test]
fn an_authority_that_serves_with_its_own_certificate_is_told_what_to_make() {
    let folder = tempfile::tempdir().unwrap();
    let mut of_both = params();
    of_both.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = of_both.self_signed(&key).unwrap();
    write_server(folder.path(), &certificate.pem(), &key.serialize_pem());
    let collector = start(folder.path());
    for authority in [None, Some(folder.path().join("server.pem"))] {
        let ran = count(&collector, authority.as_deref());
        ran.assert_failed(1, &["an authority's certificate", "CA:FALSE", "docs/OPERATIONS.md"]);
    }
}

#[test]
fn a_certificate_that_signed_itself_is_trusted_when_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = params().self_signed(&key).unwrap();
    write_server(folder.path(), &certificate.pem(), &key.serialize_pem());
    let collector = start(folder.path());
    count(&collector, None).assert_failed(1, &["--ca-file"]);
    let ran = count(&collector, Some(&folder.path().join("server.pem")));
    assert_eq!(ran.code, 0, "{ran:#?}");
}

#[test]
fn a_system_without_certificates_can_ask_without_tls() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none.pem");
    fs::write(&none, "").unwrap();
    let collector = Collector::start();
    let ask = |url: &str| {
        let mut command = eventbucket(&["count", "--url", url]);
        command
            .env("EVENTBUCKET_KEY", &collector.keys().secret)
            .env("SSL_CERT_FILE", &none)
            .env_remove("SSL_CERT_DIR");
        run(command)
    };
    assert_eq!(ask(collector.url()).code, 0);
    ask("https://127.0.0.1:1").assert_failed(1, &["--ca-file"]);
}

#[test]
fn the_wrong_scheme_is_said_to_be_wrong() {
    let made = made();
    let (with, without) = (start(made.folder.path()), Collector::start());
    let ask = |words: &[&str], url: String| {
        let mut command = eventbucket(words);
        run({
            command
                .args(["--url", &url, "--ca-file"])
                .arg(&made.authority)
                .env("EVENTBUCKET_KEY", "eb_secret_any");
            command
        })
    };
    for words in [&["count"][..], &["health"]] {
        let told = ask(words, without.url().replace("http://", "https://"));
        told.assert_failed(1, &["doesn't speak TLS", "http://"]);
        let told = ask(words, with.url().replace("https://", "http://"));
        told.assert_failed(1, &["speaks TLS", "https://"]);
    }
    assert!(with.welcome().contains("--cacert"), "{}", with.welcome());
}
