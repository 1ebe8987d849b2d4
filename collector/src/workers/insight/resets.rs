use std::collections::{BTreeMap, BTreeSet};

use crate::project::ProjectId;

/// How many looks a project's reset is left alone at most, after it has failed again and again: 16 s.
const PAUSE_MAX: u32 = 16;

/// Resets that are wanted, and those that failed: the cache has no memory left or went away in between, or the store couldn't
/// add up. Each costs the store a sum over all counts of a project, so one is under way at a time; after one that failed there is
/// no other before the next look, and none of that project for 1, 2, 4 … looks.
#[derive(Default)]
pub(super) struct Resets {
    wanted: BTreeSet<ProjectId>,
    under_way: Option<ProjectId>,
    shut: bool,
    paused: BTreeMap<ProjectId, Pause>,
}

#[derive(Default)]
struct Pause {
    length: u32,
    left: u32,
}

impl Resets {
    /// Puts a project in line. What seems wrong of one that is under way is what it mends.
    pub(super) fn want(&mut self, project: ProjectId) {
        if !self.is_under_way(project) {
            self.wanted.insert(project);
        }
    }

    pub(super) fn is_under_way(&self, project: ProjectId) -> bool {
        self.under_way == Some(project)
    }

    /// Begins the next one that may. The others are wanted again by the next look, if they still are.
    pub(super) fn begin(&mut self) -> Option<ProjectId> {
        if self.under_way.is_none() {
            while let Some(project) = self.wanted.pop_first() {
                if self.may_begin(project) {
                    self.under_way = Some(project);
                    break;
                }
            }
            return self.under_way;
        }
        None
    }

    fn may_begin(&self, project: ProjectId) -> bool {
        !self.shut && self.paused.get(&project).is_none_or(|pause| pause.left == 0)
    }

    pub(super) fn ended(&mut self, project: ProjectId, taken: bool) {
        self.under_way = None;
        if taken {
            self.paused.remove(&project);
            return;
        }
        self.shut();
        let pause = self.paused.entry(project).or_default();
        pause.length = (pause.length * 2).clamp(1, PAUSE_MAX);
        pause.left = pause.length;
    }

    /// Leaves all alone until the next look: the cache didn't answer.
    pub(super) fn shut(&mut self) {
        self.shut = true;
    }

    /// Notes that a second has passed, and that the cache answers.
    pub(super) fn look(&mut self) {
        self.shut = false;
        self.paused.values_mut().for_each(|pause| pause.left = pause.left.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_is_tried_ever_more_rarely_and_holds_up_the_others_until_the_next_look() {
        let (shop, blog, mut resets) = (ProjectId(1), ProjectId(2), Resets::default());
        let mut tried = Vec::new();
        for look in 0..50 {
            resets.look();
            assert!(resets.may_begin(blog));
            if resets.may_begin(shop) {
                tried.push(look);
                resets.ended(shop, false);
                assert!(!resets.may_begin(blog), "one failure a look");
            }
        }
        assert_eq!(tried, [0, 1, 3, 7, 15, 31, 47]);
        resets.ended(shop, true);
        resets.look();
        assert!(resets.may_begin(shop));
    }
}
