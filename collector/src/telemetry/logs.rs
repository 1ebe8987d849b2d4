//! Lines on stderr: what happened, for people or as JSON. Keys never appear: their types show a prefix alone.

use std::io::IsTerminal as _;

use tracing::{Level, Subscriber};
use tracing_subscriber::fmt::SubscriberBuilder;
use tracing_subscriber::fmt::format::{DefaultFields, Format};
use tracing_subscriber::fmt::writer::MakeWriterExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::{LogConfig, LogFormat};

use super::kept::Kept;

/// Makes every `tracing` event of this process a line on stderr, and keeps warnings and errors from when it is told where. The
/// first call counts, further ones change nothing.
pub fn install(config: &LogConfig) -> Kept {
    // What stands behind the directives wins over them, so that whoever wants to see the AMQP client can. Of itself it
    // calls every connection that breaks an error, where ours say what happens next.
    let directives = format!("lapin=off,{}", config.level);
    let filter =
        EnvFilter::try_new(directives).expect("the level was checked when the configuration was read");
    let kept = Kept::default();
    let outcome = match config.format {
        LogFormat::Text => lines(filter).with_ansi(is_coloured()).finish().with(keeper(&kept)).try_init(),
        LogFormat::Json => lines(filter).json().flatten_event(true).finish().with(keeper(&kept)).try_init(),
    };
    drop(outcome);
    kept
}

fn keeper<S>(kept: &Kept) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fmt::layer().json().flatten_event(true).with_writer(kept.clone().with_max_level(Level::WARN))
}

fn lines(filter: EnvFilter) -> SubscriberBuilder<DefaultFields, Format, EnvFilter, fn() -> std::io::Stderr> {
    fmt().with_env_filter(filter).with_writer(std::io::stderr as fn() -> std::io::Stderr)
}

/// Colour on a terminal unless `NO_COLOR` says otherwise (<https://no-color.org>).
fn is_coloured() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
