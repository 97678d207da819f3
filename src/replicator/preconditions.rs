//! Every precondition of a site, each looked at on its own: ok, or what is wrong and the remedy.

use std::time::Duration;

use serde::Serialize;

use super::{cloud, connect};
use crate::catalogue::{Catalogue, Entity};
use crate::checkpoint::SledStore;
use crate::config::{FileDriver, Settings};
use crate::deliver::{ChangeOrigin, CloudInfo};
use crate::drain::wire_schema;
use crate::error::{Code, Error, Kind, Result};
use crate::quarantine;
use crate::source::complete::{self, PatternScope};
use crate::source::connect::{Session, must_keep_sessions};
use crate::source::describe::{self, DescribedTable, SourceTable};
use crate::source::drift::{self, EntityDrift};
use crate::source::{identity, leader_lock, outbox, parked_touches, schema_check};

/// Less room for the outbox than this is reported.
const LEAST_ROOM: u64 = 256 << 20;

const MAKE_AGAIN: &str = "run `cloud-sync uninstall`, `cloud-sync init`, then `cloud-sync sync`";

/// What was found of one precondition.
#[derive(Debug, Serialize)]
pub struct Finding {
    subject: String,
    ok: bool,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    #[serde(skip)]
    exit_code: Option<u8>,
}

impl Finding {
    pub(super) fn new(subject: impl Into<String>, found: Result<String>) -> Self {
        let subject = subject.into();
        match found {
            Ok(detail) => Self {
                subject,
                ok: true,
                detail,
                advice: None,
                exit_code: None,
            },
            Err(error) => Self {
                subject,
                ok: false,
                detail: error.to_string(),
                advice: None,
                exit_code: Some(error.exit_code()),
            },
        }
    }

    /// Nothing is wrong, and something would be better.
    pub(super) fn advice(subject: impl Into<String>, detail: String, advice: String) -> Self {
        Self {
            advice: Some(advice),
            ..Self::new(subject, Ok(detail))
        }
    }

