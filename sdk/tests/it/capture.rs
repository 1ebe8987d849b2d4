use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use eventbucket::protocol::{ALIAS, IDENTIFY};
use eventbucket::{Bucket, CaptureError, Event, Fault, Sink, event, props};

fn bucket(set: impl FnOnce(eventbucket::Builder) -> eventbucket::Builder) -> (Bucket, Sink) {
    set(Bucket::builder("http://test.invalid", "key")).build_test().unwrap()
}

#[test]
fn an_event_arrives_with_everything_it_was_given() {
    let (bucket, sink) = Bucket::test();
    let id = bucket.capture(
        event!("order_paid", user: "u-17", description: "Ada paid", stream: "order-1", correlation: "req-9",
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(5), plan: "pro", "amount.eur": 12.5, again: None::<u8>),
    );
    let [event] = &sink.events()[..] else { panic!("one event") };
    assert_eq!(event.id, id);
    assert_eq!(event.id.uuid().get_version_num(), 7);
    assert_eq!((event.name.as_str(), event.user.as_deref()), ("order_paid", Some("u-17")));
    assert_eq!((event.stream.as_deref(), event.correlation.as_deref()), (Some("order-1"), Some("req-9")));
    assert_eq!((event.description.as_deref(), event.time.ms()), (Some("Ada paid"), 5));
    assert_eq!(event.properties.as_json(), r#"{"plan":"pro","amount.eur":12.5,"again":null}"#);
    assert_eq!(bucket.stats().delivered.stored, 1);
}

#[test]
fn what_is_left_open_is_the_time_of_capture() {
    let (bucket, sink) = Bucket::test();
    let captured = sink.now();
    bucket.capture("first");
    sink.advance(Duration::from_secs(60));
    bucket.capture("second".to_owned());
    let times: Vec<_> = sink.events().iter().map(|event| event.time.ms() - captured.ms()).collect();
    assert_eq!(times, [0, 60_000]);
}

#[test]
fn users_are_identified_and_aliased() {
    let (bucket, sink) = Bucket::test();
    bucket.identify("u-17", props! { name: "Ada" });
    bucket.alias("u-17", "anonymous-3");
    let events = sink.events();
    assert_eq!((events[0].name.as_str(), events[0].properties.as_json()), (IDENTIFY, r#"{"name":"Ada"}"#));
    assert_eq!(
        (events[1].name.as_str(), events[1].properties.as_json()),
        (ALIAS, r#"{"alias":"anonymous-3"}"#)
    );
    assert!(events.iter().all(|event| event.user.as_deref() == Some("u-17")));
}

#[test]
fn an_explicit_id_captured_twice_is_sent_once_within_the_window() {
    let (bucket, sink) = bucket(|builder| builder.dedup_window(100, Duration::from_secs(60)));
    for _ in 0..3 {
        bucket.capture(Event::new("paid").id("order-1"));
    }
    assert_eq!(sink.events().len(), 1);
    let stats = bucket.stats();
    assert_eq!((stats.captured, stats.withheld.duplicate, stats.delivered.stored), (3, 2, 1));
    sink.advance(Duration::from_secs(61));
    bucket.capture(Event::new("paid").id("order-1"));
    assert_eq!(sink.events().len(), 1, "the collector still knows the id");
    let stats = bucket.stats();
    assert_eq!((stats.withheld.duplicate, stats.delivered.duplicate), (2, 1));
    assert!(stats.balances());
}

#[test]
fn an_id_whose_event_was_refused_may_be_captured_again() {
    let (bucket, sink) = bucket(|builder| builder.dedup_window(100, Duration::from_secs(60)));
    bucket.capture(Event::new("").id("order-1").once("first order", Duration::from_secs(60)));
    bucket.capture(Event::new("paid").id("order-1").once("first order", Duration::from_secs(60)));
    assert_eq!(sink.events().len(), 1);
    let stats = bucket.stats();
    assert_eq!((stats.dropped.invalid, stats.delivered.stored), (1, 1), "{stats:?}");
    assert!(stats.balances());
}

#[test]
fn an_id_whose_event_was_too_large_or_broke_the_hook_may_be_captured_again() {
    let hook = |event: Event| if event.name() == "bad" { panic!("hook: no") } else { Some(event) };
    let (bucket, sink) = bucket(|builder| builder.before_send(hook));
    let once = |event: Event, key: &str| event.id(key).once(key, Duration::from_secs(60));
    bucket.capture(once(Event::new("large").prop("text", "x".repeat(300 * 1_024)), "order-1"));
    bucket.capture(once(Event::new("bad"), "order-2"));
    assert_eq!(sink.events().len(), 0);
    let dropped = bucket.stats().dropped;
    assert_eq!((dropped.too_large, dropped.hook_panicked), (1, 1), "{dropped:?}");
    for key in ["order-1", "order-2"] {
        bucket.capture(once(Event::new("paid"), key));
    }
    assert_eq!(sink.events().len(), 2, "{:?}", bucket.stats());
    assert!(bucket.stats().balances());
}

#[test]
fn a_once_key_passes_once_within_its_time() {
    let (bucket, sink) = Bucket::test();
    let greet = || bucket.capture(Event::new("greeted").once("greeted u-17", Duration::from_secs(60)));
    greet();
    greet();
    sink.advance(Duration::from_secs(59));
    greet();
    assert_eq!(sink.events().len(), 1);
    sink.advance(Duration::from_secs(1));
    greet();
    assert_eq!(sink.events().len(), 2);
    assert_eq!(bucket.stats().withheld.once, 2);
}

#[test]
fn a_sample_keeps_whole_users() {
    let (bucket, sink) = bucket(|builder| builder.sample(0.5));
    for _ in 0..3 {
        for user in 0..100 {
            bucket.capture(event!("seen", user: format!("u-{user}")));
        }
    }
    let mut by_user: HashMap<_, usize> = HashMap::new();
    sink.events().into_iter().for_each(|event| *by_user.entry(event.user.unwrap()).or_default() += 1);
    assert!((30..70).contains(&by_user.len()), "{}", by_user.len());
    assert!(by_user.values().all(|count| *count == 3));
    let stats = bucket.stats();
    assert_eq!(stats.withheld.sampled + stats.delivered.stored, 300);
}

#[test]
fn the_context_is_in_every_event_and_own_values_win() {
    let (bucket, sink) =
        bucket(|builder| builder.context([("service", "billing")]).context(props! { region: "eu" }));
    bucket.capture(event!("a", service: "own"));
    bucket.capture("b");
    let json: Vec<_> = sink.events().iter().map(|event| event.properties.as_json().to_owned()).collect();
    assert_eq!(json, [r#"{"service":"own","region":"eu"}"#, r#"{"region":"eu","service":"billing"}"#]);
}

#[test]
fn a_hook_changes_and_withholds_but_id_and_time_stay() {
    let (bucket, sink) = bucket(|builder| {
        builder.before_send(|event| match event.name() {
            "secret" => None,
            _ => Some(event.redact("email").id("forged").time(SystemTime::UNIX_EPOCH).prop("seen", true)),
        })
    });
    let id = bucket.capture(event!("signed_up", email: "ada@example.org", plan: "pro"));
    bucket.capture("secret");
    let [event] = &sink.events()[..] else { panic!("one event") };
    assert_eq!((&event.id, event.time), (&id, sink.now()));
    assert_eq!(event.properties.as_json(), r#"{"plan":"pro","seen":true}"#);
    assert_eq!(bucket.stats().withheld.hook, 1);
}

#[test]
fn a_disabled_bucket_takes_nothing_and_builds_nothing() {
    let (bucket, sink) = bucket(|builder| builder.enabled(false));
    bucket.capture("lost");
    assert_eq!(bucket.capture_with(|| -> Event { panic!("must not be built") }), None);
    assert_eq!(bucket.try_capture("refused"), Err(CaptureError::Disabled));
    bucket.set_enabled(true);
    assert!(bucket.capture_with(|| "built").is_some());
    assert_eq!(sink.events().len(), 1);
    assert_eq!(bucket.stats().captured, 1);
}

#[test]
fn what_breaks_a_limit_is_dropped_counted_and_told() {
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let (bucket, sink) = bucket(|builder| {
        builder.on_error(move |fault| {
            assert!(matches!(fault, Fault::Dropped { events: 1, .. }), "{fault}");
            count.fetch_add(1, Ordering::SeqCst);
        })
    });
    bucket.capture("");
    bucket.capture("a".repeat(201));
    bucket.capture(Event::new("nul").user("a\0b"));
    bucket.capture(Event::new("map").prop("by_number", HashMap::from([(vec![1], 2)])));
    bucket.capture(Event::new("large").prop("text", "x".repeat(300 * 1024)));
    assert!(matches!(
        bucket.try_capture(Event::new("huge").user("x".repeat(1 << 20))),
        Err(CaptureError::TooLarge { .. })
    ));
    bucket.capture("good");
    assert_eq!(sink.events().len(), 1);
    let stats = bucket.stats();
    assert_eq!((stats.dropped.invalid, stats.dropped.too_large), (4, 2));
    assert_eq!(told.load(Ordering::SeqCst), 6);
    assert!(stats.balances());
}

/// Lists within each other, so many.
fn nested(levels: usize) -> serde_json::Value {
    (0..levels).fold(serde_json::Value::from(1), |inner, _| serde_json::Value::from(vec![inner]))
}

#[test]
fn what_breaks_a_limit_is_refused_by_the_capture_itself() {
    let (bucket, sink) = Bucket::test();
    let many =
        |keys: usize| (0..keys).fold(Event::new("many"), |event, key| event.prop(format!("k{key}"), key));
    let inner: HashMap<String, u8> = (0..512).map(|key| (format!("k{key}"), 1)).collect();
    for (event, word) in [
        (Event::new(""), "name is empty"),
        (Event::new("a".repeat(201)), "201 characters"),
        (Event::new("nul\0"), "NUL"),
        (Event::new("user").user(""), "user is empty"),
        (Event::new("id").id("x".repeat(201)), "201 characters"),
        (Event::new("map").prop("by_number", HashMap::from([(vec![1], 2)])), "by_number"),
        (many(513), "512 keys"),
        (Event::new("inner").prop("inner", inner), "512 keys"),
        (Event::new("deep").prop("deep", nested(16)), "16 levels"),
        (Event::new("nul").prop("text", ["a\0b"]), "NUL"),
        (Event::new("key").prop("", 1), "empty or longer"),
        (Event::new("key").prop("k".repeat(201), 1), "empty or longer"),
        (Event::new("key").prop("inner", HashMap::from([("k".repeat(201), 1)])), "empty or longer"),
        (
            Event::new("raw").prop(
                "raw",
                serde_json::value::RawValue::from_string("{\"a\":1,\"a\":2}".to_owned()).unwrap(),
            ),
            "twice",
        ),
    ] {
        let name = event.name().to_owned();
        let Err(CaptureError::Invalid(message)) = bucket.try_capture(event) else { panic!("{name}: {word}") };
        assert!(message.contains(word), "{name}: {message}");
    }
    assert_eq!(bucket.stats().dropped.invalid, 14, "counted at once");
    for event in [
        many(512),
        Event::new("deep").prop("deep", nested(15)),
        Event::new("numbers").prop("by_number", HashMap::from([(7, "seven")])),
        (0..600).fold(Event::new("replaced"), |event, value| event.prop("same", value)),
        Event::new("ü".repeat(200)),
    ] {
        bucket.try_capture(event).unwrap();
    }
    assert_eq!(sink.events().len(), 5, "{:?}", bucket.stats());
    assert!(bucket.stats().balances());
}

#[test]
fn a_flood_of_refused_events_is_counted_whole_and_told_within_bounds() {
    const FLOOD: u64 = 20_000;
    let (told, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (sum, count) = (Arc::clone(&told), Arc::clone(&calls));
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let (bucket, sink) = bucket(|builder| {
        builder.on_error(move |fault| {
            // The first call holds the worker up until all are captured; after that the channel is closed.
            let _ = held.lock().unwrap().recv();
            let Fault::Dropped { events, .. } = fault else { panic!("{fault}") };
            sum.fetch_add(usize::try_from(*events).unwrap(), Ordering::SeqCst);
            count.fetch_add(1, Ordering::SeqCst);
        })
    });
    for _ in 0..FLOOD {
        bucket.capture("");
    }
    drop(go_on);
    sink.settle();
    assert_eq!((bucket.stats().dropped.invalid, told.load(Ordering::SeqCst) as u64), (FLOOD, FLOOD));
    let calls = calls.load(Ordering::SeqCst);
    assert!(calls < 5_000, "{calls} calls");
    assert!(bucket.stats().balances());
}

#[test]
fn a_hook_may_mend_what_breaks_a_limit() {
    let hook = |event: Event| match event.name() {
        "" => Some(Event::new("mended")),
        _ => Some(event),
    };
    let (bucket, sink) = bucket(|builder| builder.before_send(hook));
    bucket.try_capture("").unwrap();
    bucket.try_capture("a".repeat(201)).unwrap();
    assert_eq!(sink.events()[0].name, "mended");
    assert_eq!((sink.events().len(), bucket.stats().dropped.invalid), (1, 1));
}

#[test]
fn a_context_that_makes_the_keys_too_many_costs_the_event() {
    let context: eventbucket::Props = (0..300).map(|key| (format!("c{key}"), key)).collect();
    let (bucket, sink) = bucket(|builder| builder.context(context));
    bucket.capture((0..300).fold(Event::new("many"), |event, key| event.prop(format!("k{key}"), key)));
    assert_eq!((sink.events().len(), bucket.stats().dropped.invalid), (0, 1));
}

#[test]
fn after_shutdown_captures_are_counted_as_dropped() {
    let (bucket, sink) = Bucket::test();
    bucket.capture("before");
    let report = bucket.shutdown_blocking(Duration::from_secs(30));
    assert_eq!((report.delivered, report.still_pending, report.timed_out), (1, 0, false));
    bucket.capture("after");
    assert_eq!(bucket.try_capture("after"), Err(CaptureError::Closed));
    let stats = bucket.stats();
    assert_eq!((stats.dropped.shutdown, stats.captured), (2, 3));
    assert!(stats.balances());
    assert_eq!(sink.events().len(), 1);
    let again = bucket.shutdown_blocking(Duration::from_secs(30));
    assert_eq!((again.delivered, again.timed_out), (0, false));
}

#[test]
fn durable_without_a_spool_says_so_and_still_delivers() {
    let (bucket, sink) = Bucket::test();
    let durable = bucket.capture_durable("paid").wait(Duration::from_secs(30));
    assert!(matches!(durable, Err(CaptureError::NotDurable(_))), "{durable:?}");
    assert_eq!(sink.events().len(), 1);
}
