//! What commands print: tables on a terminal, tab-separated lines on a pipe, JSON when asked.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, ColumnConstraint, ContentArrangement, TableComponent};
use serde::Serialize;

use super::failure::Failure;

/// How stdout is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    json: bool,
    terminal: bool,
    colour: bool,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// Words, to the left.
    Text(&'static str),
    /// Figures, to the right.
    Figure(&'static str),
}

/// A mood for a word.
#[derive(Clone, Copy, Debug)]
pub(super) enum Paint {
    Good,
    Bad,
    Strong,
    Faint,
}

impl Output {
    /// Writes to stdout as what it is: a terminal or a pipe.
    pub(super) fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        Self { json, terminal, colour: is_coloured(terminal) }
    }

    /// Writes text without any dress.
    pub(super) fn plain() -> Self {
        Self { json: false, terminal: false, colour: false }
    }

    pub(super) fn is_json(self) -> bool {
        self.json
    }

    pub(super) fn is_terminal(self) -> bool {
        self.terminal
    }

    /// Writes text as it is.
    pub(super) fn text(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        // Not the code of "couldn't": an audit would say by it that something doesn't hold.
        written.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::reader_gone(),
            _ => Failure::usage("write to stdout", error.to_string()),
        })
    }

    /// Writes what can't be shown a second time: to stderr when stdout doesn't take it, which is a failure all the same.
    pub(super) fn once(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) else { return Ok(()) };
        let failure = Failure::usage("write to stdout", error.to_string());
        let mut other = io::stderr().lock();
        Err(match other.write_all(text.as_bytes()).and_then(|()| other.flush()) {
            Ok(()) => failure.remedy("what it should have taken stands above: it is shown this once"),
            Err(_) => failure.remedy("the keys are lost; `eventbucket project rotate-key` makes new ones"),
        })
    }

    /// Writes a line.
    pub(super) fn line(self, line: &str) -> Result<(), Failure> {
        self.text(&format!("{line}\n"))
    }

    /// Writes a document: over several lines for people, on one for programs.
    pub(super) fn document(self, document: &impl Serialize) -> Result<(), Failure> {
        self.line(&self.json_text(document, self.terminal))
    }

    /// Writes a document that can't be shown a second time.
    pub(super) fn document_once(self, document: &impl Serialize) -> Result<(), Failure> {
        self.once(&format!("{}\n", self.json_text(document, self.terminal)))
    }

    /// Writes one document of many, always on a line of its own.
    pub(super) fn document_line(self, document: &impl Serialize) -> Result<(), Failure> {
        self.line(&self.json_text(document, false))
    }

    /// A program gets every character as it is; on a terminal those that would steer it are escaped, which is JSON too.
    fn json_text(self, document: &impl Serialize, pretty: bool) -> String {
        let text =
            if pretty { serde_json::to_string_pretty(document) } else { serde_json::to_string(document) };
        let text = text.expect("documents have text keys alone");
        if self.terminal { printable_json(&text) } else { text }
    }

    /// Writes rows: a table with a head on a terminal, else a line a row, without a head, its fields between tabs.
    pub(super) fn table(self, columns: &[Column], rows: &[Vec<String>]) -> Result<(), Failure> {
        if self.terminal {
            return self.line(&self.drawn(columns, rows, None));
        }
        let lines = rows.iter().map(|row| {
            let fields: Vec<_> = row.iter().map(|field| printable(field)).collect();
            format!("{}\n", fields.join("\t"))
        });
        self.text(&lines.collect::<String>())
    }

    /// Draws within the terminal's width, or within one that is given.
    fn drawn(self, columns: &[Column], rows: &[Vec<String>], width: Option<u16>) -> String {
        let mut table = comfy_table::Table::new();
        table.load_preset(NOTHING);
        if let Some(width) = width {
            table.set_width(width);
        }
        // Terminals that nobody told their size, as those of some containers, say 0: then nothing is known.
        if table.width().is_some_and(|width| width > 0) {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        for part in [TableComponent::HeaderLines, TableComponent::MiddleHeaderIntersections] {
            table.set_style(part, '─');
        }
        table.set_header(columns.iter().map(|column| {
            let cell = Cell::new(column.name());
            if self.colour { cell.add_attribute(Attribute::Bold) } else { cell }
        }));
        for row in rows {
            let cells = row.iter().zip(columns).map(|(field, column)| {
                let cell = Cell::new(printable(field));
                match column {
                    Column::Text(_) => cell,
                    Column::Figure(_) => cell.set_alignment(CellAlignment::Right),
                }
            });
            table.add_row(cells);
        }
        // Times, positions and figures can't be read when they are broken in two.
        for (index, column) in table.column_iter_mut().enumerate() {
            let whole = |row: &Vec<String>| row.get(index).is_none_or(|field| is_whole(field));
            if rows.iter().all(whole) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        table.to_string()
    }

    /// Dresses a word in colour where there is any.
    pub(super) fn paint(self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Good => "32",
            Paint::Bad => "31;1",
            Paint::Strong => "1",
            Paint::Faint => "2",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The width of a time with milliseconds.
const WHOLE_MAX: usize = 24;

/// A short word that is read as one.
fn is_whole(field: &str) -> bool {
    field.len() <= WHOLE_MAX && !field.contains(char::is_whitespace)
}

impl Column {
    fn name(self) -> &'static str {
        match self {
            Self::Text(name) | Self::Figure(name) => name,
        }
    }
}

/// Colour goes to terminals alone, and to none that is `dumb`, or when `NO_COLOR` has a value (<https://no-color.org>).
pub(super) fn is_coloured(terminal: bool) -> bool {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    terminal && wanted && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Makes control characters visible: what senders put into names must not steer the reader's terminal, nor break a line
/// of fields in two, nor make it read other than it is.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if is_steering(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// The same for JSON over several lines: its own line breaks stay, and what is escaped is escaped as JSON does.
pub(super) fn printable_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if is_steering(character) && character != '\n' {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").expect("a String takes every write");
            }
        } else {
            out.push(character);
        }
    }
    out
}

