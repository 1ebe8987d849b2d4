/// What is shared by shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Storing accepted batches.
    Batches,
    /// Following announced ranges.
    Ranges,
}

/// Which part of the shards a process takes from, of as many as there are processes. The others it takes only while nobody
/// else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The process's place among the processes, from 0.
    pub place: usize,
    /// How many processes there are.
    pub of: usize,
}

impl Default for Share {
    fn default() -> Self {
        Self { place: 0, of: 1 }
    }
}

impl Share {
    /// Says whether a shard is in it. Neighbours stay together: the writers of one process take turns with the shards, so
    /// every writer gets its part.
    pub(super) fn has(self, shard: u16, shards: u16) -> bool {
        usize::from(shard) * self.of / usize::from(shards.max(1)) == self.place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_within_one_and_every_shard_is_in_one() {
        for shards in 1..=40 {
            for of in 1..=12 {
                let mut sizes = Vec::new();
                for place in 0..of {
                    sizes.push((0..shards).filter(|shard| Share { place, of }.has(*shard, shards)).count());
                }
                assert_eq!(
                    sizes.iter().sum::<usize>(),
                    usize::from(shards),
                    "{shards} shards, {of} processes"
                );
                let (least, most) = (sizes.iter().min(), sizes.iter().max());
                assert!(most.unwrap() - least.unwrap() <= 1, "{shards} shards, {of} processes: {sizes:?}");
            }
        }
    }

    #[test]
    fn two_writers_of_a_process_get_the_same_part() {
        for of in 1..=4 {
            for place in 0..of {
                let own: Vec<u16> = (0..16).filter(|shard| Share { place, of }.has(*shard, 16)).collect();
                let even = own.iter().filter(|shard| shard.is_multiple_of(2)).count();
                assert!(even.abs_diff(own.len() - even) <= 1, "{own:?}");
            }
        }
    }
}
