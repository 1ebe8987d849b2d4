use std::collections::BTreeMap;

use crate::cache::CountersState;
use crate::project::ProjectId;

/// Live counters that were found at another position than the store at the last look, and where.
#[derive(Default)]
pub(super) struct Doubts(BTreeMap<ProjectId, CountersState>);

impl Doubts {
    /// Judges counters against what the store held a moment before. Whoever applies a range moves the store first and the
    /// counters after it, so at one look they may well be apart; at two in a row, without having moved, nobody is at it.
    pub(super) fn must_reset(
        &mut self,
        project: ProjectId,
        stored: CountersState,
        counted: Option<CountersState>,
    ) -> bool {
        let before = self.0.remove(&project);
        match counted {
            Some(counted) if counted == stored => false,
            Some(counted) if (counted.epoch, counted.generation) == (stored.epoch, stored.generation) => {
                let stands_still = before == Some(counted);
                if !stands_still {
                    self.0.insert(project, counted);
                }
                stands_still
            }
            // Lost, or of another log or generation: no range leads from there to here.
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn counters_are_replaced_when_two_looks_in_a_row_find_them_where_they_should_not_be() {
        let state = |generation, applied_to| CountersState { epoch: Uuid::nil(), generation, applied_to };
        let (shop, blog, stored) = (ProjectId(1), ProjectId(2), state(1, 100));
        let mut doubts = Doubts::default();
        let mut looks = |project, counted| doubts.must_reset(project, stored, counted);
        assert!(!looks(shop, Some(stored)));
        assert!(!looks(shop, Some(state(1, 50))), "somebody may be about to move it");
        assert!(!looks(blog, Some(state(1, 50))), "each project by itself");
        assert!(!looks(shop, Some(state(1, 80))), "it moved");
        assert!(!looks(shop, Some(stored)), "and arrived");
        assert!(!looks(shop, Some(state(1, 80))), "not two in a row");
        assert!(looks(shop, Some(state(1, 80))));
        assert!(!looks(shop, Some(state(1, 80))), "a reset that was refused is tried every second look");
        assert!(looks(shop, None), "lost");
        assert!(looks(shop, Some(state(2, 100))), "another generation");
        let other = CountersState { epoch: Uuid::max(), ..stored };
        assert!(looks(shop, Some(other)), "another log");
    }
}
