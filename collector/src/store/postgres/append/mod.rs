//! Appends batches to the log. The order is what makes positions dense and writers free of deadlocks: identities first,
//! sorted; then the heads, in the order of the projects; then everything else, by what the two said.

/// What becomes of every event: computed without the database.
mod plan;

/// Rows of the log in the format of COPY.
mod rows;

/// The statements.
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::Postgres;
use super::pool::Lease;
use crate::bus::message::ValidBatch;
use crate::project::ProjectId;
use crate::store::{Appended, Error};
use plan::{Culprits, Head, Outcome, Plan};
use write::Heads;

/// Rows in one statement: where Postgres's speed peaks (49,000 rows a second against 39,000 at 10,000).
const STATEMENT_ROWS: usize = 2_000;

/// Range numbers taken from the database at once, the increment of its sequence.
const RANGE_IDS: i64 = 1_000;

/// How long an append may take before its connection is given up: longer than the server's own limits on a lock.
const APPEND_MAX: Duration = Duration::from_secs(60);

/// How often an append begins anew when it surely left nothing behind: a connection that was cut, a deadlock with somebody
/// else's statement, an epoch that was renewed, a head that had to be made.
const ATTEMPTS: usize = 4;

/// Numbers of ranges that this process may give out. They belong to an epoch: a database that went back gives them out
/// again, to anybody.
#[derive(Default)]
pub(super) struct RangeIds(Mutex<Block>);

#[derive(Default)]
struct Block {
    epoch: Uuid,
    next: i64,
    end: i64,
}

impl RangeIds {
    async fn take(&self, lease: &mut Lease, epoch: Uuid, count: usize) -> Result<Vec<i64>, Error> {
        let mut taken = Vec::with_capacity(count);
        loop {
            self.take_known(epoch, count, &mut taken);
            if taken.len() == count {
                return Ok(taken);
            }
            let row = lease.query_one("SELECT nextval('range_id')", &[]).await?;
            let next: i64 = row.try_get(0)?;
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
                Block { epoch, next, end: next + RANGE_IDS };
        }
    }

    fn take_known(&self, epoch: Uuid, count: usize, taken: &mut Vec<i64>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while known.epoch == epoch && taken.len() < count && known.next < known.end {
            taken.push(known.next);
            known.next += 1;
        }
    }

    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Block::default();
    }
}

/// Why an attempt ended.
enum Ended {
    /// The database keeps nothing of it.
    Uncommitted(Error),
    /// As above, and the cause is gone: begin anew.
    Again(Error),
    /// The answer to the commit was lost. Whether it happened shows by its ranges.
    Unknown { error: Error, range_ids: Vec<i64>, appended: Vec<Appended> },
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        match error {
            Error::Unavailable { .. } => Self::Again(error),
            error => Self::Uncommitted(error),
        }
    }
}

impl From<tokio_postgres::Error> for Ended {
    fn from(error: tokio_postgres::Error) -> Self {
        Error::from(error).into()
    }
}

impl Postgres {
    pub(in crate::store) async fn append(&self, batches: &[ValidBatch]) -> Result<Vec<Appended>, Error> {
        self.append_beside(batches, &Culprits::new(), Mode::Commit).await
    }

    pub(in crate::store) async fn append_each(&self, batches: &[ValidBatch]) -> Vec<Result<Appended, Error>> {
        let several = batches.iter().any(|batch| batch.project != batches[0].project);
        match self.append_or_split(batches).await {
            Err(error) if several && error.may_concern_one_project() => self.append_by_project(batches).await,
            outcome => one_each(outcome, batches.len()),
        }
    }

    /// Appends all, or each batch alone where one is refused. An error is about none of them alone.
    async fn append_or_split(&self, batches: &[ValidBatch]) -> Result<Vec<Result<Appended, Error>>, Error> {
        match self.append(batches).await {
            Ok(appended) => Ok(appended.into_iter().map(Ok).collect()),
            Err(error) if error.concerns_one_batch() => {
                let mut apart = Vec::with_capacity(batches.len());
                for batch in batches {
                    apart.push(self.append_alone(batch).await);
                }
                Ok(apart)
            }
            Err(error) => Err(error),
        }
    }

