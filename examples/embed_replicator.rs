//! Replicates a site from within another program, until ctrl-c, and tells what happens.
//!
//! `DATABASE_URL=… CLOUD_URL=… CLOUD_KEY=… cargo run --example embed_replicator -- MEDIA_ROOT STORE`

use std::env::{args, var};

use cloud_sync::{CloudSync, Entity, SyncEvent};
use futures::StreamExt;

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
        .set("control.listen", "127.0.0.1:0")
        .entities([Entity::new("rooms", "room", &["id"])])
        .build()?;
    // Capture is in the site's database from now on, whether or not a replicator runs.
    site.install().await?;
    let mut running = site.start().await?;
    println!("the operator API listens on {}", running.address());
    let mut events = running.events();
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        tokio::select! {
            _ = &mut interrupted => break,
            ended = running.ended() => return Ok(ended?),
            Some(event) = events.next() => match event {
                SyncEvent::Replicating => println!("replicating"),
                SyncEvent::Waiting(reason) => println!("waiting: {reason}"),
                SyncEvent::Accepted(changes) => println!("accepted by the cloud: {changes}"),
                event => println!("{event:?}"),
            },
        }
    }
    running.stop().await?;
    Ok(())
}
