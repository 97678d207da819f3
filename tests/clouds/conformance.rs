//! One suite for every kind of cloud server, the receiver among them: rows, updates, deletes, moves between two paths,
//! files, refused rows, and a sync that finds nothing to do. A further server needs a [`ServerUnderTest`] and a test.

use cloud_sync::control::StatusReport;
use cloud_sync::quarantine;
use serde_json::{Value, json};

use super::{connected, pushed, sync};
use crate::support::baseline::{self, BaselineServer, Quirks, Refusal};
use crate::support::fault_proxy::FaultProxy;
use crate::support::site::{self, Cloud, Running, Site, connect, entity};

const TABLES: &str = "
    create table room (room_id int primary key, room_no text, note text);
    create table slip (slip_id int primary key, kind text not null, room_id int references room, image text,
        start_date date default current_date, created_at timestamptz not null default now())";

/// A note that the suite lets a server refuse.
const BAD_NOTE: &str = "a note that is bad";

/// What can be expected of a server.
#[derive(Clone, Copy)]
struct Can {
    delete: bool,
    update: bool,
    files: bool,
    /// `leaves` and `passes` are one table there.
    one_table: bool,
    /// Columns are brought into the forms that it wants.
    forms: bool,
    /// Refused rows are sent again once it takes them, without a sync.
    passes_by_itself: bool,
}

const ALL: Can = Can {
    delete: true,
    update: true,
    files: true,
    one_table: false,
    forms: true,
    passes_by_itself: false,
};

/// A running server, and what the suite must see of it and do to it.
trait ServerUnderTest {
    /// The rows of a path.
    async fn rows(&self, path: &str) -> Vec<Value>;

    /// The files, each by the path on the server that its row names.
    async fn files(&self) -> Vec<String>;

    /// From now on refuses rooms with [`BAD_NOTE`], and leaves in rooms that it does not have.
    async fn refuse_bad_rows(&self);

    /// Words of the reason that it gives for [`BAD_NOTE`].
    fn refusal_words(&self) -> &str;

    /// From now on refuses no row.
    async fn accept_all(&self);

    /// How many requests with rows have arrived.
    fn row_requests(&self) -> usize;

    async fn count(&self, path: &str) -> usize {
        self.rows(path).await.len()
    }

    /// The row with this key.
    async fn row(&self, path: &str, id: i64) -> Option<Value> {
        let key = if path == "rooms" { "room_id" } else { "slip_id" };
        self.rows(path).await.into_iter().find(|row| row[key] == id)
    }
}

impl ServerUnderTest for BaselineServer {
    async fn rows(&self, path: &str) -> Vec<Value> {
        BaselineServer::rows(self, path)
    }

    async fn files(&self) -> Vec<String> {
        let files = BaselineServer::files(self);
        files.into_iter().map(|file| file.stored).collect()
    }

    async fn refuse_bad_rows(&self) {
        self.require("leaves", "room_id", "rooms", "room_id");
        self.refuse(|path, row| {
            let is_bad = path == "rooms" && row["note"] == BAD_NOTE;
            is_bad.then(|| format!("Data too long for column 'note' (SQL: values ({}))", row["note"]))
        });
    }

    fn refusal_words(&self) -> &str {
        "Data too long"
    }

    async fn accept_all(&self) {
        self.clear_rules();
    }

    fn row_requests(&self) -> usize {
        let requests = self.requests();
        let with_rows = requests
            .iter()
            .filter(|request| request.method == "POST" && !request.path.starts_with("upload"));
        with_rows.count()
    }
}

/// The receiver, behind a proxy that notes requests.
struct ReceiverUnderTest {
    cloud: Cloud,
    fault_proxy: FaultProxy,
}

impl ServerUnderTest for ReceiverUnderTest {
    async fn rows(&self, path: &str) -> Vec<Value> {
        let client = connect(&self.cloud.database_url).await;
        let sql = format!("select to_jsonb(t)::text from cloud.{path} t");
        // Before the first row there is no table.
        let rows = client.query(&sql, &[]).await.unwrap_or_default();
        rows.iter()
            .map(|row| serde_json::from_str(row.get(0)).unwrap())
            .collect()
    }

