//! Encrypted connections to Postgres, through a gate that speaks TLS in front of a server without it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use eventbucket_collector::store::{Error, PostgresOptions, Store};
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::store_fixture::project;
use crate::store_postgres::Database;

/// Takes `SSLRequest`, shakes hands for the name `localhost`, and passes on what is said.
struct Gate {
    port: u16,
    certificate: PathBuf,
    encrypted: Arc<AtomicUsize>,
}

impl Gate {
    async fn before(url: &str, folder: &Path) -> Self {
        let server = url.split_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
        let key = KeyPair::generate().unwrap();
        let made = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let certificate = folder.join(format!("{port}.pem"));
        std::fs::write(&certificate, made.pem()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let (acceptor, encrypted) = (TlsAcceptor::from(Arc::new(config)), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&encrypted);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (acceptor, server, counted) = (acceptor.clone(), server.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    let mut request = [0; 8];
                    client.read_exact(&mut request).await.unwrap();
                    assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47], "SSLRequest");
                    client.write_all(b"S").await.unwrap();
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    counted.fetch_add(1, Ordering::AcqRel);
                    let mut server = TcpStream::connect(server).await.unwrap();
                    // Either side may hang up.
                    let _ended = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { port, certificate, encrypted }
    }

    async fn open(&self, url: &str, host: &str, options: &str) -> Result<Store, Error> {
        let (front, rest) = url.split_once('@').unwrap();
        let database = rest.split_once('/').unwrap().1;
        let url = format!("{front}@{host}:{}/{database}?{options}", self.port);
        Store::postgres(PostgresOptions::parse(&url, None).unwrap()).await
    }
}

#[tokio::test]
async fn a_server_is_checked_as_the_address_says() {
    let (database, folder) = (Database::new().await, tempfile::tempdir().unwrap());
    let (gate, other) =
        (Gate::before(&database.url, folder.path()).await, Gate::before(&database.url, folder.path()).await);
    let (own, foreign) = (gate.certificate.display(), other.certificate.display());
    let checked = format!("sslmode=verify-full&sslrootcert={own}");
    let store = gate.open(&database.url, "localhost", &checked).await.unwrap();
    project(&store, "shop").await;
    assert!(gate.encrypted.load(Ordering::Acquire) > 0);
    gate.open(&database.url, "127.0.0.1", "sslmode=require").await.unwrap();
    for (host, options, reason) in [
        ("127.0.0.1", checked.clone(), "not valid for name"),
        ("localhost", format!("sslmode=verify-full&sslrootcert={foreign}"), "invalid peer certificate"),
        ("localhost", "sslmode=verify-full".to_owned(), "invalid peer certificate"),
    ] {
        let refused = gate.open(&database.url, host, &options).await.err().unwrap();
        assert!(refused.to_string().contains(reason), "{host} {options}: {refused}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_refused_when_tls_is_asked_for() {
    let database = Database::new().await;
    let options = PostgresOptions::parse(&format!("{}?sslmode=require", database.url), None).unwrap();
    let refused = Store::postgres(options).await.err().unwrap();
    assert!(refused.to_string().contains("server does not support TLS"), "{refused}");
}
