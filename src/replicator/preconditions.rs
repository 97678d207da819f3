//! Every precondition of a site, each looked at on its own: ok, or what is wrong and the remedy.

use serde::Serialize;

use super::{cloud, connect};
use crate::checkpoint::SledStore;
use crate::config::Settings;
use crate::deliver::Origin;
use crate::error::{Error, Kind, Result};
use crate::source::connect::Session;
use crate::source::{describe, identity, install};

/// What was found of one precondition.
#[derive(Debug, Serialize)]
pub struct Finding {
    subject: String,
    ok: bool,
    detail: String,
    #[serde(skip)]
    exit_code: Option<u8>,
}

impl Finding {
    fn new(subject: impl Into<String>, found: Result<String>) -> Self {
        let subject = subject.into();
        match found {
            Ok(detail) => Self {
                subject,
                ok: true,
                detail,
                exit_code: None,
            },
            Err(error) => Self {
                subject,
                ok: false,
                detail: error.to_string(),
                exit_code: Some(error.exit_code()),
            },
        }
    }

    /// What was looked at.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What was found.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// What is wrong, and the remedy; none where it is as it should be.
    pub fn error(&self) -> Option<&str> {
        (!self.ok).then_some(self.detail.as_str())
    }

    /// The exit code that a wrong precondition asks for.
    pub fn exit_code(&self) -> Option<u8> {
        self.exit_code
    }
}

/// Looks at every precondition; what depends on another that is wrong is left out.
pub async fn check(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    let session = match connect(settings, "check").await {
        Ok(session) => {
            findings.push(Finding::new("site database", version(&session).await));
            Some(session)
        }
        Err(error) => {
            findings.push(Finding::new("site database", Err(error)));
            None
        }
    };
    let mut origin = Origin {
        source_id: settings.source.source_id.clone().unwrap_or_default(),
        epoch: crate::change::Epoch(1),
    };
    if let Some(session) = &session {
        check_source(settings, session, &mut findings, &mut origin).await;
    }
    findings.push(Finding::new("media root", media(settings)));
    findings.push(Finding::new(
        "checkpoint store",
        store(settings, session.as_ref()).await,
    ));
    findings.push(Finding::new("cloud", check_cloud(settings, &origin).await));
    findings
}

async fn version(session: &Session) -> Result<String> {
    let row = session
        .client()
        .query_one(
            "select current_setting('server_version'), current_database()::text",
            &[],
        )
        .await
        .map_err(|error| Error::postgres("read the server's version", error))?;
    Ok(format!(
        "PostgreSQL {}, database {}",
        row.get::<_, &str>(0),
        row.get::<_, &str>(1)
    ))
}

async fn check_source(
    settings: &Settings,
    session: &Session,
    findings: &mut Vec<Finding>,
    origin: &mut Origin,
) {
    let client = session.client();
    let tables = match describe::tables(client, &settings.catalogue).await {
        Ok(tables) => tables,
        Err(error) => {
            findings.push(Finding::new("catalogue", Err(error)));
            return;
        }
    };
    findings.push(Finding::new(
        "catalogue",
        Ok(format!("{} entities fit their tables", tables.len())),
    ));
    match install::attached(client, &settings.catalogue, &tables).await {
        Ok(attached) => {
            for (entity, attached) in settings.catalogue.entities().iter().zip(attached) {
                let found = match attached.wrong {
                    None => Ok("four triggers, enabled, of this version".to_owned()),
                    Some(wrong) => Err(Error::config(format!("capture {}", entity.name), wrong)
                        .remedy("run `cloud-sync init`, then `cloud-sync sync` for what was missed")),
                };
                findings.push(Finding::new(format!("capture of {}", entity.name), found));
            }
        }
        Err(error) => {
            findings.push(Finding::new("capture", Err(error)));
            return;
        }
    }
    let found = identity::read(client, settings.source.source_id.as_deref()).await;
    if let Ok(identity) = &found {
        origin.source_id.clone_from(&identity.source_id);
        origin.epoch = identity.epoch;
    }
    findings.push(Finding::new(
        "identity",
        found.map(|identity| format!("source {}, epoch {}", identity.source_id, identity.epoch)),
    ));
}

fn media(settings: &Settings) -> Result<String> {
    let root = &settings.media.root;
    if settings
        .catalogue
        .entities()
        .iter()
        .all(|entity| entity.files.is_empty())
    {
        return Ok("not needed: no entity names files".to_owned());
    }
    std::fs::read_dir(root).map_err(|error| {
        Error::local(format!("read the media root {}", root.display()), error)
            .remedy("create the folder, make it readable, or set media.root")
    })?;
    Ok(root.display().to_string())
}

async fn store(settings: &Settings, session: Option<&Session>) -> Result<String> {
    let path = settings.store.path.join("checkpoint");
    match SledStore::open(&path) {
        Ok((_, None)) => Ok(format!("{} can be written", path.display())),
        Ok((_, Some(aside))) => Err(Error::new(
            Kind::Store,
            "read the checkpoint store",
            format!("it was broken, and is set aside as {}", aside.display()),
        )
        .remedy("nothing: the next run resumes from the mirror in the site's database")),
        // The running replicator has it.
        Err(error) => match session {
            Some(session) if super::questions::led(session).await? => {
                Ok(format!("{} is in use by the running replicator", path.display()))
            }
            _ => Err(error),
        },
    }
}

async fn check_cloud(settings: &Settings, origin: &Origin) -> Result<String> {
    let hello = cloud(settings)?.hello(origin).await?;
    let capabilities = hello.capabilities.names();
    Ok(format!(
        "accepts the key{}, {}",
        hello
            .site
            .map_or(String::new(), |site| format!(" of site {site}")),
        if capabilities.is_empty() {
            "baseline calls only: deletes cannot be sent, and files are not confirmed by hash".to_owned()
        } else {
            format!("with {}", capabilities.join(", "))
        }
    ))
}
