//! Projects, keys, audit and rebuild over HTTP.

use serde_json::json;

use crate::in_process::{Answer, Form};

#[tokio::test(flavor = "multi_thread")]
async fn a_project_is_made_and_works_at_once() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let made = collector.post("/v1/projects", &json!({"name": "blog"})).await;
        assert_eq!(made.status, 201, "{made:?}");
        let made = made.json();
        let write_key = made["write_key"].as_str().unwrap();
        let request = collector.client.post(collector.url("/v1/events")).bearer_auth(write_key);
        let sent = Answer::to(request.json(&json!({"name": "a"}))).await;
        assert_eq!(collector.finally(sent, write_key).await.status, 200);
        let listed = collector.get("/v1/projects").await.json();
        let names: Vec<_> =
            listed["projects"].as_array().unwrap().iter().map(|project| &project["name"]).collect();
        assert_eq!(names, ["shop", "blog"]);
        assert_eq!(listed["projects"][1]["events"], 1);
        assert_eq!(listed["projects"][1]["project_id"], made["project_id"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_documents_are_refused_in_words() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let other = collector.store.create_project(collector.account, "other").await.unwrap().project.id;
        let own = format!("/v1/projects/{}/keys/rotate", collector.project);
        let mut found = Vec::new();
        for (path, document) in [
            ("/v1/projects", json!({"name": "shop"})),
            ("/v1/projects", json!({"name": ""})),
            ("/v1/projects", json!({"nmae": "blog"})),
            ("/v1/projects", json!({"name": "x".repeat(20_000)})),
            (&own, json!({"kind": "both"})),
            (&own, json!({})),
            (&format!("/v1/projects/{other}/keys/rotate"), json!({"kind": "write"})),
            ("/v1/projects/none/keys/rotate", json!({"kind": "write"})),
        ] {
            found.push(collector.post(path, &document).await.problem());
        }
        insta::allow_duplicates! {
            insta::assert_snapshot!(found.join("\n"), @r#"
            409 name_taken: The name is taken. there is a project "shop" already; choose another name
            400 malformed_body: The body can't be read. the name is empty; give one
            400 malformed_body: The body can't be read. the body can't be used: unknown field `nmae`, expected `name` at line 1 column 7
            413 body_too_large: The body is too large. the body is larger than 16384 bytes; split it, or compress it with zstd or gzip
            400 malformed_body: The body can't be read. the body can't be used: unknown variant `both`, expected `write` or `secret` at line 1 column 14
            400 malformed_body: The body can't be read. the body can't be used: missing field `kind` at line 1 column 2
            404 not_found: There is nothing here. a secret key replaces keys of its own project alone, which is 1
            404 not_found: There is nothing here. a secret key replaces keys of its own project alone, which is 1
            "#);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_holds_and_shows_no_other_project() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let other = collector.store.create_project(collector.account, "other").await.unwrap();
        collector.send(json!([{"name": "a"}, {"name": "b"}, {"name": ""}]).to_string()).await;
        collector.counted().await;
        let audit = collector.get("/v1/audit").await.json();
        let projects = audit["projects"].as_array().unwrap();
        assert_eq!(projects.len(), 1, "{audit}");
        let own = &projects[0];
        assert_eq!((&own["name"], &own["stored"], &own["position"]), (&json!("shop"), &json!(2), &json!(2)));
        let checks = own["checks"].as_array().unwrap();
        assert!(checks.len() >= 5 && checks.iter().all(|check| check["holds"] == true), "{audit}");
        let request = collector.client.get(collector.url("/v1/audit")).bearer_auth(&other.secret_key.text);
        assert_eq!(Answer::to(request).await.json()["projects"][0]["name"], "other");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_makes_a_new_generation_with_the_same_counts() {
    for form in Form::BOTH {
        let collector = form.start().await;
        collector.send(json!([{"name": "a"}, {"name": "a"}, {"name": "b"}]).to_string()).await;
        collector.counted().await;
        let before = collector.store.view_state(collector.project).await.unwrap();
        let rebuilt = collector.post("/v1/rebuild", &json!({})).await.json();
        assert_eq!((&rebuilt["view"], &rebuilt["applied_to"]), (&json!("counts"), &json!(3)));
        assert!(rebuilt["generation"].as_u64().unwrap() > before.generation, "{rebuilt}");
        assert_eq!(collector.get("/v1/counts?by=hour&name=a").await.json()["total"], 2);
        let audit = collector.get("/v1/audit").await.json();
        let checks = audit["projects"][0]["checks"].as_array().unwrap().clone();
        assert!(checks.iter().all(|check| check["holds"] == true), "{audit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_says_what_it_may_do_and_a_wrong_one_is_refused() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let ask = |key: &str| Answer::to(collector.client.get(collector.url("/v1/key")).bearer_auth(key));
        let write = ask(&collector.write_key).await.json();
        assert_eq!(write, json!({"project_id": 1, "kind": "write", "browser": false}));
        assert_eq!(ask(&collector.secret_key).await.json()["kind"], "secret");
        assert_eq!(ask("eb_write_nobody").await.json()["code"], "unknown_key");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_key_is_replaced_by_a_browser_key_unless_it_is_said() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let path = format!("/v1/projects/{}/keys/rotate", collector.project);
        for (document, browser) in [
            (json!({"kind": "write"}), false),
            (json!({"kind": "write", "browser": true}), true),
            (json!({"kind": "write"}), true),
            (json!({"kind": "secret", "browser": false}), false),
            (json!({"kind": "write"}), true),
            (json!({"kind": "write", "browser": false}), false),
            (json!({"kind": "write"}), false),
        ] {
            // The secret key is renewed on the way, so each step asks the store for what it needs.
            let made = collector.store.rotate_key(
                collector.project,
                eventbucket_collector::project::KeyKind::Secret,
                None,
            );
            let secret = made.await.unwrap().text;
            let request = collector.client.post(collector.url(&path)).bearer_auth(secret).json(&document);
            let made = Answer::to(request).await.json();
            let ask =
                collector.client.get(collector.url("/v1/key")).bearer_auth(made["key"].as_str().unwrap());
            assert_eq!(Answer::to(ask).await.json()["browser"], browser, "{document}");
        }
    }
}
