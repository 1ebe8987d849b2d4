use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

use super::doubts::Doubts;
use super::resets::Resets;
use crate::bus::Hint;
use crate::cache::{Away, COUNTER_NAMES_MAX, CountersState};
use crate::project::ProjectId;
use crate::store::{Error, ViewProgress, ViewState};
use crate::workers::ask::{Live, Log};

/// What waits to be done, and what the last looks told. The projects take turns of one step, so that a backlog or a slow
/// project holds up the others by a step and no more.
#[derive(Default)]
pub(crate) struct Follower {
    /// Projects with something to do, next first, each once.
    turns: VecDeque<ProjectId>,
    /// Through where the log of each is to be applied.
    work: BTreeMap<ProjectId, u64>,
    /// How far the store has come, as it said itself: doubled and late ranges end here.
    applied: BTreeMap<ProjectId, (Uuid, u64)>,
    doubts: Doubts,
    resets: Resets,
}

/// Why it is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// A second after the last one.
    InTime,
    /// Announcements were missed. It may follow another look at once, so what it doubts says nothing.
    OutOfTime,
}

impl Follower {
    /// Says whether nothing is left to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.turns.is_empty()
    }

    /// Takes in what was announced, and says whether something was missed: then it is to be looked. A burst of small ranges
    /// adds up to one step.
    pub(crate) fn hear(&mut self, hint: Hint) -> bool {
        if let Hint::Range(range) = hint {
            self.follow(range.project, range.last);
        }
        hint == Hint::Missed
    }

    /// Gives a project a turn. While its live counters are begun anew it waits: they would lie behind what is applied meanwhile.
    fn follow(&mut self, project: ProjectId, through: u64) {
        match self.work.entry(project) {
            Entry::Occupied(mut known) => *known.get_mut() = through.max(*known.get()),
            Entry::Vacant(new) => {
                new.insert(through);
                if !self.resets.is_under_way(project) {
                    self.turns.push_back(project);
                }
            }
        }
    }

    /// Compares every project's counts with its head, and its live counters with its counts. It costs one question to the
    /// store and one to the cache, however many projects there are.
    pub(crate) async fn look(&mut self, why: Look, store: &impl Log, cache: &impl Live) -> Result<(), Error> {
        let progress = store.view_progress().await?;
        let epoch = store.epoch();
        match counted(&progress, cache).await {
            Ok(counted) => {
                if why == Look::InTime {
                    self.resets.look();
                }
                self.compare(why, epoch, &progress, &counted);
                if went_back(epoch, &progress, &counted, store).await? {
                    // The next look finds all counters to be of another log.
                    self.applied.clear();
                    return Ok(());
                }
            }
            // What can't be asked is not known to be lost, and has no use for totals.
            Err(Away) => {
                self.doubts = Doubts::default();
                self.resets.shut();
            }
        }
        for of in progress {
            self.applied.insert(of.project, (epoch, of.applied_to()));
            if of.applied_to() < of.head {
                self.follow(of.project, of.head);
            }
        }
        Ok(())
    }

    fn compare(
        &mut self,
        why: Look,
        epoch: Uuid,
        progress: &[ViewProgress],
        counted: &[Option<CountersState>],
    ) {
        let mut none = Doubts::default();
        for (of, counted) in progress.iter().zip(counted) {
            let ViewState { generation, applied_to } = of.state;
            let stored = CountersState { epoch, generation, applied_to };
            let doubts = if why == Look::InTime { &mut self.doubts } else { &mut none };
            if doubts.must_reset(of.project, stored, *counted) {
                self.resets.want(of.project);
            }
        }
    }

    /// Does one step of the project whose turn it is. What fails is found again by the next look.
    pub(crate) async fn turn(&mut self, store: &impl Log, cache: &impl Live) -> Result<(), Error> {
        let Some(project) = self.turns.pop_front() else { return Ok(()) };
        let through = self.work.remove(&project).unwrap_or_default();
        let epoch = store.epoch();
        if self.applied.get(&project).is_some_and(|(of, applied_to)| *of == epoch && *applied_to >= through) {
            return Ok(());
        }
        // The epoch is that of before the step: a log restored after it has another one, whose counters may stand where this
        // step began.
        let applied = store.apply_counts(project, through).await?;
        let identified = applied.identified;
        let counts_moved = applied.through > applied.from;
        let identified_moved = identified.through > identified.from;
        // What stands still is somebody else's for now, or may lie behind for a moment, and is found again by the next look.
        let reached =
            if identified_moved { applied.through.min(identified.through) } else { applied.through };
        self.applied.insert(project, (epoch, reached));
        if reached < through && (counts_moved || identified_moved) {
            self.follow(project, through);
        }
        if !counts_moved {
            return Ok(());
        }
        let counted = cache.count_up(project, epoch, &applied).await;
        match counted {
            Ok(true) => {}
            Ok(false) => self.resets.want(project),
            Err(Away) => self.resets.shut(),
        }
        Ok(())
    }

    /// Says whose live counters are to be begun anew next, by [`reset`], if anybody's. One at a time: each costs the store a sum
    /// over all counts of its project, and the others are counted meanwhile.
    pub(crate) fn begin_reset(&mut self) -> Option<ProjectId> {
        let project = self.resets.begin()?;
        self.turns.retain(|of| *of != project);
        Some(project)
    }

    /// Notes what became of it. What failed is found again by a later look; until then its project is counted.
    pub(crate) fn end_reset(&mut self, (project, outcome): Reset) -> Result<(), Error> {
        self.resets.ended(project, matches!(outcome, Ok(true)));
        if self.work.contains_key(&project) {
            self.turns.push_back(project);
        }
        outcome.map(drop)
    }
}

