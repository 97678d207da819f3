//! A database of many tables, drawn from a seed.

use super::{Place, listening};
use crate::support::many_tables::{ManyTables, SCHEMAS};
use crate::support::says;
use crate::support::site::{Cloud, connect};

#[tokio::test]
async fn a_database_of_many_tables_takes_a_few_lines_and_arrives_value_for_value() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut many = ManyTables::of(seed, 150);
    let cloud = Cloud::start("many_cloud").await;
    let place = Place::of("many_site", &many.definitions()).await;
    let printed = place.set_up(&cloud.url, &["--yes"], 0).await;
    says(
        &printed,
        &[&format!("Capture of {} entities is installed", many.count())],
    );
    let config = place.config();
    let of_tables = config.split_once("[catalogue]").unwrap().1;
    let lines = of_tables
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .count();
    assert_eq!(lines, SCHEMAS + 2, "{of_tables}");
    place.assert_check_passes().await;
    let listen = listening();
    let process = place.run(&listen);
    let client = connect(&place.database_url).await;
    for statement in many.writes() {
        // A row may have no parent to refer to, and a key may be there already.
        let _ = client.execute(&statement, &[]).await;
    }
    place.caught_up(&listen).await;
    let report = place.compare(&cloud, &place.catalogue().await).await;
    drop(process);
    assert!(report.equal, "{report}");
    let rows: u64 = report.entities.iter().map(|entity| entity.cloud_rows).sum();
    assert!(rows > many.count() as u64, "{report}");
}