    async fn files(&self) -> Vec<String> {
        let folder = self.cloud.files.join(site::SITE).join("slips");
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        files
            .map(|file| format!("slips/{}", file.file_name().to_str().unwrap()))
            .collect()
    }

    async fn refuse_bad_rows(&self) {
        let client = connect(&self.cloud.database_url).await;
        client
            .batch_execute(&format!(
                "alter table cloud.rooms add constraint note_is_good check (note <> '{BAD_NOTE}'); \
                 alter table cloud.leaves add constraint room_is_there \
                 foreign key (_site, room_id) references cloud.rooms (_site, room_id)"
            ))
            .await
            .unwrap();
    }

    fn refusal_words(&self) -> &str {
        "note_is_good"
    }

    async fn accept_all(&self) {
        let client = connect(&self.cloud.database_url).await;
        client
            .batch_execute(
                "alter table cloud.rooms drop constraint note_is_good; \
                 alter table cloud.leaves drop constraint room_is_there",
            )
            .await
            .unwrap();
    }

    fn row_requests(&self) -> usize {
        let requests = self.fault_proxy.requests();
        requests
            .iter()
            .filter(|request| request.method == "POST" && !request.path.starts_with("upload"))
            .count()
    }
}

fn config(can: Can) -> String {
    let form = "columns = { created_at = { as = \"local datetime\", zone = \"Asia/Manila\" } }";
    let slips = |kind: &str| {
        format!(
            "where = \"kind = '{kind}'\"\n{}\n\
             files = [{{ column = \"image\", url_column = \"image\", directory = \"slips\", column_value = \"path\" }}]",
            if can.forms { form } else { "" }
        )
    };
    [
        entity("rooms", "room", &["room_id"], ""),
        entity("leaves", "slip", &["slip_id"], &slips("leave")),
        entity("passes", "slip", &["slip_id"], &slips("pass")),
    ]
    .concat()
}

async fn still(running: &Running, aside: u64) -> StatusReport {
    running
        .until("still", |status| {
            status.quarantine == Some(aside)
                && status.lag.is_some_and(|lag| lag.changes == 0)
                && status.files.waiting == 0
        })
        .await
}

/// The suite, for a baseline server. `cloud` are further lines of `[cloud]`.
async fn serves(hint: &str, quirks: Quirks, cloud: &str, can: Can) {
    let can = Can {
        passes_by_itself: quirks.refused != Refusal::Status4xx && quirks.refused != Refusal::Fields400,
        ..can
    };
    let (site, server) = connected(hint, quirks, cloud, TABLES, &config(can)).await;
    conforms(&site, &server, can).await;
}

/// The suite.
async fn conforms(site: &Site, server: &impl ServerUnderTest, can: Can) {
    let running = site.replicate();
    brings_rows_and_files(site, server, &running, can).await;
    changes_rows(site, server, &running, can).await;
    if can.update {
        if can.delete {
            moves(site, server, &running, can).await;
        }
        refuses(site, server, &running, can).await;
        leaves_nothing_to_sync(server, &running).await;
    }
    running.end().await;
}

async fn changes_rows(site: &Site, server: &impl ServerUnderTest, running: &Running, can: Can) {
    // When rows change and are deleted,
    site.run("update room set note = 'changed' where room_id <= 3; delete from room where room_id > 240")
        .await;
    still(running, if can.update { 0 } else { 3 }).await;
    // then they do so in the cloud, as far as it can.
    let rows = server.rows("rooms").await;
    let changed = rows.iter().filter(|row| row["note"] == "changed").count();
    assert_eq!(changed, if can.update { 3 } else { 0 });
    assert_eq!(rows.len(), if can.delete { 240 } else { 250 });
    if !can.update {
        let entries = quarantine::list(&site.client, None).await.unwrap();
        assert!(
            entries.iter().all(|entry| entry.error.contains("duplicate")),
            "{entries:?}"
        );
    }
}

async fn leaves_nothing_to_sync(server: &impl ServerUnderTest, running: &Running) {
    let before = server.row_requests();
    let report = sync(running, false).await;
    assert!(report.success() && pushed(&report) == 0, "{:?}", report.errors());
    assert_eq!(server.row_requests(), before);
}

