//! `receiver`: the reference cloud server.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;

use secrecy::{ExposeSecret, SecretString};

use super::{Context, given_flags, reload, service_manager};
use crate::config::ReceiverConfig;
use crate::error::Result;
use crate::receiver::{BODY_LIMIT, Receiver, ReceiverSettings};
use crate::shutdown::Shutdown;

const EXAMPLES: &str = "\
Examples:
  CLOUD_SYNC_RECEIVER_KEYS=college=secret cloud-sync receiver --database-url postgresql://localhost/cloud
  cloud-sync receiver --listen 0.0.0.0:8080 --config cloud.toml";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ReceiverArgs {
    /// Where it listens, for receiver.listen
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// The cloud's own database, for receiver.database_url
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// The folder of uploaded files, for receiver.files
    #[arg(long, value_name = "FOLDER")]
    files: Option<String>,
}

impl ReceiverArgs {
    pub(super) fn overrides(&self) -> Vec<(String, String)> {
        given_flags([
            ("receiver.listen", &self.listen),
            ("receiver.database_url", &self.database_url),
            ("receiver.files", &self.files),
        ])
    }
}

pub(super) async fn execute(context: &Context, _args: ReceiverArgs) -> Result<ExitCode> {
    let settings = context.settings();
    let config = &settings.receiver;
    let mut shutdown = Shutdown::listen()?;
    let receiver = Receiver::bind(ReceiverSettings {
        listen: config.listen,
        database_url: settings
            .require_receiver_database_url()?
            .expose_secret()
            .to_owned(),
        files: config.files.clone(),
        public_url: config.public_url.clone(),
        url_valid: config.url_valid,
        keys: site_keys(config),
        history: config.history,
        body_limit: BODY_LIMIT,
        capabilities: None,
    })
    .await?;
    tracing::info!(address = %receiver.address(), "the receiver listens");
    let keyring = receiver.ring();
    let (liveness, address) = (receiver.liveness(), receiver.address());
    let stop = shutdown.token();
    service_manager::notify_ready();
    tokio::select! {
        biased;
        never = service_manager::keep_informed(&liveness, &stop, || format!("Serves sites at {address}.")) => {
            match never {}
        }
        served = receiver.serve(shutdown.token()) => served?,
        () = reload::follow_changes(context, &context.settings().catalogue, shutdown.hangups(), |loaded| {
            keyring.replace(&site_keys(&loaded.settings.receiver))
        }) => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn site_keys(config: &ReceiverConfig) -> BTreeMap<String, Vec<String>> {
    let plain = |keys: &Vec<SecretString>| keys.iter().map(|key| key.expose_secret().to_owned()).collect();
    config
        .keys
        .iter()
        .map(|(site, keys)| (site.clone(), plain(keys)))
        .collect()
}
