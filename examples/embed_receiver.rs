//! Serves as the cloud from within another program, until ctrl-c.
//!
//! `DATABASE_URL=… cargo run --example embed_receiver -- FILES`

use std::env::{args, var};

use cloud_sync::{Receiver, ReceiverSettings};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = args().nth(1).unwrap_or("files".into());
    let settings = ReceiverSettings::new(&var("DATABASE_URL")?, files).key("college", "key-of-the-college");
    let receiver = Receiver::bind(settings).await?;
    println!("cloud.url is http://{}/api", receiver.address());
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stopped.cancel();
    });
    receiver.serve(stop).await?;
    Ok(())
}
