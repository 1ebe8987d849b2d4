//! The layers, the mistakes and what is shown.

use std::fs;
use std::path::Path;

use super::*;

fn load(file: Option<&str>, variables: &[(&str, &str)], flags: Flags) -> Result<Config, Error> {
    let folder = tempfile::tempdir().unwrap();
    let mut flags = flags;
    if let Some(text) = file {
        let path = folder.path().join("given.toml");
        fs::write(&path, text).unwrap();
        flags.config = Some(path.to_str().unwrap().to_owned());
    }
    Config::load(&flags, variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
}

fn mistakes(file: &str) -> Vec<String> {
    let error = load(Some(file), &[], Flags::default()).unwrap_err();
    error.mistakes.into_iter().map(|mistake| mistake.to_string()).collect()
}

#[test]
fn nothing_has_to_be_said() {
    let config = load(None, &[], Flags::default()).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:4000");
    assert_eq!(config.data, Path::new("./eventbucket-data"));
    assert_eq!(config.edge, EdgeConfig::default());
    assert_eq!(config.edge.header_timeout, Duration::from_secs(10));
    assert_eq!(config.edge.body_timeout, Duration::from_secs(30));
    assert_eq!(config.edge.connections_max, 4_096);
    assert_eq!(config.edge.decoding_max, 32);
    assert_eq!(config.edge.drain_timeout, Duration::from_secs(20));
    assert_eq!(config.edge.free_disk_min, 128 << 20);
    assert_eq!(config.edge.trusted_proxies, []);
    assert_eq!(config.tls, None);
    assert_eq!(config.log, LogConfig { level: "info".into(), format: LogFormat::Text });
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let file = "listen = \"127.0.0.1:1\"\n[edge]\nheader_timeout = \"1s\"\nbody_timeout = \"1s\"\n";
    let variables = [("EVENTBUCKET_LISTEN", "127.0.0.1:2"), ("EVENTBUCKET_EDGE_BODY_TIMEOUT", "2s")];
    let flags = Flags { listen: Some("127.0.0.1:3".into()), ..Flags::default() };
    let config = load(Some(file), &variables, flags).unwrap();
    assert_eq!(config.listen.port(), 3);
    assert_eq!(config.edge.body_timeout, Duration::from_secs(2));
    assert_eq!(config.edge.header_timeout, Duration::from_secs(1));
}

#[test]
fn where_a_value_came_from_is_shown() {
    let file = "[edge]\n\nheader_timeout = \"1s\"\n";
    let variables = [("EVENTBUCKET_EDGE_BODY_TIMEOUT", "2s")];
    let flags = Flags { listen: Some("127.0.0.1:3".into()), ..Flags::default() };
    let shown = load(Some(file), &variables, flags).unwrap().to_toml();
    let line = |start: &str| shown.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
    assert!(line("listen = \"127.0.0.1:3\"").ends_with("# flag --listen"), "{shown}");
    assert!(line("header_timeout = \"1s\"").ends_with("given.toml line 3"), "{shown}");
    assert!(line("body_timeout = \"2s\"").ends_with("# variable EVENTBUCKET_EDGE_BODY_TIMEOUT"), "{shown}");
    assert!(line("decoding_max = 32").ends_with("# default"), "{shown}");
}

#[test]
fn what_is_shown_can_be_used_again() {
    let variables = [("EVENTBUCKET_EDGE_TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.1")];
    let first = load(None, &variables, Flags::default()).unwrap();
    let second = load(Some(&first.to_toml()), &[], Flags::default()).unwrap();
    assert_eq!(second.edge, first.edge);
    assert_eq!(second.edge.trusted_proxies.len(), 2);
}

#[test]
fn every_key_of_the_example_is_read_back_as_its_default() {
    let mut uncommented = 0;
    let text: String = example()
        .lines()
        .map(|line| match line.strip_prefix("# ").filter(|rest| is_assignment(rest)) {
            Some(rest) if !rest.contains(".pem\"") => {
                uncommented += 1;
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert_eq!(uncommented, keys::KEYS.len() - 4, "all but the four TLS files");
    let config = load(Some(&text), &[], Flags::default()).unwrap();
    assert_eq!(
        EdgeConfig { advertise: None, drain_notice: None, spool: None, ..config.edge },
        EdgeConfig::default()
    );
    assert_eq!(config.roles, Roles::default());
}

fn is_assignment(line: &str) -> bool {
    line.split_once(" = ").is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
}

#[test]
fn a_misspelt_key_is_named_with_its_line_and_the_nearest_key() {
    let found = mistakes("listen = \"127.0.0.1:1\"\n[edge]\nheader_timout = \"1s\"\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("given.toml line 3"), "{}", found[0]);
    assert!(found[0].contains("unknown key `edge.header_timout`"), "{}", found[0]);
    assert!(found[0].contains("did you mean `edge.header_timeout`?"), "{}", found[0]);
}

#[test]
fn keys_and_tables_in_wrong_places_are_pointed_to_the_right_ones() {
    for (file, meant) in [
        ("lisen = \"x\"", "did you mean `listen`?"),
        ("body_timeout = \"1s\"", "did you mean `edge.body_timeout`?"),
        ("[egde]\nbody_timeout = \"1s\"", "did you mean `edge`?"),
        ("edge = 4", "write `[edge]`"),
        ("[log]\nlevl = \"info\"", "did you mean `log.level`?"),
        ("zzz = 1", "`eventbucket config` prints every key"),
    ] {
        let found = mistakes(file);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(meant), "{}", found[0]);
    }
}

#[test]
fn every_mistake_is_reported_at_once() {
    let found = mistakes(
        "listen = \"localhost\"\n[edge]\nheader_timeout = 10\nfree_disk_min = \"lots\"\ndecoding_max = 0\n\
         trusted_proxies = [\"10.0.0.0/99\"]\n[log]\nformat = \"xml\"\nlevel = \"a=b=c\"\n",
    );
    assert_eq!(found.len(), 7, "{found:#?}");
    let all = found.join("\n");
    assert!(all.contains("has no unit"), "{all}");
    assert!(all.contains("like 127.0.0.1:4000"), "{all}");
    assert!(all.contains("10.0.0.0/99"), "{all}");
}

#[test]
fn a_level_is_one_and_directives_name_their_module() {
    let log = |level: &str| load(None, &[("EVENTBUCKET_LOG", level)], Flags::default());
    for level in ["warn", "WARN", "off", "info,eventbucket_collector::edge=debug", "hyper=trace", "a::b"] {
        assert_eq!(log(level).unwrap().log.level, level);
    }
    for (level, part) in [
        ("warning", "`warning` isn't a level: write error, warn, info, debug or trace; did you mean `warn`?"),
        ("loud", "`loud` isn't a level: write error"),
        ("info,edge", "`edge` isn't a level"),
        ("edge=warning", "did you mean `warn`?"),
        ("5x", "`5x` isn't"),
    ] {
        let message = log(level).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn what_is_covered_is_checked_too() {
    let flags = || Flags { listen: Some("127.0.0.1:3".into()), ..Flags::default() };
    let error = load(Some("listen = 5\n"), &[("EVENTBUCKET_LISTEN", "x")], flags()).unwrap_err();
    let places: Vec<&str> = error.mistakes.iter().map(|mistake| mistake.place.as_str()).collect();
    assert_eq!(places.len(), 2, "{error}");
    assert!(places.contains(&"variable EVENTBUCKET_LISTEN"), "{places:?}");
    assert!(places.iter().any(|place| place.ends_with("given.toml line 1")), "{places:?}");
    let error = load(Some("listen = 5\n[edge]\ndecoding_max = 0\n"), &[], flags()).unwrap_err();
    assert_eq!(error.mistakes.len(), 2, "each is said once: {error}");
}

#[test]
fn wrong_types_and_broken_toml_name_their_line() {
    assert!(mistakes("\n\nlisten = true")[0].contains("line 3: `listen` is text in quotes, not boolean"));
    assert!(mistakes("[edge]\ntrusted_proxies = [1]")[0].contains("a list of texts"));
    assert!(mistakes("[edge]\ndecoding_max = \"many\"")[0].contains("a whole number, not string"));
    assert!(mistakes("listen = \"127.0.0.1:1\"\nlisten =")[0].contains("line 2"));
}

#[test]
fn tls_needs_both_files_and_both_must_open() {
    let found = mistakes("[tls]\ncertificate = \"absent.pem\"\n");
    assert!(found.iter().any(|m| m.contains("absent.pem") && m.contains("No such file")), "{found:?}");
    assert!(found.iter().any(|m| m.contains("`tls.certificate` needs `tls.key`")), "{found:?}");
}

#[test]
fn authorities_need_a_server_and_must_open() {
    let found = mistakes("[bus]\nca_file = \"absent.pem\"\n[cache]\nca_file = \"absent.pem\"\n");
    for part in ["`bus.ca_file`: open", "`bus.ca_file` needs `bus.url`", "`cache.ca_file` needs `cache.url`"]
    {
        assert!(found.iter().any(|mistake| mistake.contains(part)), "{found:?}");
    }
}

#[test]
fn the_file_in_the_data_folder_is_read_and_can_not_move_it() {
    let folder = tempfile::tempdir().unwrap();
    let flags = Flags { data: Some(folder.path().to_str().unwrap().into()), ..Flags::default() };
    fs::write(folder.path().join(FILE_NAME), "listen = \"127.0.0.1:9\"").unwrap();
    let config = Config::load(&flags, []).unwrap();
    assert_eq!(config.listen.port(), 9);
    assert_eq!(config.file(), Some(folder.path().join(FILE_NAME).as_path()));
    fs::write(folder.path().join(FILE_NAME), "data = \"elsewhere\"").unwrap();
    assert!(Config::load(&flags, []).unwrap_err().to_string().contains("give the file by --config"));
}

#[test]
fn a_given_file_that_is_absent_is_an_error_and_its_folder_is_where_paths_begin() {
    let flags = Flags { config: Some("/nonexistent/x.toml".into()), ..Flags::default() };
    let message = Config::load(&flags, []).unwrap_err().to_string();
    assert!(message.starts_with("flag --config: read the file /nonexistent/x.toml"), "{message}");
    let config = load(Some("data = \"inner\""), &[], Flags::default()).unwrap();
    assert!(config.data.is_absolute() && config.data.ends_with("inner"), "{:?}", config.data);
}

#[test]
fn unknown_variables_warn_empty_ones_and_those_of_others_do_not() {
    let variables = [
        ("EVENTBUCKET_EDGE_HEADER_TIMOUT", "1s"),
        ("EVENTBUCKET_SERVICE_HOST", "10.0.0.1"),
        ("EVENTBUCKET_LISTEN", ""),
        ("EVENTBUCKET_URL", "http://x"),
        ("EVENTBUCKET_KEY", "k"),
        ("EVENTBUCKET_CA_FILE", "f"),
        ("PATH", "/bin"),
    ];
    let config = load(None, &variables, Flags::default()).unwrap();
    assert_eq!(config.warnings().len(), 2, "{:?}", config.warnings());
    assert!(config.warnings()[0].contains("did you mean EVENTBUCKET_EDGE_HEADER_TIMEOUT?"));
}

#[test]
fn every_variable_is_made_of_its_key() {
    for key in keys::KEYS {
        let made = format!("EVENTBUCKET_{}", key.name.replace('.', "_").to_uppercase());
        let expected = if key.name == "log.level" { "EVENTBUCKET_LOG".to_owned() } else { made };
        assert_eq!(key.variable, expected);
        assert!(!key.about.is_empty(), "{} is explained", key.name);
    }
}

#[test]
fn servers_and_roles_are_read_and_passwords_never_shown() {
    let file = "roles = [\"edge\", \"query\"]\n[store]\nurl = \"postgres://u:geheim@db/events\"\n[bus]\nurl = \"amqps://u:geheim@mq\"\n";
    let variables = [("EVENTBUCKET_CACHE_URL", "redis://:geheim@cache/1")];
    let config = load(Some(file), &variables, Flags::default()).unwrap();
    assert!(config.roles.has(Role::Edge) && !config.roles.has(Role::Storage));
    assert_eq!(config.store.url.as_ref().unwrap().secret(), "postgres://u:geheim@db/events");
    assert_eq!((config.bus.shards, config.bus.writers), (8, 2));
    assert_eq!(config.cache_url.as_ref().unwrap().secret(), "redis://:geheim@cache/1");
    for shown in [config.to_toml(), config.to_json().to_string(), format!("{config:?}")] {
        assert!(!shown.contains("geheim") && shown.contains("***"), "{shown}");
    }
}

#[test]
fn accounts_of_their_own_need_a_log_on_postgres() {
    let told = mistakes("[store]\naccounts_url = \"postgres://db/accounts\"\n");
    assert!(told[0].contains("`store.accounts_url` needs `store.url`"), "{told:?}");
}

#[test]
fn a_spool_needs_a_broker_to_wait_for() {
    let told = mistakes("[edge]\nspool = \"waiting\"\n");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("line 2") && told[0].contains("there is no `bus.url`"), "{told:?}");
    let file = "[bus]\nurl = \"amqp://mq\"\n[edge]\nspool = \"waiting\"\nspool_max = \"64MiB\"\n";
    let spool = load(Some(file), &[], Flags::default()).unwrap().edge.spool.unwrap();
    assert!(spool.folder.is_absolute() && spool.folder.ends_with("waiting"), "beside the file: {spool:?}");
    assert_eq!(spool.bytes_max, 64 << 20);
    let told = mistakes("[edge]\nspool_max = \"3MiB\"\n");
    assert!(told[0].contains("at least 32MiB"), "{told:?}");
}

#[test]
fn a_server_of_the_wrong_kind_is_refused() {
    let told = mistakes("[bus]\nurl = \"redis://mq\"\nshards = 0\n");
    assert!(told[0].contains("must with amqp:// or amqps://"), "{told:?}");
    assert!(told[1].contains("from 1 to 256"), "{told:?}");
}

#[test]
fn a_part_of_the_work_needs_servers_to_meet_the_rest() {
    let told = mistakes("roles = [\"edge\"]\n");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("needs `store.url`") && told[1].contains("needs `bus.url`"), "{told:?}");
}
