use super::{Role, Simulation};
use crate::project::ProjectId;
use crate::workers::tests::judge;
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
        simulation.begin(first);
        while simulation.workers[first].way.stops.at() != Some(At::After(Ask::ApplyCounts)) {
            simulation.step(first);
        }
        simulation.restore_log();
        simulation.workers.iter().for_each(|worker| worker.way.learn_epoch());
        simulation.look_through(second);
        simulation.finish(first);
        judge::counters(&simulation.world.borrow())
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
        self.begin(place);
        self.finish(place);
    }

    fn finish(&mut self, place: usize) {
        while self.workers[place].task.is_some() {
            self.step(place);
        }
    }
}
