//! What browsers meet: CORS, and the page.

use reqwest::Method;
use serde_json::json;

use crate::in_process::{Answer, Form, collector};

const ORIGIN: &str = "https://shop.example";

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_is_answered_for_any_origin() {
    let collector = collector().await;
    let request = collector.client.request(Method::OPTIONS, collector.url("/v1/events"));
    let request = request
        .header("origin", ORIGIN)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type");
    let answer = Answer::to(request).await;
    let headers = [
        "access-control-allow-origin",
        "access-control-allow-methods",
        "access-control-allow-headers",
        "access-control-max-age",
        "vary",
    ];
    let lines = headers.map(|name| format!("{name}: {}", answer.header(name)));
    insta::assert_snapshot!(format!("{}\n{}", answer.status, lines.join("\n")), @r"
    204
    access-control-allow-origin: https://shop.example
    access-control-allow-methods: POST
    access-control-allow-headers: authorization, content-type, content-encoding, event-bucket-sent-at
    access-control-max-age: 86400
    vary: Origin
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_may_read_the_answer_under_a_browser_key_alone() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let send = |key: &str, body: &'static str| {
            let request = collector.client.post(collector.url("/v1/events")).bearer_auth(key);
            Answer::to(request.header("origin", ORIGIN).header("content-type", "application/json").body(body))
        };
        let allowed = |answer: &Answer| answer.header("access-control-allow-origin").to_owned();
        assert_eq!(allowed(&send(&collector.write_key, r#"{"name":"a"}"#).await), "");

        let path = format!("/v1/projects/{}/keys/rotate", collector.project);
        let made = collector.post(&path, &json!({"kind": "write", "browser": true})).await.json();
        let key = made["key"].as_str().unwrap();
        let stored = send(key, r#"{"name":"a"}"#).await;
        assert_eq!(
            (stored.status, allowed(&stored), stored.header("vary")),
            (200, ORIGIN.to_owned(), "Origin")
        );
        let refused = send(key, "17").await;
        assert_eq!((refused.status, allowed(&refused)), (400, ORIGIN.to_owned()), "problems can be read too");

        let revoked = key.to_owned();
        collector.post(&path, &json!({"kind": "write"})).await;
        for wrong in [&revoked, "eb_write_nobody"] {
            let refused = send(wrong, r#"{"name":"a"}"#).await;
            assert_eq!(
                (refused.status, allowed(&refused), refused.header("vary")),
                (401, ORIGIN.to_owned(), "Origin")
            );
        }

        let secret = collector.post(&path, &json!({"kind": "secret", "browser": true})).await;
        assert_eq!(secret.json()["code"], "malformed_body", "a secret key never goes into a page");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_its_files_are_served_under_a_strict_policy() {
    let collector = collector().await;
    for (path, media_type, part) in [
        ("/", "text/html; charset=utf-8", "The collector is running."),
        ("/page.css", "text/css; charset=utf-8", "prefers-color-scheme: dark"),
        ("/page.js", "text/javascript; charset=utf-8", "sessionStorage"),
        ("/icon.svg", "image/svg+xml", "<svg"),
    ] {
        let answer = Answer::to(collector.client.get(collector.url(path))).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, media_type));
        assert!(answer.body.contains(part), "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_the_page_asks_for_is_there() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let script = Answer::to(collector.client.get(collector.url("/page.js"))).await.body;
        let paths: Vec<&str> = script
            .split(['"', '`'])
            .filter(|text| text.starts_with("/v1/") || *text == "/version")
            .map(|text| text.split('?').next().unwrap())
            .collect();
        assert!(paths.contains(&"/v1/key") && paths.contains(&"/v1/events/tail"), "{paths:?}");
        for path in paths {
            let request = collector.client.get(collector.url(path)).bearer_auth(&collector.secret_key);
            let status = request.send().await.unwrap().status();
            assert_eq!(status, 200, "{path}");
        }
    }
}
