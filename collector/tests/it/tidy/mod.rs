//! Rules about the shape of the source that no other tool checks. Each lists every place that breaks it.

mod scan;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use scan::{code_of, crate_paths, functions, modules, without_tests};

/// Lines of a file, of a file of tests, of a function.
const FILE_LINES_MAX: usize = 400;
const TEST_FILE_LINES_MAX: usize = 700;
const FUNCTION_LINES_MAX: usize = 70;

/// Files that may be longer, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// Functions that may be longer, as `file name`, each with its reason.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

/// Names that say nothing about what a module holds.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "core", "helpers", "helper", "manager", "misc"];

/// What each module of the collector may name of the others, nearest to the edge first. `bus::message` without the rest
/// of `bus` is data, which everyone may know. `app` may name everything but what is above it, `cli` everything.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("edge", &["ingest", "query", "dashboard", "bus::message", "project", "config", "telemetry"]),
    ("ingest", &["bus", "cache", "store", "project"]),
    ("workers", &["bus", "store", "cache", "project", "telemetry"]),
    ("query", &["store", "cache", "bus", "project", "insight"]),
    ("bus", &["project", "store", "config"]),
    ("store", &["bus::message", "project", "insight"]),
    ("insight", &[]),
    ("cache", &["project", "store", "telemetry"]),
    ("dashboard", &[]),
    ("project", &[]),
    ("config", &[]),
    ("shutdown", &[]),
    ("telemetry", &["config"]),
    ("torture", &["app", "config", "project", "query", "store", "bus", "cache", "ingest", "insight"]),
];

/// Modules that nothing is built on, and who alone may name them.
const NAMED_BY: &[(&str, &[&str])] = &[("torture", &["cli"]), ("cli", &["main"])];

/// Makers of backends: only the composition root and tests call them.
const BACKENDS: &[&str] = &[
    "Store::sqlite",
    "Store::postgres",
    "Bus::in_process",
    "Bus::rabbitmq",
    "Cache::memory",
    "Cache::redis",
];

/// A source file: where it is below the workspace's root, and what is in it.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.split('/').any(|part| matches!(part, "tests" | "benches" | "tests.rs" | "fuzz"))
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().canonicalize().unwrap()
}

fn sources(root: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    walk(root, &mut |file| {
        if file.extension().is_some_and(|extension| extension == "rs") {
            let path = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.push(Source { path, text: fs::read_to_string(file).unwrap() });
        }
    });
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Visits every file but those of hidden folders and of build output, which carries a tag.
fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let hidden = path.file_name().unwrap().to_str().is_none_or(|name| name.starts_with('.'));
        if path.is_dir() && !hidden && !is_built(&path) {
            walk(&path, visit);
        } else if path.is_file() {
            visit(&path);
        }
    }
}

/// A folder that cargo builds into; it marks only those that it made itself.
fn is_built(path: &Path) -> bool {
    ["CACHEDIR.TAG", ".rustc_info.json"].iter().any(|mark| path.join(mark).exists())
}