async fn brings_rows_and_files(site: &Site, server: &impl ServerUnderTest, running: &Running, can: Can) {
    // Given rows and files
    for n in 1..=6 {
        std::fs::write(
            site.media().join(format!("slip {n}.jpg")),
            vec![n; 1000 + usize::from(n)],
        )
        .unwrap();
    }
    site.run(
        "insert into room select n, 'R' || n, 'as it was' from generate_series(1, 250) n; \
         insert into slip select n, case when n <= 10 then 'leave' else 'pass' end, n, \
             case when n <= 6 then 'slip ' || n || '.jpg' end from generate_series(1, 20) n",
    )
    .await;
    if !can.files {
        running
            .until("sent", |status| status.lag.is_some_and(|lag| lag.changes == 0))
            .await;
        assert_eq!(server.count("rooms").await, 250);
        return;
    }
    still(running, 0).await;
    // then all are there, each file once and its path in its row,
    assert_eq!(
        (
            server.count("rooms").await,
            server.count("leaves").await,
            server.count("passes").await
        ),
        (250, 10, 10)
    );
    let files = server.files().await;
    assert_eq!(files.len(), 6);
    let leaves = server.rows("leaves").await;
    let paths: Vec<String> = leaves.iter().map(|row| row["image"].to_string()).collect();
    for file in &files {
        assert!(
            paths.iter().any(|path| path.contains(file)),
            "{file} in {paths:?}"
        );
    }
    // and times have the server's form.
    if can.forms {
        let row = server.row("leaves", 1).await.unwrap();
        let at = row["created_at"].as_str().unwrap();
        assert!(at.len() == 19 && at.as_bytes()[10] == b' ', "{at}");
    }
}

