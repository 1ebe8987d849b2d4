use super::report::{Report, bytes};
use crate::app;
use crate::cache::CacheFacts;
use crate::cli::output::grouped;
use crate::config::Config;

/// Looks at the Redis, where one is configured.
pub(super) async fn redis(report: &mut Report, config: &Config) {
    let facts = match app::look_at_redis(config).await {
        None => return,
        Some(Ok(facts)) => facts,
        Some(Err(error)) => return report.failed("Redis", error),
    };
    let CacheFacts { version, policy, memory_bytes, store } = facts;
    let version = version
        .map_or_else(|| "its version is not for this user".to_owned(), |version| format!("Redis {version}"));
    let memory = memory_bytes.map(|memory| format!(", {}", bytes(memory))).unwrap_or_default();
    let store = store.map_or_else(|| "nobody's yet".to_owned(), |store| format!("of the store {store}"));
    report.ok("Redis", format!("{version}{memory}; {store}"));
    if let Some(policy) = policy.filter(|policy| policy != "noeviction") {
        report.warning(
            "Redis",
            format!("maxmemory-policy is {policy}: locks and limits may vanish"),
            "CONFIG SET maxmemory-policy noeviction",
        );
    }
}

/// Looks at the RabbitMQ, where one is configured.
pub(super) async fn rabbitmq(report: &mut Report, config: &Config) {
    let facts = match app::look_at_broker(config).await {
        None => return,
        Some(Ok(facts)) => facts,
        Some(Err(error)) => return report.failed("RabbitMQ", error),
    };
    match facts.batches {
        Some(waiting) => report.ok("RabbitMQ", format!("{} messages wait to be stored", grouped(waiting))),
        None => report.warning(
            "RabbitMQ",
            "no collector has made its queues yet",
            "start `eventbucket serve` with this configuration",
        ),
    }
    if let Some(dead) = facts.dead_letters.filter(|dead| *dead > 0) {
        report.warning(
            "RabbitMQ",
            format!("{} messages could not be processed", grouped(dead)),
            "`eventbucket dead-letters list`",
        );
    }
}
