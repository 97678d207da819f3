//! Questions to a database, and waiting for its answers.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::site::LIMIT;

/// The one number of a query.
pub(crate) async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// The first column of the rows, as text.
pub(crate) async fn texts(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Waits until a query of one boolean gives true.
pub(crate) async fn until(client: &Client, sql: &str) {
    let start = Instant::now();
    while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {sql}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until a query gives a row with true, of a table that may not exist yet or may be empty.
pub(crate) async fn until_some(client: &Client, sql: &str) {
    let start = Instant::now();
    loop {
        let row = client.query_opt(sql, &[]).await.ok().flatten();
        if row.is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true)) {
            return;
        }
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {sql}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a session of the program, `cloud-sync SESSION`, waits for a lock.
pub(crate) async fn until_session_waits(client: &Client, session: &str) {
    until(
        client,
        &format!(
            "select exists (select from pg_stat_activity where datname = current_database() \
             and application_name = 'cloud-sync {session}' and wait_event_type = 'Lock')"
        ),
    )
    .await;
}
