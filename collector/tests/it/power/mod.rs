//! Power cuts. SIGKILL leaves the page cache alone, so it can't see a missing fsync; these tests run the store on a
//! disk that forgets what was not synced.

mod cut;
mod disk;
