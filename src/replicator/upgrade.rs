//! Whether this program, the schema in the site's database and the cloud understand each other, and the
//! upgrade of the schema.
//!
//! Looking changes nothing, so a new version can look before it is installed. The upgrade changes schema
//! `cloud_sync` and the capture of tables that are captured; it captures no further table of a pattern.

use serde::Serialize;
use tokio_postgres::Client;

use super::preconditions::{Finding, check_cloud, describe_cloud};
use super::{complete_settings, connect};
use crate::change::Epoch;
use crate::config::Settings;
use crate::deliver::{ChangeOrigin, CloudInfo};
use crate::error::{Error, Result};
use crate::source::complete::PatternScope;
use crate::source::drift::DriftKind;
use crate::source::identity::OutboxDeclaration;
use crate::source::install::{self, Installed};
use crate::source::schema_version::{SchemaVersion, may_migrate, schema_version};
use crate::source::{drift, leader_lock};

/// What was found.
#[derive(Debug, Serialize)]
pub struct UpgradeCheck {
    /// The version of this program.
    pub program: &'static str,
    /// Whether all that was looked at understand each other, at once or after the upgrade.
    pub compatible: bool,
    /// Whether the schema or a capture function has to be upgraded.
    pub needs_upgrade: bool,
    /// The schema's version; null if the database was not reached.
    pub schema: Option<SchemaVersion>,
    /// Each thing that was looked at.
    pub findings: Vec<Finding>,
}

impl UpgradeCheck {
    fn new() -> Self {
        Self {
            program: env!("CARGO_PKG_VERSION"),
            compatible: true,
            needs_upgrade: false,
            schema: None,
            findings: Vec::new(),
        }
    }

    fn add(&mut self, finding: Finding) {
        self.compatible &= finding.error().is_none();
        self.findings.push(finding);
    }

    /// The exit code of the first thing that is wrong.
    pub fn exit_code(&self) -> Option<u8> {
        self.findings.iter().find_map(Finding::exit_code)
    }
}

/// Looks at the database.
pub async fn check_database(settings: &Settings) -> UpgradeCheck {
    let mut check = UpgradeCheck::new();
    if let Err(error) = look_at_database(settings, &mut check).await {
        check.add(Finding::new("site database", Err(error)));
    }
    check
}

/// Looks at the database and at the cloud.
pub async fn check(settings: &Settings) -> UpgradeCheck {
    let mut check = check_database(settings).await;
    let origin = ChangeOrigin {
        source_id: settings.source.source_id.clone().unwrap_or_default(),
        epoch: Epoch(1),
        database: String::new(),
    };
    let finding = match check_cloud(settings, &origin).await {
        Ok(info) => understood(info),
        Err(error) => Finding::new("cloud", Err(error)),
    };
    check.add(finding);
    check
}

/// Upgrades the schema and the capture of the tables that are captured. `check` is what was found of the
/// database; nothing may be wrong there.
///
/// # Errors
/// The source's; a replicator runs, which may be of an older version.
pub async fn upgrade(settings: &Settings, check: &UpgradeCheck) -> Result<Installed> {
    let url = settings.require_database_url()?;
    if check.needs_upgrade {
        let session = connect(settings, "upgrade").await?;
        if let Some(leader) = leader_lock::holder(session.client()).await? {
            return Err(Error::config(
                "upgrade capture",
                format!("a replicator drains the outbox now ({leader} of the site's database)"),
            )
            .remedy("stop `cloud-sync run` there: an older version cannot read what newer capture writes"));
        }
    }
    install::migrate_schema(url).await?;
    let settings = complete_settings(settings, PatternScope::Captured).await?;
    install::init(url, &settings.catalogue, OutboxDeclaration::Nothing).await
}

