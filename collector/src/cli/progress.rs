//! A bar on stderr while something long runs; nothing at all unless stderr is a terminal.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::source::{OnProgress, Source};

/// How often an unmoving bar shows that the program is alive.
const TICK: Duration = Duration::from_millis(120);

/// Makes a bar for a source, and what moves it: a folder tells its positions, a collector only that it is at work.
pub(super) fn of(source: &Source, what: &'static str) -> (ProgressBar, OnProgress) {
    let style = "{msg} {wide_bar} {human_pos}/{human_len} {eta}";
    bar(what, matches!(source, Source::Folder(_)).then_some(style))
}

/// Makes a bar for what is told in bytes.
pub(super) fn of_bytes(what: &'static str) -> (ProgressBar, OnProgress) {
    bar(what, Some("{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}"))
}

fn bar(what: &'static str, style: Option<&'static str>) -> (ProgressBar, OnProgress) {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_message(what);
    if let Some(style) = style {
        let style = ProgressStyle::with_template(style);
        bar.set_style(style.expect("the template is part of the program"));
    }
    if !bar.is_hidden() {
        bar.enable_steady_tick(TICK);
    }
    let moved = bar.clone();
    let on_progress = move |done, total| {
        moved.set_length(total);
        moved.set_position(done);
    };
    (bar, Box::new(on_progress))
}
