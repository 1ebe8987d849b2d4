//! Every bound of the protocol. A body or event over one of them is refused with a message that names the limit.

/// One event in its encoding, and its properties as JSON text: 256 KiB. Sixteen of the largest fill a compressed
/// batch; a typical event (8 properties) takes 0.4 KiB.
pub const EVENT_BYTES_MAX: usize = 256 * 1024;

/// A request body as it travels: 4 MiB, what a slow uplink of 1 MiB/s carries in 4 s.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A request body after decompression: 16 MiB. Events shrink 4–7× under zstd and gzip, so a full compressed batch of
/// honest events fits while a bomb (1,000×) stops early. How many bodies are in memory at once is the collector's to bound.
pub const BATCH_DECODED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Events in a batch. At 400 B an event 10,000 of them are 4 MB, below the byte limits; one transaction of 10,000 rows
/// is where SQLite's speed levels off.
pub const BATCH_EVENTS_MAX: usize = 10_000;

/// The name of an event, in characters.
pub const NAME_CHARS_MAX: usize = 200;

/// A description, in characters.
pub const DESCRIPTION_CHARS_MAX: usize = 2_000;

/// A user id, a stream or a correlation, in characters.
pub const REFERENCE_CHARS_MAX: usize = 512;

/// An event or batch id given as text, in characters.
pub const ID_CHARS_MAX: usize = 200;

/// Objects and arrays within each other in properties, the outermost object included.
pub const DEPTH_MAX: usize = 16;

/// Keys in the properties of one event, those of inner objects included.
pub const KEYS_MAX: usize = 512;

/// One key of a property, in characters.
pub const KEY_CHARS_MAX: usize = 200;
