//! The cloud's own database fails: the receiver says so, and every change arrives once it is back.

use std::time::Duration;

use crate::support::site::{Site, connect};

#[tokio::test]
async fn a_receiver_whose_database_drops_its_sessions_amid_batches_takes_each_change_once() {
    let (cloud, site) = Site::captured(
        "cloud_database",
        "create table note (id bigint primary key, n integer not null);",
        "[delivery]\nbatch_rows = 50\n\
         [[entity]]\nname = \"notes\"\ntable = \"note\"\nkey = [\"id\"]\npath = \"notes\"\n",
    )
    .await;
    let running = site.replicate();
    let admin = connect(&cloud.database_url).await;
    let end_sessions = "select pg_terminate_backend(pid) from pg_stat_activity \
                        where datname = current_database() and pid <> pg_backend_pid()";
    for round in 0..20 {
        site.run(&format!(
            "insert into note select n, 0 from generate_series({0}, {0} + 199) n; \
             update note set n = n + 1 where id % 7 = {round} % 7",
            round * 200
        ))
        .await;
        admin.execute(end_sessions, &[]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.caught_up().await;
    site.assert_equal(&cloud).await;
    running.end().await;
}
