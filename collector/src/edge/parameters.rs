use std::str::FromStr;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query};
use axum::http::Uri;
use eventbucket_protocol::Timestamp;
use percent_encoding::percent_decode_str;

use super::problem::{Cause, Refusal};
use crate::query::{BadCondition, Condition, LIMIT_DEFAULT};

/// An id as part of a path, as it was given.
pub(super) type PathId = Result<Path<String>, PathRejection>;

/// Reads an id that is part of a path.
pub(super) fn in_path(id: PathId) -> Result<String, Refusal> {
    let Path(id) = id.map_err(|error| Refusal::new(Cause::InvalidQuery, format!("id: {error}")))?;
    Ok(id)
}

/// The parameters of a request. Each is taken once; what is left over at the end was mistyped and is refused by name, so
/// that a filter with a typo never answers with everything.
pub(super) struct Parameters {
    given: Vec<(String, String)>,
    known: Vec<&'static str>,
}

/// The least number that is taken for Unix milliseconds, in April of 1970: what is smaller was meant as a year (2026), a day
/// (20261121) or seconds (1795230000).
const MS_MIN: i64 = 10_000_000_000;

impl Parameters {
    pub(super) fn of(uri: &Uri) -> Result<Self, Refusal> {
        let unreadable =
            |why: &str| Refusal::new(Cause::InvalidQuery, format!("the parameters can't be read: {why}"));
        // What isn't UTF-8 would be replaced below, and ask for something that nobody named.
        if uri.query().is_some_and(|query| percent_decode_str(query).decode_utf8().is_err()) {
            return Err(unreadable("they aren't UTF-8 once their %XX are decoded"));
        }
        let Query(given) = Query::try_from_uri(uri).map_err(|error| unreadable(&error.to_string()))?;
        Ok(Self { given, known: Vec::new() })
    }

    /// Takes a text.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Refusal> {
        self.known.push(name);
        let mut values = self.given.extract_if(.., |(given, _)| given == name).map(|(_, value)| value);
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) if value.is_empty() => Err(invalid(name, "is empty; leave it out instead")),
            (Some(value), None) => Ok(Some(value)),
            (Some(_), Some(_)) => Err(invalid(name, "is given twice")),
        }
    }

    /// Takes which page is asked for: where the one before ended, and how many at most.
    pub(super) fn page(&mut self) -> Result<(Option<String>, usize), Refusal> {
        Ok((self.text("cursor")?, self.number("limit")?.unwrap_or(LIMIT_DEFAULT)))
    }

    /// Takes texts, of which there may be several or none.
    pub(super) fn texts(&mut self, name: &'static str) -> Result<Vec<String>, Refusal> {
        self.known.push(name);
        let values = self.given.extract_if(.., |(given, _)| given == name).map(|(_, value)| value);
        let values: Vec<String> = values.collect();
        if values.iter().any(String::is_empty) {
            return Err(invalid(name, "is empty; leave it out instead"));
        }
        Ok(values)
    }

    /// Takes the conditions on properties.
    pub(super) fn conditions(&mut self) -> Result<Vec<Condition>, Refusal> {
        let read =
            |text: String| text.parse().map_err(|error: BadCondition| invalid("where", &error.to_string()));
        self.texts("where")?.into_iter().map(read).collect()
    }

    /// Takes a text that must be there.
    pub(super) fn required(&mut self, name: &'static str) -> Result<String, Refusal> {
        self.text(name)?.ok_or_else(|| invalid(name, "is missing; this path needs it"))
    }

    /// Takes a number.
    pub(super) fn number<T: FromStr>(&mut self, name: &'static str) -> Result<Option<T>, Refusal> {
        let parse =
            |text: String| text.parse().map_err(|_| invalid(name, &format!("{text:?} is not a number")));
        self.text(name)?.map(parse).transpose()
    }

    /// Takes a time as RFC 3339 or Unix milliseconds.
    pub(super) fn time(&mut self, name: &'static str) -> Result<Option<Timestamp>, Refusal> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        // An unescaped + before an offset arrives as a space.
        let time = Timestamp::from_rfc3339(&text.replace(' ', "+")).or_else(|| {
            let unix_ms = text.parse().ok().filter(|ms| !(1..MS_MIN).contains(ms));
            unix_ms.and_then(Timestamp::from_ms)
        });
        let expected = || {
            format!(
                "{text:?} is neither RFC 3339 (2026-11-21T03:00:00Z) nor Unix milliseconds (1795230000000)"
            )
        };
        time.map(Some).ok_or_else(|| invalid(name, &expected()))
    }

    /// Takes one of a few words; without it the first is meant.
    pub(super) fn word<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
    ) -> Result<T, Refusal> {
        let Some(text) = self.text(name)? else { return Ok(words[0].1) };
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        found.ok_or_else(|| invalid(name, &format!("{text:?} is none of {}", names.join(", "))))
    }

    /// Refuses what nobody took.
    pub(super) fn finish(self) -> Result<(), Refusal> {
        match self.given.first() {
            None => Ok(()),
            Some((name, _)) if self.known.is_empty() => {
                Err(invalid(name, "is not known; this path takes no parameters"))
            }
            Some((name, _)) => {
                Err(invalid(name, &format!("is not known; this path takes {}", self.known.join(", "))))
            }
        }
    }
}

