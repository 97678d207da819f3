//! Compares a site with its cloud once, and pushes what the cloud lacks.
//!
//! `DATABASE_URL=… CLOUD_URL=… CLOUD_KEY=… cargo run --example sync_once -- MEDIA_ROOT STORE`

use std::env::{args, var};

use cloud_sync::{CloudSync, Entity};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (media, store) = (
        args().nth(1).unwrap_or("media".into()),
        args().nth(2).unwrap_or("store".into()),
    );
    let site = CloudSync::builder()
        .database_url(&var("DATABASE_URL")?)
        .cloud(&var("CLOUD_URL")?, &var("CLOUD_KEY")?)
        .media_root(media)
        .store(store)
        .set("cloud.allow_insecure_http", "true")
        .entities([Entity::new("rooms", "room", &["id"])])
        .build()?;
    site.install().await?;
    let report = site.sync_all().await?;
    for (entity, rows) in report.summary().iter() {
        println!("{entity}: {rows} rows pushed");
    }
    for error in report.errors() {
        eprintln!("{error}");
    }
    Ok(())
}
