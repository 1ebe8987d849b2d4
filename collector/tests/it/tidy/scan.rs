//! Reads Rust source just well enough for the rules: knows what is code, what is text and what is only for tests.

/// A function and how many lines it takes, from its `fn` to its closing brace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub name: String,
    pub line: usize,
    pub lines: usize,
}

/// A `mod name;` and the path an attribute gives it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Module {
    pub name: String,
    pub path: Option<String>,
}

/// Replaces comments, strings and character literals by spaces, so that what is left is code. Lines and byte offsets
/// stay where they were.
pub(super) fn code_of(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => block_comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' | b'b' | b'c' if !is_word_before(bytes, at) => raw_string_end(bytes, at).unwrap_or(at),
            b'\'' => character_end(bytes, at).unwrap_or(at),
            _ => at,
        };
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&code).into_owned()
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length)
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `r"…"`, `r#"…"#`, `br"…"`, `b"…"`, `b'…'`; `None` when it is a word like any other.
fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let letters = bytes[start..].iter().take(2).take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).count();
    let raw = bytes[start..start + letters].contains(&b'r');
    let hashes = bytes[start + letters..].iter().take_while(|byte| **byte == b'#').count();
    let quote = start + letters + hashes;
    match bytes.get(quote) {
        Some(b'"') if raw => {
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let inner = &bytes[quote + 1..];
            let length = inner.windows(close.len()).position(|window| window == close)?;
            Some(quote + 1 + length + close.len())
        }
        Some(b'"') if hashes == 0 => Some(string_end(bytes, quote)),
        Some(b'\'') if hashes == 0 && !raw => character_end(bytes, quote),
        _ => None,
    }
}

/// `None` for a lifetime or a loop label.
fn character_end(bytes: &[u8], start: usize) -> Option<usize> {
    let text = std::str::from_utf8(&bytes[start + 1..]).ok()?;
    let mut characters = text.char_indices();
    let (_, first) = characters.next()?;
    if first == '\\' {
        let after_escaped = start + 3;
        let length = bytes.get(after_escaped..)?.iter().position(|byte| *byte == b'\'')?;
        return Some(after_escaped + length + 1);
    }
    let (close, next) = characters.next()?;
    (next == '\'').then_some(start + 1 + close + 1)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn is_word_before(bytes: &[u8], at: usize) -> bool {
    at > 0 && is_word(bytes[at - 1])
}

/// Finds where a word stands on its own.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        !is_word_before(bytes, *at) && !bytes.get(at + word.len()).is_some_and(|byte| is_word(*byte))
    })
}