fn invalid(name: &str, message: &str) -> Refusal {
    Refusal::new(Cause::InvalidQuery, format!("{name}: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Parameters {
        Parameters::of(&format!("/v1/events?{query}").parse().unwrap()).unwrap()
    }

    fn detail(refusal: Refusal) -> String {
        assert_eq!(refusal.problem().code, "invalid_query");
        refusal.problem().detail
    }

    #[test]
    fn values_are_decoded_and_taken_once() {
        let mut parameters = of("name=a%26b&from=2013-01-01T00:00:00+01:00&limit=7&order=position");
        assert_eq!(parameters.text("name").unwrap().unwrap(), "a&b");
        assert_eq!(parameters.time("from").unwrap().unwrap().to_string(), "2012-12-31T23:00:00.000Z");
        assert_eq!(parameters.number::<usize>("limit").unwrap(), Some(7));
        assert_eq!(parameters.word("order", &[("newest", 1), ("position", 2)]).unwrap(), 2);
        assert_eq!(parameters.text("user").unwrap(), None);
        parameters.finish().unwrap();
    }

    #[test]
    fn a_year_a_day_or_seconds_are_no_milliseconds() {
        for text in ["2026", "20261121", "1795230000"] {
            let told = detail(of(&format!("from={text}")).time("from").unwrap_err());
            assert!(told.contains(text) && told.contains("2026-11-21T"), "{told}");
        }
        for (text, ms) in [("1795230000000", 1_795_230_000_000), ("0", 0), ("-86400000", -86_400_000)] {
            assert_eq!(of(&format!("from={text}")).time("from").unwrap().map(Timestamp::ms), Some(ms));
        }
    }

    #[test]
    fn a_wrong_value_names_its_parameter_and_what_it_takes() {
        assert_eq!(
            detail(of("limit=x").number::<usize>("limit").unwrap_err()),
            "limit: \"x\" is not a number"
        );
        assert_eq!(detail(of("user=").text("user").unwrap_err()), "user: is empty; leave it out instead");
        assert_eq!(detail(of("user=a&user=b").text("user").unwrap_err()), "user: is given twice");
        let refusal = of("order=up").word("order", &[("newest", 1), ("position", 2)]).unwrap_err();
        assert_eq!(detail(refusal), "order: \"up\" is none of newest, position");
        assert!(detail(of("to=noon").time("to").unwrap_err()).starts_with("to: \"noon\" is neither"));
    }

    #[test]
    fn a_mistyped_parameter_is_not_ignored() {
        let mut parameters = of("nmae=a");
        parameters.text("name").unwrap();
        assert_eq!(detail(parameters.finish().unwrap_err()), "nmae: is not known; this path takes name");
    }
}
