//! Rows that wait in quarantine for their parent: they are touched again when the cloud has accepted the
//! parent.
//!
//! The source's foreign keys and the rows say which row is the parent of which: the child's row as it was
//! refused, the parent's row as it was sent. A child that is refused ten times, although its parent is
//! accepted, waits an hour before the next retry. So a row that is refused for another reason costs no more
//! than that.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::batch::{Batch, Fate};
use crate::catalogue::{Catalogue, EntityIndex};
use crate::change::Op;
use crate::error::{Error, Result};
use crate::source::describe::SourceTable;
use crate::source::{quarantine as entries, touch};
use crate::wire::json::{non_null_text, pick};

/// A foreign key between two tables of the catalogue, or of one table to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ForeignKey {
    child: EntityIndex,
    parent: EntityIndex,
    /// The child's columns.
    columns: Vec<String>,
    /// The parent's columns that these refer to, in the same order.
    referred: Vec<String>,
}

const REFERENCES: &str = "\
select c.conrelid, c.confrelid,
       array(select a.attname::text from unnest(c.conkey) with ordinality k (attnum, nth)
             join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.attnum order by k.nth),
       array(select a.attname::text from unnest(c.confkey) with ordinality k (attnum, nth)
             join pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.attnum order by k.nth)
from pg_constraint c where c.contype = 'f' and c.conrelid = any($1) and c.confrelid = any($1)";

/// The foreign keys between the tables of the catalogue.
#[derive(Debug, Default)]
pub struct Orphans {
    references: Vec<ForeignKey>,
}

impl Orphans {
    /// Reads the foreign keys between the catalogue's tables.
    ///
    /// # Errors
    /// The source's.
    pub async fn read(client: &Client, tables: &[SourceTable]) -> Result<Self> {
        let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
        let rows = client
            .query(REFERENCES, &[&oids])
            .await
            .map_err(|error| Error::postgres("read the foreign keys of the catalogue's tables", error))?;
        let entity_of = |oid: u32| oids.iter().position(|&other| other == oid).map(EntityIndex);
        let references = rows.iter().filter_map(|row| {
            Some(ForeignKey {
                child: entity_of(row.get(0))?,
                parent: entity_of(row.get(1))?,
                columns: row.get(2),
                referred: row.get(3),
            })
        });
        Ok(Self {
            references: references.collect(),
        })
    }

    /// The keys of the parents of refused rows, by the parents' entities. `images` are the rows' entities and
    /// the rows as they were refused. Only parents that a row refers to by their entity's key.
    pub(crate) fn parents(
        &self,
        catalogue: &Catalogue,
        images: &[(String, String)],
    ) -> BTreeMap<EntityIndex, Vec<String>> {
        let mut parents: BTreeMap<EntityIndex, Vec<String>> = BTreeMap::new();
        for (name, image) in images {
            let Some(child) = catalogue.find(name) else {
                continue;
            };
            for reference in self
                .references
                .iter()
                .filter(|reference| reference.child == child)
            {
                let key = &catalogue[reference.parent].key;
                if let Some(parent) = referred_key(reference, key, image) {
                    parents.entry(reference.parent).or_default().push(parent);
                }
            }
        }
        for keys in parents.values_mut() {
            keys.sort_unstable();
            keys.dedup();
        }
        parents
    }

    /// Touches the quarantined rows whose parents are among the batch's accepted rows. `occupied` are the
    /// entities that have entries in quarantine, `numbers` the entities' numbers in the outbox. Returns how
    /// many rows.
    ///
    /// # Errors
    /// The source's.
    pub async fn touch_children(
        &self,
        client: &Client,
        catalogue: &Catalogue,
        numbers: &[i16],
        batch: &Batch,
        occupied: &[EntityIndex],
    ) -> Result<usize> {
        let mut touched = 0;
        let children_references = self
            .references
            .iter()
            .filter(|reference| occupied.contains(&reference.child));
        for reference in children_references {
            let parents = accepted_parents(batch, reference);
            let Some(count) = parents.first().map(Vec::len).filter(|&count| count > 0) else {
                continue;
            };
            let entity = &catalogue[reference.child];
            let mut after = String::new();
            loop {
                let keys = waiting_children(client, &entity.name, reference, &parents, &after).await?;
                let Some(last) = keys.last() else { break };
                after.clone_from(last);
                // The entry may be older than the entity's present key columns.
                let known = |key: &&String| {
                    pick(key, &entity.key).is_ok_and(|values| values.iter().all(Option::is_some))
                };
                let keys: Vec<&String> = keys.iter().filter(known).collect();
                touch::keys(client, entity, numbers[reference.child.0], &keys).await?;
                touched += keys.len();
            }
            tracing::debug!(
                entity = entity.name,
                parents = count,
                touched,
                "the cloud accepted parents of quarantined rows"
            );
        }
        Ok(touched)
    }
}

