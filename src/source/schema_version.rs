//! Which version schema `cloud_sync` has, and whether this program can use it.

use serde::Serialize;
use sqlx::migrate::Migration;
use tokio_postgres::Client;

use super::identity;
use super::install::migrations;
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// How the installed schema stands to this program. The numbers are those of migrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum SchemaVersion {
    /// Capture is not installed.
    NotInstalled,
    /// It is the one that this program needs.
    Current {
        /// The last migration.
        installed: i64,
    },
    /// This program can bring it up to date.
    Older {
        /// The last migration that was applied.
        installed: i64,
        /// The last one that this program needs.
        needed: i64,
    },
    /// A newer program has migrated it, and this one cannot use it.
    Newer {
        /// The last migration that was applied.
        installed: i64,
        /// The last one that this program knows.
        needed: i64,
    },
    /// A migration was applied that has the number of one of this program's and is another.
    Foreign {
        /// The migration.
        installed: i64,
    },
}

impl SchemaVersion {
    /// Whether this program can use it, at once or after an upgrade.
    pub fn is_usable(self) -> bool {
        !matches!(self, Self::Newer { .. } | Self::Foreign { .. })
    }
}

/// A migration that was applied.
struct AppliedMigration {
    version: i64,
    checksum: Vec<u8>,
}

/// Looks at the schema. Nothing is changed.
///
/// # Errors
/// The source's.
pub async fn schema_version(client: &Client) -> Result<SchemaVersion> {
    if !identity::installed(client).await? {
        return Ok(SchemaVersion::NotInstalled);
    }
    let rows = client
        .query(statement!("install", "applied_migrations"), &[])
        .await
        .map_err(|error| Error::postgres("read the version of schema cloud_sync", error))?;
    let applied = rows.iter().map(|row| AppliedMigration {
        version: row.get(0),
        checksum: row.get(1),
    });
    Ok(compare(&applied.collect::<Vec<_>>(), &migrations().migrations))
}

/// Whether the role of the session may migrate the schema: only its owner may.
///
/// # Errors
/// The source's.
pub async fn may_migrate(client: &Client) -> Result<bool> {
    let row = client
        .query_one(statement!("install", "may_migrate"), &[])
        .await
        .map_err(|error| Error::postgres("look at the owner of schema cloud_sync", error))?;
    Ok(row.get(0))
}

fn compare(applied: &[AppliedMigration], known: &[Migration]) -> SchemaVersion {
    let installed = applied.iter().map(|applied| applied.version).max().unwrap_or(0);
    let needed = known.iter().map(|known| known.version).max().unwrap_or(0);
    for migration in applied {
        match known.iter().find(|known| known.version == migration.version) {
            Some(known) if known.checksum == migration.checksum => {}
            None if migration.version > needed => return SchemaVersion::Newer { installed, needed },
            Some(_) | None => {
                return SchemaVersion::Foreign {
                    installed: migration.version,
                };
            }
        }
    }
    if applied.len() < known.len() {
        SchemaVersion::Older { installed, needed }
    } else {
        SchemaVersion::Current { installed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(version: i64, checksum: &[u8]) -> AppliedMigration {
        AppliedMigration {
            version,
            checksum: checksum.to_vec(),
        }
    }

    #[test]
    fn a_schema_is_older_current_newer_or_foreign() {
        let known = migrations().migrations;
        let needed = known.len() as i64;
        let all = || -> Vec<AppliedMigration> {
            known
                .iter()
                .map(|known| applied(known.version, &known.checksum))
                .collect()
        };
        assert_eq!(
            compare(&all(), &known),
            SchemaVersion::Current { installed: needed }
        );
        let mut older = all();
        older.pop();
        let installed = needed - 1;
        assert_eq!(
            compare(&older, &known),
            SchemaVersion::Older { installed, needed }
        );
        let mut newer = all();
        newer.push(applied(9999, b"of later"));
        let installed = 9999;
        assert_eq!(
            compare(&newer, &known),
            SchemaVersion::Newer { installed, needed }
        );
        let mut foreign = all();
        foreign[1].checksum = b"another".to_vec();
        assert_eq!(compare(&foreign, &known), SchemaVersion::Foreign { installed: 2 });
        assert!(!compare(&foreign, &known).is_usable() && !compare(&newer, &known).is_usable());
        assert!(compare(&older, &known).is_usable());
    }
}
