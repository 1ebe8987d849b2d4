use std::time::Duration;

use eventbucket_protocol::Event;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};

use super::{Error, LIMIT_MAX, Reader};
use crate::bus::message::ValidBatch;
use crate::bus::{self, Bus, DeadLetter, DeadLetters};
use crate::cache::{LockGuard, NotLocked};
use crate::project::ProjectId;

/// How long a request may walk over the dead letters, which hides them from others: as long as 10,000 of the usual size take.
const WALK_MAX: Duration = Duration::from_secs(10);

/// How often a letter is looked for that isn't there, and whether somebody else is done with looking, and the pause in
/// between: most look for a fraction of a second.
const LOOKS: (u32, Duration) = (4, Duration::from_millis(250));

/// The lock of those who walk: a walk hides the letters from another, which would take them for gone.
const LOCK: &str = "dead-letters";

/// How long a walk holds up others when its process dies: the longest there may be, and what closing it takes.
const LOCK_TTL: Duration = Duration::from_secs(20);

/// A dead letter as it is written as JSON, without what is in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LetterShape {
    /// The beginning of its content's hash.
    pub id: String,
    /// Why it is here.
    pub reason: String,
    /// When it came here, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// What it takes.
    pub bytes: usize,
    /// The projects it is about, when it can be read.
    pub projects: Vec<u32>,
    /// How many events it holds; missing when it can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<usize>,
}

/// A dead letter with everything in it.
#[derive(Debug, Serialize)]
pub struct WholeLetterShape<'a> {
    #[serde(flatten)]
    letter: LetterShape,
    batches: Vec<BatchShape<'a>>,
}

#[derive(Debug, Serialize)]
struct BatchShape<'a> {
    project_id: u32,
    batch_id: String,
    received: String,
    part: u16,
    parts: u16,
    events: Vec<DeadEventShape<'a>>,
}

/// An event that has no position.
#[derive(Debug, Serialize)]
struct DeadEventShape<'a> {
    id: String,
    name: &'a str,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation: Option<&'a str>,
    properties: Option<&'a RawValue>,
}

impl From<&DeadLetter> for LetterShape {
    fn from(letter: &DeadLetter) -> Self {
        Self {
            id: letter.id.clone(),
            reason: letter.reason.clone(),
            time: letter.time.map(|time| time.to_string()),
            bytes: letter.message().len(),
            projects: letter.projects.clone(),
            events: letter.events,
        }
    }
}

impl<'a> From<&'a DeadLetter> for WholeLetterShape<'a> {
    fn from(letter: &'a DeadLetter) -> Self {
        Self { letter: letter.into(), batches: letter.batches.iter().map(BatchShape::from).collect() }
    }
}

impl<'a> From<&'a ValidBatch> for BatchShape<'a> {
    fn from(batch: &'a ValidBatch) -> Self {
        Self {
            project_id: batch.project.0,
            batch_id: batch.batch.to_string(),
            received: batch.received.to_string(),
            part: batch.part,
            parts: batch.parts,
            events: batch.events.iter().map(DeadEventShape::from).collect(),
        }
    }
}

impl<'a> From<&'a Event> for DeadEventShape<'a> {
    fn from(event: &'a Event) -> Self {
        Self {
            id: event.id.to_string(),
            name: &event.name,
            time: event.time.to_string(),
            user: event.user.as_deref(),
            description: event.description.as_deref(),
            stream: event.stream.as_deref(),
            correlation: event.correlation.as_deref(),
            properties: serde_json::from_str(event.properties.as_json()).ok(),
        }
    }
}

/// A page of a project's dead letters.
#[derive(Clone, Debug)]
pub struct LettersPage {
    /// The letters, the oldest first.
    pub letters: Vec<LetterShape>,
    /// The id after which the next page begins; `None` when there is nothing more.
    pub next: Option<String>,
}

/// What to do with a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterDeed {
    /// Look at it.
    Show,
    /// Put it back into the way to the store.
    Replay,
    /// Throw it away.
    Discard,
}

impl Reader {
    /// Lets the reader see the dead letters of a bus.
    #[must_use]
    pub fn with_bus(self, bus: Bus) -> Self {
        Self { bus: Some(bus), ..self }
    }

