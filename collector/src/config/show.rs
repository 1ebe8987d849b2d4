//! The effective configuration and the commented example as text.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::keys::{Form, KEYS, Key};
use super::settings::Settings;

/// Where the origin of a value begins, in characters: wide enough for every key with its default.
const ORIGIN_COLUMN: usize = 44;

/// Writes every key, its value and where it came from, as TOML that can be used again.
pub(super) fn toml(settings: &Settings) -> String {
    let mut out = String::new();
    let mut table = "";
    for key in KEYS {
        open_table(&mut out, &mut table, key);
        let (line, origin) = match settings.get(key.name) {
            Some(setting) => (assignment(key, &setting.shown()), setting.origin.to_string()),
            None => (format!("# {} is not set", short(key)), "default".to_owned()),
        };
        writeln!(out, "{line:<ORIGIN_COLUMN$} # {origin}").expect("a String takes every write");
    }
    out
}

/// Writes every key, its value and where it came from, as JSON.
pub(super) fn json(settings: &Settings) -> Value {
    let keys = KEYS.iter().map(|key| {
        let setting = settings.get(key.name);
        let from = setting.as_ref().map_or("default".to_owned(), |setting| setting.origin.to_string());
        (key.name.to_owned(), json!({ "value": setting.map(|setting| setting.shown()), "from": from }))
    });
    Value::Object(keys.collect::<Map<_, _>>())
}

/// Writes a commented file that has every key at its default.
#[must_use]
pub fn example() -> String {
    let mut out = String::from(
        "# The Event Bucket collector. Every key is shown with its default and none is needed.\n\
         # Save it as eventbucket.toml in the data folder, or give it by --config FILE.\n\
         # Flags win over variables, variables over this file.\n\n",
    );
    let mut table = "";
    for key in KEYS {
        open_table(&mut out, &mut table, key);
        for line in key.about {
            writeln!(out, "# {line}").expect("a String takes every write");
        }
        let value = key.default.unwrap_or(key.sample);
        writeln!(out, "# Variable: {}", key.variable).expect("a String takes every write");
        writeln!(out, "# {}\n", assignment(key, value)).expect("a String takes every write");
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn open_table(out: &mut String, table: &mut &'static str, key: &'static Key) {
    let own = key.name.split_once('.').map_or("", |(own, _)| own);
    if own != *table {
        if !out.ends_with("\n\n") {
            out.push('\n');
        }
        writeln!(out, "[{own}]").expect("a String takes every write");
        *table = own;
    }
}

fn assignment(key: &Key, value: &str) -> String {
    let value = match key.form {
        Form::Text => toml::Value::from(value).to_string(),
        Form::Number => value.to_owned(),
        Form::List => {
            let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
            toml::Value::from(parts.collect::<Vec<_>>()).to_string()
        }
    };
    format!("{} = {value}", short(key))
}

fn short(key: &Key) -> &'static str {
    key.name.rsplit('.').next().unwrap_or(key.name)
}