/// Control characters, and those of the category Cf that turn the direction of text or can't be seen
/// ([UAX #9](https://www.unicode.org/reports/tr9/#Directional_Formatting_Codes)). The joiners U+200C and U+200D stay:
/// Persian and family emoji are written with them.
fn is_steering(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Groups the digits of a figure for people: `1,234,567`.
pub(super) fn grouped(figure: u64) -> String {
    let digits = figure.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(printable("a\tb\n\x1b[31mred"), "a\\tb\\n\\u{1b}[31mred");
        assert_eq!(printable("Übergröße ✓ 👩\u{200d}🚀"), "Übergröße ✓ 👩\u{200d}🚀");
        assert_eq!(printable("a\u{202e}b\u{2066}c\u{feff}\u{9b}"), "a\\u{202e}b\\u{2066}c\\u{feff}\\u{9b}");
    }

    #[test]
    fn json_on_a_terminal_is_the_same_json() {
        let out = Output { json: true, terminal: true, colour: false };
        let document = serde_json::json!({ "a\u{202e}": "b\u{9b}\u{e0041}\n", "c": [1] });
        let text = out.json_text(&document, true);
        assert!(
            text.lines().count() > 3 && text.contains("\\u202e") && !text.contains(is_line_steering),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), document);
    }

    fn is_line_steering(character: char) -> bool {
        is_steering(character) && character != '\n'
    }

    #[test]
    fn a_terminal_of_no_width_is_not_believed() {
        let out = Output { json: false, terminal: true, colour: false };
        let rows = [vec!["a name of some length".to_owned(), "1".to_owned()]];
        let columns = [Column::Text("name"), Column::Figure("count")];
        assert!(out.drawn(&columns, &rows, Some(0)).contains("a name of some length"));
        assert!(!out.drawn(&columns, &rows, Some(12)).contains("a name of some length"), "others are");
        let rows = [vec!["a name of some length".to_owned(), "2026-11-21T11:14:20.961Z".to_owned()]];
        let columns = [Column::Text("name"), Column::Text("time")];
        assert!(
            out.drawn(&columns, &rows, Some(20)).contains("2026-11-21T11:14:20.961Z"),
            "a time is never broken"
        );
    }

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([0, 999, 1_000, 336_776].map(grouped), ["0", "999", "1,000", "336,776"]);
    }

    #[test]
    fn a_table_shows_its_head_and_aligns_figures() {
        let out = Output { json: false, terminal: true, colour: false };
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["b\x1b".to_owned(), "100".to_owned()]];
        let drawn = out.drawn(&[Column::Text("name"), Column::Figure("count")], &rows, None);
        assert!(drawn.contains("name") && drawn.contains("count"), "{drawn}");
        assert!(drawn.contains("    1"), "{drawn}");
        assert!(drawn.contains("\\u{1b}"), "{drawn}");
    }
}