async fn look_at_database(settings: &Settings, check: &mut UpgradeCheck) -> Result<()> {
    let session = connect(settings, "upgrade").await?;
    let client = session.client();
    let version = schema_version(client).await?;
    check.schema = Some(version);
    check.add(describe_schema(version));
    if version == SchemaVersion::NotInstalled || !version.is_usable() {
        return Ok(());
    }
    if !may_migrate(client).await? {
        let cause = "the role of source.database_url does not own schema cloud_sync";
        return Err(Error::config("upgrade capture", cause)
            .remedy("run `cloud-sync upgrade` with --database-url of the role that ran `cloud-sync init`"));
    }
    let outdated = match version {
        // The statements of this version may not fit the older tables.
        SchemaVersion::Older { .. } => None,
        _ => Some(outdated_entities(settings, client).await?),
    };
    check.needs_upgrade = outdated.as_ref().is_none_or(|outdated| !outdated.is_empty());
    if let Some(outdated) = outdated {
        check.add(describe_capture(&outdated));
    }
    if check.needs_upgrade
        && let Some(leader) = leader_lock::holder(client).await?
    {
        check.add(Finding::advice(
            "replicator",
            format!("it runs now ({leader} of the site's database)"),
            "stop it before `cloud-sync upgrade`, and start the new version afterwards".to_owned(),
        ));
    }
    Ok(())
}

/// The entities whose capture functions were made by another version, or for another form of the table.
async fn outdated_entities(settings: &Settings, client: &Client) -> Result<Vec<String>> {
    let settings = complete_settings(settings, PatternScope::Captured).await?;
    let entities = settings.catalogue.entities();
    let mut outdated = Vec::new();
    for (entity, watched) in entities
        .iter()
        .zip(drift::watch_attached(client, &settings.catalogue).await?)
    {
        if watched.is_some_and(|watched| watched.wrong == Some(DriftKind::Outdated)) {
            outdated.push(entity.name.clone());
        }
    }
    Ok(outdated)
}

fn describe_schema(version: SchemaVersion) -> Finding {
    let subject = "schema";
    let operation = "use schema cloud_sync";
    match version {
        SchemaVersion::NotInstalled => Finding::advice(
            subject,
            "capture is not installed: there is nothing to upgrade".to_owned(),
            "run `cloud-sync init`".to_owned(),
        ),
        SchemaVersion::Current { installed } => Finding::new(
            subject,
            Ok(format!("version {installed}, which this program needs")),
        ),
        SchemaVersion::Older { installed, needed } => Finding::advice(
            subject,
            format!("version {installed}, and this program brings it to version {needed}"),
            "run `cloud-sync upgrade`".to_owned(),
        ),
        SchemaVersion::Newer { installed, needed } => {
            let cause = format!(
                "a newer cloud-sync has brought it to version {installed}, and this program knows up to \
                 {needed}"
            );
            let error = Error::config(operation, cause).remedy("use the newer cloud-sync");
            Finding::new(subject, Err(error))
        }
        SchemaVersion::Foreign { installed } => {
            let cause = format!("its version {installed} is not this program's");
            let error = Error::config(operation, cause).remedy(
                "use the cloud-sync that made it; or let that one drain the outbox, then run \
                 `cloud-sync uninstall`, `cloud-sync init` and `cloud-sync sync`",
            );
            Finding::new(subject, Err(error))
        }
    }
}

fn describe_capture(outdated: &[String]) -> Finding {
    if outdated.is_empty() {
        return Finding::new(
            "capture",
            Ok("its functions are those of this program".to_owned()),
        );
    }
    Finding::advice(
        "capture",
        format!(
            "the functions of {} are older, and capture all the same",
            outdated.join(", ")
        ),
        "run `cloud-sync upgrade`: it locks no table for them".to_owned(),
    )
}

/// What the cloud offers and this program does not know, and the other way round. Neither is an error: what
/// one side does not know, the other does not use.
fn understood(info: CloudInfo) -> Finding {
    let (unknown, unlisted) = (
        info.unknown_capabilities.join(", "),
        info.unlisted_capabilities.join(", "),
    );
    let mut detail = describe_cloud(info);
    if !unknown.is_empty() {
        detail.push_str(&format!(
            "; it also offers {unknown}, which this program does not use"
        ));
    }
    if unlisted.is_empty() {
        return Finding::new("cloud", Ok(detail));
    }
    Finding::advice(
        "cloud",
        detail,
        format!(
            "cloud.capabilities names {unlisted}, which the cloud does not list: look whether it has that"
        ),
    )
}