    /// Appends the batches of each project in a transaction of their own: what is damaged is most often one project's.
    async fn append_by_project(&self, batches: &[ValidBatch]) -> Vec<Result<Appended, Error>> {
        let mut places: BTreeMap<ProjectId, Vec<usize>> = BTreeMap::new();
        for (place, batch) in batches.iter().enumerate() {
            places.entry(batch.project).or_default().push(place);
        }
        let mut outcomes: Vec<Option<Result<Appended, Error>>> = vec![None; batches.len()];
        for (project, places) in places {
            let own: Vec<ValidBatch> = places.iter().map(|place| batches[*place].clone()).collect();
            let outcome = self.append_or_split(&own).await;
            if let Err(error) = &outcome {
                tracing::debug!(%project, %error, "the events of one project can't be stored");
            }
            for (place, outcome) in places.into_iter().zip(one_each(outcome, own.len())) {
                outcomes[place] = Some(outcome);
            }
        }
        outcomes.into_iter().map(|outcome| outcome.expect("each batch has a project")).collect()
    }

    /// Appends one batch; events of it that the database refuses are kept aside.
    async fn append_alone(&self, batch: &ValidBatch) -> Result<Appended, Error> {
        let alone = std::slice::from_ref(batch);
        let mut appended = match self.append(alone).await {
            Err(Error::Refused { .. }) => {
                let culprits = self.find_culprits(batch).await?;
                tracing::warn!(project = %batch.project, batch = %batch.batch, events = culprits.len(),
                               "the database refuses events; they are quarantined");
                self.append_beside(alone, &culprits, Mode::Commit).await?
            }
            outcome => outcome?,
        };
        Ok(appended.pop().expect("a batch has one answer"))
    }

    /// Puts all events of a batch into quarantine.
    pub(in crate::store) async fn quarantine(
        &self,
        batch: &ValidBatch,
        what: &str,
    ) -> Result<Appended, Error> {
        let all = (0..batch.events.len()).map(|place| ((0, place), what.to_owned())).collect();
        let mut appended = self.append_beside(std::slice::from_ref(batch), &all, Mode::Commit).await?;
        Ok(appended.pop().expect("a batch has one answer"))
    }

