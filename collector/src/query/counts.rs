use eventbucket_protocol::Timestamp;
use serde::Serialize;

use super::{Error, Reader};
use crate::project::ProjectId;
use crate::store::{self, CountsBy, CountsQuery, UserCounts};

const HOUR_MS: i64 = 3_600_000;

/// How many events of a name there are, and how many different users they have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CountRow {
    /// The events' name.
    pub name: String,
    /// The beginning of the day in UTC, where days were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day: Option<Timestamp>,
    /// The beginning of the hour, where hours were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hour: Option<Timestamp>,
    /// How many events there are.
    pub count: u64,
    /// How many different users, with a standard error of [`crate::insight::STANDARD_ERROR`]; events without a user add nobody.
    pub users: Option<u64>,
}

/// How many events there are, and how much of the log that says.
#[derive(Clone, Debug)]
pub struct Counts {
    /// The counts, by name and hour or day.
    pub rows: Vec<CountRow>,
    /// How many different users all rows have together: each once, so it is no sum. `None` where nobody asked, and until the
    /// counts are rebuilt after an upgrade from a version that didn't count users.
    pub users: Option<u64>,
    /// The position through which at least they are counted.
    pub applied_to: u64,
    /// The last position of the log.
    pub position: u64,
}

impl Reader {
    /// Counts events, and their users if they are wanted, by name, or by name and hour or day. Totals of events over all time
    /// come from the live counters, everything else from the rollups.
    ///
    /// # Errors
    /// A time that isn't the beginning of an hour; an answer that would be too large; a store that can't be read.
    pub async fn counts(&self, project: ProjectId, query: CountsQuery) -> Result<Counts, Error> {
        self.counts_through(project, query, 0).await
    }

    /// As [`Reader::counts`], from counters that go through a position, for which [`Reader::counts_reach`] has waited.
    ///
    /// # Errors
    /// Those of [`Reader::counts`].
    pub async fn counts_through(
        &self,
        project: ProjectId,
        query: CountsQuery,
        position: u64,
    ) -> Result<Counts, Error> {
        full_hour("from", query.from_hour)?;
        full_hour("to", query.to_hour)?;
        // The head is read last, so `applied_to` never seems to be ahead of it.
        let (rows, applied_to) = match self.live(project, &query).await {
            // The live counters are moved after the rollups.
            Some(live) if live.1 >= position => live,
            _ => {
                let state = self.store.view_state(project).await?;
                (self.store.counts(project, query.clone()).await?, state.applied_to)
            }
        };
        // After the counts, so that no user is missing whose events are counted.
        let by = query.by;
        let users = if query.users { self.store.users(project, query).await? } else { None };
        let rows = rows.into_iter().map(|row| with_users(row, by, users.as_ref())).collect::<Vec<_>>();
        // What was applied in between has users already and no count yet.
        let total = rows.iter().map(|row| row.count).sum();
        let users = users.map(|users| users.total.min(total));
        Ok(Counts { rows, users, applied_to, position: self.store.head(project).await? })
    }

    async fn live(&self, project: ProjectId, query: &CountsQuery) -> Option<(Vec<store::CountRow>, u64)> {
        let over_all_time = query.from_hour.is_none() && query.to_hour.is_none();
        if query.by != CountsBy::Total || !over_all_time {
            return None;
        }
        let counters = self.cache.counters(project).await?;
        let asked = |name: &String| query.name.as_ref().is_none_or(|asked| asked == name);
        let rows = counters.per_name.into_iter().filter(|(name, _)| asked(name));
        let rows = rows.map(|(name, count)| store::CountRow { name, start: None, count }).collect();
        Some((rows, counters.applied_to))
    }
}

/// No estimate is above the number of events, which is exact.
fn with_users(row: store::CountRow, by: CountsBy, users: Option<&UserCounts>) -> CountRow {
    let store::CountRow { name, start, count } = row;
    let key = (name, start);
    let users = users.map(|users| users.rows.get(&key).copied().unwrap_or(0).min(count));
    let (day, hour) = match by {
        CountsBy::Total => (None, None),
        CountsBy::Day => (start, None),
        CountsBy::Hour => (None, start),
    };
    CountRow { name: key.0, day, hour, count, users }
}

/// Counts are kept by hour; cutting one in two would be a guess.
fn full_hour(name: &'static str, time: Option<Timestamp>) -> Result<(), Error> {
    match time {
        Some(time) if time.ms().rem_euclid(HOUR_MS) != 0 => {
            let hour = time.shifted(-time.ms().rem_euclid(HOUR_MS));
            let message =
                format!("{time} is not the beginning of an hour, and counts are kept by hour; use {hour}");
            Err(Error::Parameter { name, message })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_hours_are_taken_also_before_1970() {
        let at = |text| Timestamp::from_rfc3339(text);
        assert!(full_hour("from", at("1969-12-31T23:00:00Z")).is_ok());
        let error = full_hour("from", at("1969-12-31T23:30:00Z")).unwrap_err().to_string();
        assert!(error.starts_with("from: 1969-12-31T23:30:00.000Z is not"), "{error}");
        assert!(error.ends_with("use 1969-12-31T23:00:00.000Z"), "{error}");
    }
}