/// Whose live counters were begun anew, and whether the cache took them.
pub(crate) type Reset = (ProjectId, Result<bool, Error>);

/// Begins a project's live counters anew with what the store holds.
pub(crate) async fn reset(project: ProjectId, store: &impl Log, cache: &impl Live) -> Reset {
    // Before the totals: those of a log that was restored in between are found wrong by the next look.
    let epoch = store.epoch();
    let taken = match store.count_totals(project, COUNTER_NAMES_MAX).await {
        Ok(totals) => Ok(cache.reset(project, epoch, totals).await.is_ok()),
        Err(error) => Err(error),
    };
    (project, taken)
}

/// See [`super::notice_restore`].
pub(in crate::workers) async fn notice_restore(store: &impl Log, cache: &impl Live) -> Result<(), Error> {
    let progress = store.view_progress().await?;
    if let Ok(counted) = counted(&progress, cache).await {
        went_back(store.epoch(), &progress, &counted, store).await?;
    }
    Ok(())
}

async fn counted(progress: &[ViewProgress], cache: &impl Live) -> Result<Vec<Option<CountersState>>, Away> {
    let projects: Vec<ProjectId> = progress.iter().map(|of| of.project).collect();
    cache.counters_states(&projects).await
}

/// Has the store look again where counters seem to be ahead of their log: it may have moved since it was asked.
async fn went_back(
    epoch: Uuid,
    progress: &[ViewProgress],
    counted: &[Option<CountersState>],
    store: &impl Log,
) -> Result<bool, Error> {
    for (of, counted) in progress.iter().zip(counted) {
        let Some(counted) = counted.filter(|counted| counted.epoch == epoch) else { continue };
        let seen = ViewState { generation: counted.generation, applied_to: counted.applied_to };
        if of.state.is_behind(of.head, &seen) && store.went_back(of.project, epoch, seen).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::message::{StoredRange, ValidBatch};
    use crate::cache::Cache;
    use crate::store::{SqliteOptions, Store};
    use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp};

    fn batch(project: ProjectId, id: &str) -> ValidBatch {
        let time = Timestamp::from_ms(0).expect("it is 1970");
        let event = Event {
            id: EventId::from_text(id),
            name: "a".to_owned(),
            description: None,
            user: None,
            time,
            stream: None,
            correlation: None,
            properties: Properties::default(),
        };
        ValidBatch {
            project,
            batch: BatchId::from_text(id),
            received: time,
            skew_ms: None,
            events: vec![event],
            undated: Vec::new(),
            refused: Vec::new(),
            part: 0,
            parts: 1,
        }
    }

    async fn projects<const N: usize>(store: &Store, names: [&str; N]) -> [ProjectId; N] {
        let account = store.create_account("ada@example.com", "team").await.unwrap();
        let mut made = [ProjectId(0); N];
        for (project, name) in made.iter_mut().zip(names) {
            *project = store.create_project(account, name).await.unwrap().project.id;
        }
        made
    }

    fn scratch(folder: &tempfile::TempDir) -> Store {
        Store::sqlite(SqliteOptions::new(folder.path().join("store.db"))).unwrap()
    }

    /// A second passes, and everything is done that it brings.
    async fn second(follower: &mut Follower, store: &Store, cache: &Cache) {
        follower.look(Look::InTime, store, cache).await.unwrap();
        while !follower.is_idle() {
            follower.turn(store, cache).await.unwrap();
        }
        begin_anew(follower, store, cache).await;
    }

    async fn begin_anew(follower: &mut Follower, store: &impl Log, cache: &Cache) {
        while let Some(project) = follower.begin_reset() {
            follower.end_reset(reset(project, store, cache).await).unwrap();
        }
    }

    #[tokio::test]
    async fn a_counter_a_moment_behind_is_left_to_whoever_moves_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = scratch(&folder);
        let [shop] = projects(&store, ["shop"]).await;
        let (cache, mut follower) = (Cache::memory(), Follower::default());
        let counted = async || cache.counters(shop).await.map(|live| (live.applied_to, live.per_name));
        let name = |count| BTreeMap::from([("a".to_owned(), count)]);
        second(&mut follower, &store, &cache).await;
        assert_eq!(counted().await, Some((0, BTreeMap::new())), "none yet");

        store.append(vec![batch(shop, "x")]).await.unwrap();
        let applied = store.apply_counts(shop, 1).await.unwrap();
        second(&mut follower, &store, &cache).await;
        let followed = cache.count_up(shop, store.epoch(), &applied).await;
        assert_eq!(followed, Ok(true), "what another worker applied follows on");
        second(&mut follower, &store, &cache).await;
        assert_eq!(counted().await, Some((1, name(1))));

        // This time the other worker dies in between.
        store.append(vec![batch(shop, "y")]).await.unwrap();
        store.apply_counts(shop, 2).await.unwrap();
        second(&mut follower, &store, &cache).await;
        assert_eq!(counted().await, Some((1, name(1))));
        second(&mut follower, &store, &cache).await;
        assert_eq!(counted().await, Some((2, name(2))));
        // Lost counters are there again with the next look.
        let cache = Cache::memory();
        second(&mut follower, &store, &cache).await;
        assert_eq!(cache.counters(shop).await.map(|live| live.applied_to), Some(2));
    }

    /// A log whose steps are two positions long, and the order in which they were asked for.
    struct Steps<'a> {
        store: &'a Store,
        order: std::cell::RefCell<Vec<(ProjectId, u64)>>,
    }

    impl Log for Steps<'_> {
        fn epoch(&self) -> Uuid {
            self.store.epoch()
        }

        async fn append_each(
            &self,
            batches: std::sync::Arc<[ValidBatch]>,
        ) -> Vec<Result<crate::store::Appended, Error>> {
            self.store.append_each(batches).await
        }

        async fn quarantine(&self, batch: &ValidBatch, what: &str) -> Result<crate::store::Appended, Error> {
            self.store.quarantine(batch, what).await
        }

        async fn view_progress(&self) -> Result<Vec<ViewProgress>, Error> {
            self.store.view_progress().await
        }

        async fn went_back(&self, project: ProjectId, epoch: Uuid, seen: ViewState) -> Result<bool, Error> {
            self.store.went_back(project, epoch, seen).await
        }

        async fn apply_counts(
            &self,
            project: ProjectId,
            through: u64,
        ) -> Result<crate::store::Applied, Error> {
            let from = self.store.view_state(project).await?.applied_to;
            let applied = self.store.apply_counts(project, through.min(from + 2)).await?;
            self.order.borrow_mut().push((project, applied.through));
            Ok(applied)
        }

        async fn count_totals(
            &self,
            project: ProjectId,
            names_max: usize,
        ) -> Result<crate::store::CountTotals, Error> {
            self.store.count_totals(project, names_max).await
        }
    }

    #[tokio::test]
    async fn a_backlog_is_taken_in_turns_and_what_is_applied_costs_the_store_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = scratch(&folder);
        let [shop, blog] = projects(&store, ["shop", "blog"]).await;
        let (cache, mut follower) = (Cache::memory(), Follower::default());
        for number in 0..7 {
            store.append(vec![batch(shop, &number.to_string())]).await.unwrap();
        }
        store.append(vec![batch(blog, "x")]).await.unwrap();
        let steps = Steps { store: &store, order: std::cell::RefCell::default() };
        follower.look(Look::InTime, &steps, &cache).await.unwrap();
        begin_anew(&mut follower, &steps, &cache).await;
        while !follower.is_idle() {
            follower.turn(&steps, &cache).await.unwrap();
        }
        assert_eq!(steps.order.take(), [(shop, 2), (blog, 1), (shop, 4), (shop, 6), (shop, 7)]);
        assert_eq!(cache.counters(shop).await.map(|live| live.per_name["a"]), Some(7));
        assert_eq!(cache.counters(blog).await.map(|live| live.per_name["a"]), Some(1));

        // Heard late, twice, and in parts.
        for (project, last) in [(shop, 3), (blog, 1), (shop, 7)] {
            assert!(!follower.hear(Hint::Range(StoredRange { project, first: 1, last })));
            follower.turn(&steps, &cache).await.unwrap();
        }
        follower.look(Look::InTime, &steps, &cache).await.unwrap();
        assert!(follower.is_idle() && steps.order.take().is_empty());
    }
}
