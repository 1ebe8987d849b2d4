//! What became of a batch, asked for afterwards.

use serde_json::json;

use crate::in_process::{Answer, Form, Running};
use crate::store_fixture::eventually;

const BATCH: &str = "019363a0-0000-7000-8000-0000000000ff";

async fn ask(collector: &Running, batch: &str) -> Answer {
    let request = collector.client.get(collector.url(&format!("/v1/batches/{batch}")));
    Answer::to(request.bearer_auth(&collector.write_key)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_final_verdicts_are_those_of_the_first_time() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let body = json!({"batch_id": BATCH, "events": [
            {"id": "a", "name": "n"}, {"name": ""}, {"id": "a", "name": "n", "time": 5}, {"id": "b", "name": "n"},
        ]});
        collector.send(body.to_string()).await;
        let said = ask(&collector, BATCH).await;
        assert_eq!(said.status, 200);
        let words = |answer: &Answer| -> Vec<String> {
            let verdicts = answer.json()["verdicts"].as_array().unwrap().clone();
            verdicts.iter().map(|verdict| verdict["verdict"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(words(&said), ["stored", "rejected", "duplicate", "stored"]);
        assert_eq!(said.json()["verdicts"][1]["code"], "invalid_name");
        // A resend finds duplicates; what became of the events stays what it was.
        collector.send(body.to_string()).await;
        eventually("the resend is stored", async || collector.received().await == 8).await;
        assert_eq!(ask(&collector, BATCH).await.body, said.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_another_project_or_none_is_not_found() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let said = ask(&collector, "never-sent").await;
        assert_eq!((said.status, said.json()["code"].as_str().unwrap()), (404, "not_found"), "{}", said.body);
        collector.send(json!({"batch_id": BATCH, "events": [{"name": "n"}]}).to_string()).await;
        let other = collector.store.create_project(collector.account, "other").await.unwrap();
        let request = collector.client.get(collector.url(&format!("/v1/batches/{BATCH}")));
        assert_eq!(Answer::to(request.bearer_auth(&other.write_key.text)).await.status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_answered_when_the_batch_is_stored() {
    for form in Form::BOTH {
        let collector = form.start().await;
        let request = collector.client.get(collector.url(&format!("/v1/batches/{BATCH}?wait=30")));
        let waiting = tokio::spawn(Answer::to(request.bearer_auth(&collector.write_key)));
        collector.send(json!({"batch_id": BATCH, "events": [{"name": "n"}]}).to_string()).await;
        assert_eq!(waiting.await.unwrap().status, 200);
        let request = collector.client.get(collector.url(&format!("/v1/batches/{BATCH}?wait=31")));
        assert_eq!(Answer::to(request.bearer_auth(&collector.write_key)).await.status, 400);
    }
}
