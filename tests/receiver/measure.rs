//! A measurement, not a test: how long 300,000 changes take, by batch size and packing, and how long a
//! request of one change takes.

use serde_json::{Value, json};

use super::{Cloud, counts};
use crate::support::batches::BatchSource;

/// CPU seconds that a process has used.
fn cpu(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_ascii_whitespace()
        .collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

/// Sends a batch whose changes are all applied.
async fn send(cloud: &Cloud, source: &BatchSource, body: &[u8], packed: bool, rows: i64) {
    let name = source.next();
    let mut request = cloud.batch(&name, body.to_vec());
    if packed {
        request = request.header("Content-Encoding", "zstd");
    }
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(counts(&answer), (rows, 0, 0));
    source.taken(name);
}

/// `cargo test --release --test main measure -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a test"]
async fn measure_300_000_changes() {
    for (rows, packed) in [(5_000_i64, false), (5_000, true), (20_000, false), (1_000, false)] {
        let cloud = Cloud::start_with("measure", |settings| settings.history = false).await;
        let columns = [
            ("record_id", "bigint"),
            ("faculty_id", "bigint"),
            ("teaching_load_id", "bigint"),
            ("camera_id", "bigint"),
            ("record_date", "date"),
            ("record_time_in", "timestamp with time zone"),
            ("record_time_out", "timestamp with time zone"),
            ("time_duration_seconds", "integer"),
            ("record_status", "text"),
            ("record_remarks", "text"),
            ("created_at", "timestamp with time zone"),
            ("updated_at", "timestamp with time zone"),
        ];
        let columns: Vec<Value> = columns
            .iter()
            .map(|(name, of)| json!({"name": name, "type": of}))
            .collect();
        let schema = json!({"entity": "attendance_records", "key": ["record_id"], "columns": columns});
        cloud.declare("attendance-records", schema).await;
        let bodies: Vec<Vec<u8>> = (0..300_000 / rows)
            .map(|batch| {
                let body: String = (batch * rows + 1..=(batch + 1) * rows)
                    .map(|id| {
                        format!(
                            "{{\"position\":{id},\"entity\":\"attendance_records\",\"op\":\"upsert\",\
                             \"key\":{{\"record_id\" : {id}}},\"row\":{{\"record_id\":{id},\"faculty_id\":{},\
                             \"teaching_load_id\":{},\"camera_id\":{},\"record_date\":\"2026-03-{:02}\",\
                             \"record_time_in\":\"2026-03-04T05:{:02}:{:02}.{:06}+08:00\",\
                             \"record_time_out\":\"2026-03-04T06:{:02}:{:02}.{:06}+08:00\",\
                             \"time_duration_seconds\":{},\"record_status\":\"present\",\
                             \"record_remarks\":\"remarks of row {id}\",\
                             \"created_at\":\"2026-03-04T05:06:07.123456+08:00\",\
                             \"updated_at\":\"2026-03-04T05:06:07.123456+08:00\"}}}}\n",
                            id % 300,
                            id % 1000,
                            id % 20,
                            1 + id % 28,
                            id / 60 % 60,
                            id % 60,
                            id,
                            id / 60 % 60,
                            id % 60,
                            id,
                            id % 5000,
                        )
                    })
                    .collect();
                if packed {
                    zstd::bulk::compress(body.as_bytes(), 1).unwrap()
                } else {
                    body.into_bytes()
                }
            })
            .collect();
        let (mut fresh, mut again) = (0.0, 0.0);
        let before = cpu("self");
        let source = BatchSource::new("source-1");
        for (round, seconds) in [&mut fresh, &mut again].into_iter().enumerate() {
            let start = std::time::Instant::now();
            for body in &bodies {
                send(&cloud, &source, body, packed, rows).await;
            }
            *seconds = start.elapsed().as_secs_f64();
            if round == 0 {
                let pids: Vec<i32> = sqlx::query_scalar(
                    "select pid from pg_stat_activity where datname = current_database() \
                     and application_name = 'cloud-sync receiver'",
                )
                .fetch_all(&cloud.pool)
                .await
                .unwrap();
                let database: f64 = pids.iter().map(|pid| cpu(&pid.to_string())).sum();
                println!(
                    "batches of {rows}, zstd {packed}: {fresh:.2} s; CPU {database:.2} s PostgreSQL, {:.2} s here",
                    cpu("self") - before,
                    fresh = *seconds,
                );
            }
        }
        println!("  sent again, all newer: {again:.2} s");
        let start = std::time::Instant::now();
        for batch in 0..300_000 / rows {
            let body: String = (batch * rows + 1..=(batch + 1) * rows)
                .map(|id| {
                    format!(
                        "{{\"position\":{},\"entity\":\"attendance_records\",\"op\":\"delete\",\
                         \"key\":{{\"record_id\":{id}}}}}\n",
                        300_000 + id
                    )
                })
                .collect();
            send(&cloud, &source, body.as_bytes(), false, rows).await;
        }
        println!("  all deleted: {:.2} s", start.elapsed().as_secs_f64());
        let start = std::time::Instant::now();
        for body in &bodies {
            send(&cloud, &source, body, packed, rows).await;
        }
        println!(
            "  and put again over their tombstones: {:.2} s",
            start.elapsed().as_secs_f64()
        );
        if !packed {
            let text = std::str::from_utf8(&bodies[0]).unwrap();
            let start = std::time::Instant::now();
            let before = cpu("self");
            for line in text.lines().take(1_000) {
                send(&cloud, &source, line.as_bytes(), false, 1).await;
            }
            println!(
                "  one change a request: {:.2} ms, CPU {:.2} ms here",
                start.elapsed().as_secs_f64(),
                cpu("self") - before
            );
        }
        cloud.end().await;
    }
}