fn line_at(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

fn word_after(code: &str, at: usize) -> &str {
    let rest = code[at..].trim_start();
    let length = rest.bytes().take_while(|byte| is_word(*byte)).count();
    &rest[..length]
}

/// Lists the functions that have a body; takes what [`code_of`] made.
pub(super) fn functions(code: &str) -> Vec<Function> {
    words(code, "fn")
        .filter_map(|at| {
            let name = word_after(code, at + 2);
            let (open, close) = body(code, at).filter(|_| !name.is_empty())?;
            debug_assert!(open < close);
            let line = line_at(code, at);
            Some(Function { name: name.to_owned(), line, lines: line_at(code, close) - line + 1 })
        })
        .collect()
}

/// The braces of what begins at `at`; `None` when a semicolon ends it first.
fn body(code: &str, at: usize) -> Option<(usize, usize)> {
    let (mut depth, mut open) = (0_usize, None);
    for (i, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => depth += 1,
            b'{' => {
                if depth == 0 {
                    open = open.or(Some(i));
                }
                depth += 1;
            }
            b')' | b']' | b'}' => {
                // More closing than opening: what began here was inside something that ends.
                depth = depth.checked_sub(1)?;
                if depth == 0 && byte == b'}' {
                    return open.map(|open| (open, i));
                }
            }
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Blanks what stands under `#[cfg(test)]`; takes what [`code_of`] made.
pub(super) fn without_tests(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    for (at, attribute) in code.match_indices("#[cfg(test)]") {
        let after = at + attribute.len();
        let end = body(code, after).map_or_else(|| code[after..].find(';').map(|i| after + i), |b| Some(b.1));
        for byte in &mut out[at..end.unwrap_or(code.len() - 1) + 1] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Lists `mod name;` declarations with the path an attribute gives them.
pub(super) fn modules(source: &str) -> Vec<Module> {
    let code = code_of(source);
    words(&code, "mod")
        .filter_map(|at| {
            let name = word_after(&code, at + 3);
            let after = at + code[at..].find(name)? + name.len();
            (!name.is_empty() && code[after..].trim_start().starts_with(';'))
                .then(|| Module { name: name.to_owned(), path: path_before(source, &code, at) })
        })
        .collect()
}

/// Reads `#[path = "…"]` between the item before and the `mod` at `at`.
fn path_before(source: &str, code: &str, at: usize) -> Option<String> {
    let begin = code[..at].rfind([';', '{', '}']).map_or(0, |i| i + 1);
    let attribute = begin + code[begin..at].find("#[path")?;
    let text = source[attribute..at].split('"').nth(1)?;
    Some(text.to_owned())
}

/// Lists the paths that begin with `crate::`, groups taken apart, two segments at most; takes what [`code_of`] made.
pub(super) fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in words(code, "crate") {
        if let Some(rest) = code[at + "crate".len()..].strip_prefix("::") {
            for path in paths(rest, 2) {
                found.push((line_at(code, at), path));
            }
        }
    }
    found
}

/// `a::b::c` → `a::b`; `{a::b, c}` → both.
fn paths(text: &str, segments: usize) -> Vec<String> {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        return group_parts(group).iter().flat_map(|part| paths(part, segments)).collect();
    }
    let name = word_after(text, 0);
    let rest = &text[name.len()..];
    match rest.strip_prefix("::").filter(|_| segments > 1) {
        Some(inner) => paths(inner, segments - 1).iter().map(|inner| format!("{name}::{inner}")).collect(),
        None => vec![name.to_owned()],
    }
}

/// Splits the inside of a group at its own commas.
fn group_parts(text: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0_usize, 0, Vec::new());
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => {
                parts.push(&text[begin..i]);
                break;
            }
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&text[begin..i]);
                begin = i + 1;
            }
            _ => {}
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

#[test]
fn braces_in_strings_comments_and_characters_are_no_code() {
    let source = r###"
        fn first() { let a = "}{\" {"; let b = '{'; let c = '\''; let d = b'}'; } // }
        /* { /* nested { */ } */
        fn second<'a>(x: &'a str) -> &'a str { let r = r#"}" { "#; 'outer: loop { break 'outer; } x }
        fn third() { let bytes = br"{"; let b = b"\"{"; }
    "###;
    let code = code_of(source);
    assert_eq!(code.len(), source.len());
    assert_eq!(code.matches('{').count(), code.matches('}').count(), "{code}");
    let names: Vec<_> = functions(&code).into_iter().map(|f| (f.name, f.lines)).collect();
    assert_eq!(names, [("first".into(), 1), ("second".into(), 1), ("third".into(), 1)]);
}

#[test]
fn a_function_is_measured_from_its_name_to_its_brace() {
    let body = "    step();\n".repeat(69);
    let source = format!("trait T {{ fn declared(&self) -> [u8; 3]; }}\n\nfn long(\n) {{\n{body}}}\n");
    let found = functions(&code_of(&source));
    assert_eq!(found, [Function { name: "long".into(), line: 3, lines: 72 }]);
}

#[test]
fn modules_are_found_with_the_path_they_are_given() {
    let source = "/// Doc.\npub mod a;\n#[path = \"x/y.rs\"]\nmod b;\nmod inline { mod c; }\n// mod d;\n";
    let found: Vec<_> = modules(source).into_iter().map(|m| (m.name, m.path)).collect();
    assert_eq!(found, [("a".into(), None), ("b".into(), Some("x/y.rs".into())), ("c".into(), None)]);
}

#[test]
fn paths_are_taken_out_of_groups() {
    let code = "use crate::{store::{Store, events::Page}, bus::message as m, project};\ncrate::cache::Cache::memory();";
    let found: Vec<_> = crate_paths(code).into_iter().map(|(_, path)| path).collect();
    assert_eq!(found, ["store::Store", "store::events", "bus::message", "project", "cache::Cache"]);
}

#[test]
fn what_is_only_for_tests_is_left_out() {
    let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() {} }\n#[cfg(test)]\nmod more;\nfn c() {}\n";
    let left = without_tests(code);
    assert!(left.contains("fn a") && left.contains("fn c"), "{left}");
    assert!(!left.contains("fn b") && !left.contains("mod more"), "{left}");
}