    /// What would be better.
    pub fn advised(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    /// What was looked at.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What was found.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// What is wrong, and the remedy; `None` if it is as it should be.
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
    let mut settings = settings.clone();
    let session = match connect(&settings, "check").await {
        Ok(session) => {
            findings.push(Finding::new("site database", version(&session).await));
            findings.push(Finding::new("sessions", sessions(&settings).await));
            findings.extend(complete_catalogue(&mut settings, &session).await);
            Some(session)
        }
        Err(error) => {
            findings.push(Finding::new("site database", Err(error)));
            None
        }
    };
    let settings = &settings;
    let mut origin = ChangeOrigin {
        source_id: settings.source.source_id.clone().unwrap_or_default(),
        epoch: crate::change::Epoch(1),
        database: String::new(),
    };
    let mut captured = Vec::new();
    if let Some(session) = &session {
        captured = check_source(settings, session, &mut findings, &mut origin).await;
    }
    findings.push(Finding::new("media root", media(settings).await));
    if settings.files.driver != FileDriver::Api {
        findings.push(Finding::new("object storage", storage(settings).await));
    }
    findings.push(Finding::new(
        "checkpoint store",
        store(settings, session.as_ref()).await,
    ));
    let info = check_cloud(settings, &origin).await;
    let has_schema = info.as_ref().is_ok_and(|info| info.capabilities.schema);
    findings.push(Finding::new("cloud", info.map(describe_cloud)));
    if has_schema {
        findings.extend(check_schemas(settings, &origin, &captured).await);
    }
    findings
}

/// Asks the cloud for the schema of each entity, as it will before the first change; a line for each that it
/// refuses.
async fn check_schemas(
    settings: &Settings,
    origin: &ChangeOrigin,
    captured: &[(&Entity, SourceTable)],
) -> Vec<Finding> {
    let Ok(cloud) = cloud(settings) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for (entity, table) in captured {
        if let Err(failure) = cloud.put_schema(origin, &wire_schema(entity, table)).await {
            findings.push(Finding::new(
                format!("schema of {}", entity.name),
                Err(failure.into()),
            ));
        }
    }
    if findings.is_empty() && !captured.is_empty() {
        let taken = format!("the cloud takes those of {} entities", captured.len());
        findings.push(Finding::new("schemas", Ok(taken)));
    }
    findings
}

async fn sessions(settings: &Settings) -> Result<String> {
    must_keep_sessions(settings.require_database_url()?).await?;
    Ok("each keeps its server process".to_owned())
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

/// The order is that of the remedies: what comes first is corrected first. Whose outbox it is comes before
/// its capture, since after a restore nothing else counts. Returns the entities whose capture is as it should
/// be.
async fn check_source<'a>(
    settings: &'a Settings,
    session: &Session,
    findings: &mut Vec<Finding>,
    origin: &mut ChangeOrigin,
) -> Vec<(&'a Entity, SourceTable)> {
    let mut captured = Vec::new();
    let client = session.client();
    match identity::stored_identity_of(client, settings.source.source_id.as_deref()).await {
        Ok(identity) => {
            origin.source_id.clone_from(&identity.source_id);
            origin.epoch = identity.epoch;
            origin.database.clone_from(&identity.system_id);
            findings.push(Finding::new(
                "identity",
                Ok(format!("source {}, epoch {}", identity.source_id, identity.epoch)),
            ));
        }
        Err(error) => {
            let restored = error.kind() == Kind::Identity;
            findings.push(Finding::new("identity", Err(error)));
            if !restored {
                findings.extend(check_tables(settings, session).await);
            }
            return captured;
        }
    }
    findings.push(Finding::new("clock", clock(session).await));
    findings.push(Finding::new("outbox", outbox_tables(session).await));
    findings.push(Finding::new("temporary files", temporary_files(session).await));
    findings.push(Finding::new("disk", disk(settings, session).await));
    findings.extend(check_tables(settings, session).await);
    match drift::watch(client, &settings.catalogue).await {
        Ok(watched) => {
            for (entity, (described, watched)) in settings.catalogue.entities().iter().zip(watched) {
                let found = capture(session, entity, &described, &watched).await;
                if found.is_ok() && described.table.fits(entity) {
                    captured.push((entity, described.table));
                }
                findings.push(Finding::new(format!("capture of {}", entity.name), found));
            }
        }
        Err(error) => findings.push(Finding::new("capture", Err(error))),
    }
    findings.push(Finding::new("quarantine", quarantined(session).await));
    captured
}

/// Rows that the cloud refused, or that cannot be read. They hold no other row up.
async fn quarantined(session: &Session) -> Result<String> {
    let counts = quarantine::counts(session.client()).await?;
    if counts.is_empty() {
        return Ok("empty".to_owned());
    }
    let rows: Vec<String> = counts
        .iter()
        .map(|(entity, count)| format!("{count} {} of {entity}", if *count == 1 { "row" } else { "rows" }))
        .collect();
    Ok(format!(
        "take care, the cloud is without the present state of {}: `cloud-sync quarantine list` says why; correct the row, or \
         the cloud and then run `cloud-sync quarantine retry`, or give the change up by `cloud-sync quarantine discard`",
        rows.join(", ")
    ))
}

/// Completes the catalogue. If it has faults, then what is usable of it is looked at further.
async fn complete_catalogue(settings: &mut Settings, session: &Session) -> Vec<Finding> {
    let Some(declared) = &settings.declared else {
        return Vec::new();
    };
    let mut completed = match complete::complete(session.client(), declared, PatternScope::Captured).await {
        Ok(completed) => completed,
        Err(error) => return vec![Finding::new("catalogue", Err(error))],
    };
    let (catalogue, faults) = completed.usable();
    settings.catalogue = catalogue;
    let faults = faults
        .into_iter()
        .map(|fault| Finding::new("catalogue", Err(fault)));
    let mut findings: Vec<Finding> = faults.collect();
    if !completed.uncaptured.is_empty() {
        let uncaptured = Error::config(
            "capture every table of catalogue.tables",
            format!(
                "{} came after the last `cloud-sync init`",
                completed.uncaptured.join(", ")
            ),
        );
        let uncaptured = uncaptured.remedy(
            "run `cloud-sync init`, then start `cloud-sync run` again, or leave the tables out by a pattern with !",
        );
        findings.push(Finding::new("catalogue", Err(uncaptured)));
    }
    findings.extend(completed.left_out.iter().map(|(table, why)| {
        Finding::new("catalogue", Ok(format!("table {table} is not replicated: {why}")))
    }));
    let against_order = completed.against_order.into_iter();
    findings.extend(against_order.map(|reference| Finding::new("catalogue", Ok(reference))));
    findings
}

/// A line for each fault of each entity; and one for the columns that leave the site although they look
/// private.
async fn check_tables(settings: &Settings, session: &Session) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut private = Vec::new();
    let mut fitting = 0;
    let all = match describe::table_faults(session.client(), &settings.catalogue).await {
        Ok(all) => all,
        Err(error) => return vec![Finding::new("catalogue", Err(error))],
    };
    for (entity, (table, faults)) in settings.catalogue.entities().iter().zip(all) {
        fitting += usize::from(faults.is_empty());
        let faults = faults
            .into_iter()
            .map(|fault| Finding::new("catalogue", Err(fault)));
        findings.extend(faults);
        let columns = table
            .iter()
            .flat_map(|table| &table.columns)
            .map(|column| &column.name);
        let leaving = columns.filter(|column| !entity.leaves_out(column));
        let looking = leaving.filter(|column| entity.looks_private(column).is_some());
        private.extend(looking.map(|column| format!("{}.{column}", entity.name)));
    }
    if findings.is_empty() {
        let fit = format!("{fitting} entities fit their tables");
        findings.push(Finding::new("catalogue", Ok(fit)));
    }
    findings.extend(encryption(&settings.catalogue));
    if !private.is_empty() {
        findings.push(Finding::advice(
            "private columns",
            format!(
                "they leave the site, and their names look private: {}",
                private.join(", ")
            ),
            "name those that must not leave under exclude of their entity, and those that may under include"
                .to_owned(),
        ));
    }
    findings
}

