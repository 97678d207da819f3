//! The real binary: what it prints, where, and its exit codes.

mod configuration_errors;
mod help;
mod reports;
mod transcript;

use serde_json::Value;

use transcript::Program;

#[test]
fn config_tells_where_values_come_from_and_hides_secrets() {
    let site = Program::with_file(
        "cloud-sync.toml",
        "[cloud]\nurl = \"https://cloud.example/api\"\n",
    );
    site.write(".env", "CLOUD_API_KEY=top-secret\n");
    let variables = [("DATABASE_URL", "postgresql://u:top-secret@h/d")];
    let (code, out, err) = site.run(&["config", "--set", "delivery.in_flight=3"], &variables);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(!out.contains("top-secret"), "{out}");
    let line = |key: &str| {
        let line = out
            .lines()
            .find(|line| line.split_whitespace().next() == Some(key));
        line.unwrap_or_else(|| panic!("no {key} in\n{out}")).to_owned()
    };
    assert!(
        line("cloud.url").contains("https://cloud.example/api")
            && line("cloud.url").contains("cloud-sync.toml line 2")
    );
    assert!(line("cloud.key").contains("(hidden)") && line("cloud.key").contains("CLOUD_API_KEY in .env"));
    assert!(line("source.database_url").contains("DATABASE_URL in the environment"));
    assert!(line("delivery.in_flight").contains("flag"));
    assert!(line("control.token").contains("(unset)"));

    let (code, out, _) = site.run(&["config", "--json"], &variables);
    assert_eq!(code, 0);
    assert!(!out.contains("top-secret"), "{out}");
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["entities"].as_array().unwrap().len(), 9);
    let (code, out, _) = site.run(&["config", "--explain"], &[]);
    assert_eq!(code, 0);
    assert!(out.contains("CLOUD_SYNC_CLOUD_KEY, CLOUD_API_KEY"), "{out}");
}

#[test]
fn wrong_usage_and_settings_end_with_2() {
    let site = Program::new();
    // The program's own errors have a code; clap's have none.
    let coded = [
        &["config", "--set", "cloud.timeout=soon"][..],
        &["config", "--set", "cloud.uri=x"],
        &["config", "--config", "missing.toml"],
        &["config", "--log", "loud"],
        &["sync", "--entity", "leafs"],
    ];
    let usage = [
        &["config", "--set", "nothing"][..],
        &["replay", "--from", "yesterday"],
        &["backfill", "--all", "--days", "3"],
        &["quarantine", "retry"],
        &["unknown"],
    ];
    for (lines, beginning) in [(coded, "error[CS"), (usage, "error: ")] {
        for arguments in lines {
            let (code, out, err) = site.run(arguments, &[]);
            assert_eq!(code, 2, "{arguments:?}: {err}");
            assert!(
                out.is_empty() && err.starts_with(beginning),
                "{arguments:?}: {out}{err}"
            );
        }
    }
}

#[test]
fn an_error_is_json_too_where_json_was_asked_for() {
    let (code, out, err) = Program::new().run(&["--json", "config", "--set", "cloud.timeout=soon"], &[]);
    assert_eq!(code, 2);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["success"], false);
    assert!(json["errors"][0].as_str().unwrap().contains("cloud.timeout"));
    assert!(err.contains("cloud.timeout"));
}

#[test]
fn url_columns_that_would_overwrite_each_other_are_refused_at_start() {
    let file = |column: &str, url_column: &str| {
        format!("{{ column = \"{column}\", url_column = \"{url_column}\", directory = \"d\" }}")
    };
    for (files, words) in [
        (
            format!("{}, {}", file("a", "url"), file("b", "url")),
            "a url_column of its own",
        ),
        (file("a", "a"), "name another url_column"),
    ] {
        let config = format!(
            "[source]\ndatabase_url = \"postgresql://h/d\"\n[cloud]\nurl \
             = \"https://cloud.example/api\"\nkey = \"k\"\n\
             [[entity]]\nname = \"pictures\"\ntable = \"t\"\nkey = [\"id\"]\nfiles = [{files}]\n"
        );
        let site = Program::with_file("cloud-sync.toml", &config);
        for command in ["init", "check", "run"] {
            let (code, _, err) = site.run(&[command], &[]);
            assert_eq!(code, 2, "{err}");
            assert!(err.contains("entity pictures") && err.contains(words), "{err}");
        }
    }
}

#[test]
fn an_entity_with_a_path_of_the_clouds_own_is_refused_at_start() {
    let config = "[source]\ndatabase_url = \"postgresql://h/d\"\n[cloud]\nurl = \"https://cloud.example/api\"\nkey = \"k\"\n\
                  [[entity]]\nname = \"sync_status\"\ntable = \"t\"\nkey = [\"id\"]\n";
    let site = Program::with_file("cloud-sync.toml", config);
    for command in ["init", "check", "run"] {
        let (code, _, err) = site.run(&[command], &[]);
        assert_eq!(code, 2, "{err}");
        assert!(
            err.contains("entity sync_status")
                && err.contains("its path sync-status is the path of one of the cloud's own calls")
                && err.contains("set another path, as in path = \"sync-status-rows\""),
            "{err}"
        );
    }
}
