//! Every error that a user can meet from the command line and from the configuration: as the program prints
//! it, with its exit code. A configuration that is well prints its settings, which these transcripts never
//! hold.

use super::transcript::{Program, Transcript};
use crate::support::postgres::Server;
use crate::support::site::connect;

/// Runs each command line in an empty folder.
fn of_command_lines(name: &str, lines: &[&[&str]]) {
    let program = Program::new();
    let mut transcript = Transcript::default();
    for arguments in lines {
        let output = program.output(arguments, &[]);
        assert!(!output.status.success(), "{arguments:?}");
        transcript.command(arguments, &[], output);
    }
    transcript.assert("errors", name);
}

/// Runs a command with each of these files as `cloud-sync.toml`.
fn of_files(name: &str, files: &[&str]) {
    let mut transcript = Transcript::default();
    for text in files {
        let output = Program::with_file("cloud-sync.toml", text).output(&["config"], &[]);
        assert!(!output.status.success(), "{text}");
        transcript.file("cloud-sync.toml", text);
        transcript.command(&["config"], &[], output);
    }
    transcript.assert("errors", name);
}

#[test]
fn wrong_usage() {
    of_command_lines(
        "usage",
        &[
            &["unknown"],
            &["stauts"],
            &["status", "--jsno"],
            &["run", "extra"],
            &["config", "--set"],
            &["config", "--set", "nothing"],
            &["config", "--log", "loud=very"],
            &["backfill", "--all", "--days", "3"],
            &["backfill", "--days", "many"],
            &["replay"],
            &["replay", "--from", "yesterday"],
            &["quarantine", "retry"],
            &["quarantine", "retry", "12", "--all"],
            &["quarantine", "show", "first"],
            &["quarantine", "list", "--limit", "-1"],
            &["sync", "--entity", "leafs"],
            &["config", "--set", "cloud.uri=x"],
            &["config", "--set", "colour=red"],
            &["--json", "config", "--set", "cloud.timeout=soon"],
        ],
    );
}

#[test]
fn wrong_values() {
    let values = [
        "source.database_url=mysql://h/d",
        "source.source_id=my college",
        "source.outbox_limit=much",
        "media.root=",
        "media.settle=100",
        "media.settle=2h",
        "cloud.url=cloud.example/api",
        "cloud.url=ftp://cloud.example/api",
        "cloud.url=https://user:secret@cloud.example/api",
        "cloud.url=https://cloud.example/api?key=secret",
        "cloud.url=http://cloud.example/api",
        "cloud.key=two words",
        "cloud.timeout=soon",
        "cloud.timeout=0s",
        "cloud.profile=django",
        "cloud.prefix=../sync",
        "cloud.capabilities=bulk,delte",
        "cloud.delete_moved=yes",
        "delivery.batch_rows=few",
        "delivery.batch_rows=0",
        "delivery.batch_bytes=8MiBs",
        "delivery.batch_bytes=1B",
        "files.driver=ftp",
        "files.fields=visibility",
        "control.listen=localhost:8787",
        "schedule.sync=sometimes",
        "receiver.keys=college",
        "receiver.keys=the college=key",
        "receiver.keys=college=",
        "receiver.keys=college=two words",
    ];
    let lines = values.map(|value| ["config", "--set", value]);
    let lines: Vec<&[&str]> = lines.iter().map(|line| &line[..]).collect();
    of_command_lines("values", &lines);
}

#[test]
fn wrong_files() {
    of_files(
        "files",
        &[
            "[cloud\nurl = \"https://cloud.example/api\"",
            "[cloud]\nurl = https://cloud.example/api",
            "[cloud]\nkey = \"a\"\nkey = \"b\"",
            "[colud]\nurl = \"https://cloud.example/api\"",
            "[database]\nhost = \"h\"",
            "batch_rows = 10",
            "colour = \"red\"",
            "cloud = \"https://cloud.example/api\"",
            "[cloud]\nurll = \"https://cloud.example/api\"",
            "[cloud]\ncolour = \"red\"",
            "[cloud]\ndelete_moved = \"yes\"",
            "[cloud]\ntimeout = 5",
            "[cloud]\nkey = 5",
            "[cloud]\ncapabilities = [1]",
            "[delivery]\nbatch_rows = \"10\"",
            "[delivery]\nbatch_rows = 99999999999999999999999999999999999999999",
            "[delivery]\nbatch_bytes = true",
            "[receiver]\nkeys = \"college=key\"",
            "[receiver.keys]\ncollege = \"key\"",
            "[receiver.keys]\ncollege = [\"a,b\"]",
            "[files]\nfields = { visibility = true }",
            "[files]\nfields = { visibility = \"a;b\" }",
            "[cloud]\ntimeout = \"soon\"",
        ],
    );
}

