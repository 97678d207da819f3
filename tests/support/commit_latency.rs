//! Single commits, each until the cloud shows it: what trouble elsewhere costs those that are well. The times
//! are printed, never judged.

use std::time::{Duration, Instant};

use super::site::{Cloud, LIMIT, Site, connect};

const COMMITS: usize = 100;

/// Commits rows of ids from 1,000 on to the table, whose key is `id`, and waits for each in the entity's
/// table of the cloud.
pub(crate) async fn print_commit_latency(what: &str, site: &Site, cloud: &Cloud, table: &str, entity: &str) {
    let (here, there) = (
        connect(&site.database_url).await,
        connect(&cloud.database_url).await,
    );
    let seen = there
        .prepare(&format!(
            "select exists (select from cloud.\"{entity}\" where id = $1::int8)"
        ))
        .await
        .unwrap();
    let last = format!("select coalesce(max(id), 999)::int8 from {table} where id >= 1000");
    let first: i64 = here.query_one(&last, &[]).await.unwrap().get(0);
    let mut took = Vec::new();
    for id in first + 1..=first + COMMITS as i64 {
        here.batch_execute(&format!("insert into {table} (id) values ({id})"))
            .await
            .unwrap();
        let start = Instant::now();
        while !there.query_one(&seen, &[&id]).await.unwrap().get::<_, bool>(0) {
            assert!(start.elapsed() < LIMIT, "{what}: {table} {id} does not arrive");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        took.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    took.sort_unstable();
    println!(
        "during {what}: commit to visible p50 {:.1?}, p99 {:.1?}, worst {:.1?}",
        took[COMMITS / 2],
        took[COMMITS - 2],
        took[COMMITS - 1]
    );
}
