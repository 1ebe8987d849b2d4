//! What commands print: tables on a terminal, tab-separated lines on a pipe, JSON when asked.

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, TableComponent};
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
        written.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::reader_gone(),
            _ => Failure::because("write to stdout", error.to_string()),
        })
    }

    /// Writes a line.
    pub(super) fn line(self, line: &str) -> Result<(), Failure> {
        self.text(&format!("{line}\n"))
    }

    /// Writes a document: over several lines for people, on one for programs.
    pub(super) fn document(self, document: &impl Serialize) -> Result<(), Failure> {
        let text = if self.terminal {
            serde_json::to_string_pretty(document)
        } else {
            serde_json::to_string(document)
        };
        self.line(&text.expect("documents have text keys alone"))
    }

    /// Writes one document of many, always on a line of its own.
    pub(super) fn document_line(self, document: &impl Serialize) -> Result<(), Failure> {
        self.line(&serde_json::to_string(document).expect("documents have text keys alone"))
    }

    /// Writes rows: a table with a head on a terminal, else a line a row, without a head, its fields between tabs.
    pub(super) fn table(self, columns: &[Column], rows: &[Vec<String>]) -> Result<(), Failure> {
        if self.terminal {
            return self.line(&self.drawn(columns, rows));
        }
        let lines = rows.iter().map(|row| {
            let fields: Vec<_> = row.iter().map(|field| printable(field)).collect();
            format!("{}\n", fields.join("\t"))
        });
        self.text(&lines.collect::<String>())
    }

    fn drawn(self, columns: &[Column], rows: &[Vec<String>]) -> String {
        let mut table = comfy_table::Table::new();
        table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
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

impl Column {
    fn name(self) -> &'static str {
        match self {
            Self::Text(name) | Self::Figure(name) => name,
        }
    }
}

/// Colour goes to terminals alone, and to none when `NO_COLOR` has a value (<https://no-color.org>).
pub(super) fn is_coloured(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Makes control characters visible: what senders put into names must not steer the reader's terminal, nor break a line
/// of fields in two.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
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
        assert_eq!(printable("Übergröße ✓"), "Übergröße ✓");
    }

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([0, 999, 1_000, 336_776].map(grouped), ["0", "999", "1,000", "336,776"]);
    }

    #[test]
    fn a_table_shows_its_head_and_aligns_figures() {
        let out = Output { json: false, terminal: true, colour: false };
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["b\x1b".to_owned(), "100".to_owned()]];
        let drawn = out.drawn(&[Column::Text("name"), Column::Figure("count")], &rows);
        assert!(drawn.contains("name") && drawn.contains("count"), "{drawn}");
        assert!(drawn.contains("    1"), "{drawn}");
        assert!(drawn.contains("\\u{1b}"), "{drawn}");
    }
}