fn none(rule: &str, mut found: Vec<String>) {
    found.sort();
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn files_and_functions_fit_on_few_screens() {
    let found = too_long(&sources(&workspace()), LONG_FILES, LONG_FUNCTIONS);
    none("split what is too long, or add it to the exceptions with a reason", found);
}

fn too_long(sources: &[Source], files: &[(&str, &str)], functions_: &[(&str, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut unused: BTreeSet<&str> = files.iter().chain(functions_).map(|(name, _)| *name).collect();
    for source in sources {
        let max = if source.is_test() { TEST_FILE_LINES_MAX } else { FILE_LINES_MAX };
        let lines = source.text.lines().count();
        if lines > max && !unused.remove(source.path.as_str()) {
            found.push(format!("{}: {lines} lines, at most {max}", source.path));
        }
        for function in functions(&code_of(&source.text)).iter().filter(|f| f.lines > FUNCTION_LINES_MAX) {
            if !unused.remove(format!("{} {}", source.path, function.name).as_str()) {
                found.push(format!(
                    "{}:{}: `{}` has {} lines, at most {FUNCTION_LINES_MAX}",
                    source.path, function.line, function.name, function.lines
                ));
            }
        }
    }
    found.extend(unused.into_iter().map(|name| format!("{name}: an exception that nothing needs")));
    found
}

#[test]
fn every_source_file_is_named_by_a_module() {
    none("name the file by a `mod` or delete it", orphans(&workspace()));
}

fn orphans(root: &Path) -> Vec<String> {
    let mut reached = BTreeSet::new();
    walk(root, &mut |file| {
        if file.file_name().is_some_and(|name| name == "Cargo.toml") {
            for target in targets(file) {
                reach(&target, true, &mut reached);
            }
        }
    });
    let all = sources(root);
    all.into_iter().map(|source| source.path).filter(|path| !reached.contains(&root.join(path))).collect()
}

/// The files a manifest makes cargo begin from: those in the usual places and those it names.
fn targets(manifest: &Path) -> Vec<PathBuf> {
    let folder = manifest.parent().unwrap();
    let mut found: Vec<PathBuf> =
        ["src/lib.rs", "src/main.rs", "build.rs"].iter().map(|file| folder.join(file)).collect();
    for place in ["src/bin", "tests", "benches", "examples"] {
        for entry in fs::read_dir(folder.join(place)).into_iter().flatten() {
            let path = entry.unwrap().path();
            found.push(if path.is_dir() { path.join("main.rs") } else { path });
        }
    }
    let text = fs::read_to_string(manifest).unwrap();
    let manifest: toml::Table = toml::from_str(&text).unwrap();
    let single = manifest.get("lib").into_iter();
    let several =
        ["bin", "test", "bench", "example"].iter().filter_map(|kind| manifest.get(*kind)?.as_array());
    for target in single.chain(several.flatten()) {
        found.extend(target.get("path").and_then(toml::Value::as_str).map(|path| folder.join(path)));
    }
    found.retain(|path| path.is_file() && path.extension().is_some_and(|extension| extension == "rs"));
    found
}

/// Follows `mod` declarations. A crate's root and a `mod.rs` look beside themselves, others in a folder of their name.
fn reach(file: &Path, is_root: bool, reached: &mut BTreeSet<PathBuf>) {
    if !reached.insert(file.to_owned()) {
        return;
    }
    let text = fs::read_to_string(file).unwrap();
    let beside = file.parent().unwrap();
    let own = if is_root || file.ends_with("mod.rs") { beside.to_owned() } else { file.with_extension("") };
    for module in modules(&text) {
        let candidates = match &module.path {
            Some(path) => vec![beside.join(path)],
            None => vec![own.join(format!("{}.rs", module.name)), own.join(&module.name).join("mod.rs")],
        };
        for candidate in candidates.iter().filter(|path| path.is_file()) {
            reach(candidate, false, reached);
        }
    }
}

#[test]
fn dependencies_between_the_collectors_modules_point_one_way() {
    none("this module may not know that one", wrong_ways(&sources(&workspace())));
}

fn wrong_ways(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for (module, source) in sources.iter().filter_map(|s| Some((module_of(s)?, s))) {
        let may = MAY_NAME.iter().find(|(name, _)| *name == module).map(|(_, may)| *may);
        for (line, path) in crate_paths(&without_tests(&code_of(&source.text))) {
            let first = path.split("::").next().unwrap_or_default();
            let named_by = NAMED_BY.iter().find(|(name, _)| *name == first).map(|(_, by)| *by);
            let allowed = may.is_none_or(|may| may.contains(&first) || may.contains(&path.as_str()))
                && named_by.is_none_or(|by| by.contains(&module));
            if first != module && !allowed {
                found.push(format!("{}:{line}: `{module}` names `crate::{path}`", source.path));
            }
        }
    }
    found
}

/// The first module below the collector's root that a file belongs to; nothing for files of tests.
fn module_of(source: &Source) -> Option<&str> {
    let inner = source.path.strip_prefix("collector/src/").filter(|_| !source.is_test())?;
    Some(inner.split('/').next()?.trim_end_matches(".rs"))
}

#[test]
fn only_the_composition_root_names_backends() {
    none("let app.rs make it and take it as an argument", backends_named(&sources(&workspace())));
}

fn backends_named(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| !s.is_test() && s.path != "collector/src/app.rs") {
        let code = without_tests(&code_of(&source.text));
        for backend in BACKENDS.iter().filter(|backend| code.contains(**backend)) {
            found.push(format!("{}: names `{backend}`", source.path));
        }
    }
    found
}

#[test]
fn every_module_has_a_name_that_says_something() {
    let found = sources(&workspace())
        .into_iter()
        .map(|source| source.path)
        .filter(|path| path.trim_end_matches(".rs").split('/').any(|part| EMPTY_NAMES.contains(&part)))
        .collect();
    none("name the module after what it holds", found);
}

#[test]
fn decisions_are_numbered_without_gaps() {
    let mut names: Vec<String> = fs::read_dir(workspace().join("docs/decisions"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let found = names
        .iter()
        .zip(1..)
        .filter(|(name, number)| !name.starts_with(&format!("{number:04}-")) || !name.ends_with(".md"))
        .map(|(name, number)| format!("docs/decisions/{name}: expected {number:04}-title.md"))
        .collect();
    none("number the decisions 0001, 0002, …", found);
}

fn written(path: &str, text: &str) -> Source {
    Source { path: path.into(), text: text.into() }
}

#[test]
fn the_rules_find_what_breaks_them() {
    let long = format!("fn long() {{\n{}}}\n", "    step();\n".repeat(400));
    let found = too_long(&[written("sdk/src/a.rs", &long)], &[], &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    let excepted = [("sdk/src/a.rs", "generated")];
    let found = too_long(&[written("sdk/src/a.rs", &long)], &excepted, &[("sdk/src/a.rs long", "a table")]);
    assert_eq!(found, [""; 0]);
    assert_eq!(too_long(&[], &excepted, &[]), ["sdk/src/a.rs: an exception that nothing needs"]);

    let store = written("collector/src/store/a.rs", "use crate::{bus::message::X, workers::storage};");
    assert_eq!(wrong_ways(&[store]), ["collector/src/store/a.rs:1: `store` names `crate::workers::storage`"]);
    let edge =
        written("collector/src/edge/a.rs", "// crate::store\nuse crate::bus::message;\nuse crate::bus::Bus;");
    assert_eq!(wrong_ways(&[edge]), ["collector/src/edge/a.rs:3: `edge` names `crate::bus::Bus`"]);

    let app = written("collector/src/app.rs", "use crate::{torture::Plan, workers};");
    assert_eq!(wrong_ways(&[app]), ["collector/src/app.rs:1: `app` names `crate::torture::Plan`"]);

    let query = written("collector/src/query/a.rs", "fn f() { Cache::memory(); } // Store::sqlite");
    let app = written("collector/src/app.rs", "fn f() { Cache::memory(); }");
    let found = backends_named(&[query, app]);
    assert_eq!(found, ["collector/src/query/a.rs: names `Cache::memory`"]);
}

#[test]
fn a_file_without_a_module_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    fs::create_dir_all(root.join("src/a")).unwrap();
    fs::write(root.join("Cargo.toml"), "[package]\nname = \"x\"\n").unwrap();
    fs::write(root.join("src/lib.rs"), "mod a;").unwrap();
    fs::write(root.join("src/a.rs"), "mod inner;").unwrap();
    fs::write(root.join("src/a/inner.rs"), "").unwrap();
    fs::write(root.join("src/a/orphan.rs"), "// mod orphan;").unwrap();
    assert_eq!(orphans(&root), ["src/a/orphan.rs"]);
}
