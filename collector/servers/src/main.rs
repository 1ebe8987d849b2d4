//! `scripts/servers up` starts the three servers to play with; `scripts/servers run -- COMMAND` starts them around a command.

use std::io::{self, Read};
use std::process::{Command, ExitCode};
use std::thread;

use eventbucket_servers::shared::{
    POSTGRES_VARIABLE, RABBITMQ_NODE_VARIABLE, RABBITMQ_VARIABLE, REDIS_VARIABLE,
};
use eventbucket_servers::{Postgres, RabbitMq, Redis};

const USAGE: &str = "usage: scripts/servers up | scripts/servers run -- COMMAND…";

struct Servers {
    postgres: Postgres,
    redis: Redis,
    rabbitmq: RabbitMq,
}

impl Servers {
    /// Starts all at once: RabbitMQ takes the longest by far.
    fn start() -> io::Result<Self> {
        let rabbitmq = thread::spawn(RabbitMq::start);
        let (postgres, redis) = (Postgres::start()?, Redis::start()?);
        let rabbitmq = rabbitmq.join().map_err(|_| io::Error::other("starting RabbitMQ panicked"))??;
        Ok(Self { postgres, redis, rabbitmq })
    }

    fn config(&self) -> String {
        format!(
            "[store]\nurl = {:?}\n\n[bus]\nurl = {:?}\n\n[cache]\nurl = {:?}\n",
            self.postgres.url(),
            self.rabbitmq.url(),
            self.redis.url()
        )
    }

    fn variables(&self) -> [(&'static str, String); 4] {
        [
            (POSTGRES_VARIABLE, self.postgres.url()),
            (REDIS_VARIABLE, self.redis.url()),
            (RABBITMQ_VARIABLE, self.rabbitmq.url()),
            (RABBITMQ_NODE_VARIABLE, self.rabbitmq.node_variable()),
        ]
    }
}

fn main() -> io::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["up"] => up().map(|()| ExitCode::SUCCESS),
        ["run", "--", program, ..] => run(program, &words[3..]),
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}

fn up() -> io::Result<()> {
    eprintln!("starting PostgreSQL, Redis and RabbitMQ…");
    let servers = Servers::start()?;
    println!("# for eventbucket.toml\n{}", servers.config());
    println!("# for tests");
    for (variable, value) in servers.variables() {
        println!("export {variable}='{value}'");
    }
    eprintln!("they run until Enter or Ctrl-C");
    // Ctrl-C ends this process, and with it the servers. Without a terminal there is no Enter.
    if io::stdin().read(&mut [0])? == 0 {
        loop {
            thread::park();
        }
    }
    Ok(())
}

fn run(program: &str, words: &[String]) -> io::Result<ExitCode> {
    let servers = Servers::start()?;
    let status = Command::new(program).args(words).envs(servers.variables()).status()?;
    drop(servers);
    // A command that was ended by a signal has no code.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
