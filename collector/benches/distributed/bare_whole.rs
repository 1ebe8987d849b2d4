//! The least a whole path could do: lapin publishes batches with confirms, two consumers take them off, merge them to
//! 2,000 rows and insert these by UNNEST: identities, head row, range rows and events, with the collector's own tables and
//! indexes, each transaction committed before its messages are acknowledged. It counts nothing, and checks nothing.

use std::collections::HashMap;
use std::time::Instant;

use eventbucket_protocol::Event;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use tokio_postgres::{Client, NoTls, Statement};
use uuid::Uuid;

use crate::bare_edge::{name, open, publish};
use crate::events::events;
use crate::load::BATCH_EVENTS;

/// Consumers, each with a connection to the database.
const WRITERS: usize = 2;

/// Messages merged into one transaction: 2,000 rows.
const MERGED: usize = 4;

/// Messages under way to the broker.
const PUBLISHING: usize = 16;

const INSERT_IDENTITIES: &str = "
    INSERT INTO event_id (project, place, id, range_id, digest)
    SELECT project, place, id, range_id, 0
    FROM unnest($1::int4[], $2::int4[], $3::uuid[], $4::int8[]) AS t (project, place, id, range_id)
    ON CONFLICT DO NOTHING RETURNING id";

const GROW_HEADS: &str = "
    UPDATE head SET position = position + n, received = received + n, stored = stored + n
    FROM unnest($1::int4[], $2::int8[]) AS t (grown, n)
    WHERE project = grown RETURNING project, position";

const INSERT_RANGES: &str = "
    INSERT INTO ranges (id, project, part, parts, first, last, batch, received_ms, received, stored, duplicate, quarantined,
                        rejected)
    SELECT id, project, 0, 1, first, first + 499, gen_random_uuid(), 0, 500, 500, 0, 0, 0
    FROM unnest($1::int8[], $2::int4[], $3::int8[]) AS t (id, project, first)";

const INSERT_EVENTS: &str = "
    INSERT INTO event_1 (project, segment, position, time_ms, received_ms, id, name, user_id, properties)
    SELECT project, 1, position, time_ms, 0, id, name, user_id, properties
    FROM unnest($1::int4[], $2::int8[], $3::int8[], $4::uuid[], $5::text[], $6::text[], $7::text[])
         AS t (project, position, time_ms, id, name, user_id, properties)";

/// Messages as the bus has them: a length, then id, time and texts, for each event.
pub(crate) fn messages(batches: usize, salt: usize) -> Vec<Vec<u8>> {
    let mut events = events(salt);
    (0..batches).map(|_| events.by_ref().take(BATCH_EVENTS).fold(Vec::new(), written)).collect()
}

fn written(mut message: Vec<u8>, event: Event) -> Vec<u8> {
    message.extend_from_slice(event.id.uuid().as_bytes());
    message.extend_from_slice(&event.time.ms().to_le_bytes());
    for text in [&event.name, event.user.as_deref().unwrap(), event.properties.as_json()] {
        message.extend_from_slice(&(text.len() as u32).to_le_bytes());
        message.extend_from_slice(text.as_bytes());
    }
    message
}

/// Sends everything through and returns events a second until the last commit. Project `n` of 1..=`projects` must have its
/// head row, and the first segment must be open.
pub(crate) async fn run(
    bus_url: &str,
    store_url: &str,
    projects: usize,
    queues: usize,
    messages: Vec<Vec<u8>>,
) -> f64 {
    let (_connection, channel) = open(bus_url, queues).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let expected = messages.len();
    let (done, mut finished) = tokio::sync::mpsc::unbounded_channel();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let own = (0..queues).filter(|queue| queue % WRITERS == writer).collect();
        let writer = Writer::open(bus_url, store_url, writer, own).await;
        writers.spawn(writer.run(done.clone()));
    }
    let start = Instant::now();
    let publishing = async {
        let mut under_way = FuturesUnordered::new();
        for (number, mut message) in messages.into_iter().enumerate() {
            let project = number % projects;
            message.extend_from_slice(&(project as i32 + 1).to_le_bytes());
            let channel = &channel;
            under_way.push(async move { publish(channel, project % queues, &message).await });
            if under_way.len() >= PUBLISHING {
                let _: Option<()> = under_way.next().await;
            }
        }
        while under_way.next().await.is_some() {}
    };
    let storing = async {
        let mut stored = 0;
        while stored < expected {
            stored += finished.recv().await.expect("a writer ended");
        }
    };
    tokio::join!(publishing, storing);
    let speed = (expected * BATCH_EVENTS) as f64 / start.elapsed().as_secs_f64();
    writers.abort_all();
    speed
}

struct Writer {
    client: Client,
    statements: [Statement; 4],
    bus_url: String,
    queues: Vec<usize>,
    next_range: i64,
}

impl Writer {
    async fn open(bus_url: &str, store_url: &str, number: usize, queues: Vec<usize>) -> Self {
        let (client, connection) = tokio_postgres::connect(store_url, NoTls).await.unwrap();
        tokio::spawn(connection);
        let mut statements = Vec::new();
        for sql in [INSERT_IDENTITIES, GROW_HEADS, INSERT_RANGES, INSERT_EVENTS] {
            statements.push(client.prepare(sql).await.unwrap());
        }
        let statements = statements.try_into().unwrap_or_else(|_| panic!("four statements"));
        let next_range = (number as i64 + 1) * 1_000_000_000;
        Self { client, statements, bus_url: bus_url.to_owned(), queues, next_range }
    }

