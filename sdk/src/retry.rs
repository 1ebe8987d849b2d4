use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use eventbucket_protocol::{Code, Problem, Reason, Reply, Verdict};
use serde_json::{Map, Value};

use crate::transport::{Answer, SendError};

/// The first delay after a failure, before jitter.
const DELAY_MIN: Duration = Duration::from_millis(500);
/// The longest delay, before jitter: 0.5 s doubled ten times is 512 s, so the tenth failure in a row reaches it.
const DELAY_MAX: Duration = Duration::from_secs(5 * 60);
/// The same for a collector that refuses the key: people mend that, so trying often helps nobody.
const PAUSE_MIN: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(10 * 60);
/// The longest `Retry-After` that is believed; a collector gone mad can't silence its clients for longer.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);
/// How old an event may get before it is given up: a week, a holiday included. The collector's deduplication reaches
/// further back than that.
pub(crate) const AGE_MAX_MS: i64 = 7 * 24 * 60 * 60 * 1_000;

/// What an answer means for the batch and for the collector it came from.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    /// Every event has its verdict; those with [`Verdict::Retry`] go into a new batch.
    Settled(Vec<Verdict>),
    /// The collector fails. The batch is sent again as it is, there or elsewhere.
    Retry {
        /// At least this long not to the same collector.
        wait_min: Duration,
        /// What happened.
        message: String,
    },
    /// The collector refuses the key or isn't one. The batch is kept as it is, the collector tried again slowly.
    Pause {
        /// Its status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// The batch is too large, or holds something the collector chokes on: halves go separately.
    Split,
    /// The one event of the batch is too large; what says so, and where its limit is.
    TooLarge(String),
    /// The one event of the batch is refused.
    Rejected(Reason),
}

/// Decides what an attempt with `sent` events came to.
pub(crate) fn decide(outcome: &Result<Answer, SendError>, sent: usize) -> Decision {
    let answer = match outcome {
        Ok(answer) => answer,
        Err(error) => return Decision::Retry { wait_min: Duration::ZERO, message: error.to_string() },
    };
    let wait_min = answer.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
    match answer.status {
        200..=299 => match verdicts(&answer.body, sent) {
            Ok(verdicts) => Decision::Settled(verdicts),
            Err(message) => Decision::Retry { wait_min, message },
        },
        408 | 425 | 429 | 500..=599 => Decision::Retry { wait_min, message: words(answer) },
        400 | 413 | 422 => refused(answer, wait_min, sent),
        // 401 and 403 refuse the key. Redirects, 404, 405 and their like come from a wrong URL or a proxy and say
        // nothing about the events, so nothing is thrown away over them.
        status => Decision::Pause { status, message: words(answer) },
    }
}

/// A refusal says something about the events only when a collector says so: a proxy or a wrong server answers 400 to
/// anything, and nothing is thrown away over that. 413 needs no collector, since proxies limit bodies too.
fn refused(answer: &Answer, wait_min: Duration, sent: usize) -> Decision {
    let problem = serde_json::from_slice::<Problem>(&answer.body).ok();
    match (answer.status, problem.as_ref().map(|problem| problem.code.as_str())) {
        (413, None | Some("too_many_events" | "body_too_large" | "decompressed_too_large")) => match sent {
            1 => Decision::TooLarge(limit_words(problem)),
            _ => Decision::Split,
        },
        (400 | 422, Some("malformed_body")) => match sent {
            1 => Decision::Rejected(Reason::new(Code::Unknown, words(answer))),
            _ => Decision::Split,
        },
        (_, Some("truncated_body")) => Decision::Retry { wait_min, message: words(answer) },
        (status, _) => Decision::Pause { status, message: words(answer) },
    }
}

/// Who refused a body for its size. A collector says it in a document with its limit; who answers without one stands before it.
fn limit_words(problem: Option<Problem>) -> String {
    match problem {
        Some(problem) => format!("the collector says: {}", problem.detail),
        None => "status 413 without a collector's document, so a proxy before it limits bodies; raise that limit (nginx: \
                 client_max_body_size)"
            .to_owned(),
    }
}

/// Full jitter over an exponential curve: any time between zero and the delay of that many failures in a row.
pub(crate) fn delay(failures: u32, random: u64) -> Duration {
    jittered(curve(failures, DELAY_MIN, DELAY_MAX), random)
}

