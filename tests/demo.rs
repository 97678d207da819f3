//! The demo's parts on a private server: the sample school, live traffic in it, and the comparison with a
//! cloud.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::support::sql::number;
use cloud_sync::catalogue::Catalogue;
use cloud_sync::demo::equality::{self, EqualityReport};
use cloud_sync::demo::postgres::PrivateServer;
use cloud_sync::demo::school::{self, SchoolSize};
use cloud_sync::demo::traffic::{self, Rates};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(120);
const SERVED_FOLDER: &str = "CLOUD_SYNC_TEST_SERVED_FOLDER";

/// A folder that the user `postgres` can reach, too.
fn folder() -> TempDir {
    tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o755))
        .tempdir()
        .unwrap()
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Every file that a row names.
async fn named_files(client: &Client) -> Vec<String> {
    let statement = "select jsonb_array_elements_text(faculty_images::jsonb) from tbl_faculty \
                     union all select leave_slip_image from tbl_leave \
                     union all select pass_slip_image from tbl_pass \
                     union all select filepath from tbl_stream_recordings";
    let rows = client.query(statement, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

fn is_whole(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap();
    match path.extension().and_then(|end| end.to_str()) {
        Some("jpg") => bytes.starts_with(&[0xff, 0xd8]) && bytes.ends_with(&[0xff, 0xd9]),
        Some("mp4") => bytes[4..8] == *b"ftyp" && bytes.windows(4).any(|four| four == b"moov"),
        _ => false,
    }
}

fn files_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_school_lives_and_is_compared() {
    let folder = folder();
    let media = folder.path().join("media");
    let server = PrivateServer::start(&folder.path().join("server")).await.unwrap();
    server.create_database("college").await.unwrap();
    server.create_database("college").await.unwrap();
    let url = server.url("college");

    let plan = SchoolSize::small();
    let counts = school::create_with_size(&plan, &url, &media, 7, |_| {})
        .await
        .unwrap();
    let client = connect(&url).await;
    the_school_is_as_planned(&client, &media, &plan, &counts).await;
    let again = school::create_with_size(&plan, &url, &media, 7, |_| {}).await;
    assert!(again.unwrap_err().to_string().contains("empty"));

    traffic_leaves_whole_files_and_rows(&client, &url, &media).await;
    the_comparison_tells_what_differs(&client, &url, &media, folder.path()).await;

    drop(client);
    server.stop().await.unwrap();
}

async fn the_school_is_as_planned(
    client: &Client,
    media: &Path,
    plan: &SchoolSize,
    counts: &school::SchoolCounts,
) {
    assert_eq!(counts.rows.len(), 9);
    for (table, rows) in &counts.rows {
        assert_eq!(
            number(client, &format!("select count(*) from {table}")).await as u64,
            *rows,
            "{table}"
        );
    }
    assert_eq!(
        counts.rows[4],
        ("tbl_attendance_record", plan.attendance_records as u64)
    );
    for (table, days) in [
        ("tbl_attendance_record", 30),
        ("tbl_leave", 90),
        ("tbl_pass", 90),
        ("tbl_recognition_logs", 7),
    ] {
        let count = format!("select count(*) from {table}");
        let all = number(client, &count).await;
        let inside = format!("{count} where created_at >= now() - interval '{days} days'");
        let inside = number(client, &inside).await;
        assert!(
            inside > 0 && inside < all,
            "{table}: {inside} of {all} inside the window"
        );
    }
    let files = named_files(client).await;
    assert_eq!(files.len() as u64, counts.files);
    assert_eq!(files_below(media), files.len());
    for file in files {
        assert!(is_whole(&media.join(&file)), "{file}");
    }
    let numbers = "select min(jsonb_array_length(faculty_face_embedding::jsonb))::bigint from tbl_faculty";
    assert_eq!(number(client, numbers).await, 128);
    let sizes = client
        .query("select filepath, file_size from tbl_stream_recordings", &[])
        .await
        .unwrap();
    for row in sizes {
        let size = media.join(row.get::<_, &str>(0)).metadata().unwrap().len();
        assert_eq!(size as i64, row.get::<_, i64>(1));
    }
}

async fn traffic_leaves_whole_files_and_rows(client: &Client, url: &str, media: &Path) {
    let before = named_files(client).await.len();
    let rates = Rates {
        recognition: Duration::from_millis(20),
        attendance: Duration::from_millis(20),
        slip: Duration::from_millis(30),
        teaching_load: Duration::from_millis(30),
        recording: Duration::from_millis(50),
        recording_length: Duration::from_millis(600),
    };
    let shutdown = CancellationToken::new();
    let (heard, mut events) = mpsc::unbounded_channel();
    let traffic = tokio::spawn(traffic::run_at(
        rates,
        url.to_owned(),
        media.to_owned(),
        7,
        shutdown.clone(),
        move |event: &str| heard.send(event.to_owned()).unwrap(),
    ));
    let mut awaited = vec![
        "recognition log",
        "time in",
        "time out",
        "leave slip",
        "pass slip",
        "taken out",
        "put in",
        " s, ",
    ];
    while !awaited.is_empty() {
        let event = timeout(LIMIT, events.recv())
            .await
            .expect("an event in time")
            .expect("traffic goes on");
        awaited.retain(|words| !event.contains(words));
    }
    shutdown.cancel();
    timeout(LIMIT, traffic).await.unwrap().unwrap().unwrap();

    let files = named_files(client).await;
    assert!(files.len() > before);
    assert_eq!(files_below(media), files.len(), "each file has its row");
    for file in files {
        assert!(is_whole(&media.join(&file)), "{file}");
    }
    let open = "select count(*) from tbl_stream_recordings where frames = 0";
    assert_eq!(number(client, open).await, 0);
}

async fn the_comparison_tells_what_differs(client: &Client, url: &str, media: &Path, folder: &Path) {
    let catalogue = Catalogue::builtin();
    let stored = folder.join("cloud-files");
    let compare = async || {
        equality::compare(url, url, &catalogue, media, &stored, "college")
            .await
            .unwrap()
    };
    let of = |report: &EqualityReport, name: &str| {
        report
            .entities
            .iter()
            .find(|entity| entity.entity == name)
            .unwrap()
            .clone()
    };

    let report = compare().await;
    assert!(!report.equal);
    assert_eq!(of(&report, "rooms").in_cloud, 0);
    assert!(of(&report, "leaves").files > 0);

    // A cloud that holds everything: the receiver's tables and files.
    client.batch_execute("create schema cloud").await.unwrap();
    for entity in catalogue.entities() {
        let urls: String = (entity.files.iter())
            .map(|file| {
                let base = format!("'http://127.0.0.1/api/media/college/{}/'", file.directory);
                let value = if file.many {
                    format!(
                        "(select jsonb_agg({base} || regexp_replace(path, '.*/', '') order by nth) \
                         from jsonb_array_elements_text({}::jsonb) with ordinality as a (path, nth))::text",
                        file.column
                    )
                } else {
                    format!("{base} || regexp_replace({}, '.*/', '')", file.column)
                };
                format!(", {value} as {}", file.url_column)
            })
            .collect();
        let drops: String = (entity.exclude.iter())
            .map(|column| format!("; alter table cloud.{} drop column {column}", entity.name))
            .collect();
        let statement = format!(
            "create table cloud.{} as select *, 'college'::text as _site, 1::bigint as _epoch, \
             0::bigint as _version\
             {urls} from {}{drops}",
            entity.name, entity.table
        );
        client.batch_execute(&statement).await.unwrap();
        for file in &entity.files {
            std::fs::create_dir_all(stored.join("college").join(&file.directory)).unwrap();
        }
    }
    for file in named_files(client).await {
        let directory = match file.split('/').next().unwrap() {
            "pass_slips" => "passes",
            other => other,
        };
        let name = Path::new(&file).file_name().unwrap();
        std::fs::copy(
            media.join(&file),
            stored.join("college").join(directory).join(name),
        )
        .unwrap();
    }
    let report = compare().await;
    assert!(report.equal, "{report}");
    let logs = of(&report, "recognition_logs");
    assert!(logs.in_retention > 0 && logs.in_retention < logs.cloud_rows);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["entities"][8]["entity"], "stream_recordings");

    client
        .batch_execute(
            "update cloud.rooms set room_name = 'elsewhere' where room_id = 1;
             delete from cloud.rooms where room_id = 2;
             update cloud.cameras set camera_live_feed = 'redacted';
             alter table cloud.teaching_loads drop column teaching_load_subject",
        )
        .await
        .unwrap();
    let newest = "select leave_slip_image from tbl_leave order by created_at desc limit 1";
    let newest: String = client.query_one(newest, &[]).await.unwrap().get(0);
    std::fs::write(stored.join("college").join(&newest), "other content").unwrap();
    let report = compare().await;
    assert!(!report.equal);
    let rooms = of(&report, "rooms");
    assert_eq!((rooms.in_retention, rooms.in_cloud, rooms.equal), (4, 3, 2));
    assert!(of(&report, "cameras").is_equal());
    let loads = of(&report, "teaching_loads");
    assert_eq!(
        (loads.equal, loads.columns_missing),
        (0, vec!["teaching_load_subject".to_owned()])
    );
    let leaves = of(&report, "leaves");
    assert_eq!(leaves.files_verified, leaves.files - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_server_dies_with_its_program_and_keeps_what_was_committed() {
    let folder = folder();
    let mut program = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "demo::serve_until_killed", "--ignored", "--nocapture"])
        .env(SERVED_FOLDER, folder.path().join("server"))
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let url = timeout(LIMIT, async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the program goes on");
            if let Some((_, url)) = line.split_once("serves ") {
                break url.to_owned();
            }
        }
    });
    let url = url.await.expect("a server in time");
    let client = connect(&url).await;
    client
        .batch_execute("create table kept as select 42::bigint as number")
        .await
        .unwrap();

    // SIGKILL: the program has no chance to clean up.
    program.kill().await.unwrap();
    let gone = timeout(LIMIT, async {
        while tokio_postgres::connect(&url, NoTls).await.is_ok()
            || folder.path().join("server/data/postmaster.pid").exists()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    gone.await.expect("the server ends with its program");

    let server = PrivateServer::start(&folder.path().join("server")).await.unwrap();
    let client = connect(&server.url("postgres")).await;
    assert_eq!(number(&client, "select number from kept").await, 42);
    server.stop().await.unwrap();
}

#[tokio::test]
#[ignore = "the program that another test starts and kills"]
async fn serve_until_killed() {
    let folder = std::env::var_os(SERVED_FOLDER).expect("started by the other test");
    let server = PrivateServer::start(Path::new(&folder)).await.unwrap();
    println!("serves {}", server.url("postgres"));
    std::future::pending::<()>().await;
}