/// Whether there is a key, if columns are to be encrypted.
fn encryption(catalogue: &Catalogue) -> Option<Finding> {
    let encrypting = || {
        catalogue
            .entities()
            .iter()
            .filter(|entity| !entity.encrypt.is_empty())
    };
    let columns: usize = encrypting().map(|entity| entity.encrypt.len()).sum();
    let keys = encrypting().find_map(|entity| entity.keys.as_ref());
    let key = keys.and_then(|keys| keys.keys().last());
    (columns > 0).then(|| {
        let found = catalogue.require_keys().map(|()| {
            let id = key.map_or("", |key| &key.id);
            format!("{columns} columns, by key {id}; is its recovery code in a safe place?")
        });
        Finding::new("encryption", found)
    })
}

/// Triggers in place, firing always, and with the functions as they were installed; nothing missed before;
/// and no table next to it that writers might use instead.
async fn capture(
    session: &Session,
    entity: &Entity,
    described: &DescribedTable,
    watched: &EntityDrift,
) -> Result<String> {
    if let Some(wrong) = &watched.wrong {
        return Err(wrong.error(entity));
    }
    if let Some(why) = watched
        .parked
        .as_ref()
        .filter(|why| *why != parked_touches::PAUSED)
    {
        return Err(super::drift_monitor::parked(entity, why));
    }
    if let Some((gap, _)) = &watched.gap {
        return Err(Error::config(
            format!("say that the cloud has all of {}", entity.name),
            gap.clone(),
        )
        .with_code(Code::CaptureGap)
        .remedy("run `cloud-sync sync`, or wait until the running replicator has compared it"));
    }
    let rows = session
        .client()
        .query(
            "select case when p.relkind = 'p' then 'partition' else 'child' end, format('%I.%I', n.nspname, c.relname) \
             from pg_inherits i join pg_class p on p.oid = i.inhparent join pg_class c on c.oid = i.inhrelid \
             join pg_namespace n on n.oid = c.relnamespace where i.inhparent = $1 and (p.relkind <> 'p' or c.relkind = 'f')",
            &[&described.table.oid],
        )
        .await
        .map_err(|error| Error::postgres(format!("list the tables below {}", entity.table), error))?;
    if let Some(row) = rows.first() {
        let (kind, name): (&str, &str) = (row.get(0), row.get(1));
        return Err(Error::config(
            format!("capture {}", entity.name),
            format!(
                "{kind} {name} of {} can be written to directly, and that is not captured",
                entity.table
            ),
        )
        .remedy("write through the entity's table only, or make an entity of that table"));
    }
    Ok("triggers on the table and its partitions, firing always, as they were installed".to_owned())
}

