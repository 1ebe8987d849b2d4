//! `eventbucket torture` on private servers, which it kills too; and that it fails when something is wrong.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

use eventbucket_servers::{Postgres, RabbitMq, Redis};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::eventbucket;
use crate::random::rounds;

/// The seed that CI begins with: its 20 schedules hold a kill of each server, and no more than three of RabbitMQ.
const FIRST_SEED: u64 = 1;

/// A server that commands of a shell kill and start: they write a word to one pipe and wait for the answer in the other.
struct Controlled {
    folder: TempDir,
    obeying: Option<JoinHandle<()>>,
}

impl Controlled {
    fn new(mut obey: impl FnMut(&str) -> std::io::Result<()> + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [order, answer] = ["order", "answer"].map(|name| folder.path().join(name));
        assert!(Command::new("mkfifo").args([&order, &answer]).status().unwrap().success());
        let obeying = std::thread::spawn(move || {
            loop {
                let word = fs::read_to_string(&order).unwrap();
                if word.trim() == "end" {
                    return;
                }
                let answered =
                    obey(word.trim()).map_or_else(|error| error.to_string(), |()| "done".to_owned());
                fs::write(&answer, format!("{answered}\n")).unwrap();
            }
        });
        Self { folder, obeying: Some(obeying) }
    }

    /// The arguments that tell the commands.
    fn arguments(&self, server: &str) -> [String; 4] {
        let command = |word| self.command(word);
        [format!("--kill-{server}"), command("kill"), format!("--start-{server}"), command("restart")]
    }

    /// Those that tell how it is put back.
    fn backup_arguments(&self) -> [String; 4] {
        ["save", "restore"]
            .map(|word| [format!("--{word}-postgres"), self.command(word)])
            .concat()
            .try_into()
            .unwrap()
    }

    fn command(&self, word: &str) -> String {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        format!("echo {word} >{}; read -r said <{}; [ \"$said\" = done ]", at("order"), at("answer"))
    }
}

impl Drop for Controlled {
    fn drop(&mut self) {
        fs::write(self.folder.path().join("order"), "end").unwrap();
        // A panic there is its own message.
        let _ = self.obeying.take().map(JoinHandle::join);
    }
}

/// A PostgreSQL that can also be put back, as a new timeline: what a restore to a point in time makes.
fn controlled_postgres(mut server: Postgres) -> Controlled {
    let copies = tempfile::tempdir().unwrap();
    let copy = move |from: &Path, to: &Path| {
        let copied = Command::new("cp").arg("-a").args([from, to]).status()?;
        if copied.success() { Ok(()) } else { Err(std::io::Error::other("the cluster could not be copied")) }
    };
    Controlled::new(move |word| {
        let (data, saved) = (server.data(), copies.path().join("saved"));
        match word {
            "kill" => return server.kill(),
            "save" => {
                server.kill()?;
                // What was saved last may not have been needed.
                let _ = fs::remove_dir_all(&saved);
                copy(&data, &saved)?;
            }
            "restore" => {
                server.kill()?;
                fs::remove_dir_all(&data)?;
                fs::rename(&saved, &data)?;
                // Of the same owner as all there.
                copy(&data.join("PG_VERSION"), &data.join("recovery.signal"))?;
                let mut settings =
                    fs::OpenOptions::new().append(true).open(data.join("postgresql.auto.conf"))?;
                writeln!(settings, "restore_command = 'false'")?;
            }
            _ => {}
        }
        server.restart()
    })
}

macro_rules! controlled {
    ($server:expr) => {{
        let mut server = $server;
        Controlled::new(move |word| if word == "kill" { server.kill() } else { server.restart() })
    }};
}