/// The pause after a refused key: at least half of its curve, so that it stays slow.
pub(crate) fn pause(failures: u32, random: u64) -> Duration {
    let full = curve(failures, PAUSE_MIN, PAUSE_MAX);
    full / 2 + jittered(full / 2, random)
}

fn curve(failures: u32, min: Duration, max: Duration) -> Duration {
    // Beyond 16 doublings either curve is at its maximum.
    let nth = failures.clamp(1, 16) as usize - 1;
    let delays = ExponentialBuilder::new().with_min_delay(min).with_max_delay(max).without_max_times();
    delays.build().nth(nth).unwrap_or(max)
}

fn jittered(full: Duration, random: u64) -> Duration {
    let steps = u64::try_from(full.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
    Duration::from_millis(random % steps)
}

/// Reads one verdict an event. A verdict this version doesn't know is read as [`Verdict::Retry`].
fn verdicts(body: &[u8], sent: usize) -> Result<Vec<Verdict>, String> {
    if let Ok(reply) = serde_json::from_slice::<Reply>(body) {
        return reply.into_verdicts(sent).map_err(|error| error.to_string());
    }
    let not_a_reply = || "success without verdicts; is this a collector?".to_owned();
    let mut reply: Map<String, Value> = serde_json::from_slice(body).map_err(|_| not_a_reply())?;
    let known = |verdict: Value| serde_json::from_value(verdict).unwrap_or(Verdict::Retry);
    let verdicts: Vec<Verdict> = match (reply.remove("all"), reply.remove("verdicts")) {
        (None, Some(Value::Array(verdicts))) => verdicts.into_iter().map(known).collect(),
        (Some(all @ Value::Object(_)), None) => vec![known(all); sent],
        _ => return Err(not_a_reply()),
    };
    let events = reply.get("events").and_then(Value::as_u64);
    let answered = events.and_then(|events| usize::try_from(events).ok());
    if verdicts.len() == sent && answered == Some(sent) {
        Ok(verdicts)
    } else {
        Err(format!("the reply holds {} verdicts for {sent} events; all are sent again", verdicts.len()))
    }
}

/// What the collector said, for people.
fn words(answer: &Answer) -> String {
    match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(problem) => problem.detail,
        Err(_) => format!("status {}", answer.status),
    }
}

#[cfg(test)]
mod tests {
    use eventbucket_protocol::BatchId;
    use proptest::prelude::*;

    use super::*;

    fn answer(status: u16) -> Result<Answer, SendError> {
        Ok(Answer::new(status))
    }

    fn body(json: &str) -> Result<Answer, SendError> {
        Ok(Answer::new(200).with_body(json))
    }

    fn problem(status: u16, code: &str) -> Result<Answer, SendError> {
        let problem =
            Problem { status, code: code.to_owned(), title: "t".to_owned(), detail: "d".to_owned() };
        Ok(Answer::new(status).with_body(serde_json::to_vec(&problem).unwrap()))
    }

    fn is_retry(decision: &Decision) -> bool {
        matches!(decision, Decision::Retry { .. })
    }

