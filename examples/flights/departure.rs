use anyhow::{Context, bail};
use csv::StringRecord;
use eventbucket::Event;
use jiff::Timestamp;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;

/// What the file writes for a value nobody knows.
const UNKNOWN: &str = "NA";

/// The columns that are text, also where it looks like a number.
const TEXT: [&str; 5] = ["carrier", "tailnum", "origin", "dest", "time_hour"];

/// The columns that are numbers. Others are what they look like.
const NUMBERS: [&str; 14] = [
    "year",
    "month",
    "day",
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "arr_time",
    "sched_arr_time",
    "arr_delay",
    "flight",
    "air_time",
    "distance",
    "hour",
    "minute",
];

/// Turns rows of the file into events.
pub(crate) struct Departures {
    columns: Vec<String>,
    /// Times in the file are local. It covers the three airports of New York, so one zone is enough.
    zone: TimeZone,
}

impl Departures {
    /// Reads the header row.
    pub(crate) fn new(header: &StringRecord) -> anyhow::Result<Self> {
        // Spreadsheets begin a file with a byte order mark.
        let columns: Vec<String> =
            header.iter().map(|name| name.trim_start_matches('\u{feff}').to_owned()).collect();
        if let Some((_, twice)) = columns.iter().enumerate().find(|(at, name)| columns[..*at].contains(name))
        {
            bail!("the file has two columns {twice:?}; remove one");
        }
        for needed in ["year", "month", "day", "hour", "minute", "carrier", "flight", "tailnum", "origin"] {
            if !columns.iter().any(|column| column == needed) {
                bail!("the file has no column {needed:?}; take the columns of nycflights13");
            }
        }
        Ok(Self { columns, zone: TimeZone::get("America/New_York").context("find New York's time zone")? })
    }

    /// Makes the event of a row. What is unknown (`NA`) becomes neither a property nor a user: a number that isn't
    /// there can't be summed up by accident.
    pub(crate) fn event(&self, row: &StringRecord) -> anyhow::Result<Event> {
        let scheduled = self.scheduled(row)?;
        let mut event =
            Event::new("departure").id(self.id(row, &scheduled)?).time_ms(scheduled.as_millisecond());
        if let Some(tail_number) = self.known(row, "tailnum") {
            event = event.user(tail_number);
        }
        for (column, value) in self.columns.iter().zip(row) {
            if value == UNKNOWN || value.is_empty() {
                continue;
            }
            event = if TEXT.contains(&column.as_str()) {
                event.prop(column, value)
            } else if let Ok(whole) = value.parse::<i64>() {
                event.prop(column, whole)
            } else if NUMBERS.contains(&column.as_str()) {
                event.prop(column, number(column, value)?)
            } else if let Ok(number) = number(column, value) {
                event.prop(column, number)
            } else {
                event.prop(column, value)
            };
        }
        Ok(event)
    }

    /// No carrier gives one flight number to two departures from the same airport at the same minute, so the same row
    /// has the same id in every run, and two rows never share one.
    fn id(&self, row: &StringRecord, scheduled: &Timestamp) -> anyhow::Result<String> {
        let part = |column| self.known(row, column).with_context(|| format!("{column} is unknown"));
        let minute = scheduled.strftime("%Y%m%dT%H%MZ");
        Ok(format!("{}-{}-{}-{minute}", part("carrier")?, part("flight")?, part("origin")?))
    }

    fn scheduled(&self, row: &StringRecord) -> anyhow::Result<Timestamp> {
        let part = |column| -> anyhow::Result<i16> {
            let value = self.known(row, column).with_context(|| format!("{column} is unknown"))?;
            value.parse().with_context(|| format!("{column} is {:?}, not a whole number", beginning(value)))
        };
        let small = |column| -> anyhow::Result<i8> {
            let value = part(column)?;
            value.try_into().with_context(|| format!("{column} is {value}, out of range"))
        };
        let date = Date::new(part("year")?, small("month")?, small("day")?)
            .context("year, month and day are no date")?;
        let time =
            Time::new(small("hour")?, small("minute")?, 0, 0).context("hour and minute are no time")?;
        let local = date.to_datetime(time).to_zoned(self.zone.clone()).context("the time is out of range")?;
        Ok(local.timestamp())
    }

    fn known<'r>(&self, row: &'r StringRecord, column: &str) -> Option<&'r str> {
        let index = self.columns.iter().position(|name| name == column)?;
        row.get(index).filter(|value| *value != UNKNOWN && !value.is_empty())
    }
}