/// The three servers' addresses, as variables of the command.
fn torture(postgres: &Postgres, rabbitmq: &RabbitMq, redis: &Redis) -> Command {
    let mut command = eventbucket(&["torture", "--json"]);
    command.env("EVENTBUCKET_STORE_URL", postgres.url());
    command.env("EVENTBUCKET_BUS_URL", rabbitmq.url());
    command.env("EVENTBUCKET_CACHE_URL", redis.url());
    command
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// TORTURE_SCHEDULES and TORTURE_SEED choose others. RabbitMQ takes up to 30 s to come back from a kill.
#[test]
fn no_schedule_of_faults_loses_or_doubles_an_event() {
    let (schedules, seed) = (rounds("TORTURE_SCHEDULES", 20), rounds("TORTURE_SEED", FIRST_SEED));
    let rabbitmq = std::thread::spawn(|| RabbitMq::start().unwrap());
    let (postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    let rabbitmq = rabbitmq.join().unwrap();
    let mut command = torture(&postgres, &rabbitmq, &redis);
    let servers = [
        ("postgres", controlled_postgres(postgres)),
        ("rabbitmq", controlled!(rabbitmq)),
        ("redis", controlled!(redis)),
    ];
    for (name, server) in &servers {
        command.args(server.arguments(name));
    }
    command.args(servers[0].1.backup_arguments()).arg("--drop-old");
    command.args(["--schedules", &schedules.to_string(), "--seed", &seed.to_string()]);
    let output = command.output().unwrap();
    let lines = lines(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    let figures = lines.last().unwrap_or_else(|| panic!("it says nothing: {said}"));
    println!("{figures}");
    assert!(output.status.success(), "{said}\n{lines:#?}");
    assert_eq!(figures["held"], schedules, "{figures}");
    assert_eq!(figures["audit_holds"], true, "{figures}");
    assert_eq!(lines.len() as u64, schedules + 1, "a line a schedule, and the figures");
    assert!(figures["received"].as_u64() > figures["events"].as_u64(), "nothing was repeated: {figures}");
    if schedules == 20 && seed == FIRST_SEED {
        for server in ["postgres", "redis", "rabbitmq"] {
            let kills = figures["faults"][format!("kill {server}")].as_u64().unwrap_or(0);
            assert!((1..=3).contains(&kills), "{kills} kills of {server}: choose another seed");
        }
        for effect in ["dropped", "undone"] {
            assert!(
                figures[effect].as_u64() > Some(0),
                "nothing was {effect}: choose another seed: {figures}"
            );
        }
    }
}

/// The same with edges that keep batches on disk while the broker is away. SPOOL_SCHEDULES and SPOOL_SEED choose others.
#[test]
fn no_schedule_of_faults_loses_or_doubles_an_event_that_waits_in_a_spool() {
    let (schedules, seed) = (rounds("SPOOL_SCHEDULES", 4), rounds("SPOOL_SEED", 1));
    let rabbitmq = std::thread::spawn(|| RabbitMq::start().unwrap());
    let (postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    let rabbitmq = rabbitmq.join().unwrap();
    let spool = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = torture(&postgres, &rabbitmq, &redis);
    let broker = controlled!(rabbitmq);
    command.args(broker.arguments("rabbitmq")).arg("--spool").arg(spool.path());
    command.args(["--schedules", &schedules.to_string(), "--seed", &seed.to_string()]);
    let output = command.output().unwrap();
    let lines = lines(&output);
    let figures = lines.last().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    println!("{figures}");
    assert!(output.status.success(), "{}\n{lines:#?}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((&figures["held"], &figures["audit_holds"]), (&schedules.into(), &true.into()), "{figures}");
}

/// Changes the identity of a stored event as soon as there is one, as a store that mixes events up would.
fn spoil(postgres: &Postgres) {
    let sql = "UPDATE event SET id = gen_random_uuid(), id_text = 'nobody' WHERE position = 1";
    let psql = Path::new("/usr/lib/postgresql/15/bin/psql");
    crate::harness::eventually("an event is stored and spoilt", || {
        let said = Command::new(psql).args(["-c", sql, &postgres.url()]).output().unwrap();
        String::from_utf8_lossy(&said.stdout).contains("UPDATE 1")
    });
}

#[test]
fn an_event_that_nobody_sent_fails_the_run_with_the_command_that_replays_it() {
    let rabbitmq = std::thread::spawn(|| RabbitMq::start().unwrap());
    let (postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    let rabbitmq = rabbitmq.join().unwrap();
    let logs = tempfile::tempdir().unwrap();
    let mut command = torture(&postgres, &rabbitmq, &redis);
    command.args(["--only", "3"]).env("TMPDIR", logs.path());
    let running = std::thread::spawn(move || command.output().unwrap());
    spoil(&postgres);
    let output = running.join().unwrap();
    let lines = lines(&output);
    assert_eq!(output.status.code(), Some(1), "{lines:#?}");
    let [outcome, figures] = &lines[..] else { panic!("{lines:#?}") };
    assert!(outcome["complaints"].to_string().contains("was sent by nobody"), "{outcome}");
    assert!(outcome["recovery_ms"].as_u64() < Some(60_000), "what can't mend is not waited for: {outcome}");
    let replay = figures["replay"].as_str().unwrap();
    assert!(replay.starts_with("eventbucket torture --only 3"), "{replay}");
}

/// The processes that a process started and that are there.
fn children(parent: u32) -> Vec<u32> {
    // Tokio starts processes from any of its threads.
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let lists: Vec<String> = tasks.map(of_task).collect();
    let pids = lists.iter().flat_map(|list| list.split_whitespace());
    let mut found: Vec<u32> = pids.filter_map(|pid| pid.parse().ok()).collect();
    found.sort_unstable();
    found
}

/// Says whether a process runs: one that has ended and that nobody waits for doesn't.
fn runs(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z') && !line.contains('X'))
}

#[test]
fn a_kill_of_the_command_ends_its_processes_too_even_one_that_is_stopped() {
    /// Two of each role, and the shell that watches.
    const PROCESSES: usize = 7;
    let rabbitmq = std::thread::spawn(|| RabbitMq::start().unwrap());
    let (postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    let rabbitmq = rabbitmq.join().unwrap();
    let logs = tempfile::tempdir().unwrap();
    let mut command = torture(&postgres, &rabbitmq, &redis);
    command.args(["--schedules", "1000"]).env("TMPDIR", logs.path());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = command.spawn().unwrap();
    let mut started = Vec::new();
    crate::harness::eventually("all processes run", || {
        started = children(running.id());
        started.len() == PROCESSES
    });
    let stopped = Command::new("kill").args(["-STOP", &started[PROCESSES - 1].to_string()]).status();
    assert!(stopped.unwrap().success());
    running.kill().unwrap();
    running.wait().unwrap();
    crate::harness::eventually("all processes have ended", || !started.iter().any(|pid| runs(*pid)));
}