#[test]
fn files_that_cannot_be_read() {
    let mut transcript = Transcript::default();
    let missing = ["config", "--config", "missing.toml"];
    transcript.command(&missing, &[], Program::new().output(&missing, &[]));
    let program = Program::new();
    std::fs::create_dir(program.folder.path().join("cloud-sync.toml")).unwrap();
    transcript.heading("cloud-sync.toml is a folder");
    transcript.command(&["config"], &[], program.output(&["config"], &[]));
    transcript.assert("errors", "unreadable-files");
}

#[test]
fn wrong_variables() {
    let mut transcript = Transcript::default();
    for text in [
        "CLOUD_API_KEY",
        "CLOUD_API_KEY=two words\n",
        "CLOUD_API_KEY='open",
    ] {
        let output = Program::with_file(".env", text).output(&["config"], &[]);
        assert!(!output.status.success(), "{text}");
        transcript.file(".env", text);
        transcript.command(&["config"], &[], output);
    }
    let dotted = "CLOUD_SYNC_CLOUD_TIMEOUT=soon";
    transcript.file(".env", dotted);
    let output = Program::with_file(".env", dotted).output(&["config"], &[]);
    transcript.command(&["config"], &[], output);
    for variable in [
        ("CLOUD_SYNC_CLOUD_TIMEOUT", "soon"),
        ("CLOUD_API_URL", "cloud.example"),
        ("CLOUD_SYNC_CLOUD_TIMEOTU", "5s"),
    ] {
        let output = Program::new().output(&["config"], &[variable]);
        assert!(!output.status.success(), "{variable:?}");
        transcript.command(&["config"], &[variable], output);
    }
    transcript.heading("A variable that looks like a setting and is none: a warning only");
    let variable = [("CLOUD_SYNC_CLOUD_COLOUR", "red")];
    let command = ["config", "--explain", "--log", "warn"];
    let mut output = Program::new().output(&command, &variable);
    assert!(output.status.success());
    output.stdout.clear();
    transcript.command(&command, &variable, output);
    transcript
        .hide(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "[TIME]")
        .assert("errors", "variables");
}

#[test]
fn wrong_entities() {
    /// An entity with these lines in addition to, or in place of, the usual ones.
    fn entity(lines: &str) -> String {
        let usual = ["name = \"rooms\"", "table = \"tbl_room\"", "key = [\"room_id\"]"];
        let kept = usual.iter().filter(|usual| {
            let name = usual.split(' ').next().unwrap();
            !lines.lines().any(|line| line.starts_with(&format!("{name} =")))
        });
        let kept: Vec<&str> = kept.copied().chain([lines]).collect();
        format!("[[entity]]\n{}\n", kept.join("\n"))
    }
    let mut files = vec![
        "[entity]\nname = \"rooms\"".to_owned(),
        "entity = [1]".to_owned(),
        "[[entity]]\nname = \"rooms\"".to_owned(),
        entity("") + &entity("path = \"halls\""),
        entity("") + &entity("name = \"halls\"\npath = \"rooms\""),
    ];
    let lines = [
        "keys = [\"room_id\"]",
        "retention = { column = \"created_at\", day = 7 }",
        "retention = { column = \"created_at\" }",
        "retention = { column = \"created_at\", days = -1 }",
        "files = [{ column = \"image\", url = \"image_url\", directory = \"images\" }]",
        "columns = { room_id = { form = \"text\" } }",
        "columns = { room_id = { as = \"string\" } }",
        "deletes = \"maybe\"",
        "name = \"my rooms\"",
        "path = \"a/b\"",
        "path = \"changes\"",
        "exclude = [\"room_id\"]",
        "files = [{ column = \"a\", url_column = \"url\", directory = \"d\" }, \
         { column = \"b\", url_column = \"url\", directory = \"d\" }]",
        "files = [{ column = \"a\", url_column = \"a\", directory = \"d\" }]",
        "files = [{ column = \"a\", url_column = \"url\", directory = \"a/b\" }]",
        "files = [{ column = \"a\", url_column = \"url\", directory = \"d\" }]\nexclude = [\"a\"]",
        "delete_path = \"rooms\"",
        "bulk_path = \"/\"",
        "rename = { a = \"x\", b = \"x\" }",
        "constants = { kind = [1] }",
        "columns = { at = { as = \"local datetime\", zone = \"Asia/Nowhere\" } }",
        "columns = { at = { as = \"text\", zone = \"Asia/Manila\" } }",
    ];
    files.extend(lines.map(entity));
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    of_files("entities", &files);
}