    #[test]
    fn what_may_pass_is_retried_and_what_people_must_mend_pauses() {
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert!(is_retry(&decide(&answer(status), 3)), "{status}");
        }
        assert!(is_retry(&decide(&Err(SendError::Timeout), 3)));
        for status in [101, 301, 400, 401, 403, 404, 405, 415, 422] {
            assert!(matches!(decide(&answer(status), 1), Decision::Pause { .. }), "{status}");
        }
    }

    #[test]
    fn refused_batches_are_halved_down_to_the_culprit() {
        assert_eq!(decide(&answer(413), 2), Decision::Split);
        assert_eq!(decide(&problem(400, "malformed_body"), 2), Decision::Split);
        assert!(matches!(decide(&answer(413), 1), Decision::TooLarge(_)));
        for code in ["too_many_events", "body_too_large", "decompressed_too_large"] {
            assert_eq!(decide(&problem(413, code), 2), Decision::Split, "{code}");
            let told = Decision::TooLarge("the collector says: d".to_owned());
            assert_eq!(decide(&problem(413, code), 1), told, "{code}");
        }
        let Decision::Rejected(reason) = decide(&problem(400, "malformed_body"), 1) else {
            panic!("refused")
        };
        assert_eq!(reason.message, "d", "the collector's words");
    }

    #[test]
    fn a_refusal_that_is_not_about_the_events_costs_none() {
        let plain =
            Ok(Answer::new(400).with_body("<html>The plain HTTP request was sent to HTTPS port</html>"));
        for refusal in [plain, problem(400, "invalid_header"), problem(400, "unsupported_encoding")] {
            for sent in [1, 2] {
                assert!(matches!(decide(&refusal, sent), Decision::Pause { status: 400, .. }), "{refusal:?}");
            }
        }
        for sent in [1, 2] {
            let refusal = decide(&problem(413, "invalid_header"), sent);
            assert!(matches!(refusal, Decision::Pause { status: 413, .. }), "{refusal:?}");
        }
        assert!(is_retry(&decide(&problem(400, "truncated_body"), 1)));
    }

    #[test]
    fn retry_after_is_a_minimum_with_a_cap() {
        for (asked, granted) in [(0, 0), (30, 30), (7_200, 3_600)] {
            let answer = Answer::new(503).with_retry_after(Duration::from_secs(asked));
            let Decision::Retry { wait_min, .. } = decide(&Ok(answer), 1) else { panic!("503 is retried") };
            assert_eq!(wait_min, Duration::from_secs(granted));
        }
    }

    #[test]
    fn success_counts_only_with_a_verdict_for_each_event() {
        let reply = Reply::new(BatchId::from_text("b"), vec![Verdict::Stored; 3]);
        let full = body(&serde_json::to_string(&reply).unwrap());
        assert_eq!(decide(&full, 3), Decision::Settled(vec![Verdict::Stored; 3]));
        for (json, sent) in [
            ("", 1),
            ("<html>", 1),
            ("{}", 1),
            ("1", 1),
            ("[]", 1),
            ("null", 1),
            (r#"{"batch_id":"b","events":0,"verdicts":[]}"#, 1),
        ] {
            assert!(is_retry(&decide(&body(json), sent)), "{json}");
        }
        assert!(is_retry(&decide(&full, 2)) && is_retry(&decide(&full, 4)));
        let none = Ok(Answer::new(204));
        assert!(is_retry(&decide(&none, 1)));
    }

    #[test]
    fn unknown_verdicts_are_tried_again_and_known_ones_beside_them_count() {
        let mixed = r#"{"batch_id":"b","events":2,"verdicts":[{"verdict":"stored"},{"verdict":"pondered"}]}"#;
        assert_eq!(decide(&body(mixed), 2), Decision::Settled(vec![Verdict::Stored, Verdict::Retry]));
        let alike = r#"{"batch_id":"b","events":2,"all":{"verdict":"pondered"}}"#;
        assert_eq!(decide(&body(alike), 2), Decision::Settled(vec![Verdict::Retry; 2]));
        assert!(is_retry(&decide(&body(alike), 3)));
    }

    proptest! {
        #[test]
        fn delays_grow_to_their_bound_and_jitter_reaches_everything_below(failures in 1_u32..100, random: u64) {
            let full = Duration::from_millis(500 * 2_u64.pow((failures - 1).min(20))).min(DELAY_MAX);
            prop_assert!(delay(failures, random) <= full);
            prop_assert_eq!(delay(failures, 0), Duration::ZERO);
            let whole = u64::try_from(full.as_millis()).unwrap();
            prop_assert_eq!(delay(failures, whole), full);
            prop_assert!((PAUSE_MIN / 2..=PAUSE_MAX).contains(&pause(failures, random)));
        }

        #[test]
        fn no_answer_whatever_is_a_panic(
            status in prop_oneof![Just(200_u16), 0_u16..1000],
            json in prop_oneof![
                ".{0,80}",
                "[0-9]|\\[\\]|\\[1,2\\]|null|true|\"text\"|\\{\\}",
                "\\{\"events\":(-?[0-9]|null|\\{\\}),\"(all|verdicts)\":([0-9]|\\[[0-9]?\\]|\\{\\}|null|\"x\")\\}",
            ],
            sent in 1_usize..5,
        ) {
            decide(&Ok(Answer::new(status).with_body(json)), sent);
        }
    }
}
