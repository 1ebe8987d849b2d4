//! The layers of values and where each came from.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::error::{Error, Mistake};
use super::keys::{
    CA_FILE_VARIABLE, CONFIG_VARIABLE, KEY_VARIABLE, KEYS, URL_VARIABLE, VARIABLE_PREFIX, named, nearest,
};
use super::server_url::redacted;
use super::{FILE_NAME, file};

/// What the command line says; each wins over every other layer.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config FILE`
    pub config: Option<String>,
    /// `--data DIR`
    pub data: Option<String>,
    /// `--listen ADDR`
    pub listen: Option<String>,
    /// `--roles LIST`
    pub roles: Option<String>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Default,
    File { file: PathBuf, line: usize },
    Variable(&'static str),
    Flag(&'static str),
}

/// A value as it was written.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub text: String,
    pub origin: Origin,
}

impl Setting {
    /// What may be shown of it: everything but passwords.
    pub(super) fn shown(&self) -> String {
        redacted(&self.text)
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.shown(), self.origin)
    }
}

/// One value a key at most: that of the highest layer.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    values: BTreeMap<&'static str, Setting>,
    /// What a higher layer stands over: without effect, but a mistake in it is one all the same.
    hidden: Vec<(&'static str, Setting)>,
    file: Option<PathBuf>,
    warnings: Vec<String>,
}

impl Settings {
    /// Puts file, variables and flags over each other.
    pub(super) fn gather(
        flags: &Flags,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let (mut above, config_variable, warnings) = read_variables(variables);
        let mut hidden = lay_over(&mut above, read_flags(flags));
        let named_file = match (&flags.config, config_variable) {
            (Some(path), _) => Some((PathBuf::from(path), Origin::Flag("--config"))),
            (None, Some(path)) => Some((PathBuf::from(path), Origin::Variable(CONFIG_VARIABLE))),
            (None, None) => None,
        };
        let (mut values, file) = match named_file {
            Some((path, origin)) => (read_file(&path, &origin)?, Some(path)),
            None => read_file_beside_data(&above)?,
        };
        hidden.extend(lay_over(&mut values, above));
        Ok(Self { values, hidden, file, warnings })
    }

    /// Returns these settings once more for each value that a higher layer stands over, with it in force.
    pub(super) fn uncovered(&self) -> impl Iterator<Item = Self> {
        self.hidden.iter().map(|(name, setting)| {
            let mut uncovered = self.clone();
            uncovered.values.insert(name, setting.clone());
            uncovered
        })
    }

    /// Returns the value of a key that is in the list; `None` where nothing sets it and there is no default.
    pub(super) fn get(&self, name: &str) -> Option<Setting> {
        let key = named(name).expect("only keys of the list are asked for");
        self.values
            .get(name)
            .cloned()
            .or_else(|| key.default.map(|text| Setting { text: text.to_owned(), origin: Origin::Default }))
    }

    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

type Values = BTreeMap<&'static str, Setting>;

/// Puts a layer over another and returns what it covers.
fn lay_over(values: &mut Values, above: Values) -> Vec<(&'static str, Setting)> {
    let covered = above.into_iter().filter_map(|(name, setting)| Some((name, values.insert(name, setting)?)));
    covered.collect()
}

fn read_flags(flags: &Flags) -> Values {
    [
        ("data", "--data", &flags.data),
        ("listen", "--listen", &flags.listen),
        ("roles", "--roles", &flags.roles),
    ]
    .into_iter()
    .filter_map(|(name, flag, value)| {
        let text = value.clone()?;
        Some((name, Setting { text, origin: Origin::Flag(flag) }))
    })
    .collect()
}

/// An empty variable counts as absent: compose files produce them for what is not set. An unknown one is a warning and
/// not an error: Kubernetes adds `EVENTBUCKET_SERVICE_HOST` and the like for a service of that name.
fn read_variables(
    variables: impl IntoIterator<Item = (String, String)>,
) -> (Values, Option<String>, Vec<String>) {
    let (mut values, mut config, mut warnings) = (Values::new(), None, Vec::new());
    for (name, text) in variables {
        if !name.starts_with(VARIABLE_PREFIX) || text.is_empty() {
            continue;
        }
        if let Some(key) = KEYS.iter().find(|key| key.variable == name) {
            values.insert(key.name, Setting { text, origin: Origin::Variable(key.variable) });
        } else if name == CONFIG_VARIABLE {
            config = Some(text);
        } else if ![URL_VARIABLE, KEY_VARIABLE, CA_FILE_VARIABLE].contains(&name.as_str()) {
            let hint = nearest(&name, KEYS.iter().map(|key| key.variable))
                .map_or(String::new(), |known| format!("; did you mean {known}?"));
            warnings.push(format!("the variable {name} is not known and has no effect{hint}"));
        }
    }
    (values, config, warnings)
}

fn read_file(path: &Path, origin: &Origin) -> Result<Values, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::one(origin, format!("read the file {}: {error}", path.display())))?;
    file::read(path, &text)
}

fn read_file_beside_data(above: &Values) -> Result<(Values, Option<PathBuf>), Error> {
    let data = above.get("data").map_or(super::DATA_DEFAULT, |setting| setting.text.as_str());
    let path = Path::new(data).join(FILE_NAME);
    // Whatever else lies there, a folder or a link to nowhere, was meant to be read.
    if path
        .symlink_metadata()
        .is_err_and(|error| error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::NotADirectory)
    {
        return Ok((Values::new(), None));
    }
    let values = read_file(&path, &Origin::File { file: path.clone(), line: 0 })?;
    if let Some(setting) = values.get("data") {
        let message = "`data` can't stand in the file inside the data folder: give the file by --config";
        return Err(Error { mistakes: vec![Mistake::new(&setting.origin, message)] });
    }
    Ok((values, Some(path)))
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line: 0 } => write!(f, "{}", file.display()),
            Self::File { file, line } => write!(f, "{} line {line}", file.display()),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}
