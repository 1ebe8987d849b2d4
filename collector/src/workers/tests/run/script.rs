use super::{LOOK_MS, Role, Simulation};
use crate::bus::Hint;
use crate::bus::message::StoredRange;
use crate::cache::KeptCounters;
use crate::project::ProjectId;
use crate::workers::tests::judge;
use crate::workers::tests::sending::PROJECTS;
use crate::workers::tests::world::{Ask, At};

/// Orders of steps that somebody wrote down.
impl Simulation {
    /// One insight worker counts; the log is restored, and the other begins its counters anew; only then the first tells what it
    /// had counted.
    pub(in crate::workers::tests) fn step_told_after_a_restore() -> Result<(), String> {
        let mut simulation = (1..).map(Self::new).find(|simulation| simulation.durable).ok_or("no seed")?;
        simulation.trouble = 0;
        let insight = simulation.filter(|worker| worker.role == Role::Insight);
        let (first, second) = (insight[0], insight[1]);
        simulation.store_something();
        simulation.look_through(second);
        simulation.keep_log();
        simulation.store_something();
        simulation.workers[first].look_at = 0;
        while simulation.workers[first].way.stops.at() != Some(At::After(Ask::ApplyCounts)) {
            simulation.begin_or_step(first);
        }
        simulation.restore_log();
        simulation.workers.iter().for_each(|worker| worker.way.learn_epoch());
        simulation.look_through(second);
        simulation.finish(first);
        judge::counters(&simulation.world.borrow())
    }

    /// The cache can't be asked for a minute, with something new each second, and comes back empty or as it was: totals are
    /// read when it is back and not before, once a project.
    pub(in crate::workers::tests) fn cache_away_for_a_minute() -> Result<(), String> {
        for comes_back_empty in [true, false] {
            let mut simulation =
                (1..).map(Self::new).find(|simulation| simulation.durable).ok_or("no seed")?;
            simulation.trouble = 0;
            let insight = simulation.filter(|worker| worker.role == Role::Insight)[0];
            simulation.store_something();
            simulation.look_through(insight);
            let totals = |simulation: &Self| {
                simulation.world.borrow().asked.get(&Ask::CountTotals).copied().unwrap_or(0)
            };
            let before = totals(&simulation);
            simulation.cache_away = u64::MAX;
            for _ in 0..60 {
                simulation.store_something();
                simulation.hear_and_look(insight);
            }
            let meanwhile = totals(&simulation) - before;
            simulation.cache_away = 0;
            if comes_back_empty {
                simulation.world.borrow_mut().restore_cache(&KeptCounters::default());
            }
            for _ in 0..4 {
                simulation.hear_and_look(insight);
            }
            let after = totals(&simulation) - before - meanwhile;
            // Of those that come back as they were, the project that nothing was stored in stands where it should.
            let due = if comes_back_empty { u64::from(PROJECTS) } else { 1 };
            if (meanwhile, after) != (0, due) {
                return Err(format!("{meanwhile} totals were read while it was away, {after} afterwards"));
            }
            judge::counters(&simulation.world.borrow())?;
        }
        Ok(())
    }

    /// A second with an announcement of everything in it.
    fn hear_and_look(&mut self, place: usize) {
        self.world.borrow_mut().now_ms += LOOK_MS;
        let last = self.world.borrow().log.contents(ProjectId(1)).map_or(0, |found| found.head);
        let range = StoredRange { project: ProjectId(1), first: last, last };
        self.workers[place].heard.push_back(Hint::Range(range));
        self.workers[place].look_at = self.now();
        while !self.workers[place].heard.is_empty()
            || self.workers[place].look_at <= self.now()
            || !self.workers[place].follower.borrow().is_idle()
        {
            self.begin(place);
            self.finish(place);
        }
    }

    /// Stores a batch of one project, with something new in it.
    fn store_something(&mut self) {
        let mut world = self.world.borrow_mut();
        loop {
            let batch = world.clients.new_batch(0, &mut self.random);
            let stored = |outcome: &Result<crate::store::Appended, _>| {
                outcome.as_ref().is_ok_and(|appended| appended.range.first <= appended.range.last)
            };
            if batch.project == ProjectId(1) && world.log.append_each(&[batch]).iter().any(stored) {
                return;
            }
        }
    }

    fn look_through(&mut self, place: usize) {
        self.workers[place].look_at = 0;
        while self.workers[place].look_at == 0 || !self.workers[place].follower.borrow().is_idle() {
            self.begin(place);
            self.finish(place);
        }
    }

    fn begin_or_step(&mut self, place: usize) {
        match self.workers[place].task {
            Some(_) => self.step(place),
            None => self.begin(place),
        }
    }

    fn finish(&mut self, place: usize) {
        while self.workers[place].task.is_some() {
            self.step(place);
        }
    }
}