    /// Finds the events that the database refuses, by trying halves without committing.
    async fn find_culprits(&self, batch: &ValidBatch) -> Result<Culprits, Error> {
        let (mut culprits, mut open) = (Culprits::new(), vec![(0, batch.events.len())]);
        while let Some((from, to)) = open.pop() {
            let events = batch.events[from..to].to_vec();
            // Which of them came without a time is about other places; a try needs nothing of it.
            let part = ValidBatch { events, undated: Vec::new(), ..batch.clone() };
            match self.append_beside(std::slice::from_ref(&part), &Culprits::new(), Mode::Try).await {
                Ok(_) => {}
                Err(Error::Refused { what }) if to - from == 1 => {
                    culprits.insert((0, from), what.to_string());
                }
                Err(Error::Refused { .. }) if to > from => {
                    let middle = from + (to - from) / 2;
                    open.extend([(middle, to), (from, middle)]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(culprits)
    }

    async fn append_beside(
        &self,
        batches: &[ValidBatch],
        culprits: &Culprits,
        mode: Mode,
    ) -> Result<Vec<Appended>, Error> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let projects: BTreeSet<ProjectId> = batches.iter().map(|batch| batch.project).collect();
        let projects: Vec<ProjectId> = projects.into_iter().collect();
        let plan = Plan::new(batches, culprits);
        let mut attempt = 1;
        loop {
            self.ensure(&projects).await?;
            let lease = self.0.log.lease().await?;
            let work = self.attempt(lease, batches, &projects, (&plan, culprits), mode);
            let ended = match tokio::time::timeout(APPEND_MAX, work).await {
                Ok(Ok(appended)) => return Ok(appended),
                Ok(Err(ended)) => ended,
                Err(_) => return Err(Error::unavailable("the database took too long for an append")),
            };
            if matches!(ended, Ended::Again(_)) {
                // They may be in use: a restored database gives out again what others took before.
                self.0.range_ids.forget();
            }
            match ended {
                Ended::Again(error) if attempt < ATTEMPTS => {
                    tracing::debug!(%error, attempt, "an append begins anew");
                    attempt += 1;
                }
                Ended::Uncommitted(error) | Ended::Again(error) => return Err(error),
                Ended::Unknown { error, range_ids, appended } => {
                    let there = self.was_committed(batches, &range_ids, &appended).await?;
                    return if there { Ok(appended) } else { Err(error) };
                }
            }
        }
    }

    async fn attempt(
        &self,
        mut lease: Lease,
        batches: &[ValidBatch],
        projects: &[ProjectId],
        (plan, culprits): (&Plan<'_>, &Culprits),
        mode: Mode,
    ) -> Result<Vec<Appended>, Ended> {
        self.0.segments.look(&mut lease).await?;
        let range_ids = self.0.range_ids.take(&mut lease, self.epoch(), batches.len()).await?;
        let known = write::take_identities(&mut lease, &plan.identities(&range_ids, STATEMENT_ROWS)).await?;
        let (heads, segment) = self.locked_heads(&mut lease, projects).await?;
        let known_culprits = write::keep_aside(&mut lease, batches, culprits).await?;
        let outcome = plan.outcome(&known, &heads, &known_culprits);
        write::write(&mut lease, batches, &range_ids, &outcome, segment).await?;
        write::release(&mut lease, batches, &outcome).await?;
        if mode == Mode::Try {
            lease.rollback().await?;
            return Ok(outcome.appended);
        }
        match lease.commit().await {
            Ok(()) => {
                self.note_heads(&outcome);
                Ok(outcome.appended)
            }
            Err(error) => Err(Ended::Unknown { error, range_ids, appended: outcome.appended }),
        }
    }

    /// Locks the heads, and reads which segment is open. A head that isn't there, or is behind what was seen of it, shows
    /// that the database was restored.
    async fn locked_heads(
        &self,
        lease: &mut Lease,
        projects: &[ProjectId],
    ) -> Result<(BTreeMap<ProjectId, Head>, i32), Ended> {
        let seen = self.0.epoch.before_reading(projects.iter().copied());
        let Heads { of: heads, open_segment } = write::lock_heads(lease, projects).await?;
        let lost = |project: &&ProjectId| match heads.get(project) {
            None => true,
            Some(head) => seen.is_ahead_of(**project, head.position),
        };
        let lost = projects.iter().find(lost);
        if let (None, Some(segment)) = (lost, open_segment) {
            return Ok((heads, segment));
        }
        lease.rollback().await?;
        self.0.segments.forget();
        let Some(project) = lost else {
            return Err(Ended::Again(Error::unavailable("the log has no segment any more")));
        };
        self.forget(projects);
        if seen.is_ahead_of(*project, heads.get(project).map_or(0, |head| head.position)) {
            self.0.epoch.renew(lease).await?;
        }
        Err(Ended::Again(Error::unavailable(format!("the head of project {project} went back"))))
    }

    fn note_heads(&self, outcome: &Outcome) {
        for (project, growth) in &outcome.projects {
            self.0.epoch.saw(*project, growth.before.position + growth.ledger.stored);
        }
    }

    /// Asks on another connection whether a commit happened whose answer was lost: every range of it is there, and as it
    /// was written, for another's may have got its number. "No" may mean "not yet": then the next attempt waits for the
    /// identities and finds its events there.
    async fn was_committed(
        &self,
        batches: &[ValidBatch],
        range_ids: &[i64],
        appended: &[Appended],
    ) -> Result<bool, Error> {
        let mut lease = self.0.log.lease().await?;
        write::are_there(&mut lease, batches, range_ids, appended).await
    }
}

/// What became of each batch; a failure is everybody's.
fn one_each(
    outcome: Result<Vec<Result<Appended, Error>>, Error>,
    batches: usize,
) -> Vec<Result<Appended, Error>> {
    outcome.unwrap_or_else(|error| vec![Err(error); batches])
}

/// Whether an attempt is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Commit,
    Try,
}
