//! The limit: the same rows into the same schema by a loop that does nothing else. One connection, the collector's own
//! settings, one transaction of 500 events with its head and `ranges` rows.

use std::time::Instant;

use eventbucket_collector::store::{DATABASE_FILE, SqliteOptions, Store};
use rusqlite::{Connection, params};

use crate::batches::{BATCH_EVENTS, BATCHES};
use crate::events::events;

/// Inserts one round of events and returns events a second.
pub(crate) fn insert_batches() -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(DATABASE_FILE);
    make_schema(&file);
    let connection = Connection::open(&file).unwrap();
    connection
        .execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -16384;
             PRAGMA journal_size_limit = 67108864; PRAGMA foreign_keys = ON",
        )
        .unwrap();
    let events: Vec<_> = events(0).take(BATCHES * BATCH_EVENTS).collect();
    let start = Instant::now();
    let mut position = 0_i64;
    for batch in events.chunks(BATCH_EVENTS) {
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        let first = position + 1;
        let mut insert = connection
            .prepare_cached(
                "INSERT INTO event (key, project, id, id_text, name, time_ms, skew_ms, received_ms, user, stream,
                                    correlation, description, properties)
                 VALUES (?1, ?2, ?3, NULL, ?4, ?5, NULL, ?6, ?7, NULL, NULL, NULL, ?8)
                 ON CONFLICT (project, id) DO NOTHING",
            )
            .unwrap();
        for event in batch {
            position += 1;
            insert
                .execute(params![
                    1_i64 << 40 | position,
                    1,
                    event.id.uuid().as_bytes(),
                    event.name,
                    event.time.ms(),
                    event.time.ms(),
                    event.user,
                    event.properties.as_json(),
                ])
                .unwrap();
        }
        let stored = batch.len() as i64;
        connection
            .prepare_cached(
                "INSERT INTO ranges (project, first, last, batch, received_ms, received, stored, duplicate, quarantined,
                                     rejected, part, parts) VALUES (1, ?1, ?2, ?3, ?4, ?5, ?5, 0, 0, 0, 0, 1)",
            )
            .unwrap()
            .execute(params![first, position, batch[0].id.uuid().as_bytes(), batch[0].time.ms(), stored])
            .unwrap();
        connection
            .prepare_cached("UPDATE head SET position = ?1, received = ?1, stored = ?1 WHERE project = 1")
            .unwrap()
            .execute([position])
            .unwrap();
        connection.execute_batch("COMMIT").unwrap();
    }
    events.len() as f64 / start.elapsed().as_secs_f64()
}

/// The collector's own schema, made by the collector's own code.
fn make_schema(file: &std::path::Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::sqlite(SqliteOptions::new(file)).unwrap();
        let account = store.create_account("a@example.com", "team").await.unwrap();
        store.create_project(account, "bench").await.unwrap();
        store.close().await.unwrap();
    });
}
