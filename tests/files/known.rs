//! A start with many files that are known: none is read again, in bounded time and memory.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, SCHOOL, Site};

/// How long its processor rests before a daemon counts as idle.
const IDLE: Duration = Duration::from_secs(1);

/// Starts a replicator whose files are all recorded as uploaded.
async fn starts_with(hint: &str, files: usize) {
    let cloud = Cloud::start(hint).await;
    let site = Site::bare(hint, &cloud.url, KEY, SCHOOL, "").await;
    site.run(&format!(
        "insert into tbl_faculty (faculty_fname) values ('x'); \
         insert into tbl_leave (leave_id, faculty_id, leave_slip_image) \
         select n, 1, 'slips/' || n % 100 || '/' || n || '.jpg' from generate_series(1, {files}) n"
    ))
    .await;
    site.init().await;
    let slips = site.media().join("slips");
    let mut records = Vec::new();
    for folder in 0..100 {
        std::fs::create_dir_all(slips.join(folder.to_string())).unwrap();
    }
    for number in 1..=files {
        let name = format!("{}/{number}.jpg", number % 100);
        std::fs::write(slips.join(&name), number.to_string()).unwrap();
        let about = std::fs::metadata(slips.join(&name)).unwrap();
        let microseconds = |seconds: i64, nanoseconds: i64| seconds * 1_000_000 + nanoseconds / 1_000;
        records.push(serde_json::json!({
            "path": format!("slips/{name}"),
            "leave": number,
            "size": about.size(),
            "modified_us": microseconds(about.mtime(), about.mtime_nsec()),
            "changed_us": microseconds(about.ctime(), about.ctime_nsec()),
            "inode": about.ino(),
            "hash": blake3::hash(number.to_string().as_bytes()).to_hex().to_string(),
        }));
    }
    let recorded = "
        with known as (
            select * from jsonb_to_recordset($1::text::jsonb) k (path text, leave bigint, size bigint, modified_us bigint,
                                                    changed_us bigint, inode bigint, hash text)),
        noted as (
            insert into cloud_sync.media
                (path, directory, state, size, seen_size, modified_us, changed_us, inode, hash, url, uploaded_at)
            select path, 'leave_slips', 'uploaded', size, size, modified_us, changed_us, inode, hash,
                   'http://cloud/' || hash, now()
            from known
            returning path)
        insert into cloud_sync.media_ref (path, entity, key)
        select path, 'leaves', format('{\"leave_id\":%s}', leave) from known
        where path in (select path from noted)";
    let records = serde_json::Value::Array(records).to_string();
    site.client.execute(recorded, &[&records]).await.unwrap();
    site.client
        .batch_execute("analyze cloud_sync.media, cloud_sync.media_ref")
        .await
        .unwrap();

    let daemon = Daemon::of(&site, "store");
    let began = Instant::now();
    let process = daemon.start();
    daemon
        .until("replicating", LIMIT, |status| {
            status.files.uploaded == files as u64
        })
        .await;
    // Idle is that it uses no processor.
    let (mut used, mut since) = (process.processor_time(), Instant::now());
    while since.elapsed() < IDLE {
        assert!(began.elapsed() < LIMIT * 2, "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = process.processor_time();
        if now > used + Duration::from_millis(30) {
            (used, since) = (now, Instant::now());
        }
    }
    let memory = process.peak_memory() / 1024 / 1024;
    println!(
        "{files} files: idle after {:.1} s, {memory} MiB",
        (began.elapsed() - IDLE).as_secs_f64()
    );
    // No file was read, and none sent.
    let changed = "select count(*) from cloud_sync.media where state <> 'uploaded' or attempts > 0";
    assert_eq!(crate::support::sql::number(&site.client, changed).await, 0);
    assert!(!cloud.files.join("college").exists());
    assert!(memory < 100, "{memory} MiB");
    assert!(process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_files_are_not_read_at_a_start() {
    starts_with("known", 2_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "makes 100,000 files"]
async fn a_hundred_thousand_known_files_cost_seconds_and_little_memory() {
    starts_with("known_many", 100_000).await;
}