async fn moves(site: &Site, server: &impl ServerUnderTest, running: &Running, can: Can) {
    // When rows move from one path to the other, both ways, together and one by one,
    site.run(
        "update slip set kind = case kind when 'pass' then 'leave' else 'pass' end where slip_id in (1, 2, \
         11, 12); update slip set kind = 'pass' where slip_id = 3",
    )
    .await;
    still(running, 0).await;
    site.run("update slip set kind = 'leave' where slip_id = 13")
        .await;
    still(running, 0).await;
    // then each is there under its new path, and there alone.
    let ids = async |path: &str| -> Vec<i64> {
        let mut ids: Vec<i64> = server
            .rows(path)
            .await
            .iter()
            .filter_map(|row| row["slip_id"].as_i64())
            .collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(
        ids("leaves").await,
        [4, 5, 6, 7, 8, 9, 10, 11, 12, 13],
        "{}",
        can.one_table
    );
    assert_eq!(ids("passes").await, [1, 2, 3, 14, 15, 16, 17, 18, 19, 20]);
    // A row that becomes nobody's goes.
    site.run("update slip set kind = 'other' where slip_id = 20; delete from slip where slip_id = 19")
        .await;
    still(running, 0).await;
    assert_eq!(
        (server.count("leaves").await, server.count("passes").await),
        (10, 8)
    );
}

async fn refuses(site: &Site, server: &impl ServerUnderTest, running: &Running, can: Can) {
    server.refuse_bad_rows().await;
    // Given a row that the server refuses, its child, and good ones,
    site.run(
        "insert into room select n, 'R' || n, case n when 310 then 'a note that is bad' else 'good' end \
         from generate_series(301, 320) n; \
         insert into slip select n, 'leave', n from generate_series(301, 320) n",
    )
    .await;
    still(running, 2).await;
    // then the good ones are there, the two are told in the server's words without the row's,
    let is_there = async |path: &str, id: i64| server.row(path, id).await.is_some();
    for id in 301..=320 {
        assert_eq!(is_there("rooms", id).await, id != 310, "{id}");
        assert_eq!(is_there("leaves", id).await, id != 310, "{id}");
    }
    let entries = quarantine::list(&site.client, None).await.unwrap();
    for entry in &entries {
        assert!(!entry.error.contains("that is bad"), "{entry:?}");
    }
    let room = entries.iter().find(|entry| entry.entity == "rooms").unwrap();
    assert!(room.error.contains(server.refusal_words()), "{room:?}");
    // a sync pushes those alone,
    let report = sync(running, false).await;
    assert!(!report.success() && pushed(&report) == 0, "{report:?}");
    still(running, 2).await;
    // and when the server takes them they come: by themselves where it might have been the server's fault.
    server.accept_all().await;
    if !can.passes_by_itself {
        let report = sync(running, false).await;
        assert!(report.success(), "{report:?}");
    }
    still(running, 0).await;
    assert!(is_there("rooms", 310).await && is_there("leaves", 310).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver() {
    let cloud = Cloud::start("conforms_receiver").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let can = Can { forms: false, ..ALL };
    let url = fault_proxy.url();
    let site = Site::bare("conforms_receiver", &url, site::KEY, TABLES, &config(can)).await;
    site.init().await;
    conforms(&site, &ReceiverUnderTest { cloud, fault_proxy }, can).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contracts_server() {
    let delete_none = Can { delete: false, ..ALL };
    serves("conforms_contract_0", Quirks::contract(), "", delete_none).await;
    serves("conforms_contract", Quirks::from(&["bulk", "delete"]), "", ALL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_laravel_server() {
    let can = Can {
        one_table: true,
        ..ALL
    };
    let quirks = Quirks {
        refuses_offsets: true,
        ..Quirks::laravel()
    };
    serves("conforms_laravel", quirks.clone(), "profile = \"laravel\"", can).await;
    let bulk = "profile = \"laravel\"\ncapabilities = [\"bulk\", \"delete\"]";
    serves("conforms_laravel_bulk", quirks.clone(), bulk, can).await;
    // A server whose new path replaces the row needs no delete.
    let kept = "profile = \"laravel\"\ndelete_moved = false";
    serves("conforms_laravel_moved", quirks, kept, can).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_failure_with_200() {
    for refused in [Refusal::SuccessFalse200, Refusal::Errors200] {
        let quirks = Quirks {
            refused,
            ..Quirks::from(&["delete"])
        };
        let words = |one: Refusal| format!("conforms_{one:?}").to_lowercase();
        serves(&words(refused), quirks, "", ALL).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_django_server() {
    serves("conforms_django", Quirks::django(), "", ALL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_server() {
    let cloud = "status_path = \"rooms\"\ncapabilities = [\"delete\"]";
    let can = Can { files: false, ..ALL };
    serves("conforms_json", Quirks::json_server(true), cloud, can).await;
    let can = Can { update: false, ..can };
    serves("conforms_json_insert", Quirks::json_server(false), cloud, can).await;
}

/// A key that is text here and a number there: so is each comparison's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_forms_are_the_servers() {
    let config = entity(
        "rooms",
        "room",
        &["room_id"],
        "path = \"Room\"\nrename = { room_id = \"id\", room_no = \"number\" }\ncolumns = { room_id = { as = \
         \"text\" } }\nconstants = { school = \"college\" }\ndelete_path = \"Room/by-id/{key}\"\nbulk_path = \
         \"Room/bulk\"",
    );
    let quirks = Quirks {
        delete_paths: vec![["Room", "Room/by-id/{key}"]],
        bulk_paths: vec![["Room", "Room/bulk"]],
        ..Quirks::from(&["bulk", "delete"])
    };
    // The server knows its own names.
    let named = entity("rooms", "room", &["id"], "path = \"Room\"");
    let catalogue = Site::bare("names_0", "http://127.0.0.1:1/api", "k", "", &named)
        .await
        .settings
        .catalogue;
    let server = BaselineServer::start(&catalogue, quirks).await;
    let key = baseline::KEY;
    let site = Site::bare("names", &server.url(), key, TABLES, &config).await;
    site.init().await;
    let running = site.replicate();
    site.run("insert into room select n, 'R' || n from generate_series(1, 20) n")
        .await;
    still(&running, 0).await;
    site.run("delete from room where room_id > 10; update room set room_no = 'X' where room_id = 1")
        .await;
    still(&running, 0).await;
    assert_eq!(server.count("Room"), 10);
    let expected = json!({"id": "1", "number": "X", "note": null, "school": "college"});
    assert_eq!(server.row("Room", "1").unwrap(), expected);
    server.remove("Room", "7");
    let report = sync(&running, false).await;
    assert!(report.success() && pushed(&report) == 1, "{report:?}");
    assert_eq!(server.count("Room"), 10);
    // A truncate takes all of them, and brings back nothing.
    site.run("truncate room cascade").await;
    still(&running, 0).await;
    assert_eq!(server.count("Room"), 0);
    running.end().await;
}