/// The key of the parent that a row refers to, as a JSON object; `None` if it refers to none, or not by the
/// parent's key.
fn referred_key(reference: &ForeignKey, key: &[String], image: &str) -> Option<String> {
    let values = pick(image, &reference.columns).ok()?;
    let mut pairs = Vec::with_capacity(key.len());
    for name in key {
        let column_index = reference.referred.iter().position(|referred| referred == name)?;
        let value = values[column_index].filter(|value| *value != "null")?;
        pairs.push(format!("{}:{}", serde_json::to_string(name).ok()?, value));
    }
    (reference.referred.len() == key.len()).then(|| format!("{{{}}}", pairs.join(",")))
}

/// For each column that the foreign key refers to, its values in the batch's accepted rows.
fn accepted_parents(batch: &Batch, reference: &ForeignKey) -> Vec<Vec<String>> {
    let mut values = vec![Vec::new(); reference.referred.len()];
    for (change_index, change) in batch.indexed() {
        let accepted = *batch.fate(change_index) == Fate::Accepted;
        if change.entity != reference.parent || change.op != Op::Upsert || !accepted {
            continue;
        }
        // A parent without such a column has no children.
        let row = change.row.as_deref().unwrap_or("{}");
        let Some(picked) = pick(row, &reference.referred).ok().and_then(|picked| {
            picked
                .into_iter()
                .map(|value| Some(non_null_text(value?)?.into_owned()))
                .collect::<Option<Vec<String>>>()
        }) else {
            continue;
        };
        for (column, value) in values.iter_mut().zip(picked) {
            column.push(value);
        }
    }
    values
}

/// The keys of quarantined children of these parents, in order, after the key `after`, as many as are touched
/// at once.
async fn waiting_children(
    client: &Client,
    entity: &str,
    reference: &ForeignKey,
    parents: &[Vec<String>],
    after: &str,
) -> Result<Vec<String>> {
    let columns = reference.columns.iter().map(String::as_str);
    let references: Vec<_> = columns.zip(parents).collect();
    entries::orphans(client, entity, after, &references, touch::CHUNK).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::ChangeIndex;
    use crate::change::{Change, Position};

    #[test]
    fn only_accepted_rows_of_the_parent_count() {
        let reference = ForeignKey {
            child: EntityIndex(1),
            parent: EntityIndex(0),
            columns: vec!["room".into(), "site".into()],
            referred: vec!["no".into(), "site".into()],
        };
        let change = |entity, row: &str| Change {
            position: Position(1),
            entity,
            op: Op::Upsert,
            cause: crate::change::Cause::Gone,
            captured_at: 0,
            key: row.into(),
            row: Some(row.into()),
        };
        let mut batch = Batch::new(vec![
            change(EntityIndex(0), r#"{"no":1,"site":"a"}"#),
            change(EntityIndex(0), r#"{"no":2,"site":"b"}"#),
            change(EntityIndex(1), r#"{"no":3,"site":"c"}"#),
            change(EntityIndex(0), r#"{"no":null,"site":"d"}"#),
            change(EntityIndex(0), r#"{"no":"4","site":"\u00e9"}"#),
        ]);
        for index in [0, 2, 3, 4] {
            batch.set_fate(ChangeIndex(index), Fate::Accepted);
        }
        assert_eq!(accepted_parents(&batch, &reference), [["1", "4"], ["a", "é"]]);
    }
}
