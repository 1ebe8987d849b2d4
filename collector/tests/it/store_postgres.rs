//! What only a store on Postgres does: several writers at once, connections that are cut, schemas and segments.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventbucket_collector::bus::message::ValidBatch;
use eventbucket_collector::bus::{Bus, Limits};
use eventbucket_collector::cache::Cache;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::{
    BatchRecord, CountTotals, Error, EventFilter, EventOrder, PostgresOptions, Store,
};
use eventbucket_protocol::{BatchId, Event, EventId, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::store_announcements::Insight;
use crate::store_fixture::{
    NOON, at, batch, count_all, count_all_projects, event, events, eventually, project, totals,
};

/// A database of its own on the shared server.
pub(crate) struct Database {
    pub(crate) url: String,
}

impl Database {
    pub(crate) async fn new() -> Self {
        Self::made("template1").await
    }

    /// Makes another one with the same in it. The server waits a moment until nobody is connected to this one.
    pub(crate) async fn copy(&self) -> Self {
        let (_, name) = self.url.rsplit_once('/').unwrap();
        Self::made(name).await
    }

    async fn made(template: &str) -> Self {
        let server = eventbucket_servers::shared::postgres();
        let name = format!("t{}", uuid::Uuid::now_v7().simple());
        let make = format!("CREATE DATABASE {name} TEMPLATE {template}");
        sql(&server).await.batch_execute(&make).await.unwrap();
        let (front, _) = server.rsplit_once('/').unwrap();
        Self { url: format!("{front}/{name}") }
    }

    pub(crate) async fn open(&self) -> Store {
        open(&self.url).await.unwrap()
    }

    /// A plain connection, to look at the tables or to change them.
    pub(crate) async fn sql(&self) -> tokio_postgres::Client {
        sql(&self.url).await
    }

    /// Makes the newest segment look old enough for the next one.
    pub(crate) async fn age_segment(&self) {
        self.sql()
            .await
            .batch_execute("UPDATE segment SET opened_at = opened_at - '8 days'::interval")
            .await
            .unwrap();
    }
}

pub(crate) async fn open(url: &str) -> Result<Store, Error> {
    Store::postgres(PostgresOptions::parse(url, None).unwrap()).await
}

/// A plain connection to a database.
pub(crate) async fn sql(url: &str) -> tokio_postgres::Client {
    let (client, driver) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(driver);
    client
}

pub(crate) async fn with_project() -> (Database, Store, ProjectId) {
    let database = Database::new().await;
    let store = database.open().await;
    let shop = project(&store, "shop").await.project.id;
    (database, store, shop)
}

pub(crate) async fn holds(store: &Store) {
    count_all_projects(store).await;
    let found = audit(store, None, |_, _| {}).await.unwrap();
    assert!(found.holds(), "{found:#?}");
}

pub(crate) fn is_stored(verdict: &Verdict) -> bool {
    *verdict == Verdict::Stored
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_with_the_same_ids_in_opposite_order_neither_deadlock_nor_double() {
    let (_database, store, shop) = with_project().await;
    let all = events("x", 6_000);
    let writers = (0..4).map(|writer| {
        let (store, mut all) = (store.clone(), all.clone());
        if writer % 2 == 1 {
            all.reverse();
        }
        tokio::spawn(async move {
            let batches: Vec<ValidBatch> = all.chunks(500).map(|some| batch(shop, some.to_vec())).collect();
            let mut stored = 0;
            for appended in store.append(batches).await.unwrap() {
                stored += appended.verdicts.iter().filter(|verdict| is_stored(verdict)).count();
            }
            stored
        })
    });
    let mut stored = 0;
    for writer in writers.collect::<Vec<_>>() {
        stored += writer.await.unwrap();
    }
    assert_eq!((stored, store.head(shop).await.unwrap()), (6_000, 6_000));
    let ledger = store.ledger(Some(shop)).await.unwrap();
    assert_eq!((ledger.received, ledger.duplicate), (24_000, 18_000));
    holds(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_never_see_a_gap_while_many_write() {
    let (database, store, shop) = with_project().await;
    let writing = Arc::new(AtomicBool::new(true));
    let reader = tokio::spawn({
        let (store, writing) = (store.clone(), Arc::clone(&writing));
        async move {
            let mut after = 0;
            loop {
                let ended = !writing.load(Ordering::Acquire);
                let order = EventOrder::ByPosition { after };
                let page = store.events(shop, &EventFilter::default(), order, 500).await.unwrap();
                for event in &page.events {
                    after += 1;
                    assert_eq!(event.position, after, "a position was visible before the one below it");
                }
                if ended && page.events.is_empty() {
                    return after;
                }
            }
        }
    });
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            // Every second writer is another process, as far as the store can tell.
            let (store, url) = (store.clone(), database.url.clone());
            tokio::spawn(async move {
                let store = if writer % 2 == 0 { store } else { open(&url).await.unwrap() };
                for round in 0..20 {
                    let own = batch(shop, events(&format!("w{writer}r{round}-"), 10));
                    let shared = batch(shop, events(&format!("r{round}-"), 5));
                    store.append(vec![own, shared]).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    writing.store(false, Ordering::Release);
    assert_eq!(reader.await.unwrap(), 6 * 20 * 10 + 20 * 5);
    holds(&store).await;
}

/// What becomes of the next commit, or the next beginning of an append, through a proxy.
pub(crate) enum Cut {
    /// The server refuses to begin, as when it is told to cancel just then; what is sent behind it arrives.
    Begin,
    /// It happens, and nobody hears of it.
    Answer,
    /// It doesn't; when it is rolled back, this is done.
    Commit { instead: String },
}

/// Passes bytes on to a server, until it is told to cut a commit.
pub(crate) struct Proxy {
    pub(crate) url: String,
    pub(crate) cut: Arc<Mutex<Option<Cut>>>,
}

impl Proxy {
    pub(crate) async fn before(server_url: &str) -> Self {
        let (front, rest) = server_url.split_once('@').unwrap();
        let database = rest.split_once('/').unwrap().1;
        let (server_url, listener) = (server_url.to_owned(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let url = format!("{front}@{}/{database}", listener.local_addr().unwrap());
        let cut = Arc::new(Mutex::new(None));
        let told = Arc::clone(&cut);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server_url.clone(), Arc::clone(&told)));
            }
        });
        Self { url, cut }
    }
}

async fn pass(mut client: TcpStream, url: String, told: Arc<Mutex<Option<Cut>>>) {
    let address = url.split_once('@').unwrap().1.split_once('/').unwrap().0;
    let mut server = TcpStream::connect(address).await.unwrap();
    let (mut sent, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut sent) => match read {
                Ok(bytes) if bytes > 0 => {
                    let place = |word: &[u8]| sent[..bytes].windows(word.len()).position(|part| part == word);
                    let (commit, begin) = (place(b"COMMIT\0"), place(b"BEGIN ISOLATION"));
                    let cut = told.lock().unwrap().take_if(|cut| match cut {
                        Cut::Begin => begin.is_some(),
                        Cut::Answer | Cut::Commit { .. } => commit.is_some(),
                    });
                    if let (Some(Cut::Begin), Some(begin)) = (&cut, begin) {
                        sent[begin..begin + 5].copy_from_slice(b"BOGUS");
                        server.write_all(&sent[..bytes]).await.unwrap();
                        continue;
                    }
                    if let Some(Cut::Commit { instead }) = &cut {
                        drop(server);
                        sql(&url).await.batch_execute(instead).await.unwrap();
                        return;
                    }
                    server.write_all(&sent[..bytes]).await.unwrap();
                    if cut.is_some() {
                        // The answer shows that the commit happened; nobody else sees it.
                        assert!(server.read(&mut answered).await.unwrap() > 0);
                        return;
                    }
                }
                _ => return,
            },
            read = server.read(&mut answered) => match read {
                Ok(bytes) if bytes > 0 => {
                    if client.write_all(&answered[..bytes]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_out() {
    let (database, store, shop) = with_project().await;
    let proxy = Proxy::before(&database.url).await;
    let through = open(&proxy.url).await.unwrap();
    through.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    *proxy.cut.lock().unwrap() = Some(Cut::Answer);
    let appended = through.append(vec![batch(shop, events("y", 3))]).await.unwrap();
    assert!(proxy.cut.lock().unwrap().is_none(), "the proxy cut the commit");
    assert!(appended[0].verdicts.iter().all(is_stored));
    assert_eq!((appended[0].range.first, appended[0].range.last), (4, 6));
    let again = store.append(vec![batch(shop, events("y", 3))]).await.unwrap();
    assert!(!again[0].verdicts.iter().any(is_stored), "a retry finds duplicates");
    assert_eq!(store.head(shop).await.unwrap(), 6);
    holds(&store).await;
}

#[tokio::test]
async fn connections_that_the_server_ended_are_replaced() {
    let (database, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let admin = database.sql().await;
    for round in 0..5 {
        admin.execute(end, &[]).await.unwrap();
        let appended = store.append(vec![batch(shop, events(&format!("r{round}"), 1))]).await.unwrap();
        assert!(appended[0].verdicts.iter().all(is_stored));
    }
    assert_eq!(store.head(shop).await.unwrap(), 8);
    assert!(store.serving().is_ok());
}

#[tokio::test]
async fn what_the_database_refuses_is_quarantined_and_costs_nobody_else_anything() {
    let (database, store, shop) = with_project().await;
    let blog = project(&store, "blog").await.project.id;
    let admin = database.sql().await;
    admin.batch_execute("ALTER TABLE event ADD CONSTRAINT no_poison CHECK (name <> 'poison')").await.unwrap();
    let mut bad = events("x", 20);
    bad[3].name = "poison".into();
    bad[17].name = "poison".into();
    let sent = vec![batch(blog, events("b", 2)), batch(shop, bad.clone()), batch(shop, events("y", 2))];
    let refused = store.append(sent.clone()).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }) && refused.retry().is_none(), "{refused:?}");
    assert_eq!(store.head(shop).await.unwrap(), 0);
    let outcomes: Vec<_> = store.append_each(sent.into()).await.into_iter().map(Result::unwrap).collect();
    let stored: Vec<usize> =
        outcomes.iter().map(|one| one.verdicts.iter().filter(|verdict| is_stored(verdict)).count()).collect();
    assert_eq!(stored, [2, 18, 2]);
    for (place, verdict) in outcomes[1].verdicts.iter().enumerate() {
        assert_eq!(
            matches!(verdict, Verdict::Quarantined(_)),
            matches!(place, 3 | 17),
            "{place}: {verdict:?}"
        );
    }
    let ledger = store.ledger(Some(shop)).await.unwrap();
    assert_eq!((ledger.stored, ledger.quarantined), (20, 2));
    let row = admin.query_one("SELECT count(*), min(reason) FROM quarantine", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 2);
    assert!(row.get::<_, &str>(1).contains("no_poison"));
    holds(&store).await;
}

#[tokio::test]
async fn a_database_that_went_back_or_moved_has_another_epoch() {
    let (database, store, shop) = with_project().await;
    let first = store.epoch();
    assert_eq!(database.open().await.epoch(), first, "every process knows the same one");
    store.append(vec![batch(shop, events("x", 9))]).await.unwrap();
    count_all(&store, shop).await;
    // What a restored snapshot looks like: all of it as it was before the last append.
    let admin = database.sql().await;
    let back = "TRUNCATE event, event_id, ranges, rollup_counts, rollup_users, identification, event_block, segment_project;
                UPDATE head SET position = 0, segment = 0, received = 0, stored = 0;
                UPDATE view_state SET applied_to = 0";
    admin.batch_execute(back).await.unwrap();
    let appended = store.append(vec![batch(shop, events("z", 2))]).await.unwrap();
    assert_eq!((appended[0].range.first, appended[0].range.last), (1, 2), "the log goes on where it is");
    let second = store.epoch();
    assert_ne!(second, first);
    count_all(&store, shop).await;
    admin.batch_execute(back).await.unwrap();
    store.view_progress().await.unwrap();
    let third = store.epoch();
    assert_ne!(third, second, "a look at the heads notices it too");
    admin.batch_execute("UPDATE epoch SET timeline = timeline + 1").await.unwrap();
    assert_ne!(database.open().await.epoch(), third, "another history of the server");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_start_at_once_make_one_schema() {
    let database = Database::new().await;
    let starting: Vec<_> = (0..6)
        .map(|_| {
            let url = database.url.clone();
            tokio::spawn(async move { open(&url).await.unwrap().epoch() })
        })
        .collect();
    let mut epochs = Vec::new();
    for one in starting {
        epochs.push(one.await.unwrap());
    }
    epochs.dedup();
    assert_eq!(epochs.len(), 1);
    let admin = database.sql().await;
    admin.batch_execute("UPDATE schema_version SET version = 99 WHERE part = 'log'").await.unwrap();
    let newer = open(&database.url).await.err().unwrap();
    assert!(matches!(newer, Error::NewerSchema { found: 99, .. }), "{newer:?}");
}

#[tokio::test]
async fn accounts_may_live_in_another_database() {
    let (log, accounts) = (Database::new().await, Database::new().await);
    let options = PostgresOptions::parse(&log.url, Some(&accounts.url)).unwrap();
    let store = Store::postgres(options).await.unwrap();
    let shop = project(&store, "shop").await.project.id;
    store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    assert_eq!(store.projects(None).await.unwrap()[0].events, 3);
    let nobody = store.append(vec![batch(ProjectId(77), events("x", 1))]).await;
    assert!(matches!(nobody, Err(Error::UnknownProject(_))), "{nobody:?}");
    holds(&store).await;
    let counted = |client: tokio_postgres::Client| async move {
        let tables = "SELECT count(*) FROM pg_class WHERE relname IN ('account', 'event_id')";
        client.query_one(tables, &[]).await.unwrap().get::<_, i64>(0)
    };
    assert_eq!((counted(log.sql().await).await, counted(accounts.sql().await).await), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_apply_the_same_range_count_it_once() {
    let (_database, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 3_000))]).await.unwrap();
    let workers: Vec<_> = (0..6)
        .map(|worker| {
            let store = store.clone();
            tokio::spawn(async move {
                for through in [700, 200, 1_500, 3_000] {
                    store.apply_counts(shop, through + worker).await.unwrap();
                }
                if worker == 3 {
                    store.rebuild_counts(shop, |_, _| {}).await.unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    count_all(&store, shop).await;
    assert_eq!(totals(&store, shop).await, [("a".into(), 1_000), ("b".into(), 1_000), ("c".into(), 1_000)]);
    let CountTotals { state, complete, .. } = store.count_totals(shop, 2).await.unwrap();
    assert_eq!((state.generation, state.applied_to, complete), (2, 3_000, false));
    holds(&store).await;
}

#[tokio::test]
async fn a_project_that_a_rebuild_keeps_costs_the_others_no_more_than_a_moment() {
    let (database, store, shop) = with_project().await;
    let blog = project(&store, "blog").await.project.id;
    store.append(vec![batch(shop, events("x", 3)), batch(blog, events("y", 5))]).await.unwrap();
    store.view_state(shop).await.unwrap();
    // As the beginning of a rebuild does, which copies what was dropped from the log.
    let mut keeper = database.sql().await;
    let kept = keeper.transaction().await.unwrap();
    let keep = "SELECT FROM view_live WHERE view = 'counts' AND project = $1 FOR UPDATE";
    let number = i32::try_from(shop.0).unwrap();
    kept.query_one(keep, &[&number]).await.unwrap();
    let bus = Bus::in_process(Limits::default());
    let insight = Insight::start(bus, &store, Cache::memory());
    let counted = async || insight.cache.counters(blog).await.is_some_and(|live| live.applied_to == 5);
    eventually("counting the other", counted).await;
    let nothing = store.apply_counts(shop, 3).await.unwrap();
    assert_eq!((nothing.from, nothing.through), (0, 0));
    kept.rollback().await.unwrap();
    insight.counted(&store, shop, 3).await;
    insight.stop().await;
}

async fn positions(store: &Store, shop: ProjectId, filter: &EventFilter, newest_first: bool) -> Vec<u64> {
    let mut order = if newest_first {
        EventOrder::NewestFirst { before: None }
    } else {
        EventOrder::ByPosition { after: 0 }
    };
    let mut all = Vec::new();
    loop {
        let page = store.events(shop, filter, order, 7).await.unwrap();
        all.extend(page.events.iter().map(|event| event.position));
        order = match (page.next, order) {
            (None, _) => return all,
            (Some(next), EventOrder::NewestFirst { .. }) => EventOrder::NewestFirst { before: Some(next) },
            (Some(next), EventOrder::ByPosition { .. }) => EventOrder::ByPosition { after: next },
        };
    }
}

#[tokio::test]
async fn a_log_of_several_segments_reads_like_one() {
    let (database, store, shop) = with_project().await;
    let user = |i: usize| i.is_multiple_of(2).then(|| "ada".to_owned());
    for segment in 0..3 {
        // A new process looks at once whether it is time for the next segment.
        let store = if segment == 0 { store.clone() } else { database.open().await };
        let some = events(&format!("s{segment}-"), 20);
        let some: Vec<Event> =
            some.into_iter().enumerate().map(|(i, event)| Event { user: user(i), ..event }).collect();
        store.append(vec![batch(shop, some)]).await.unwrap();
        if segment < 2 {
            database.age_segment().await;
        }
    }
    // A process that still writes to the first segment goes on in the last.
    store.append(vec![batch(shop, events("last", 1))]).await.unwrap();
    let row = database.sql().await.query_one("SELECT count(DISTINCT segment) FROM event", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 3);
    let times = (Some(at(NOON + 10 * 60_000)), Some(at(NOON + 12 * 60_000)));
    for (filter, expected) in [
        (EventFilter::default(), (1..=61).collect::<Vec<u64>>()),
        (EventFilter { from: times.0, to: times.1, ..EventFilter::default() }, vec![11, 12, 31, 32, 51, 52]),
        (
            EventFilter { user: Some("ada".into()), from: times.0, to: times.1, ..EventFilter::default() },
            vec![11, 31, 51],
        ),
        (
            EventFilter { names: ["b".into()].into(), from: times.0, to: times.1, ..EventFilter::default() },
            vec![11, 31, 51],
        ),
    ] {
        assert_eq!(positions(&store, shop, &filter, false).await, expected, "{filter:?}");
        let mut back = positions(&store, shop, &filter, true).await;
        back.reverse();
        assert_eq!(back, expected, "{filter:?}");
    }
    for (id, position) in [("s0-5", 6), ("s1-0", 21), ("s2-19", 60), ("last0", 61)] {
        let found = store.event(shop, EventId::from_text(id).uuid()).await.unwrap().unwrap();
        assert_eq!(found.position, position);
    }
    let old = store.append(vec![batch(shop, events("s0-", 20))]).await.unwrap();
    assert!(!old[0].verdicts.iter().any(is_stored), "identity knows no segments");
    holds(&store).await;
    store.rebuild_counts(shop, |_, _| {}).await.unwrap();
    holds(&store).await;
}

#[tokio::test]
async fn a_rare_name_and_a_rare_user_are_found_by_their_indexes() {
    let (database, store, shop) = with_project().await;
    let mut some = events("x", 9_000);
    some.iter_mut().for_each(|event| event.user = Some("everybody".into()));
    (some[20].name, some[30].user) = ("rare".into(), Some("seldom".into()));
    store.append(vec![batch(shop, some)]).await.unwrap();
    let admin = database.sql().await;
    let reads = "SELECT coalesce(sum(idx_scan) FILTER (WHERE indexrelname LIKE '%_name_%'), 0)::int8,
                        coalesce(sum(idx_scan) FILTER (WHERE indexrelname LIKE '%_user_id_%'), 0)::int8,
                        coalesce(sum(idx_tup_read) FILTER (WHERE indexrelname LIKE '%_pkey'), 0)::int8
                 FROM pg_stat_user_indexes WHERE relname = 'event_1'";
    for round in 1..=2 {
        // The statement is planned anew in another process, and when there are statistics.
        let store = database.open().await;
        let rare = EventFilter { names: ["rare".into()].into(), ..EventFilter::default() };
        let seldom = EventFilter { user: Some("seldom".into()), ..EventFilter::default() };
        assert_eq!(positions(&store, shop, &rare, true).await, [21]);
        assert_eq!(positions(&store, shop, &seldom, true).await, [31]);
        // The server learns what a session read when it ends.
        store.close().await.unwrap();
        let admin = &admin;
        eventually("the statistics arrive", || async move {
            let row = admin.query_one(reads, &[]).await.unwrap();
            assert_eq!(row.get::<_, i64>(2), 0, "nothing walked over the positions");
            row.get::<_, i64>(0) >= round && row.get::<_, i64>(1) >= round
        })
        .await;
        admin.batch_execute("ANALYZE").await.unwrap();
    }
}

#[tokio::test]
async fn old_events_go_but_stay_counted_and_known() {
    let (database, store, shop) = with_project().await;
    let idle = project(&store, "idle").await.project.id;
    let older = vec![batch(shop, events("old", 30)), batch(idle, events("old", 4))];
    store.append(older.clone()).await.unwrap();
    // Neither the live counts nor an unfinished rebuild has seen them all when they go.
    store.apply_counts(shop, 10).await.unwrap();
    database.age_segment().await;
    let store = database.open().await;
    store.append(vec![batch(shop, events("new", 12))]).await.unwrap();
    let month = Duration::from_secs(30 * 86_400);
    assert_eq!(store.drop_before(month).await.unwrap().segments, 0, "the segment behind is young");
    let dropped = store.drop_before(Duration::ZERO).await.unwrap();
    assert_eq!((dropped.segments, dropped.events, dropped.identities), (1, 34, 0));
    assert_eq!(
        positions(&store, shop, &EventFilter::default(), false).await,
        (31..=42).collect::<Vec<u64>>()
    );
    assert_eq!(store.event(shop, EventId::from_text("old7").uuid()).await.unwrap(), None);
    let late = store.append(older.clone()).await.unwrap();
    assert!(!late.iter().flat_map(|one| &one.verdicts).any(is_stored), "a late resend is known");
    count_all_projects(&store).await;
    assert_eq!(totals(&store, shop).await, [("a".into(), 14), ("b".into(), 14), ("c".into(), 14)]);
    holds(&store).await;
    for id in [shop, idle] {
        store.rebuild_counts(id, |_, _| {}).await.unwrap();
    }
    assert_eq!(totals(&store, idle).await, [("a".into(), 2), ("b".into(), 1), ("c".into(), 1)]);
    holds(&store).await;
    database.sql().await.batch_execute("UPDATE dropped SET at = at - '8 days'::interval").await.unwrap();
    let forgotten = store.drop_before(Duration::ZERO).await.unwrap();
    assert_eq!((forgotten.segments, forgotten.identities), (0, 34));
    assert_eq!(store.drop_before(Duration::ZERO).await.unwrap().identities, 0);
    holds(&store).await;
    assert!(store.append(older).await.unwrap()[0].verdicts.iter().all(is_stored), "forgotten");
    holds(&store).await;
}

#[tokio::test]
async fn people_can_ask_in_plain_sql() {
    let (database, store, shop) = with_project().await;
    let properties = eventbucket_protocol::Properties::parse(r#"{"plan":"pro","seats":3}"#).unwrap();
    let mut sent = batch(shop, vec![Event { properties, ..event("order-17", "paid") }]);
    sent.skew_ms = Some(1_000);
    store.append(vec![sent]).await.unwrap();
    let select = "SELECT id, (properties->>'seats')::int, extract(epoch FROM corrected_time - time)::int
                  FROM events WHERE properties @> '{\"plan\": \"pro\"}' AND corrected_time < now()";
    let row = database.sql().await.query_one(select, &[]).await.unwrap();
    let found: (&str, i32, i32) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(found, ("order-17", 3, 1));
}

#[tokio::test]
async fn a_batch_keeps_the_verdicts_of_its_first_time() {
    let (_database, store, shop) = with_project().await;
    let id = BatchId::from_text("batch");
    assert_eq!(store.batch(shop, id).await.unwrap(), None);
    let twice = vec![event("x", "a"), event("x", "a")];
    let first = store.append(vec![batch(shop, twice.clone())]).await.unwrap().remove(0).verdicts;
    store.append(vec![batch(shop, twice)]).await.unwrap();
    assert_eq!(store.batch(shop, id).await.unwrap(), Some(BatchRecord::Final(first)));
}

#[tokio::test]
async fn an_append_that_nobody_waits_for_any_more_leaves_nothing_half_done() {
    let (database, store, shop) = with_project().await;
    // The head is held, so that the append is in the middle of its transaction when it is dropped.
    let holder = database.sql().await;
    holder.batch_execute("BEGIN; SELECT * FROM head FOR UPDATE").await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let admin = database.sql().await;
    let waiters = |wanted: i64| {
        let admin = &admin;
        move || async move { admin.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == wanted }
    };
    let append = tokio::spawn({
        let store = store.clone();
        async move { store.append(vec![batch(shop, events("x", 5))]).await }
    });
    eventually("the append waits", waiters(1)).await;
    append.abort();
    holder.batch_execute("ROLLBACK").await.unwrap();
    eventually("its session has ended", waiters(0)).await;
    let appended =
        tokio::time::timeout(Duration::from_secs(10), store.append(vec![batch(shop, events("x", 5))]));
    assert!(appended.await.unwrap().unwrap()[0].verdicts.iter().all(is_stored));
    holds(&store).await;
}