async fn clock(session: &Session) -> Result<String> {
    let before = std::time::SystemTime::now();
    let row = session
        .client()
        .query_one("select extract(epoch from clock_timestamp())::float8", &[])
        .await
        .map_err(|error| Error::postgres("read the site database's clock", error))?;
    let here = before
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64());
    let apart = (row.get::<_, f64>(0) - here).abs();
    if apart > 60.0 {
        return Err(Error::config(
            "compare the clocks",
            format!("this machine's and the site database's are {apart:.0} s apart: latencies and ages will be wrong"),
        )
        .remedy("set both by NTP"));
    }
    Ok("the site database's is this machine's, within a minute".to_owned())
}

/// The outbox survives a crash, and its positions rise as they are taken. Table `incarnation` is unlogged on
/// purpose: that it is empty tells of a crash.
async fn outbox_tables(session: &Session) -> Result<String> {
    let operation = "look at the outbox";
    let parts = schema_check::schema_parts(session.client(), operation)
        .await
        .map_err(|error| error.remedy(format!("part of schema cloud_sync is gone: {MAKE_AGAIN}")))?;
    if parts.is_incomplete {
        return Err(Error::config(operation, "part of schema cloud_sync is gone").remedy(MAKE_AGAIN));
    }
    if let Some(tables) = parts.unlogged {
        return Err(Error::config(
            operation,
            format!("{tables} is not logged: a crash of the server would empty it"),
        )
        .remedy("alter each by `set logged`"));
    }
    identity::check_sequence(session.client()).await?;
    if let Some(functions) = parts.powerless {
        return Err(Error::config(
            operation,
            format!("{functions} cannot write to it for every writer: the owner lacks a right, or it runs as its caller"),
        )
        .remedy("run `cloud-sync init` as the owner of schema cloud_sync"));
    }
    Ok("logged, its positions rise, and its functions may write to it".to_owned())
}

/// A writer's statement keeps all rows that it wrote until it ends, for capture: beyond `work_mem` in a
/// temporary file.
async fn temporary_files(session: &Session) -> Result<String> {
    let row = session
        .client()
        .query_one(
            "select string_agg(who || ' ' || setting, ', ' order by who) from ( \
             select coalesce('role ' || r.rolname, 'all roles') || coalesce(' in database ' || d.datname, '') as who, \
                    split_part(c.setting, '=', 2) as setting \
             from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole left join pg_database d on d.oid = s.setdatabase \
             cross join unnest(s.setconfig) c (setting) \
             where c.setting like 'temp\\_file\\_limit=%' and (s.setdatabase = 0 or d.datname = current_database()) \
             union all select 'the server', setting || 'kB' from pg_settings \
             where name = 'temp_file_limit' and source not in ('user', 'database', 'database user') \
             ) limits where setting not in ('-1', '-1kB')",
            &[],
        )
        .await
        .map_err(|error| Error::postgres("look for limits of temporary files", error))?;
    Ok(match row.get::<_, Option<&str>>(0) {
        None => "without a limit".to_owned(),
        Some(limits) => format!(
            "take care, temp_file_limit is set ({limits}): a statement that writes more rows than that fails, as capture keeps \
             all of its rows until it ends; raise the limit for roles that write much at once"
        ),
    })
}

