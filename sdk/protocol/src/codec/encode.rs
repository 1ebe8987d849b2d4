//! Events to MessagePack: what the SDK sends.

use rmp::encode::{write_array_len, write_bin, write_map_len, write_sint, write_str};

use crate::{BatchId, Event};

/// Appends one event.
pub fn event(event: &Event, out: &mut Vec<u8>) {
    let optional = [
        ("description", &event.description),
        ("user", &event.user),
        ("stream", &event.stream),
        ("correlation", &event.correlation),
    ];
    let given = optional.iter().filter(|(_, value)| value.is_some()).count();
    let fields = 3 + given + usize::from(!event.properties.is_empty());
    infallible(write_map_len(out, u32::try_from(fields).expect("at most 8 fields")));
    infallible(write_str(out, "id"));
    match event.id.text() {
        Some(text) => infallible(write_str(out, text)),
        None => infallible(write_bin(out, event.id.uuid().as_bytes())),
    }
    infallible(write_str(out, "name"));
    infallible(write_str(out, &event.name));
    infallible(write_str(out, "time"));
    infallible(write_sint(out, event.time.ms()));
    for (field, value) in optional {
        if let Some(value) = value {
            infallible(write_str(out, field));
            infallible(write_str(out, value));
        }
    }
    if !event.properties.is_empty() {
        infallible(write_str(out, "properties"));
        infallible(write_bin(out, event.properties.as_json().as_bytes()));
    }
}

/// Appends the frame of a batch; exactly `events` encoded events must follow it.
pub fn batch_header(id: BatchId, events: u32, out: &mut Vec<u8>) {
    infallible(write_map_len(out, 2));
    infallible(write_str(out, "batch_id"));
    infallible(write_bin(out, id.uuid().as_bytes()));
    infallible(write_str(out, "events"));
    infallible(write_array_len(out, events));
}

fn infallible<T, E: std::fmt::Debug>(written: Result<T, E>) {
    written.expect("writing to memory cannot fail");
}
