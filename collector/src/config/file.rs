//! The TOML file, with lines.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Error, Mistake};
use super::keys::{Form, KEYS, Key, named, nearest};
use super::settings::{Origin, Setting};

type Values = BTreeMap<&'static str, Setting>;

/// Reads the text of a configuration file, refusing keys that aren't known.
pub(super) fn read(path: &Path, text: &str) -> Result<Values, Error> {
    let document = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(0, |span| line_of(text, span.start));
        let place = Origin::File { file: path.to_owned(), line };
        Error::one(place, format!("this isn't TOML: {}", error.message()))
    })?;
    let mut visit = Visit { path, text, values: Values::new(), mistakes: Vec::new() };
    visit.table("", document.get_ref());
    if visit.mistakes.is_empty() { Ok(visit.values) } else { Err(Error { mistakes: visit.mistakes }) }
}

/// One walk over a document.
struct Visit<'a> {
    path: &'a Path,
    text: &'a str,
    values: Values,
    mistakes: Vec<Mistake>,
}

impl Visit<'_> {
    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let origin = self.origin(key.span().start);
            match (named(&name), value.get_ref()) {
                (Some(known), _) => self.value(known, value, origin),
                (None, DeValue::Table(inner)) if is_table(&name) => self.table(&format!("{name}."), inner),
                (None, _) if is_table(&name) => {
                    self.mistakes
                        .push(Mistake::new(origin, format!("`{name}` is a table: write `[{name}]`")));
                }
                (None, _) => self.mistakes.push(Mistake::new(origin, unknown(&name))),
            }
        }
    }

    fn value(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>, origin: Origin) {
        match text_of(key, value.get_ref()) {
            Ok(text) => {
                self.values.insert(key.name, Setting { text, origin });
            }
            Err(wanted) => {
                let found = value.get_ref().type_str();
                let message = format!("`{}` is {wanted}, not {found}", key.name);
                self.mistakes.push(Mistake::new(origin, message));
            }
        }
    }

    fn origin(&self, at: usize) -> Origin {
        Origin::File { file: self.path.to_owned(), line: line_of(self.text, at) }
    }
}

/// Brings a value into the form a variable would have; the error says what should have been there.
fn text_of(key: &Key, value: &DeValue<'_>) -> Result<String, &'static str> {
    match (key.form, value) {
        (Form::Text, DeValue::String(text)) => Ok(text.to_string()),
        // A bare number where a unit is needed gets the better message further on.
        (Form::Text | Form::Number, DeValue::Integer(number)) => Ok(number.to_string()),
        (Form::Text, _) => Err("text in quotes"),
        (Form::Number, _) => Err("a whole number"),
        (Form::List, DeValue::Array(items)) => {
            let texts: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
            texts.map(|texts| texts.join(",")).ok_or("a list of texts, like [\"10.0.0.0/8\"]")
        }
        (Form::List, _) => Err("a list of texts, like [\"10.0.0.0/8\"]"),
    }
}

fn is_table(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.split_once('.').is_some_and(|(table, _)| table == name))
}

/// Names the nearest known key. One that has the right name in the wrong table is told its table.
fn unknown(name: &str) -> String {
    let last = name.rsplit('.').next().unwrap_or(name);
    let in_other_table = KEYS.iter().find(|key| key.name.rsplit('.').next() == Some(last));
    let tables = KEYS.iter().filter_map(|key| Some(key.name.split_once('.')?.0));
    let meant = in_other_table
        .map(|key| key.name)
        .or_else(|| nearest(name, KEYS.iter().map(|key| key.name).chain(tables)))
        .or_else(|| nearest(last, KEYS.iter().map(|key| key.name)));
    match meant {
        Some(known) => format!("unknown key `{name}`; did you mean `{known}`?"),
        None => format!("unknown key `{name}`; `eventbucket config` prints every key there is"),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}