    async fn run(mut self, done: tokio::sync::mpsc::UnboundedSender<usize>) {
        let (_connection, channel) = open(&self.bus_url, 0).await;
        channel.basic_qos(MERGED as u16 * 2, BasicQosOptions::default()).await.unwrap();
        let mut consumers = Vec::new();
        for queue in &self.queues {
            let (tag, options) = (name(*queue).into(), BasicConsumeOptions::default());
            let consumer =
                channel.basic_consume(name(*queue).into(), tag, options, FieldTable::default()).await;
            consumers.push(consumer.unwrap());
        }
        let mut messages = futures_util::stream::select_all(consumers).ready_chunks(MERGED);
        while let Some(merged) = messages.next().await {
            let mut merged: Vec<Delivery> = merged.into_iter().map(Result::unwrap).collect();
            merged.sort_by_key(project_of);
            self.client.batch_execute("BEGIN").await.unwrap();
            self.insert(&merged).await;
            self.client.batch_execute("COMMIT").await.unwrap();
            for message in &merged {
                message.ack(BasicAckOptions::default()).await.unwrap();
            }
            let _ = done.send(merged.len());
        }
    }

    /// One statement a table, whatever the number of projects. `messages` are sorted by project.
    async fn insert(&mut self, messages: &[Delivery]) {
        let first_range = self.next_range;
        let mut rows = Vec::new();
        for message in messages {
            read(message, self.next_range, &mut rows);
            self.next_range += 1;
        }
        rows.sort_unstable_by_key(|row| (row.project, row.id));
        let [identities, heads, ranges, events] = &self.statements;
        let projects: Vec<i32> = rows.iter().map(|row| row.project).collect();
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let places: Vec<i32> = rows.iter().map(|row| row.place).collect();
        let range_ids: Vec<i64> = rows.iter().map(|row| row.range_id).collect();
        let new = self.client.query(identities, &[&projects, &places, &ids, &range_ids]).await.unwrap();
        assert_eq!(new.len(), rows.len(), "the bare loop sends nothing twice");

        let (grown, by): (Vec<i32>, Vec<i64>) = rows
            .chunk_by(|one, other| one.project == other.project)
            .map(|of_one| (of_one[0].project, of_one.len() as i64))
            .unzip();
        let last = self.client.query(heads, &[&grown, &by]).await.unwrap();
        let last: HashMap<i32, i64> = last.iter().map(|row| (row.get(0), row.get(1))).collect();
        let mut next: HashMap<i32, i64> =
            grown.iter().zip(&by).map(|(project, by)| (*project, last[project] - by + 1)).collect();
        let positions: Vec<i64> = projects
            .iter()
            .map(|project| {
                let next = next.get_mut(project).unwrap();
                *next += 1;
                *next - 1
            })
            .collect();

        let all: Vec<i64> = (first_range..self.next_range).collect();
        let of: Vec<i32> = messages.iter().map(project_of).collect();
        let mut behind: HashMap<i32, i64> = HashMap::new();
        let firsts: Vec<i64> = of
            .iter()
            .rev()
            .map(|project| {
                let behind = behind.entry(*project).or_default();
                *behind += BATCH_EVENTS as i64;
                last[project] - *behind + 1
            })
            .collect();
        let firsts: Vec<i64> = firsts.into_iter().rev().collect();
        self.client.execute(ranges, &[&all, &of, &firsts]).await.unwrap();

        let times: Vec<i64> = rows.iter().map(|row| row.time_ms).collect();
        let texts = |of: fn(&Row<'_>) -> String| -> Vec<String> { rows.iter().map(of).collect() };
        let (names, users) = (texts(|row| row.name.to_owned()), texts(|row| row.user.to_owned()));
        let properties = texts(|row| row.properties.to_owned());
        let columns: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&projects, &positions, &times, &ids, &names, &users, &properties];
        self.client.execute(events, &columns).await.unwrap();
    }
}

struct Row<'m> {
    project: i32,
    place: i32,
    range_id: i64,
    id: Uuid,
    time_ms: i64,
    name: &'m str,
    user: &'m str,
    properties: &'m str,
}

fn project_of(message: &Delivery) -> i32 {
    i32::from_le_bytes(*message.data.last_chunk().unwrap())
}

fn read<'m>(delivery: &'m Delivery, range_id: i64, rows: &mut Vec<Row<'m>>) {
    let project = project_of(delivery);
    let mut message = &delivery.data[..delivery.data.len() - size_of_val(&project)];
    let mut place = 0;
    while !message.is_empty() {
        let (id, rest) = message.split_at(16);
        let (time, rest) = rest.split_at(8);
        message = rest;
        let mut text = || {
            let (length, rest) = message.split_at(4);
            let (text, rest) = rest.split_at(u32::from_le_bytes(length.try_into().unwrap()) as usize);
            message = rest;
            std::str::from_utf8(text).unwrap()
        };
        let (name, user, properties) = (text(), text(), text());
        let time_ms = i64::from_le_bytes(time.try_into().unwrap());
        rows.push(Row {
            project,
            place,
            range_id,
            id: Uuid::from_slice(id).unwrap(),
            time_ms,
            name,
            user,
            properties,
        });
        place += 1;
    }
}
