//! What an operator has paused: kept in the site's database, so that it outlasts restarts and every
//! replicator of this database obeys it.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::connect::Session;
use crate::catalogue::Catalogue;
use crate::error::{Code, Error, Kind, Result};
use crate::sql_template::statement;

/// Since when something is paused, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pause {
    /// Since when.
    pub since: Timestamp,
    /// Who has paused it.
    pub by: String,
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "paused since {} by {}",
            self.since.strftime("%Y-%m-%dT%H:%M:%SZ"),
            self.by
        )
    }
}

/// Everything that is paused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pauses {
    /// The pause of everything: no row and no file is sent.
    pub all: Option<Pause>,
    /// The pause of files.
    pub files: Option<Pause>,
    /// The pauses of entities, by their names.
    pub entities: BTreeMap<String, Pause>,
}

impl Pauses {
    /// The pause that stops files, if one does.
    pub fn of_files(&self) -> Option<&Pause> {
        self.all.as_ref().or(self.files.as_ref())
    }

    /// The pause that stops this entity, if one does.
    pub fn of_entity(&self, name: &str) -> Option<&Pause> {
        self.all.as_ref().or_else(|| self.entities.get(name))
    }

    /// Fails if everything is paused: then what `operation` pushes would not arrive.
    ///
    /// # Errors
    /// A configuration error that says since when, and by whom.
    pub fn must_flow(&self, operation: &str) -> Result<()> {
        match &self.all {
            None => Ok(()),
            Some(pause) => {
                Err(Error::config(operation, format!("replication is {pause}"))
                    .remedy("run `cloud-sync resume`"))
            }
        }
    }
}

/// What is paused or resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PauseScope {
    /// Everything.
    All,
    /// Files.
    Files,
    /// The entity of this name.
    Entity(String),
}

impl PauseScope {
    /// Fails if the catalogue lacks the entity.
    ///
    /// # Errors
    /// A configuration error.
    pub fn check(&self, catalogue: &Catalogue) -> Result<()> {
        match self {
            Self::All | Self::Files => Ok(()),
            Self::Entity(name) => catalogue.select(std::slice::from_ref(name)).map(|_| ()),
        }
    }

    /// Its columns.
    fn columns(&self) -> (&'static str, &str) {
        match self {
            Self::All => ("all", ""),
            Self::Files => ("files", ""),
            Self::Entity(name) => ("entity", name),
        }
    }
}

impl fmt::Display for PauseScope {
    /// As the subject of a sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("replication"),
            Self::Files => f.write_str("uploading of files"),
            Self::Entity(name) => write!(f, "replication of {name}"),
        }
    }
}

/// Lets the session hear of pauses and resumes.
///
/// # Errors
/// The source's.
pub(crate) async fn listen(session: &Session) -> Result<()> {
    let listening = session.client().batch_execute(statement!("pauses", "listen"));
    listening
        .await
        .map_err(|error| Error::postgres("listen for pauses", error))
}

/// Reads what is paused.
///
/// # Errors
/// The source's.
pub async fn read(client: &Client) -> Result<Pauses> {
    let rows = client
        .query(statement!("pauses", "paused"), &[])
        .await
        .map_err(|error| {
            let error = Error::postgres("read what is paused", error);
            match error.sqlstate() {
                // A version before this one has made the schema.
                Some("42P01") => error
                    .with_code(Code::CaptureMissing)
                    .remedy("run `cloud-sync init`"),
                _ => error,
            }
        })?;
    let mut pauses = Pauses::default();
    for row in rows {
        let (scope, entity): (String, String) = (row.get(0), row.get(1));
        let since = Timestamp::from_microsecond(row.get(2))
            .map_err(|error| Error::new(Kind::Source, "read what is paused", error.to_string()))?;
        let pause = Pause {
            since,
            by: row.get(3),
        };
        match scope.as_str() {
            "all" => pauses.all = Some(pause),
            "files" => pauses.files = Some(pause),
            _ => {
                pauses.entities.insert(entity, pause);
            }
        }
    }
    Ok(pauses)
}

/// Pauses something. What is paused already keeps its time. Returns whether it was not paused before.
///
/// # Errors
/// The source's.
pub async fn pause(client: &Client, scope: &PauseScope, by: &str) -> Result<bool> {
    let (kind, entity) = scope.columns();
    let row = client
        .query_one(statement!("pauses", "pause"), &[&kind, &entity, &by])
        .await
        .map_err(|error| Error::postgres(format!("pause {scope}"), error))?;
    Ok(row.get::<_, i64>(0) > 0)
}

/// Ends a pause. Returns whether there was one.
///
/// # Errors
/// The source's.
pub async fn resume(client: &Client, scope: &PauseScope) -> Result<bool> {
    let (kind, entity) = scope.columns();
    let row = client
        .query_one(statement!("pauses", "resume"), &[&kind, &entity])
        .await
        .map_err(|error| Error::postgres(format!("resume {scope}"), error))?;
    Ok(row.get::<_, i64>(0) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_of_everything_stops_files_and_each_entity() {
        let pause = Pause {
            since: "2026-11-30T12:00:00Z".parse().unwrap(),
            by: "anna".to_owned(),
        };
        let mut pauses = Pauses::default();
        pauses.entities.insert("rooms".to_owned(), pause.clone());
        assert!(pauses.of_entity("rooms").is_some() && pauses.of_entity("leaves").is_none());
        assert!(pauses.of_files().is_none());
        pauses.must_flow("sync").unwrap();
        pauses.all = Some(pause);
        assert!(pauses.of_entity("leaves").is_some() && pauses.of_files().is_some());
        let error = pauses.must_flow("sync").unwrap_err().to_string();
        assert!(
            error.contains("paused since 2026-11-30T12:00:00Z by anna"),
            "{error}"
        );
    }
}
