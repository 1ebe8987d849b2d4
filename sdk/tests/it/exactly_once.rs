use std::collections::HashSet;
use std::time::Duration;

use eventbucket::transport::{Answer, SendError};
use eventbucket::{Bucket, Event, EventId};
use proptest::prelude::*;

/// One thing that may happen.
#[derive(Clone, Debug)]
enum Step {
    Capture(u8),
    Again(u8),
    Status(u16),
    Break,
    Garbage(String),
    WrongCount,
    AllRetry,
    Advance(u32),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let status =
        prop::sample::select(vec![200, 204, 302, 400, 401, 403, 404, 408, 413, 422, 425, 429, 500, 503]);
    prop_oneof![
        6 => (1_u8..40).prop_map(Step::Capture),
        1 => any::<u8>().prop_map(Step::Again),
        6 => status.prop_map(Step::Status),
        1 => Just(Step::Break),
        1 => ".{0,20}".prop_map(Step::Garbage),
        1 => Just(Step::WrongCount),
        1 => Just(Step::AllRetry),
        4 => (0_u32..700).prop_map(Step::Advance),
        1 => Just(Step::Flush),
    ]
}

/// Enough to find what was ever found here, in a few seconds; `PROPTEST_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(128)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a collector answers, in any order: the ledger balances at every moment, and once it answers properly,
    /// every captured event was taken once or its loss is counted.
    #[test]
    fn the_ledger_balances_over_any_sequence_of_answers(steps in prop::collection::vec(step(), 1..40)) {
        let builder = Bucket::builder("http://one.invalid", "key").endpoint("http://two.invalid");
        let (bucket, sink) = builder.batch_events_max(16).build_test().unwrap();
        let mut captured: Vec<EventId> = Vec::new();
        for step in steps {
            match step {
                Step::Capture(count) => {
                    captured.extend((0..count).map(|_| bucket.capture("captured")));
                }
                Step::Again(which) => {
                    let id = EventId::from_text(&format!("explicit-{}", which % 4));
                    captured.push(bucket.capture(Event::new("again").id(id)));
                }
                Step::Status(status) => sink.fail_next(status),
                Step::Break => sink.break_next(SendError::Timeout),
                Step::Garbage(body) => sink.answer_next(Answer::new(200).with_body(body)),
                Step::WrongCount => {
                    let body = r#"{"batch_id":"b","events":1000,"all":{"verdict":"stored"}}"#;
                    sink.answer_next(Answer::new(200).with_body(body));
                }
                Step::AllRetry => {
                    let body = r#"{"batch_id":"b","events":1,"verdicts":[{"verdict":"retry"}]}"#;
                    sink.answer_next(Answer::new(200).with_body(body));
                }
                Step::Advance(seconds) => sink.advance(Duration::from_secs(seconds.into())),
                Step::Flush => sink.settle(),
            }
            let stats = bucket.stats();
            prop_assert!(stats.balances(), "{stats:?}");
        }
        // What is still scripted is used up; each round reaches beyond the longest wait.
        let mut rounds = 0;
        while bucket.stats().pending > 0 {
            rounds += 1;
            prop_assert!(rounds < 200, "{:?}", bucket.stats());
            sink.advance(Duration::from_secs(3_600));
        }
        let stats = bucket.stats();
        prop_assert!(stats.balances(), "{stats:?}");
        prop_assert_eq!(stats.captured, captured.len() as u64);
        let captured: HashSet<_> = captured.iter().map(EventId::uuid).collect();
        let taken: Vec<_> = sink.events().iter().map(|event| event.id.uuid()).collect();
        let distinct: HashSet<_> = taken.iter().copied().collect();
        prop_assert_eq!(taken.len(), distinct.len());
        prop_assert!(distinct.is_subset(&captured));
        // Scripted verdicts of "stored" never fit, so only refusals and age keep an event from the collector.
        let lost = stats.rejected + stats.dropped.total() + stats.withheld.total();
        prop_assert!(captured.len() as u64 <= taken.len() as u64 + lost, "{stats:?}");
        prop_assert_eq!(stats.delivered.stored, taken.len() as u64);
    }
}
