use std::collections::{BTreeMap, HashMap};

use super::Sketch;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// How much time one kept sketch covers. Hours answer for any span; days and the whole keep long spans cheap to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grain {
    /// All time.
    Ever,
    /// A day in UTC.
    Day,
    /// An hour.
    Hour,
}

impl Grain {
    /// How many hours it covers; 0 for all time.
    #[must_use]
    pub fn hours(self) -> i16 {
        match self {
            Self::Ever => 0,
            Self::Day => 24,
            Self::Hour => 1,
        }
    }

    /// The beginning of what a time lies in, also before 1970; 0 for all time.
    #[must_use]
    pub fn start_of(self, time_ms: i64) -> i64 {
        match self {
            Self::Ever => 0,
            Self::Day => time_ms - time_ms.rem_euclid(DAY_MS),
            Self::Hour => time_ms - time_ms.rem_euclid(HOUR_MS),
        }
    }
}

/// What one kept sketch is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// How much time it covers.
    pub grain: Grain,
    /// Where that begins.
    pub start_ms: i64,
    /// The events' name.
    pub name: String,
}

/// What a stretch of the log adds to the views: events, and different users, per name and hour.
#[derive(Clone, Debug, Default)]
pub struct Tally(HashMap<String, BTreeMap<i64, OfHour>>);

#[derive(Clone, Debug, Default)]
struct OfHour {
    count: u64,
    users: Option<Sketch>,
}

impl Tally {
    /// Adds events of one name and hour, and the users of those that have one. An empty user is one like any other.
    pub fn add<'u>(
        &mut self,
        name: &str,
        hour_ms: i64,
        count: u64,
        users: impl IntoIterator<Item = &'u [u8]>,
    ) {
        let hours = match self.0.get_mut(name) {
            Some(hours) => hours,
            None => self.0.entry(name.to_owned()).or_default(),
        };
        let hour = hours.entry(hour_ms).or_default();
        hour.count += count;
        for user in users {
            hour.users.get_or_insert_default().insert(user);
        }
    }

    /// How many events there were: name, hour and count, in no order.
    pub fn counts(&self) -> impl Iterator<Item = (&str, i64, u64)> {
        self.0.iter().flat_map(|(name, hours)| {
            hours.iter().map(|(hour_ms, hour)| (name.as_str(), *hour_ms, hour.count))
        })
    }

    /// How many events of each name there were, in the order of the names.
    #[must_use]
    pub fn per_name(&self) -> Vec<(String, u64)> {
        let sum = |hours: &BTreeMap<i64, OfHour>| hours.values().map(|hour| hour.count).sum();
        let mut per_name: Vec<_> = self.0.iter().map(|(name, hours)| (name.clone(), sum(hours))).collect();
        per_name.sort_unstable();
        per_name
    }

    /// The sketches of the users, of every grain, in the order of the cells.
    #[must_use]
    pub fn users(self) -> BTreeMap<Cell, Sketch> {
        let mut cells: BTreeMap<Cell, Sketch> = BTreeMap::new();
        for (name, hours) in self.0 {
            for (hour_ms, hour) in hours {
                let Some(users) = hour.users else { continue };
                for grain in [Grain::Ever, Grain::Day] {
                    let cell = Cell { grain, start_ms: grain.start_of(hour_ms), name: name.clone() };
                    cells.entry(cell).or_default().merge(&users);
                }
                cells.insert(Cell { grain: Grain::Hour, start_ms: hour_ms, name: name.clone() }, users);
            }
        }
        cells
    }
}

/// Cells of one grain that begin at or after `from_ms` and before `to_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The grain.
    pub grain: Grain,
    /// The first beginning.
    pub from_ms: i64,
    /// What every beginning is before.
    pub to_ms: i64,
}

