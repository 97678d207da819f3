//! Replicates a site from within another program, until ctrl-c.
//!
//! `DATABASE_URL=… CLOUD_URL=… CLOUD_KEY=… cargo run --example embed_replicator -- MEDIA_ROOT STORE`

use std::env::{args, var};

use cloud_sync::{Catalogue, Entity, Replicator, Settings};
use tokio_util::sync::CancellationToken;

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
        .set("control.listen", "127.0.0.1:0")
        .catalogue(Catalogue::new(vec![Entity::new("rooms", "room", &["id"])])?)
        .build()?;
    // Capture is in the site's database from now on, whether or not a replicator runs.
    Replicator::install(&settings).await?;
    let replicator = Replicator::new(&settings)?;
    let stop = CancellationToken::new();
    let running = tokio::spawn(replicator.clone().run(stop.clone(), |address| {
        println!("the operator API listens on {address}")
    }));
    tokio::signal::ctrl_c().await?;
    let status = replicator.report().await?;
    println!("accepted by the cloud: {}", status.counts.accepted);
    stop.cancel();
    running.await??;
    Ok(())
}
