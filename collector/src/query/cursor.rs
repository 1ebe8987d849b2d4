use std::fmt;

use uuid::Uuid;

use super::Error;
use crate::store::SeenBefore;

/// Where a page ended: a position, and the epoch of the log it was read from. After a restore the log has another epoch,
/// and positions may belong to other events.
///
/// Written as `POSITION.EPOCH` with the first eight hex digits of the epoch; a plain position is taken too, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The position the page ended at.
    pub position: u64,
    epoch: u32,
}

impl Cursor {
    pub(super) fn new(position: u64, epoch: Uuid) -> Self {
        Self { position, epoch: digits(epoch) }
    }

    /// Reads a cursor, for the log of an epoch.
    ///
    /// # Errors
    /// [`Error::Cursor`].
    pub fn parse(text: &str, epoch: Uuid) -> Result<Self, Error> {
        let unreadable = || {
            Error::Cursor(format!(
                "cursor {text:?} can't be read; use \"next\" of the page before, or a position"
            ))
        };
        let (position, of_epoch) = match text.split_once('.') {
            Some((position, of_epoch)) => {
                (position, u32::from_str_radix(of_epoch, 16).map_err(|_| unreadable())?)
            }
            None => (text, digits(epoch)),
        };
        if of_epoch != digits(epoch) {
            let message = "the log was restored since this cursor was given out; begin again without one";
            return Err(Error::Cursor(message.to_owned()));
        }
        let position = position.parse().ok().filter(|position| i64::try_from(*position).is_ok());
        Ok(Self { position: position.ok_or_else(unreadable)?, epoch: of_epoch })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:08x}", self.position, self.epoch)
    }
}

/// Where a page of users ended: when its last user was seen, by which event, and the epoch as in [`Cursor`]. Written as
/// `TIME_POSITION.EPOCH`, the time in Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UsersCursor {
    pub(super) before: SeenBefore,
    epoch: u32,
}

impl UsersCursor {
    pub(super) fn new(before: SeenBefore, epoch: Uuid) -> Self {
        Self { before, epoch: digits(epoch) }
    }

    pub(super) fn parse(text: &str, epoch: Uuid) -> Result<Self, Error> {
        let unreadable =
            || Error::Cursor(format!("cursor {text:?} can't be read; use \"next\" of the page before"));
        let (time, position) = text.split_once('_').ok_or_else(unreadable)?;
        let last_ms = time.parse().map_err(|_| unreadable())?;
        let (number, _) = position.split_once('.').ok_or_else(unreadable)?;
        number.parse::<u64>().map_err(|_| unreadable())?;
        let Cursor { position, epoch } = Cursor::parse(position, epoch)?;
        Ok(Self { before: SeenBefore { last_ms, last_position: position }, epoch })
    }
}

impl fmt::Display for UsersCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}.{:08x}", self.before.last_ms, self.before.last_position, self.epoch)
    }
}

/// The first four bytes: enough to tell the few epochs of one log apart.
fn digits(epoch: Uuid) -> u32 {
    epoch.as_fields().0
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Uuid = Uuid::from_u128(0x0102_0304_0000_0000_0000_0000_0000_0001);

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_a_position_stands_for_itself() {
        let cursor = Cursor::new(17, EPOCH);
        assert_eq!(cursor.to_string(), "17.01020304");
        assert_eq!(Cursor::parse("17.01020304", EPOCH).unwrap(), cursor);
        assert_eq!(Cursor::parse("17", EPOCH).unwrap(), cursor);
    }

    #[test]
    fn a_cursor_of_users_is_read_as_it_was_written_and_no_other() {
        let before = SeenBefore { last_ms: -5, last_position: 17 };
        let cursor = UsersCursor::new(before, EPOCH);
        assert_eq!(cursor.to_string(), "-5_17.01020304");
        assert_eq!(UsersCursor::parse("-5_17.01020304", EPOCH).unwrap(), cursor);
        for text in
            ["", "17", "17.01020304", "x_17.01020304", "5_x.01020304", "5_17", "5_17.x", "_", "5_-1.01020304"]
        {
            let Err(Error::Cursor(message)) = UsersCursor::parse(text, EPOCH) else {
                panic!("{text:?} was read")
            };
            assert!(message.contains("\"next\""), "{message}");
        }
        let Err(Error::Cursor(message)) = UsersCursor::parse("5_17.01020305", EPOCH) else {
            panic!("another epoch")
        };
        assert!(message.contains("restored"), "{message}");
    }

    #[test]
    fn anything_else_says_what_to_do() {
        for text in ["", "x", "-1", "1.", "1.xyz", "18446744073709551615", "1.01020304.1"] {
            let Err(Error::Cursor(message)) = Cursor::parse(text, EPOCH) else { panic!("{text:?} was read") };
            assert!(message.contains("\"next\""), "{message}");
        }
        let Err(Error::Cursor(message)) = Cursor::parse("17.01020305", EPOCH) else {
            panic!("another epoch")
        };
        assert!(message.contains("restored"), "{message}");
    }
}
