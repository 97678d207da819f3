//! Compares a site with its cloud once, and pushes what the cloud lacks.
//!
//! `DATABASE_URL=… CLOUD_URL=… CLOUD_KEY=… cargo run --example sync_once -- MEDIA_ROOT STORE`

use std::env::{args, var};

use cloud_sync::{Catalogue, Entity, Replicator, Settings, SyncRequest};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (media, store) = (
        args().nth(1).unwrap_or("media".into()),
        args().nth(2).unwrap_or("store".into()),
    );
    let settings = Settings::builder()
        .database_url(&var("DATABASE_URL")?)
        .cloud(&var("CLOUD_URL")?, &var("CLOUD_KEY")?)
        .media_root(media)
        .store(store)
        .set("cloud.allow_insecure_http", "true")
        .catalogue(Catalogue::new(vec![Entity::new("rooms", "room", &["id"])])?)
        .build()?;
    Replicator::install(&settings).await?;
    let report = Replicator::sync_once(&settings, &SyncRequest::default()).await?;
    for (entity, rows) in report.summary().iter() {
        println!("{entity}: {rows} rows pushed");
    }
    for error in report.errors() {
        eprintln!("{error}");
    }
    Ok(())
}
