//! The college of the old script at the server of the old script: 14 tables, 20,000 rows, refused rows, a
//! firewall, files that are too large.

use std::collections::BTreeMap;

use cloud_sync::quarantine;
use serde_json::Value;

use super::connected;
use crate::support::baseline::{BaselineServer, Quirks};
use crate::support::fault::Fault;
use crate::support::process::Daemon;
use crate::support::site::{Site, entity};

/// Rows of each plain table.
const ROWS: usize = 2_000;

/// The plain tables: `rooms` by their numbers, the others by an id, each a child of the rooms.
const PLAIN: [&str; 9] = [
    "cameras",
    "faculties",
    "subjects",
    "sections",
    "teaching_loads",
    "attendance_records",
    "recognition_logs",
    "stream_recordings",
    "holidays",
];

fn tables() -> String {
    let mut sql = "create table rooms (room_no int primary key, note text, created_at timestamptz not null \
                   default now()); create table users (id int primary key, name text); create table \
                   departments (id int primary key, name text); create table slips (id int primary key, kind \
                   text not null, room_no int references rooms, note text, image text, start_date date not \
                   null default current_date, created_at timestamptz not null default now());"
        .to_owned();
    for table in PLAIN {
        sql += &format!(
            "create table {table} (id int primary key, room_no int references rooms, note text, \
             day date not null default current_date, created_at timestamptz not null default now());"
        );
    }
    sql
}

fn config() -> String {
    let local = "created_at = { as = \"local datetime\", zone = \"Asia/Manila\" }";
    let mut config = vec![
        entity(
            "rooms",
            "rooms",
            &["room_no"],
            &format!("columns = {{ room_no = {{ as = \"text\" }}, {local} }}"),
        ),
        entity("users", "users", &["id"], ""),
        entity("departments", "departments", &["id"], ""),
    ];
    for table in PLAIN {
        let by = match table {
            "attendance_records" | "recognition_logs" | "stream_recordings" => {
                "retention = { column = \"created_at\", days = 30, cloud_days_by = \"day\" }\n"
            }
            _ => "",
        };
        let columns = format!("{by}columns = {{ room_no = {{ as = \"text\" }}, {local} }}");
        config.push(entity(table, table, &["id"], &columns));
    }
    for (name, kind) in [("leaves", "leave"), ("passes", "pass")] {
        config.push(entity(
            name,
            "slips",
            &["id"],
            &format!(
                "where = \"kind = '{kind}'\"\nretention = {{ column = \"created_at\", days = 90, cloud_days_by \
                 = \"start_date\" }}\ncolumns = {{ room_no = {{ as = \"text\" }}, {local} }}\nfiles = [{{ \
                 column = \"image\", url_column = \"image\", directory = \"slips\", column_value = \"path\" \
                 }}]"
            ),
        ));
    }
    config.concat()
}

/// Rows that the server refuses: 2 of 100, for their text, wherever they are.
const REFUSED: &str = "a note that is much too long";

/// The text that the firewall does not like.
const BLOCKED: &str = "<script>alert(1)</script>";

async fn fill(site: &Site) {
    let note = format!("case when n % 50 = 7 then '{REFUSED}' else 'note ' || n || repeat(' blah', 20) end");
    let mut sql = format!(
        "insert into rooms select n, 'room ' || n from generate_series(1, 200) n; \
         insert into users select n, 'user ' || n from generate_series(1, 500) n; \
         insert into departments values (1, '{BLOCKED}'), (2, ' trimmed ');"
    );
    for table in PLAIN {
        sql +=
            &format!("insert into {table} select n, 1 + n % 200, {note} from generate_series(1, {ROWS}) n;");
    }
    sql += &format!(
        "insert into slips select n, case when n % 2 = 0 then 'leave' else 'pass' end, 1 + n % 200, {note}, \
         case when n <= 24 then n || '.jpg' end from generate_series(1, 1300) n;"
    );
    site.run(&sql).await;
    for n in 1..=24_usize {
        // Two of them are above the server's limit.
        let size = if n % 12 == 0 { (2 << 20) + 1 } else { 20_000 + n };
        std::fs::write(site.media().join(format!("{n}.jpg")), vec![n as u8; size]).unwrap();
    }
}

/// How many rows of each path the server is to have: all but the refused ones.
fn expected(server: &BaselineServer, refused: bool) -> BTreeMap<&'static str, (usize, usize)> {
    let good = |rows: usize| {
        if refused {
            rows - (1..=rows).filter(|n| n % 50 == 7).count()
        } else {
            rows
        }
    };
    let odd = |rows: usize| {
        let odd = (1..=rows).filter(|n| n % 2 == 1);
        odd.filter(|n| !refused || n % 50 != 7).count()
    };
    let mut paths = BTreeMap::from([
        ("rooms", 200),
        ("users", 500),
        ("departments", if refused { 1 } else { 2 }),
        ("leaves", 650),
        ("passes", odd(1300)),
    ]);
    for table in PLAIN {
        paths.insert(table, good(ROWS));
    }
    paths
        .into_iter()
        .map(|(path, rows)| (path, (rows, server.count(&path.replace('_', "-")))))
        .collect()
}

