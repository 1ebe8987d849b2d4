use eventbucket_protocol::Timestamp;

use super::{Error, Reader};
use crate::project::ProjectId;
use crate::store::{CountRow, CountsBy, CountsQuery};

const HOUR_MS: i64 = 3_600_000;

/// How many events there are, and how much of the log that says.
#[derive(Clone, Debug)]
pub struct Counts {
    /// The counts, by name and hour.
    pub rows: Vec<CountRow>,
    /// The position through which at least they are counted.
    pub applied_to: u64,
    /// The last position of the log.
    pub position: u64,
}

impl Reader {
    /// Counts events by name, or by name and hour. Totals over all time come from the live counters, everything else from
    /// the rollup.
    ///
    /// # Errors
    /// A time that isn't the beginning of an hour; a store that can't be read.
    pub async fn counts(&self, project: ProjectId, query: CountsQuery) -> Result<Counts, Error> {
        full_hour("from", query.from_hour)?;
        full_hour("to", query.to_hour)?;
        // The head is read last, so `applied_to` never seems to be ahead of it.
        let (rows, applied_to) = match self.live(project, &query).await {
            Some(live) => live,
            None => {
                let state = self.store.view_state(project).await?;
                (self.store.counts(project, query).await?, state.applied_to)
            }
        };
        Ok(Counts { rows, applied_to, position: self.store.head(project).await? })
    }

    async fn live(&self, project: ProjectId, query: &CountsQuery) -> Option<(Vec<CountRow>, u64)> {
        let over_all_time = query.from_hour.is_none() && query.to_hour.is_none();
        if query.by != CountsBy::Total || !over_all_time {
            return None;
        }
        let counters = self.cache.counters(project).await?;
        let asked = |name: &String| query.name.as_ref().is_none_or(|asked| asked == name);
        let rows = counters.per_name.into_iter().filter(|(name, _)| asked(name));
        let rows = rows.map(|(name, count)| CountRow { name, hour: None, count }).collect();
        Some((rows, counters.applied_to))
    }
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
