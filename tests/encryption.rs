//! Columns that are encrypted: no byte of them is readable in the cloud, and each comes back by the key.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::installed;
use crate::support::postgres::Server;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect, entity};

const TABLE: &str = "create table person (id bigint generated always as identity primary key, name text, note text, \
     face float8[], medical jsonb, pin numeric, height numeric)";

/// Values that are found in raw bytes, if they are there.
const MARKS: [&str; 4] = [
    "note-mark-7f31",
    "0.987654321",
    "medical-mark-88d2",
    "31415926535897932384",
];

const PLAIN: &str = "name-mark-1c55";

fn people(encrypt: &str) -> String {
    entity("people", "person", &["id"], encrypt)
}

fn encrypted() -> String {
    people("encrypt = [\"note\", \"face\", \"medical\", \"pin\"]")
}

fn insert(rows: u32) -> String {
    let [note, face, medical, pin] = MARKS;
    format!(
        "insert into person (name, note, face, medical, pin, height) \
         select '{PLAIN}', '{note} Ñandú ' || n, array[{face}, n, -1e-7], jsonb_build_object('{medical}', n), \
                {pin}.{pin} + n, 1.80 from generate_series(1, {rows}) n"
    )
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The rows of a table, each as JSON, by key.
async fn rows(url: &str, table: &str) -> BTreeMap<i64, Value> {
    let sql = format!("select id, to_json(t)::text from {table} t");
    let rows = connect(url).await.query(&sql, &[]).await.unwrap();
    let row = |row: &tokio_postgres::Row| (row.get(0), serde_json::from_str(row.get(1)).unwrap());
    rows.iter().map(row).collect()
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < LIMIT, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether a text is anywhere in the files of a folder.
fn is_in_files(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_in_files(&path, text);
        }
        // Sockets and files that just went cannot be read.
        std::fs::read(&path).is_ok_and(|bytes| memchr::memmem::find(&bytes, text.as_bytes()).is_some())
    })
}

/// What `decrypt` makes of the cloud's rows, compared with the site's by every column that the site has.
fn assert_decrypted(decrypted: &str, site: &BTreeMap<i64, Value>) {
    let rows: Vec<Value> = decrypted
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), site.len());
    for row in rows {
        let expected = &site[&row["id"].as_i64().unwrap()];
        for (column, value) in expected.as_object().unwrap() {
            assert_eq!(row[column], *value, "{column} of {row}");
        }
    }
}

async fn cloud_lines(cloud: &Cloud) -> String {
    let rows = rows(&cloud.database_url, "cloud.people").await;
    rows.values().map(|row| format!("{row}\n")).collect()
}

