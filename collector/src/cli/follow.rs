//! The live tail over HTTP: server-sent events, taken up again after an interruption where they broke off.

use std::time::Duration;

use eventbucket_protocol::Problem;
use reqwest::Response;

use super::document::EventDocument;
use super::failure::{Failure, note};
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
        note("the tail broke off and is opened again");
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
        for Message { id, data } in lines.take(&chunk) {
            if let Ok(event) = serde_json::from_str::<EventDocument>(&data) {
                on_event(event)?;
            } else if let Ok(problem) = serde_json::from_str::<Problem>(&data)
                && problem.status < 500
            {
                return Err(refused("follow the log", problem));
            }
            // A newer collector may send other messages; they are not for us. An id without data is our place in a log
            // of which nothing was for us.
            *after = id.or(*after);
        }
        if lines.is_over_limit() {
            return Err(Failure::because("follow the log", "a line of the stream is longer than any event"));
        }
    }
    Ok(())
}

/// What stands between two empty lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    id: Option<u64>,
    data: String,
}

/// Cuts a stream into its messages
/// ([the standard](https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation)).
#[derive(Default)]
struct Lines {
    open: Vec<u8>,
    message: Message,
}

impl Lines {
    /// Takes what arrived and returns the messages that are complete and say something.
    fn take(&mut self, chunk: &[u8]) -> Vec<Message> {
        self.open.extend_from_slice(chunk);
        let mut messages = Vec::new();
        let mut begin = 0;
        while let Some(length) = self.open[begin..].iter().position(|byte| *byte == b'\n') {
            let line = self.open[begin..begin + length].strip_suffix(b"\r");
            let line = line.unwrap_or(&self.open[begin..begin + length]);
            begin += length + 1;
            if line.is_empty() {
                let message = std::mem::take(&mut self.message);
                if message != Message::default() {
                    messages.push(message);
                }
            } else {
                self.message.field(line);
            }
        }
        self.open.drain(..begin);
        messages
    }

    fn is_over_limit(&self) -> bool {
        self.open.len().max(self.message.data.len()) > LINE_BYTES_MAX
    }
}

impl Message {
    fn field(&mut self, line: &[u8]) {
        let value = |name: &[u8]| {
            let value = line.strip_prefix(name)?;
            Some(String::from_utf8_lossy(value.strip_prefix(b" ").unwrap_or(value)))
        };
        if let Some(data) = value(b"data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(&data);
        } else if let Some(id) = value(b"id:") {
            self.id = id.parse().ok();
        }
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
            let found: Vec<Message> =
                stream.as_bytes().chunks(size).flat_map(|chunk| lines.take(chunk)).collect();
            let message = |id, data: &str| Message { id, data: data.to_owned() };
            let expected = [message(Some(1), "{\"a\":1}"), message(None, "x\ny"), message(Some(3), "")];
            assert_eq!(found, expected, "in pieces of {size}");
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
