//! The spool of an edge: what was accepted while the broker was away is on its disk, comes to the broker in order and once, and
//! outlives whoever accepted it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use eventbucket_collector::bus::message::ValidBatch;
use eventbucket_collector::bus::{Accepted, Bus, Error, RabbitOptions, SpoolOptions};
use eventbucket_protocol::Properties;
use eventbucket_servers::RabbitMq;
use futures_util::future::join_all;
use tempfile::TempDir;

use crate::bus_dead_letters::letters;
use crate::bus_fixture::{
    Direct, address, broken, bus, number, numbered, options, own, settled, shared, soon, stored, take, until,
    url,
};

/// An address where no broker is.
const NOWHERE: &str = "amqp://guest:guest@127.0.0.1:1/%2f";

/// Room for everything that is no matter of size.
const ROOMY: u64 = 64 << 20;

/// A folder on a disk: one in memory would be refused.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn spooling(options: &RabbitOptions, folder: &Path, bytes_max: u64) -> RabbitOptions {
    RabbitOptions { spool: Some(SpoolOptions { folder: folder.to_owned(), bytes_max }), ..options.clone() }
}

/// A process that can't reach its broker.
async fn cut_off(options: &RabbitOptions, folder: &Path, bytes_max: u64) -> Bus {
    let options = RabbitOptions { url: url(NOWHERE), ..spooling(options, folder, bytes_max) };
    soon("a start without a broker", Bus::rabbitmq(options)).await.unwrap()
}

fn waiting(bus: &Bus) -> u64 {
    bus.spooled().unwrap().batches
}

async fn until_empty(bus: &Bus) {
    until("the spool is empty", || async { waiting(bus) == 0 }).await;
}

/// Takes this many batches and returns their numbers as they came.
async fn numbers(accepted: &mut [Accepted], count: usize) -> Vec<usize> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let deliveries = take(accepted, 1).await;
        numbers.extend(deliveries.iter().map(number));
        stored(deliveries);
    }
    numbers
}

/// Files of the folder whose names end like this.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains(ending)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_the_broker_is_killed_waits_on_disk_and_arrives_in_order() {
    let folder = folder();
    let server = own().await;
    let plain = options(&server);
    let mut server = settled(server, &plain).await;
    let edge = bus(&spooling(&plain, folder.path(), ROOMY)).await;
    for number in 0..20 {
        edge.publish(numbered(1, number)).await.unwrap();
    }
    assert_eq!(waiting(&edge), 0, "a broker that is there gets them at once");

    server.kill().unwrap();
    for number in 20..60 {
        let published = soon("an answer", edge.publish(numbered(1, number))).await.unwrap();
        assert_eq!(published.verdicts, [eventbucket_protocol::Verdict::Accepted]);
    }
    // Many at once share commits, and none is lost in between.
    let many = join_all((60..160).map(|number| edge.publish(numbered(2, number)))).await;
    assert!(many.iter().all(Result::is_ok), "{many:?}");
    let spooled = edge.spooled().unwrap();
    assert_eq!(spooled.batches, 140);
    assert!(spooled.bytes > 0 && spooled.oldest.is_some(), "{spooled:?}");
    edge.serving().expect("it takes batches");

    let server = broken(server, RabbitMq::restart).await;
    until_empty(&edge).await;
    edge.publish(numbered(1, 160)).await.unwrap();
    let mut seen = [Vec::new(), Vec::new()];
    let mut accepted = edge.accepted();
    while seen.iter().map(Vec::len).sum::<usize>() < 161 {
        let deliveries = take(&mut accepted, 1).await;
        for delivery in &deliveries {
            let of_project = &mut seen[delivery.batch.project.0 as usize - 1];
            // Delivered again after a lost confirm or ack: known by then.
            if !of_project.contains(&number(delivery)) {
                of_project.push(number(delivery));
            }
        }
        stored(deliveries);
    }
    assert_eq!(seen[0], (0..60).chain([160]).collect::<Vec<_>>(), "in order");
    seen[1].sort_unstable();
    assert_eq!(seen[1], (60..160).collect::<Vec<_>>());
    edge.finish().await;
    assert_eq!(files(folder.path(), ".db"), [""; 0].map(PathBuf::from), "an empty spool leaves no file");
    drop(server);
}

