use std::io::{self, Write};

use eventbucket_protocol::limits::{DEPTH_MAX, KEY_CHARS_MAX, KEYS_MAX};
use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, Serializer};

/// What a key breaks, empty ones included.
pub(super) const BAD_KEY: &str = "a key is empty or longer than 200 characters";

/// NUL in any text.
pub(super) const NUL: &str = "it holds a NUL character, which databases can't hold; remove it";

/// What was written of one value.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Keys of objects, counted as they were written.
    pub(super) keys: usize,
    /// A part was JSON text already and was passed on unread.
    pub(super) has_raw: bool,
}

/// Writes a value as JSON text, and stops at the first limit of the protocol that it breaks. The checks ride on the writing:
/// nothing is read again.
pub(super) fn write(json: &mut Vec<u8>, value: &impl Serialize) -> serde_json::Result<Written> {
    // The object around all properties is the first level.
    let mut watch = Watch { written: Written::default(), depth: 1, in_key: false, key_chars: 0 };
    value.serialize(&mut Serializer::with_formatter(json, Watching(&mut watch)))?;
    Ok(watch.written)
}

struct Watch {
    written: Written,
    depth: usize,
    in_key: bool,
    key_chars: usize,
}

struct Watching<'a>(&'a mut Watch);

impl Watching<'_> {
    fn deeper(&mut self) -> io::Result<()> {
        if self.0.depth == DEPTH_MAX {
            return refuse(format!("it nests deeper than {DEPTH_MAX} levels; flatten it"));
        }
        self.0.depth += 1;
        Ok(())
    }

    fn grow_key(&mut self, chars: impl FnOnce() -> usize) {
        if self.0.in_key {
            self.0.key_chars += chars();
        }
    }
}

fn refuse<T>(why: impl Into<String>) -> io::Result<T> {
    Err(io::Error::other(why.into()))
}

/// Writes what [`CompactFormatter`] does.
impl Formatter for Watching<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.deeper()?;
        CompactFormatter.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.depth -= 1;
        CompactFormatter.end_array(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.deeper()?;
        CompactFormatter.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.depth -= 1;
        CompactFormatter.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.written.keys += 1;
        // The property's own key is one of them.
        if self.0.written.keys == KEYS_MAX {
            return refuse(too_many_keys());
        }
        (self.0.in_key, self.0.key_chars) = (true, 0);
        CompactFormatter.begin_object_key(writer, first)
    }

    fn end_object_key<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.in_key = false;
        if self.0.key_chars > KEY_CHARS_MAX {
            return refuse(BAD_KEY);
        }
        CompactFormatter.end_object_key(writer)
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        self.grow_key(|| text.chars().count());
        CompactFormatter.write_string_fragment(writer, text)
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        if matches!(escape, CharEscape::AsciiControl(0)) {
            return refuse(NUL);
        }
        self.grow_key(|| 1);
        CompactFormatter.write_char_escape(writer, escape)
    }

    fn write_raw_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, json: &str) -> io::Result<()> {
        self.0.written.has_raw = true;
        CompactFormatter.write_raw_fragment(writer, json)
    }
}

/// What is wrong with an event that holds too many.
pub(super) fn too_many_keys() -> String {
    format!("the properties hold more than {KEYS_MAX} keys; split the event or use a list")
}
