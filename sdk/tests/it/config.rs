use std::collections::HashMap;

use eventbucket::{Bucket, Builder, ConfigError, Props};

fn refused(builder: Builder) -> ConfigError {
    builder.build_test().map(drop).expect_err("the setting can't work")
}

fn builder() -> Builder {
    Bucket::builder("http://localhost:4100", "key")
}

#[test]
fn a_bad_url_is_refused_with_what_to_do() {
    for (url, reason) in [
        ("localhost:4100", "no scheme"),
        ("ftp://example.org", "neither http nor https"),
        ("http://", "no host"),
        ("http:///v1/events", "no host"),
        ("https://example .org", "white space"),
        ("https://example.org/?key=1", "a query or a fragment"),
        ("https://example.org:99999", "port"),
        ("http://[::1", "neither a name nor an IP address"),
        ("http://[zz]:4", "neither a name nor an IP address"),
        ("http://%zz", "neither a name nor an IP address"),
        ("https://key@example.org", "the key is given separately"),
        ("http://256.1.1.1", "neither a name nor an IP address"),
        ("http://1.2.3", "neither a name nor an IP address"),
        ("http://example.org.7:4000", "neither a name nor an IP address"),
        ("http://localhost:+80", "port"),
        ("http://localhost:", "port"),
        ("", "no scheme"),
    ] {
        let message = refused(Bucket::builder(url, "key")).to_string();
        assert!(message.contains(reason) && message.contains("write it like https://"), "{url}: {message}");
    }
    let second = refused(builder().endpoint("nowhere")).to_string();
    assert!(second.contains("nowhere"), "{second}");
}

#[test]
fn good_urls_pass() {
    for url in [
        "http://127.0.0.1:1",
        "HTTP://localhost",
        "https://events.example.org/base/",
        "http://[::1]:4100",
        "http://[::1]",
        "http://10.0.0.7:4100",
        "https://events.example.org.",
        "https://7.example.org",
        "https://bücher.example",
    ] {
        Bucket::builder(url, "key").build_test().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[cfg(feature = "spool")]
#[test]
fn a_spool_without_a_folder_is_refused() {
    let message = refused(builder().spool("")).to_string();
    assert!(message.contains("name a folder"), "{message}");
}

#[cfg(feature = "spool")]
#[test]
fn a_url_that_ends_where_events_go_is_refused_and_a_spool_of_no_size_too() {
    let told =
        Bucket::builder("http://events.example.org/v1/events/", "key").build().err().unwrap().to_string();
    assert!(told.contains("without /v1/events"), "{told}");
    let folder = tempfile::tempdir().unwrap();
    let builder = Bucket::builder("http://events.example.org", "key").spool(folder.path());
    let told = builder.spool_bytes_max(0).build().err().unwrap().to_string();
    assert!(told.contains("spool_bytes_max"), "{told}");
}

#[test]
fn a_bad_key_is_refused_without_being_shown() {
    for key in ["", "with space", "line\nbreak", "schlüssel"] {
        let message = refused(Bucket::builder("http://localhost", key)).to_string();
        assert!(message.contains("project create"), "{message}");
        assert!(key.is_empty() || !message.contains(key), "{message}");
    }
}

#[test]
fn limits_name_the_setting_and_what_it_may_be() {
    for (builder, setting) in [
        (builder().batch_events_max(0), "batch_events_max"),
        (builder().batch_events_max(10_001), "batch_events_max"),
        (builder().batch_bytes_max(5 << 20), "batch_bytes_max"),
        (builder().queue_bytes_max(1), "queue_bytes_max"),
        (builder().sample(1.5), "sample"),
        (builder().sample(f64::NAN), "sample"),
    ] {
        let message = refused(builder).to_string();
        assert!(message.starts_with(setting) && message.contains("choose"), "{message}");
    }
}

#[test]
fn a_context_that_json_cannot_hold_is_refused() {
    let context: Props = [("map", HashMap::from([(vec![1], 2)]))].into();
    assert!(matches!(refused(builder().context(context)), ConfigError::Context(_)));
}

#[cfg(feature = "spool")]
#[test]
fn a_file_is_no_spool_folder() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let message = refused(builder().spool(file.path())).to_string();
    assert!(message.contains("name a folder"), "{message}");
}

#[cfg(feature = "http")]
#[test]
fn proxy_and_certificate_are_checked_when_built() {
    for builder in [builder().proxy("nowhere"), builder().root_certificate_pem("no certificate")] {
        assert!(matches!(builder.build().map(drop), Err(ConfigError::Transport(_))));
    }
}

#[cfg(not(feature = "http"))]
#[test]
fn without_http_a_transport_is_asked_for() {
    assert!(matches!(builder().build().map(drop), Err(ConfigError::NoTransport)));
}
