//! The configuration, from the command line.

use std::fs;

use crate::harness::{eventbucket, run};

#[test]
fn a_configuration_that_is_there_but_no_file_is_never_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let file = data.join("eventbucket.toml");
    let check = || run(eventbucket(&["serve", "--check-config", "--data", data.to_str().unwrap()]));
    assert_eq!(check().code, 0, "no folder, no file");
    fs::create_dir_all(&file).unwrap();
    check().assert_failed(1, &["eventbucket.toml"]);
    fs::remove_dir(&file).unwrap();
    std::os::unix::fs::symlink(folder.path().join("unmounted"), &file).unwrap();
    check().assert_failed(1, &["eventbucket.toml"]);
}

#[test]
fn the_effective_configuration_says_where_each_value_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("given.toml");
    fs::write(&file, "[edge]\nbody_timeout = \"5s\"\nheader_timeout = \"7s\"\n").unwrap();
    let mut command = eventbucket(&["serve", "--check-config", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(&file).env("EVENTBUCKET_EDGE_BODY_TIMEOUT", "6s");
    let ran = run(command);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let line = |start: &str| ran.stdout.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
    assert!(line("listen = \"127.0.0.1:0\"").ends_with("# flag --listen"));
    assert!(line("body_timeout = \"6s\"").ends_with("# variable EVENTBUCKET_EDGE_BODY_TIMEOUT"));
    assert!(line("header_timeout = \"7s\"").ends_with("given.toml line 3"));
    assert!(line("connections_max = 4096").ends_with("# default"));
}

#[test]
fn the_configuration_as_json_is_for_programs() {
    let ran = run(eventbucket(&["serve", "--check-config", "--json", "--listen", "127.0.0.1:0"]));
    let document = ran.json();
    assert_eq!(document["listen"]["value"], "127.0.0.1:0");
    assert_eq!(document["listen"]["from"], "flag --listen");
    assert_eq!(document["edge.header_timeout"]["from"], "default");
}

#[test]
fn a_typo_names_the_file_the_line_and_the_nearest_key_whether_checked_or_served() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("eventbucket.toml"), "\n[edge]\nheader_timout = \"7s\"\n").unwrap();
    let data = folder.path().to_str().unwrap();
    for args in [vec!["serve", "--data", data, "--check-config"], vec!["serve", "--data", data]] {
        run(eventbucket(&args)).assert_failed(
            1,
            &[
                "eventbucket: read the configuration:",
                "eventbucket.toml line 3",
                "unknown key `edge.header_timout`; did you mean `edge.header_timeout`?",
            ],
        );
    }
}

#[test]
fn a_mistyped_variable_is_pointed_out() {
    let mut command = eventbucket(&["serve", "--check-config"]);
    command.env("EVENTBUCKET_LISTN", "127.0.0.1:1");
    let ran = run(command);
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.contains("did you mean EVENTBUCKET_LISTEN?"), "{}", ran.stderr);
}

#[test]
fn the_printed_example_is_a_configuration() {
    let ran = run(eventbucket(&["config"]));
    assert_eq!(ran.code, 0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("example.toml");
    fs::write(&file, &ran.stdout).unwrap();
    let checked = run(eventbucket(&["serve", "--check-config", "--config", file.to_str().unwrap()]));
    assert_eq!(checked.code, 0, "{}", checked.stderr);
}

#[test]
fn a_level_that_is_none_is_refused_with_the_nearest() {
    for (level, meant) in [("warning", "did you mean `warn`?"), ("loud", "error, warn, info, debug")] {
        let mut command = eventbucket(&["serve", "--check-config"]);
        command.env("EVENTBUCKET_LOG", level);
        run(command).assert_failed(1, &["variable EVENTBUCKET_LOG", &format!("`{level}`"), meant]);
    }
}

#[test]
fn a_mistake_in_the_file_is_found_below_a_flag_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("given.toml");
    fs::write(&file, "listen = 5\n").unwrap();
    let mut command = eventbucket(&["serve", "--check-config", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(&file);
    run(command).assert_failed(1, &["given.toml line 1", "`listen`", "127.0.0.1:4000"]);
}

#[test]
fn a_certificate_that_can_not_be_used_is_found_by_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("given.toml");
    for name in ["certificate.pem", "key.pem"] {
        fs::write(folder.path().join(name), "hello").unwrap();
    }
    fs::write(&file, "[tls]\ncertificate = \"certificate.pem\"\nkey = \"key.pem\"\n").unwrap();
    let ran = run(eventbucket(&["serve", "--check-config", "--config", file.to_str().unwrap()]));
    ran.assert_failed(1, &["offer TLS", "certificate.pem"]);
}