#[test]
fn settings_that_a_command_needs() {
    let database = "source.database_url=postgresql://127.0.0.1:9/d";
    let url = "cloud.url=https://cloud.example/api";
    of_command_lines(
        "missing",
        &[
            &["init"],
            &["check"],
            &["check", "--cloud"],
            &["check", "--cloud", "--set", url],
            &["run"],
            &["run", "--set", database],
            &["run", "--set", database, "--set", url],
            &["status"],
            &["receiver"],
            &[
                "receiver",
                "--set",
                "receiver.database_url=postgresql://127.0.0.1:9/d",
            ],
            &["init", "--set", "source.database_url=postgresql://127.0.0.1:no/d"],
        ],
    );
}

/// What `init` says of entities that do not fit the database.
#[tokio::test]
async fn entities_that_do_not_fit_the_database() {
    let url = Server::get().database("unfit").await;
    connect(&url).await.batch_execute(UNFIT).await.unwrap();
    let mut transcript = Transcript::default().hide(r"unfit_\d+", "unfit");
    let limited = url.replace("postgres@", "unfit_reader@");
    let shown = "[source]\ndatabase_url = \"postgres://[HOST]/unfit\"\n\n";
    for lines in [
        "table = \"lost\"\nkey = [\"id\"]",
        "table = \"seen\"\nkey = [\"id\"]",
        "table = \"part_1\"\nkey = [\"id\"]",
        "table = \"parent\"\nkey = [\"id\"]",
        "table = \"guarded\"\nkey = [\"id\"]",
        "table = \"thing\"\nkey = [\"number\"]",
        "table = \"thing\"\nkey = [\"label\"]",
        "table = \"thing\"\nkey = [\"maybe\"]",
        "table = \"thing\"\nkey = [\"id\"]\nexclude = [\"lable\"]",
        "table = \"thing\"\nkey = [\"id\"]\nredact = [\"number\"]",
        "table = \"thing\"\nkey = [\"id\"]\nretention = { column = \"label\", days = 7 }",
        "table = \"thing\"\nkey = [\"id\"]\nfiles = [{ column = \"image\", url_column = \"url\", \
         directory = \"d\" }]",
        "table = \"thing\"\nkey = [\"id\"]\nwhere = \"label = \"",
        "table = \"thing\"\nkey = [\"id\"]\nwhere = \"made > now()\"",
        "table = \"thing\"\nkey = [\"id\"]\nwhere = \"id in (select id from parent)\"",
        "table = \"ring_a\"\nkey = [\"id\"]\n\n[[entity]]\nname = \"y\"\ntable = \"ring_b\"\nkey = [\"id\"]",
    ] {
        let entity = format!("[[entity]]\nname = \"x\"\n{lines}\n");
        // Policies do not bind a superuser.
        let url = if lines.contains("guarded") { &limited } else { &url };
        let file = format!("[source]\ndatabase_url = {url:?}\n{entity}");
        let output = Program::with_file("cloud-sync.toml", &file).output(&["init"], &[]);
        assert!(!output.status.success(), "{lines}");
        transcript.file("cloud-sync.toml", &format!("{shown}{entity}"));
        transcript.command(&["init"], &[], output);
    }
    transcript.assert("errors", "database");
}

/// Tables, each of which fails one of `init`'s checks, or whose columns do.
const UNFIT: &str = "
    create table thing (id bigint primary key, number bigint, label text, maybe text unique, \
    made timestamptz);
    create table child (id bigint primary key, thing_id bigint references thing);
    create view seen as select id from thing;
    create table parent (id bigint primary key);
    create table heir () inherits (parent);
    create table whole (id bigint primary key) partition by range (id);
    create table part_1 partition of whole for values from (0) to (100);
    create table guarded (id bigint primary key);
    alter table guarded enable row level security;
    alter table guarded force row level security;
    create role unfit_reader login;
    grant select on guarded to unfit_reader;
    create table ring_a (id bigint primary key, b bigint not null);
    create table ring_b (id bigint primary key, a bigint not null references ring_a);
    alter table ring_a add foreign key (b) references ring_b (id);
";