/// A batch of a number with 300 KiB in it.
fn large(project: u32, number: usize) -> ValidBatch {
    let json = format!(r#"{{"x":"{}"}}"#, "y".repeat(300 * 1024));
    let mut batch = numbered(project, number);
    batch.events[0].properties = Properties::parse(&json).unwrap();
    batch
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_holds_up_its_own_projects_alone_and_each_batch_goes_once() {
    // Project 1 is of the queue 1, project 2 of the queue 0. The queue takes 5 or 6 of the large ones.
    let (folder, options) = (folder(), RabbitOptions { queue_bytes_max: 1 << 20, ..options(shared()) });
    let dead = cut_off(&options, folder.path(), ROOMY).await;
    let of_both = (0..20).flat_map(|number| [large(1, number), numbered(2, number)]);
    let kept = join_all(of_both.map(|batch| dead.publish(batch))).await;
    assert!(kept.iter().all(Result::is_ok), "{kept:?}");
    soon("the end", dead.finish()).await;

    let edge = bus(&spooling(&options, folder.path(), ROOMY)).await;
    let direct = Direct::to(shared(), &options).await;
    let mut of_full = 20;
    let refused = soon("the queue is full", async {
        loop {
            match edge.publish(large(1, of_full)).await {
                Ok(_) => of_full += 1,
                Err(refused) => return refused,
            }
        }
    })
    .await;
    until("the others' batches are gone", || async { direct.look("accepted.0").await.unwrap().0 > 0 }).await;
    assert!(matches!(refused, Error::Full { .. }), "{refused}");
    assert_eq!(refused.retry(), Some(Duration::from_secs(30)), "nobody takes anything from the queue");
    edge.serving().expect("the others are served");
    // Meanwhile the full queue is tried several times.
    let (mut next, tries, mut tick) = (20, Instant::now(), tokio::time::interval(Duration::from_millis(20)));
    while tries.elapsed() < Duration::from_millis(2_500) {
        let before = direct.look("accepted.0").await.unwrap().0;
        edge.publish(numbered(2, next)).await.unwrap();
        until("it goes by the spool", || async { direct.look("accepted.0").await.unwrap().0 > before }).await;
        next += 1;
        tick.tick().await;
    }
    assert!(waiting(&edge) > 0, "the full queue's wait");

    let (mut accepted, mut seen) = (edge.accepted(), [Vec::new(), Vec::new()]);
    while seen[0].len() < of_full || seen[1].len() < next {
        let deliveries = take(&mut accepted, 1).await;
        for delivery in &deliveries {
            seen[delivery.batch.project.0 as usize - 1].push(number(delivery));
        }
        stored(deliveries);
    }
    until_empty(&edge).await;
    assert_eq!(direct.accepted().await, 0, "nothing comes twice");
    assert_eq!(seen, [(0..of_full).collect::<Vec<_>>(), (0..next).collect()]);
    until("there is room again", || async { edge.publish(numbered(1, 100)).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_dead_are_taken_over_and_those_of_the_living_are_not() {
    let folder = folder();
    let options = options(shared());
    let (dying, living) =
        (cut_off(&options, folder.path(), ROOMY).await, cut_off(&options, folder.path(), ROOMY).await);
    for number in 0..30 {
        dying.publish(numbered(1, number)).await.unwrap();
    }
    living.publish(numbered(1, 1_000)).await.unwrap();

    let edge = bus(&spooling(&options, folder.path(), ROOMY)).await;
    let mut accepted = edge.accepted();
    edge.publish(numbered(2, 2_000)).await.unwrap();
    assert_eq!(numbers(&mut accepted, 1).await, [2_000], "nothing of the living is touched");
    assert_eq!((waiting(&dying), waiting(&living)), (30, 1));

    // Dropped without an end: their tasks are cut where they stand, and the system lets go of their locks.
    drop((dying, living));
    let mut seen = numbers(&mut accepted, 31).await;
    seen.retain(|number| *number != 1_000);
    assert_eq!(seen, (0..30).collect::<Vec<_>>());
    until_empty(&edge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_edge_left_in_its_last_life_goes_before_what_comes_now() {
    let folder = folder();
    let options = options(shared());
    for life in 0..2 {
        let edge = cut_off(&options, folder.path(), ROOMY).await;
        assert_eq!(waiting(&edge), life * 10);
        for number in 0..10 {
            edge.publish(numbered(1, usize::try_from(life).unwrap() * 10 + number)).await.unwrap();
        }
        edge.close();
        let refused = edge.publish(numbered(1, 99)).await.unwrap_err();
        assert!(matches!(refused, Error::Closed), "{refused}");
        soon("a full spool holds up no end", edge.finish()).await;
    }
    let edge = bus(&spooling(&options, folder.path(), ROOMY)).await;
    edge.publish(numbered(1, 20)).await.unwrap();
    assert_eq!(numbers(&mut edge.accepted(), 21).await, (0..=20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_refuses_with_a_time_and_loses_nothing_it_took() {
    let folder = folder();
    let options = options(shared());
    let edge = cut_off(&options, folder.path(), 20_000).await;
    let mut taken = 0;
    let refused = soon("the spool is full", async {
        loop {
            match edge.publish(numbered(1, taken)).await {
                Ok(_) => taken += 1,
                Err(refused) => return refused,
            }
        }
    })
    .await;
    assert_eq!(refused.status(), 503);
    assert!(refused.retry() >= Some(Duration::from_secs(1)), "{refused:?}");
    assert!(refused.to_string().contains("edge.spool_max"), "{refused}");
    assert!(taken > 10 && edge.spooled().unwrap().bytes <= 20_000, "{taken}");
    drop(edge);

    let edge = bus(&spooling(&options, folder.path(), 20_000)).await;
    assert_eq!(numbers(&mut edge.accepted(), taken).await, (0..taken).collect::<Vec<_>>());
    until_empty(&edge).await;
    edge.publish(numbered(1, taken)).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_whole_is_set_aside_and_stops_nobody() {
    let folder = folder();
    let options = options(shared());
    let dead = cut_off(&options, folder.path(), ROOMY).await;
    dead.publish(numbered(1, 0)).await.unwrap();
    soon("the end", dead.finish()).await;
    let file = files(folder.path(), ".db").remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100..].fill(0x5a);
    std::fs::write(&file, &bytes).unwrap();

    let edge = bus(&spooling(&options, folder.path(), ROOMY)).await;
    edge.publish(numbered(1, 1)).await.unwrap();
    assert_eq!(numbers(&mut edge.accepted(), 1).await, [1]);
    let aside = files(folder.path(), ".corrupt-");
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(std::fs::read(&aside[0]).unwrap(), bytes, "for people to look at");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_a_disk_gave_back_changed_goes_to_the_dead_letters_and_the_rest_passes() {
    let folder = folder();
    let options = options(shared());
    let dead = cut_off(&options, folder.path(), ROOMY).await;
    for number in 0..3 {
        dead.publish(numbered(1, number)).await.unwrap();
    }
    soon("the end", dead.finish()).await;
    let file = files(folder.path(), ".db").remove(0);
    let database = rusqlite::Connection::open(file).unwrap();
    let damage = "UPDATE events SET body = CAST(substr(body, 1, length(body) - 1) || x'ff' AS BLOB)
                  WHERE place = (SELECT max(place) FROM events)";
    assert_eq!(database.execute(damage, []).unwrap(), 1);
    drop(database);

    let edge = bus(&spooling(&options, folder.path(), ROOMY)).await;
    assert_eq!(numbers(&mut edge.accepted(), 2).await, [0, 1]);
    until_empty(&edge).await;
    let (walk, held) = letters(&edge).await;
    let reasons: Vec<&str> = held.iter().map(|letter| letter.reason.as_str()).collect();
    assert_eq!(reasons, ["it was damaged on the disk of a spool"]);
    walk.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_accepted_into_a_folder_that_nobody_finds_again() {
    let (parent, options) = (folder(), options(shared()));
    let (folder, aside) = (parent.path().join("spool"), parent.path().join("aside"));
    let edge = cut_off(&options, &folder, ROOMY).await;
    edge.publish(numbered(1, 0)).await.unwrap();
    std::fs::rename(&folder, &aside).unwrap();
    let refused = edge.publish(numbered(1, 1)).await.unwrap_err();
    assert_eq!(refused.status(), 503);
    assert!(refused.to_string().contains("moved or deleted"), "{refused}");
    edge.serving().expect_err("it keeps nothing");
    // Another folder at its place is another.
    std::fs::create_dir(&folder).unwrap();
    edge.publish(numbered(1, 2)).await.unwrap_err();
    let looks = Instant::now();
    while looks.elapsed() < Duration::from_secs(4) {
        edge.serving().expect_err("it keeps nothing");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(files(&folder, "").is_empty(), "nothing is made there");

    std::fs::remove_dir(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    until("it goes on", || async { edge.serving().is_ok() }).await;
    edge.publish(numbered(1, 3)).await.unwrap();
    drop(edge);
    let edge = bus(&spooling(&options, &folder, ROOMY)).await;
    assert_eq!(numbers(&mut edge.accepted(), 2).await, [0, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_files_that_were_deleted_is_written_into_new_ones() {
    let (folder, options) = (folder(), options(shared()));
    let edge = cut_off(&options, folder.path(), ROOMY).await;
    for number in 0..3 {
        edge.publish(numbered(1, number)).await.unwrap();
    }
    for file in files(folder.path(), ".db") {
        std::fs::remove_file(file).unwrap();
    }
    let refused = edge.publish(numbered(1, 3)).await.unwrap_err();
    assert_eq!(refused.status(), 503, "{refused}");
    until("they are written again", || async { edge.serving().is_ok() }).await;
    edge.publish(numbered(1, 4)).await.unwrap();
    assert_eq!(waiting(&edge), 4);
    // Also when nobody sends anything.
    let before = files(folder.path(), ".db");
    before.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    until("they are written again", || async { !files(folder.path(), ".db").is_empty() }).await;
    until("they are whole", || async { edge.serving().is_ok() }).await;
    soon("the end", edge.finish()).await;
    assert!(files(folder.path(), ".db").iter().all(|file| !before.contains(file)));
    let edge = bus(&spooling(&options, folder.path(), ROOMY)).await;
    assert_eq!(numbers(&mut edge.accepted(), 4).await, [0, 1, 2, 4]);
}

/// Runs the test below on a disk of its own, which only it sees.
#[test]
#[ignore = "mounts a disk, as root: cargo test -p eventbucket-collector --test it an_edge_starts_on_a_full_disk -- --ignored"]
fn an_edge_starts_on_a_full_disk_and_sends_what_is_there() {
    let folder = folder();
    let script = "truncate -s 16M disk && mkfs.ext4 -q -F disk && mkdir mounted && mount -o loop disk mounted || exit 1
                  exec \"$0\" --exact bus_spool::child_on_a_full_disk --ignored --nocapture";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(std::env::current_exe().unwrap());
    let command =
        command.current_dir(folder.path()).env("EVENTBUCKET_TEST_DISK", folder.path().join("mounted"));
    let ended = command.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of `an_edge_starts_on_a_full_disk_and_sends_what_is_there`"]
async fn child_on_a_full_disk() {
    let disk = PathBuf::from(std::env::var_os("EVENTBUCKET_TEST_DISK").expect("run by its parent"));
    let (folder, options) = (disk.join("spool"), options(shared()));
    let edge = cut_off(&options, &folder, ROOMY).await;
    let mut taken = 0;
    while edge.publish(large(1, taken)).await.is_ok() {
        taken += 1;
    }
    assert!(taken > 5, "{taken}");
    drop(edge);
    let mut filler = std::fs::File::create(disk.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[0; 512]).is_ok() {}
    let before = files(&folder, "edge-").len();

    let edge = cut_off(&options, &folder, ROOMY).await;
    until("it has what is there", || async { waiting(&edge) == taken as u64 }).await;
    let refused = edge.serving().unwrap_err();
    assert!(refused.to_string().contains("full"), "{refused}");
    drop(edge);
    assert_eq!(files(&folder, "edge-").len(), before, "no try leaves a file");
    let edge = bus(&spooling(&options, &folder, ROOMY)).await;
    assert_eq!(numbers(&mut edge.accepted(), taken).await, (0..taken).collect::<Vec<_>>());
    until_empty(&edge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_folder_that_can_not_be_used_is_told_at_the_start() {
    let folder = folder();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let started = Bus::rabbitmq(spooling(&options(shared()), &file, ROOMY)).await;
    let Err(refused) = started else { panic!("it started") };
    let said = refused.to_string();
    assert!(said.contains(file.to_str().unwrap()) && said.contains("edge.spool"), "{said}");
    // An address that is wrong is one with a spool too: nobody else would notice.
    let wrong = RabbitOptions {
        url: url(&address(shared(), "geheim")),
        ..spooling(&options(shared()), folder.path(), ROOMY)
    };
    let Err(refused) = soon("an answer", Bus::rabbitmq(wrong)).await else { panic!("it started") };
    assert!(refused.to_string().contains("refused the user"), "{refused}");
}