async fn disk(settings: &Settings, session: &Session) -> Result<String> {
    let bytes = outbox::bytes(session).await?;
    let room = super::outbox_forecast::room(session.client(), settings.source.outbox_limit, bytes).await?;
    match room {
        None => {
            Ok("its free space cannot be seen from here: set source.outbox_limit for a forecast".to_owned())
        }
        Some(room) if room < LEAST_ROOM => Err(Error::new(
            Kind::Local,
            "keep what the cloud has not accepted",
            format!("only {} MiB are left for the outbox", room >> 20),
        )
        .remedy("free space on the database's disk, or raise source.outbox_limit")),
        Some(room) => Ok(format!("{} MiB are left for the outbox", room >> 20)),
    }
}

async fn storage(settings: &Settings) -> Result<String> {
    let Some(storage) = super::object_storage(settings)? else {
        return Ok("not used".to_owned());
    };
    storage.check().await?;
    Ok(format!("answers; URLs begin with {}", storage.url()))
}

/// How long the media root may take to answer.
const MEDIA: Duration = Duration::from_secs(5);

async fn media(settings: &Settings) -> Result<String> {
    let root = &settings.media.root;
    if settings
        .catalogue
        .entities()
        .iter()
        .all(|entity| entity.files.is_empty())
    {
        return Ok("not needed: no entity names files".to_owned());
    }
    let operation = format!("read the media root {}", root.display());
    let folder = root.clone();
    let read = tokio::task::spawn_blocking(move || {
        std::fs::read_dir(&folder).map(|_| crate::media::silent_file_system(&folder))
    });
    let silent = match tokio::time::timeout(MEDIA, read).await {
        Ok(Ok(Ok(silent))) => silent,
        Ok(Ok(Err(error))) => {
            return Err(Error::local(operation, error)
                .remedy("create the folder, make it readable, or set media.root"));
        }
        Ok(Err(_)) | Err(_) => {
            return Err(Error::new(
                Kind::Media,
                operation,
                format!("its file system does not answer within {} s", MEDIA.as_secs()),
            )
            .remedy("mount it again, or set media.root; rows are replicated in the meantime"));
        }
    };
    Ok(match silent {
        None => root.display().to_string(),
        Some(kind) => format!(
            "{} ({kind}: what other machines write is found by the rescan, see media.rescan)",
            root.display()
        ),
    })
}

async fn store(settings: &Settings, session: Option<&Session>) -> Result<String> {
    if let Some(free) = super::outbox_forecast::free(&settings.store.path)
        && free < LEAST_ROOM / 4
    {
        return Err(Error::new(
            Kind::Store,
            "keep the checkpoint",
            format!(
                "only {} MiB are left on the disk of {}",
                free >> 20,
                settings.store.path.display()
            ),
        )
        .remedy("free space there, or set store.path to another disk"));
    }
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
            Some(session) if leader_lock::holder(session.client()).await?.is_some() => {
                Ok(format!("{} is in use by the running replicator", path.display()))
            }
            _ => Err(error),
        },
    }
}

/// Asks the cloud who it is and what it can do.
pub(crate) async fn check_cloud(settings: &Settings, origin: &ChangeOrigin) -> Result<CloudInfo> {
    Ok(cloud(settings)?.handshake(origin).await?)
}

/// What the cloud answered, in words.
pub(crate) fn describe_cloud(info: CloudInfo) -> String {
    let capabilities = info.capabilities.names();
    format!(
        "accepts the key{}, {}",
        info.site.map_or(String::new(), |site| format!(" of site {site}")),
        if capabilities.is_empty() {
            "baseline calls only: deletes cannot be sent, and files are not confirmed by hash".to_owned()
        } else {
            format!("with {}", capabilities.join(", "))
        }
    )
}