fn with_input(mut command: Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloud_holds_no_plaintext_and_each_value_comes_back() {
    let server = Server::with(&[]);
    let mut cloud = Cloud::start_on(&server, "encrypted").await;
    let cloud_folder = cloud.folder().path().to_owned();
    let site = Site::bare("encrypted", &cloud.url, KEY, TABLE, &encrypted()).await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    // Given no key, nothing starts,
    let refused = daemon.ask(&["sync"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("cloud-sync key create"),
        "{refused:?}"
    );
    let checked = daemon.ask(&["check"]);
    assert!(
        String::from_utf8_lossy(&checked.stdout).contains("cloud-sync key create"),
        "{checked:?}"
    );
    // and with a key rows go: new ones, changed ones, those with nulls.
    let made: Value = serde_json::from_str(&succeeded(&daemon.ask(&["key", "create", "--json"]))).unwrap();
    let process = daemon.start();
    site.run(&insert(200)).await;
    site.run("update person set note = note || ' changed' where id % 10 = 0; update person set face = null where id = 7")
        .await;
    site.run("insert into person (medical) values ('null'), (null)")
        .await;
    let here = rows(&site.database_url, "person").await;
    let is_there = async |key: &str| {
        let there = rows(&cloud.database_url, "cloud.people").await;
        there.len() == here.len()
            && there.iter().all(|(id, row)| row["name"] == here[id]["name"])
            && there[&10]["note"]
                .as_str()
                .is_some_and(|text| text.starts_with(key))
    };
    let first = format!("enc1:{}:", made["id"].as_str().unwrap());
    until("the rows arrive", async || is_there(&first).await).await;
    until("the last change arrives", async || {
        let lines = cloud_lines(&cloud).await;
        let output = with_input(daemon.command(&["decrypt", "people"]), &lines);
        succeeded(&output).contains("changed")
            && rows(&cloud.database_url, "cloud.people").await[&7]["face"].is_null()
    })
    .await;
    // Then decrypt brings each value back,
    let lines = cloud_lines(&cloud).await;
    let output = with_input(daemon.command(&["decrypt", "people"]), &lines);
    assert_decrypted(&succeeded(&output), &here);
    // and so does the documents' script,
    match installed::of_python("pycryptodome", "pycryptodome==3.23.0") {
        Err(why) => println!("the script is skipped: pycryptodome cannot be installed: {why}"),
        Ok(folder) => {
            let page = include_str!("../docs/guide/encryption.md");
            let script = page
                .split("```python\n")
                .nth(1)
                .unwrap()
                .split("```")
                .next()
                .unwrap();
            let file = site.folder.path().join("decrypt.py");
            std::fs::write(&file, script).unwrap();
            let mut python = Command::new(folder.join("bin/python"));
            python
                .arg(file)
                .arg(site.folder.path().join("var/encryption.json"))
                .arg("people");
            assert_decrypted(&succeeded(&with_input(python, &lines)), &here);
        }
    }
    // and nothing of them is in the cloud's files, its database's files and log.
    connect(&cloud.database_url)
        .await
        .batch_execute("checkpoint")
        .await
        .unwrap();
    let folders = [server.folder().to_owned(), cloud_folder.clone()];
    let is_found = |text: &str| folders.iter().any(|folder| is_in_files(folder, text));
    assert!(is_found(PLAIN));
    for mark in MARKS {
        assert!(!is_found(mark), "{mark}");
    }
    // A sync finds no difference.
    process.kill();
    let pushed = |output: &Output| -> Value {
        let report: Value = serde_json::from_str(&succeeded(output)).unwrap();
        report["summary"]["people"].clone()
    };
    assert_eq!(pushed(&daemon.ask(&["sync", "--json"])), json!(0));
    // With a newer key it sends each row again, and rows of either key come back.
    let newer: Value = serde_json::from_str(&succeeded(&daemon.ask(&["key", "rotate", "--json"]))).unwrap();
    assert_eq!(pushed(&daemon.ask(&["sync", "--json"])), json!(200));
    let second = format!("enc1:{}:", newer["id"].as_str().unwrap());
    assert!(is_there(&second).await);
    let both = lines.clone() + &cloud_lines(&cloud).await;
    let output = with_input(daemon.command(&["decrypt", "people"]), &both);
    for (line, _) in succeeded(&output).lines().zip(0..) {
        assert!(!line.contains("enc1:"), "{line}");
    }
    // On another machine the recovery codes are enough, and without one its values stay as they are.
    let elsewhere = ["--set", "encryption.key_file=elsewhere.json"];
    let code = made["recovery_code"].as_str().unwrap();
    let mut recover = daemon.command(&["key", "recover"]);
    recover.args(elsewhere);
    succeeded(&with_input(recover, &code.to_lowercase()));
    let decrypt = |input: &str| {
        let mut command = daemon.command(&["decrypt", "people"]);
        command.args(elsewhere);
        with_input(command, input)
    };
    assert_decrypted(&succeeded(&decrypt(&lines)), &here);
    let partly = decrypt(&cloud_lines(&cloud).await);
    assert_eq!(partly.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&partly.stderr).contains("cloud-sync key recover"));
    assert!(String::from_utf8_lossy(&partly.stdout).contains(&second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_can_be_encrypted_later_and_keys_cannot() {
    let cloud = Cloud::start("encrypted_later").await;
    let mut site = Site::bare("encrypted_later", &cloud.url, KEY, TABLE, &people("")).await;
    site.init().await;
    site.run(&insert(20)).await;
    let daemon = Daemon::of(&site, "store");
    succeeded(&daemon.ask(&["sync"]));
    let here = rows(&site.database_url, "person").await;
    assert_eq!(
        rows(&cloud.database_url, "cloud.people").await[&1]["face"],
        here[&1]["face"]
    );
    // When columns are encrypted from now on
    succeeded(&daemon.ask(&["key", "create"]));
    site.reconfigure(&people(""), &encrypted());
    let daemon = Daemon::of(&site, "store");
    succeeded(&daemon.ask(&["init"]));
    succeeded(&daemon.ask(&["sync"]));
    // Then a sync has replaced what the cloud had.
    let there = rows(&cloud.database_url, "cloud.people").await;
    for row in there.values() {
        for column in ["note", "face", "medical", "pin"] {
            assert!(
                row[column].as_str().is_some_and(|text| text.starts_with("enc1:")),
                "{row}"
            );
        }
        assert_eq!(row["name"], PLAIN);
    }
    let output = with_input(daemon.command(&["decrypt", "people"]), &cloud_lines(&cloud).await);
    assert_decrypted(&succeeded(&output), &here);
    // What the cloud must read cannot be encrypted.
    for (columns, why) in [
        ("[\"id\"]", "it is part of the key"),
        ("[\"nothing\"]", "no column nothing"),
        ("[\"note\"]\nexclude = [\"note\"]", "it is excluded"),
    ] {
        let file = site.folder.path().join("cloud-sync.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(
            &file,
            text.replace(&encrypted(), &people(&format!("encrypt = {columns}"))),
        )
        .unwrap();
        let checked = daemon.ask(&["check"]);
        let said = [checked.stdout, checked.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains(why), "{said}");
        std::fs::write(&file, text).unwrap();
    }
}