fn assert_there(server: &BaselineServer, refused: bool) {
    for (path, (rows, there)) in expected(server, refused) {
        assert_eq!(rows, there, "{path}");
    }
}

// The server is the one of the old script as it is: only the settings know of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_college_at_the_server_of_the_old_script() {
    let days = |path| (path, vec!["day"]);
    let quirks = Quirks {
        refuses_offsets: true,
        days: vec![
            days("attendance-records"),
            days("recognition-logs"),
            days("stream-recordings"),
            ("leaves", vec!["start_date"]),
            ("passes", vec!["start_date"]),
        ],
        ..Quirks::laravel()
    };
    let (site, server) = connected(
        "college_old",
        quirks,
        "profile = \"laravel\"",
        &tables(),
        &config(),
    )
    .await;
    for table in PLAIN {
        server.require(&table.replace('_', "-"), "room_no", "rooms", "room_no");
    }
    server.refuse(|_, row| {
        let note = row["note"].as_str().filter(|note| *note == REFUSED)?;
        Some(format!(
            "SQLSTATE[22001]: Data too long for column 'note' (SQL: values ({note}))"
        ))
    });
    let page =
        "<!DOCTYPE html><html><body><h1>403 Forbidden</h1>Request blocked by the firewall.</body></html>";
    server.fault(Fault::answer(403, "text/html", page).when(|row| row["name"] == BLOCKED));
    let daemon = Daemon::of(&site, "store");
    // Given the college, when it is synced once,
    fill(&site).await;
    let rows = 200 + 500 + 2 + PLAIN.len() * ROWS + 1300;
    let refused = PLAIN.len() * 40 + 26 + 1;
    let report = sync(&daemon, 1);
    // then all good rows and files are there,
    assert_there(&server, true);
    // The file of a refused row waits for its row.
    assert_eq!(server.files().len(), 21);
    let trimmed = server.row("departments", "2").unwrap();
    assert_eq!(trimmed["name"], "trimmed");
    for row in server
        .rows("leaves")
        .iter()
        .filter(|row| row["id"].as_i64().is_some_and(|id| id < 24 && id != 12))
    {
        assert!(
            row["image"].as_str().unwrap().starts_with("/storage/slips/"),
            "{row}"
        );
    }
    // each refused one is reported with the server's words, without the row's,
    let entries = quarantine::list(&site.client, None).await.unwrap();
    assert_eq!(entries.len(), refused);
    for entry in &entries {
        let firewall = entry.entity == "departments";
        let words = if firewall {
            "blocked by the firewall"
        } else {
            "Data too long for column 'note'"
        };
        assert!(
            entry.error.contains(words) && !entry.error.contains(REFUSED),
            "{entry:?}"
        );
    }
    let errors = report["errors"].to_string();
    assert!(
        errors.contains("12.jpg: the cloud answered 500") && errors.contains("greater than 2048"),
        "{report}"
    );
    // and little went in vain.
    let waste = server.waste();
    let of_rows = waste
        .received
        .iter()
        .filter(|(path, _)| !path.starts_with("upload"));
    let of_rows: u64 = of_rows.map(|(_, bytes)| bytes).sum();
    let in_vain = 100.0 * (waste.again_bytes + waste.retried_bytes) as f64 / of_rows as f64;
    println!("{rows} rows, {refused} refused: {in_vain:.2} % of the rows' bytes went in vain; {waste:?}");
    assert!(in_vain < 2.0 && waste.files_again == 0, "{waste:?}");
    // A second sync pushes nothing but those.
    server.forget_requests();
    sync(&daemon, 1);
    assert_there(&server, true);
    let requests = server.requests();
    let posted = requests
        .iter()
        .filter(|request| request.method == "POST" && !request.path.contains("upload"));
    let in_vain = posted.filter(|request| {
        let row = request.json();
        row["note"] != REFUSED && row["name"] != BLOCKED
    });
    assert_eq!(
        in_vain.count(),
        0,
        "{:?}",
        server.calls().into_iter().take(20).collect::<Vec<_>>()
    );
    // When the server is mended, all go through by themselves.
    server.clear_rules();
    server.clear_faults();
    server.change(|quirks| quirks.uploads.as_mut().unwrap().limit = None);
    let running = site.replicate();
    running
        .until("all there", |status| {
            status.quarantine == Some(0)
                && status.files.uploaded == 24
                && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    assert_there(&server, false);
    assert_eq!(server.files().len(), 24);
    running.end().await;
}

/// A one-shot sync, as cron starts it.
fn sync(daemon: &Daemon, code: i32) -> Value {
    let output = daemon.ask(&["sync", "--json"]);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}