fn number(column: &str, value: &str) -> anyhow::Result<f64> {
    match value.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => bail!("{column} is {:?}, neither a number nor {UNKNOWN}", beginning(value)),
    }
}

/// As much of a value as a message repeats.
fn beginning(value: &str) -> &str {
    value.char_indices().nth(40).map_or(value, |(end, _)| &value[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: [&str; 19] = [
        "year",
        "month",
        "day",
        "dep_time",
        "sched_dep_time",
        "dep_delay",
        "arr_time",
        "sched_arr_time",
        "arr_delay",
        "carrier",
        "flight",
        "tailnum",
        "origin",
        "dest",
        "air_time",
        "distance",
        "hour",
        "minute",
        "time_hour",
    ];

    fn departure(row: &str) -> anyhow::Result<Event> {
        let header = StringRecord::from(HEADER.to_vec());
        Departures::new(&header)?.event(&StringRecord::from(row.split(',').collect::<Vec<_>>()))
    }

    #[test]
    fn every_column_becomes_a_property_of_its_type() {
        let event = departure(
            "2013,7,1,517,515,-2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-07-01T09:00:00Z",
        );
        let event = event.unwrap();
        assert_eq!((event.name(), event.user_id()), ("departure", Some("N14228")));
        // Summer time: four hours behind UTC.
        assert_eq!(event.event_id().unwrap().to_string(), "UA-1545-EWR-20130701T0915Z");
        assert_eq!(event.properties().len(), HEADER.len());
        let json = event.properties().to_json();
        for part in [
            "\"dep_delay\":-2,",
            "\"flight\":1545,",
            "\"tailnum\":\"N14228\"",
            "\"time_hour\":\"2013-07-01T0",
        ] {
            assert!(json.contains(part), "{part} in {json}");
        }
    }

    #[test]
    fn a_column_nobody_knows_is_what_it_looks_like_and_a_byte_order_mark_is_none_of_it() {
        let mut header: Vec<String> = HEADER.iter().map(|&name| name.to_owned()).collect();
        header[0].insert(0, '\u{feff}');
        header.extend(["gate".to_owned(), "load".to_owned()]);
        let row = "2013,7,1,517,515,-2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-07-01T09:00:00Z,B12,0.75";
        let departures = Departures::new(&StringRecord::from(header)).unwrap();
        let event = departures.event(&StringRecord::from(row.split(',').collect::<Vec<_>>())).unwrap();
        let json = event.properties().to_json();
        assert!(
            json.starts_with("{\"year\":2013,") && json.ends_with(",\"gate\":\"B12\",\"load\":0.75}"),
            "{json}"
        );
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        let event =
            departure("2013,1,2,NA,1545,NA,NA,1910,NA,AA,133,NA,JFK,LAX,NA,2475,15,45,2013-01-02T20:00:00Z");
        let event = event.unwrap();
        assert_eq!(event.user_id(), None);
        assert_eq!(event.event_id().unwrap().to_string(), "AA-133-JFK-20130102T2045Z");
        assert_eq!(event.properties().len(), HEADER.len() - 6);
    }

    #[test]
    fn a_bad_row_says_which_column_is_wrong() {
        for (row, said) in [
            ("2013,1,2,x,1545,1,1,1910,1,AA,133,N1,JFK,LAX,1,2475,15,45,t", "dep_time is \"x\""),
            ("2013,1,2,1,1545,inf,1,1910,1,AA,133,N1,JFK,LAX,1,2475,15,45,t", "dep_delay is \"inf\""),
            ("2013,2,30,1,1545,1,1,1910,1,AA,133,N1,JFK,LAX,1,2475,15,45,t", "no date"),
            ("2013,1,2,1,1545,1,1,1910,1,NA,133,N1,JFK,LAX,1,2475,15,45,t", "carrier is unknown"),
            ("2013,1,2,1,1545,1,1,1910,1,AA,133,N1,JFK,LAX,1,2475,25,45,t", "no time"),
        ] {
            let error = departure(row).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let long = "x".repeat(10_000);
        let row = format!("2013,1,2,{long},1545,1,1,1910,1,AA,133,N1,JFK,LAX,1,2475,15,45,t");
        assert!(departure(&row).unwrap_err().to_string().len() < 100);
        let twice = StringRecord::from(vec!["year", "month", "year"]);
        assert!(Departures::new(&twice).err().unwrap().to_string().contains("two columns \"year\""));
        let header = StringRecord::from(vec!["year", "month"]);
        assert!(Departures::new(&header).err().unwrap().to_string().contains("no column \"day\""));
    }
}