/// Cuts a span of full hours into the fewest cells that cover it, none of them larger than `largest`: hours up to the first
/// midnight, whole days, hours again.
#[must_use]
pub fn pieces(from_ms: Option<i64>, to_ms: Option<i64>, largest: Grain) -> Vec<Piece> {
    let (from, to) = (from_ms.unwrap_or(i64::MIN), to_ms.unwrap_or(i64::MAX));
    let piece = |grain, from_ms, to_ms| Piece { grain, from_ms, to_ms };
    if largest == Grain::Ever && from_ms.is_none() && to_ms.is_none() {
        return vec![piece(Grain::Ever, 0, 1)];
    }
    // Open ends are no midnights, and belong to days all the same.
    let first_day = from_ms.map_or(from, |from| Grain::Day.start_of(from.saturating_add(DAY_MS - 1)));
    let last_day = to_ms.map_or(to, |to| Grain::Day.start_of(to));
    if largest == Grain::Hour || first_day >= last_day {
        return vec![piece(Grain::Hour, from, to)];
    }
    let all = [
        piece(Grain::Hour, from, first_day),
        piece(Grain::Day, first_day, last_day),
        piece(Grain::Hour, last_day, to),
    ];
    all.into_iter().filter(|piece| piece.from_ms < piece.to_ms).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_has_users_of_every_grain_and_counts_of_all() {
        let mut tally = Tally::default();
        let user = |name: &'static str| Some(name.as_bytes());
        tally.add("a", 23 * HOUR_MS, 2, user("ada"));
        tally.add("a", 24 * HOUR_MS, 1, user("ada"));
        tally.add("a", 24 * HOUR_MS, 1, user("grace"));
        tally.add("b", -HOUR_MS, 5, None);
        let mut counts: Vec<_> =
            tally.counts().map(|(name, hour, count)| (name.to_owned(), hour, count)).collect();
        counts.sort();
        let expected =
            [("a".into(), 23 * HOUR_MS, 2), ("a".into(), 24 * HOUR_MS, 2), ("b".into(), -HOUR_MS, 5)];
        assert_eq!(counts, expected);
        assert_eq!(tally.per_name(), [("a".to_owned(), 4), ("b".to_owned(), 5)]);
        let users: Vec<_> = tally.users().into_iter().map(|(cell, users)| (cell, users.estimate())).collect();
        let cell = |grain, hours: i64| Cell { grain, start_ms: hours * HOUR_MS, name: "a".to_owned() };
        let expected = [
            (cell(Grain::Ever, 0), 2),
            (cell(Grain::Day, 0), 1),
            (cell(Grain::Day, 24), 2),
            (cell(Grain::Hour, 23), 1),
            (cell(Grain::Hour, 24), 2),
        ];
        assert_eq!(users, expected, "events without a user make no cell");
    }

    /// Which hours between two are covered, each as often as it is.
    fn covered(pieces: &[Piece], from: i64, to: i64) -> Vec<usize> {
        let covers = |piece: &Piece, hour_ms: i64| {
            (piece.from_ms..piece.to_ms).contains(&piece.grain.start_of(hour_ms))
        };
        (from..to).map(|hour| pieces.iter().filter(|piece| covers(piece, hour * HOUR_MS)).count()).collect()
    }

    #[test]
    fn pieces_cover_every_hour_once_and_no_other() {
        for from in -50..50 {
            for to in from..60 {
                for largest in [Grain::Hour, Grain::Day, Grain::Ever] {
                    let pieces = pieces(Some(from * HOUR_MS), Some(to * HOUR_MS), largest);
                    let inside = |hour| usize::from((from..to).contains(&hour));
                    let expected: Vec<usize> = (-80..100).map(inside).collect();
                    assert_eq!(covered(&pieces, -80, 100), expected, "{from} to {to}: {pieces:?}");
                }
            }
            let (open, hour) = (i64::MIN, from * HOUR_MS);
            assert_eq!(
                covered(&pieces(None, Some(hour), Grain::Ever), -80, 100).iter().sum::<usize>() as i64,
                from + 80
            );
            assert_eq!(
                covered(&pieces(Some(hour), None, Grain::Day), -80, 100).iter().sum::<usize>() as i64,
                100 - from
            );
            assert_eq!(pieces(None, None, Grain::Day)[0].from_ms, open);
        }
        assert_eq!(pieces(None, None, Grain::Ever), [Piece { grain: Grain::Ever, from_ms: 0, to_ms: 1 }]);
        let week = pieces(Some(5 * HOUR_MS), Some(7 * DAY_MS + HOUR_MS), Grain::Ever);
        let grains: Vec<Grain> = week.iter().map(|piece| piece.grain).collect();
        assert_eq!(grains, [Grain::Hour, Grain::Day, Grain::Hour]);
    }
}