    /// Lists the dead letters that hold events of this project alone, the oldest first, behind the one that `cursor` names.
    ///
    /// # Errors
    /// A limit out of bounds, a cursor that is gone, a broker that can't be used.
    pub async fn dead_letters(
        &self,
        project: ProjectId,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<LettersPage, Error> {
        if !(1..=LIMIT_MAX).contains(&limit) {
            let message = format!("{limit} is not between 1 and {LIMIT_MAX}");
            return Err(Error::Parameter { name: "limit", message });
        }
        let (mut letters, mut passed, mut next) = (Vec::new(), cursor.is_none(), None);
        let Some(mut walk) = self.walk().await? else { return Ok(LettersPage { letters, next }) };
        let walked = timeout(WALK_MAX, async {
            while let Some(letter) = walk.letters.next().await? {
                if letter.projects != [project.0] {
                    continue;
                }
                if !passed {
                    passed = Some(letter.id.as_str()) == cursor;
                } else if letters.len() < limit {
                    letters.push(LetterShape::from(&letter));
                } else {
                    next = letters.last().map(|last: &LetterShape| last.id.clone());
                    break;
                }
            }
            Ok::<_, bus::Error>(())
        });
        let walked = walked.await;
        walk.close().await;
        walked.map_err(|_| too_many())??;
        match (passed, cursor) {
            (false, Some(cursor)) => Err(Error::Cursor(format!(
                "the dead letter {cursor:?} is gone; begin again without a cursor"
            ))),
            _ => Ok(LettersPage { letters, next }),
        }
    }

    /// Finds a dead letter that holds events of this project alone, and does something with it.
    ///
    /// # Errors
    /// [`Error::NotFound`], and a broker that can't be used; after a failure it is still there.
    pub async fn dead_letter(
        &self,
        project: ProjectId,
        id: &str,
        deed: LetterDeed,
    ) -> Result<DeadLetter, Error> {
        let (looks, pause) = LOOKS;
        for look in 0..looks {
            if look > 0 {
                sleep(pause).await;
            }
            let Some(mut walk) = self.walk().await? else { break };
            let done = timeout(WALK_MAX, find(&mut walk.letters, project, id, deed)).await;
            walk.close().await;
            if let Some(letter) = done.map_err(|_| too_many())?? {
                return Ok(letter);
            }
        }
        Err(Error::NotFound(format!("no dead letter of this project has the id {id:?}")))
    }

    /// Begins a walk, alone as far as Redis tells. Whoever walks beside the collectors, with the broker's address, isn't seen.
    async fn walk(&self) -> Result<Option<Walk>, Error> {
        let Some(bus) = &self.bus else { return Ok(None) };
        let (looks, pause) = LOOKS;
        for _ in 0..looks {
            let lock = match self.cache.lock(LOCK, LOCK_TTL).await {
                Err(NotLocked::Held) => {
                    sleep(pause).await;
                    continue;
                }
                Err(NotLocked::Unknown) => None,
                Ok(lock) => Some(lock),
            };
            return Ok(bus.dead_letters().await?.map(|letters| Walk { letters, lock }));
        }
        let reason = "somebody else is looking through the dead letters".into();
        Err(Error::Bus(bus::Error::Unavailable { reason, retry_after: Duration::from_secs(1) }))
    }
}

/// A walk over the dead letters, and what keeps others from it.
struct Walk {
    letters: DeadLetters,
    lock: Option<LockGuard>,
}

impl Walk {
    async fn close(self) {
        self.letters.close().await;
        if let Some(lock) = self.lock {
            lock.release().await;
        }
    }
}

async fn find(
    walk: &mut DeadLetters,
    project: ProjectId,
    id: &str,
    deed: LetterDeed,
) -> Result<Option<DeadLetter>, bus::Error> {
    while let Some(letter) = walk.next().await? {
        if letter.id == id && letter.projects == [project.0] {
            match deed {
                LetterDeed::Show => {}
                LetterDeed::Replay => walk.replay(&letter).await?,
                LetterDeed::Discard => walk.discard(&letter).await?,
            }
            return Ok(Some(letter));
        }
    }
    Ok(None)
}

fn too_many() -> Error {
    let reason = format!(
        "there are more dead letters than can be looked through in {} s; `eventbucket dead-letters` with the broker's address \
         has no such limit",
        WALK_MAX.as_secs()
    );
    Error::Bus(bus::Error::Unavailable { reason: reason.into(), retry_after: WALK_MAX })
}
