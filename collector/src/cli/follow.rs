//! The live tail over HTTP: server-sent events, taken up again after an interruption where they broke off.

use std::time::Duration;

use eventbucket_protocol::Problem;
use reqwest::Response;

use super::document::EventDocument;
use super::failure::Failure;
use super::remote::refused;
use super::source::OnEvent;

/// How long to wait before a tail that broke off is opened again: a collector restarts within a second.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// How long nothing may arrive on an open tail: four of the lines that a collector sends every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What a line of a stream can take at most: an event of 256 KiB with every byte escaped, six characters each.
const LINE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Follows until `on_event` fails. The first opening must succeed: a wrong key or address is not an interruption.
pub(super) async fn run<F>(
    open: impl Fn(Option<u64>) -> F,
    mut after: Option<u64>,
    on_event: OnEvent<'_>,
) -> Result<(), Failure>
where
    F: Future<Output = Result<Response, Failure>>,
{
    let mut response = open(after).await?;
    loop {
        read(response, &mut after, on_event).await?;
        eprintln!("the tail broke off and is opened again");
        response = loop {
            tokio::time::sleep(REOPEN_AFTER).await;
            match open(after).await {
                Ok(again) => break again,
                Err(failure) if failure.is_passing() => {}
                Err(failure) => return Err(failure),
            }
        };
    }
}

/// Reads one stream to its end, however it ends.
async fn read(mut response: Response, after: &mut Option<u64>, on_event: OnEvent<'_>) -> Result<(), Failure> {
    let mut lines = Lines::default();
    // An end, an error and a silence are all the same: the stream is over.
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
        for message in lines.take(&chunk) {
            if let Ok(event) = serde_json::from_str::<EventDocument>(&message) {
                *after = Some(event.position);
                on_event(event)?;
            } else if let Ok(problem) = serde_json::from_str::<Problem>(&message)
                && problem.status < 500
            {
                return Err(refused("follow the log", problem));
            }
            // A newer collector may send other messages; they are not for us.
        }
        if lines.is_over_limit() {
            return Err(Failure::because("follow the log", "a line of the stream is longer than any event"));
        }
    }
    Ok(())
}

/// Cuts a stream into the data of its messages
/// ([the standard](https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation)).
#[derive(Default)]
struct Lines {
    open: Vec<u8>,
    data: String,
}

impl Lines {
    /// Takes what arrived and returns the data of the messages that are complete.
    fn take(&mut self, chunk: &[u8]) -> Vec<String> {
        self.open.extend_from_slice(chunk);
        let mut messages = Vec::new();
        let mut begin = 0;
        while let Some(length) = self.open[begin..].iter().position(|byte| *byte == b'\n') {
            let line = self.open[begin..begin + length].strip_suffix(b"\r");
            let line = line.unwrap_or(&self.open[begin..begin + length]);
            begin += length + 1;
            if line.is_empty() {
                if !self.data.is_empty() {
                    messages.push(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix(b"data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                let data = data.strip_prefix(b" ").unwrap_or(data);
                self.data.push_str(&String::from_utf8_lossy(data));
            }
        }
        self.open.drain(..begin);
        messages
    }

    fn is_over_limit(&self) -> bool {
        self.open.len().max(self.data.len()) > LINE_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_the_stream_is_cut() {
        let stream = ": hello\n\nid: 1\nevent: stored\ndata: {\"a\":1}\n\ndata: x\r\ndata: y\r\n\r\nid: 3\n\ndata: open";
        for size in 1..=stream.len() {
            let mut lines = Lines::default();
            let found: Vec<String> =
                stream.as_bytes().chunks(size).flat_map(|chunk| lines.take(chunk)).collect();
            assert_eq!(found, ["{\"a\":1}", "x\ny"], "in pieces of {size}");
            assert!(!lines.is_over_limit());
        }
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let mut lines = Lines::default();
        lines.take(&vec![b'x'; LINE_BYTES_MAX + 1]);
        assert!(lines.is_over_limit());
    }
}
