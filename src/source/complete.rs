//! Completes the catalogue that the configuration declares by what the site's database knows: the tables that
//! its patterns take, the keys and names that it leaves out, and the order, parents before their children.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tokio_postgres::Client;

use super::{describe, identity};
use crate::catalogue::declared::{DeclaredCatalogue, TablePattern, entity_name};
use crate::catalogue::{Catalogue, Entity};
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// Which tables a pattern can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatternScope {
    /// Every table: `init` captures them.
    All,
    /// Those that are captured: `run` must not stop for a table that came after `init`.
    Captured,
}

/// See [`complete`].
#[derive(Debug, Default)]
pub(crate) struct CompletedCatalogue {
    /// The entities that can be used, parents before their children.
    pub(crate) entities: Vec<Entity>,
    /// What must be corrected first.
    pub(crate) faults: Vec<Error>,
    /// Tables that a pattern takes and that are no entities, each with the reason.
    pub(crate) left_out: Vec<(String, String)>,
    /// Tables that a pattern takes and that are not captured; only with [`PatternScope::Captured`].
    pub(crate) uncaptured: Vec<String>,
    /// References against the order: in a circle of references, one cannot keep it.
    pub(crate) against_order: Vec<String>,
}

impl CompletedCatalogue {
    /// The catalogue of those entities that have no fault by themselves; and the faults.
    pub(crate) fn usable(&mut self) -> (Catalogue, Vec<Error>) {
        if self.faults.is_empty() {
            return (
                Catalogue::of_checked(std::mem::take(&mut self.entities)),
                Vec::new(),
            );
        }
        let mut usable: Vec<Entity> = Vec::new();
        for entity in self.entities.drain(..) {
            usable.push(entity);
            if !Catalogue::faults(&mut usable).is_empty() {
                usable.pop();
            }
        }
        (Catalogue::of_checked(usable), std::mem::take(&mut self.faults))
    }

    /// The catalogue, if nothing must be corrected first.
    ///
    /// # Errors
    /// All faults, as one error.
    pub(crate) fn into_catalogue(self) -> Result<Catalogue> {
        if !self.faults.is_empty() {
            return Err(Error::all_of("use the catalogue", self.faults));
        }
        Ok(Catalogue::of_checked(self.entities))
    }
}

/// A table that can be an entity's.
pub(crate) struct SiteTable {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// The columns of its primary key, or of its shortest unique key without nulls; empty if there is none.
    pub(crate) key: Vec<String>,
    pub(crate) columns: Vec<String>,
    /// The extension that it belongs to.
    pub(crate) extension: Option<String>,
}

impl SiteTable {
    /// Its name with its schema, as people write it.
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Its name with its schema, quoted for SQL where that is needed.
    pub(crate) fn sql_name(&self) -> String {
        let part = |name: &str| {
            let is_plain = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            if is_plain {
                name.to_owned()
            } else {
                super::quote_name(name)
            }
        };
        format!("{}.{}", part(&self.schema), part(&self.name))
    }
}

/// Completes what the configuration declares. The faults are in the answer: all of them, so that they can be
/// corrected at once.
///
/// # Errors
/// The source's.
pub(crate) async fn complete(
    client: &Client,
    declared: &DeclaredCatalogue,
    scope: PatternScope,
) -> Result<CompletedCatalogue> {
    let tables = site_tables(client).await?;
    let mut completed = CompletedCatalogue::default();
    let listed: Vec<&Entity> = declared.entities.iter().collect();
    let found = describe::find(client, &listed).await?;
    let mut oids: Vec<Option<u32>> = found
        .iter()
        .map(|row| row.as_ref().map(|row| row.get(1)))
        .collect();
    for (entity, oid) in declared.entities.iter().zip(&oids) {
        let table = tables.iter().find(|table| Some(table.oid) == *oid);
        let mut entity = entity.clone();
        complete_entity(&mut entity, table, !declared.tables.is_empty());
        if entity.name.is_empty() {
            completed.faults.push(describe::missing(&entity));
        }
        completed.entities.push(entity);
    }
    let captured = match scope {
        PatternScope::Captured if identity::installed(client).await? => Some(captured_names(client).await?),
        _ => None,
    };
    let listed: HashSet<u32> = oids.iter().copied().flatten().collect();
    let by_pattern = tables.iter().filter(|table| !listed.contains(&table.oid));
    for table in by_pattern.filter(|table| declared.takes(&table.schema, &table.name)) {
        match entity_of_pattern(table) {
            Err(Unusable::LeftOut(why)) => completed.left_out.push((table.full_name(), why)),
            Err(Unusable::Fault(fault)) => completed.faults.push(fault),
            Ok(entity) => match &captured {
                Some(names) if !names.contains(&entity.name) => completed.uncaptured.push(table.full_name()),
                _ => {
                    completed.entities.push(entity);
                    oids.push(Some(table.oid));
                }
            },
        }
    }
    for pattern in declared.tables.iter().filter(|pattern| !pattern.leaves_out) {
        if !tables
            .iter()
            .any(|table| pattern.matches(&table.schema, &table.name))
        {
            completed.faults.push(
                Error::config("use catalogue.tables", format!("no table matches {pattern}"))
                    .remedy("correct the pattern, or take it out"),
            );
        }
    }
    completed
        .faults
        .extend(Catalogue::faults(&mut completed.entities));
    order(client, &oids, &mut completed).await?;
    Ok(completed)
}

/// Fills in what the configuration leaves out of an entity.
fn complete_entity(entity: &mut Entity, table: Option<&SiteTable>, guarded: bool) {
    let Some(table) = table else { return };
    if entity.name.is_empty() {
        entity.name = entity_name(&table.schema, &table.name);
        if entity.path.is_empty() {
            entity.path = free_path(&entity.name);
        }
    }
    if entity.key.is_empty() {
        entity.key.clone_from(&table.key);
    }
    if guarded {
        guard(entity, table);
    }
}

/// Leaves the columns out that look private: by their names, so that none can leave under another name either.
fn guard(entity: &mut Entity, table: &SiteTable) {
    entity.guarded = true;
    for column in &table.columns {
        if entity.looks_private(column).is_some()
            && !entity.exclude.contains(column)
            && !entity.key.contains(column)
        {
            entity.exclude.push(column.clone());
        }
    }
}

/// Why a table that a pattern takes is no entity.
enum Unusable {
    LeftOut(String),
    Fault(Error),
}

fn entity_of_pattern(table: &SiteTable) -> std::result::Result<Entity, Unusable> {
    if let Some(extension) = &table.extension {
        return Err(Unusable::LeftOut(format!("it belongs to extension {extension}")));
    }
    if table.key.is_empty() {
        let full_name = table.full_name();
        return Err(Unusable::Fault(
            Error::config(
                format!("replicate table {full_name}"),
                "it has no primary key and no unique key without nulls: no change can be told from another",
            )
            .remedy(format!(
                "add a primary key, or leave the table out by \"!{}\" in catalogue.tables",
                TablePattern::of(&table.schema, &table.name)
            )),
        ));
    }
    let key: Vec<&str> = table.key.iter().map(String::as_str).collect();
    let name = entity_name(&table.schema, &table.name);
    let mut entity = Entity::new(&name, &table.sql_name(), &key);
    entity.path = free_path(&name);
    if let Some(column) = key.iter().find(|column| entity.looks_private(column).is_some()) {
        return Err(Unusable::LeftOut(format!(
            "its key column {column} looks private; an [[entity]] with include = [\"{column}\"] would send it"
        )));
    }
    guard(&mut entity, table);
    Ok(entity)
}

/// A path that no call of the cloud has.
fn free_path(name: &str) -> String {
    let path = name.replace('_', "-");
    if crate::wire::paths::is_reserved(&path) {
        format!("{path}-rows")
    } else {
        path
    }
}

/// The tables of the site that can be entities'.
pub(crate) async fn site_tables(client: &Client) -> Result<Vec<SiteTable>> {
    let rows = client
        .query(statement!("tables", "all"), &[])
        .await
        .map_err(|error| Error::postgres("list the site's tables", error))?;
    Ok(rows
        .iter()
        .map(|row| SiteTable {
            oid: row.get(0),
            schema: row.get(1),
            name: row.get(2),
            key: row.get(3),
            columns: row.get(4),
            extension: row.get(5),
        })
        .collect())
}

async fn captured_names(client: &Client) -> Result<HashSet<String>> {
    let rows = client
        .query(statement!("tables", "captured_names"), &[])
        .await
        .map_err(|error| Error::postgres("list the captured entities", error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A reference from a table to another one, by their places in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reference {
    child: usize,
    parent: usize,
    /// Whether a child can be there before its parent.
    can_wait: bool,
}

/// Brings the entities into an order in which parents come before their children, and which differs from the
/// present one as little as that needs.
async fn order(client: &Client, oids: &[Option<u32>], completed: &mut CompletedCatalogue) -> Result<()> {
    // Several entities can be of one table.
    let mut indexes_of: HashMap<u32, Vec<usize>> = HashMap::new();
    for (index, oid) in oids.iter().enumerate() {
        if let Some(oid) = oid {
            indexes_of.entry(*oid).or_default().push(index);
        }
    }
    let known: Vec<u32> = indexes_of.keys().copied().collect();
    let rows = client
        .query(statement!("tables", "references"), &[&known])
        .await
        .map_err(|error| Error::postgres("read the foreign keys of the catalogue's tables", error))?;
    let mut references = Vec::new();
    for row in &rows {
        for &child in &indexes_of[&row.get::<_, u32>(0)] {
            references.extend(indexes_of[&row.get::<_, u32>(1)].iter().map(|&parent| Reference {
                child,
                parent,
                can_wait: row.get(2),
            }));
        }
    }
    let (order, dropped) = parents_first(oids.len(), references);
    let name = |index: usize| completed.entities[index].name.as_str();
    let mut faults = Vec::new();
    let mut against_order = Vec::new();
    for (reference, circle) in dropped {
        let circle: Vec<&str> = circle.into_iter().map(name).collect();
        let circle = circle.join(" -> ");
        if reference.can_wait {
            against_order.push(format!(
                "{} comes before {}, which it refers to: they are in a circle, {circle}",
                name(reference.child),
                name(reference.parent)
            ));
        } else {
            faults.push(
                Error::config(
                    "order the catalogue",
                    format!("entities refer to each other in a circle: {circle}"),
                )
                .remedy(
                    "no order has parents before children: make one of these foreign keys deferrable or its \
                     column nullable, or take one of the entities out of the catalogue",
                ),
            );
        }
    }
    completed.faults.extend(faults);
    completed.against_order = against_order;
    let mut entities: Vec<Option<Entity>> = completed.entities.drain(..).map(Some).collect();
    completed.entities = order
        .into_iter()
        .filter_map(|index| entities[index].take())
        .collect();
    Ok(())
}

/// The order, and each reference that it does not keep, with the circle that it is in: a table's place, those
/// it refers to, and the first one again.
fn parents_first(count: usize, references: Vec<Reference>) -> (Vec<usize>, Vec<(Reference, Vec<usize>)>) {
    let mut parents: BTreeMap<usize, BTreeMap<usize, Reference>> = BTreeMap::new();
    for reference in references {
        parents
            .entry(reference.child)
            .or_default()
            .insert(reference.parent, reference);
    }
    let mut waiting: BTreeSet<usize> = (0..count).collect();
    let mut order = Vec::with_capacity(count);
    let mut dropped = Vec::new();
    while let Some(&first) = waiting.first() {
        let waits = |child: &usize| {
            let parents = parents.get(child).into_iter().flatten();
            parents.into_iter().any(|(parent, _)| waiting.contains(parent))
        };
        if let Some(&next) = waiting.iter().find(|child| !waits(child)) {
            waiting.remove(&next);
            order.push(next);
            continue;
        }
        // Each one waits: whoever follows the references comes to a circle.
        let mut path = vec![first];
        let circle = loop {
            let last = path[path.len() - 1];
            let mut parents = parents.get(&last).into_iter().flatten();
            let Some((&parent, _)) = parents.find(|(parent, _)| waiting.contains(parent)) else {
                return (order, dropped);
            };
            if let Some(begin) = path.iter().position(|&index| index == parent) {
                path.push(parent);
                break path.split_off(begin);
            }
            path.push(parent);
        };
        let steps: Vec<Reference> = circle
            .windows(2)
            .map(|pair| parents[&pair[0]][&pair[1]])
            .collect();
        let weakest = steps.iter().find(|step| step.can_wait).unwrap_or(&steps[0]);
        if let Some(of_child) = parents.get_mut(&weakest.child) {
            of_child.remove(&weakest.parent);
        }
        dropped.push((*weakest, circle));
    }
    (order, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(count: usize, references: &[(usize, usize, bool)]) -> (Vec<usize>, Vec<(Reference, Vec<usize>)>) {
        let references = references.iter().map(|&(child, parent, can_wait)| Reference {
            child,
            parent,
            can_wait,
        });
        parents_first(count, references.collect())
    }

    #[test]
    fn parents_come_first_and_the_rest_stays_as_listed() {
        assert_eq!(of(3, &[]), (vec![0, 1, 2], vec![]));
        assert_eq!(of(4, &[(0, 2, false), (2, 3, false)]), (vec![1, 3, 2, 0], vec![]));
        assert_eq!(of(3, &[(1, 0, false), (2, 0, false), (2, 1, false)]).0, [0, 1, 2]);
    }

    #[test]
    fn a_circle_is_broken_where_a_child_can_wait() {
        let (order, dropped) = of(4, &[(0, 1, false), (1, 2, true), (2, 0, false), (3, 2, false)]);
        assert_eq!(order, [1, 0, 2, 3]);
        let (reference, circle) = &dropped[0];
        assert_eq!(
            (reference.child, reference.parent, reference.can_wait),
            (1, 2, true)
        );
        assert_eq!(*circle, [0, 1, 2, 0]);
    }

    #[test]
    fn a_circle_that_nothing_breaks_is_told_with_every_other_one() {
        let (order, dropped) = of(4, &[(0, 1, false), (1, 0, false), (2, 3, false), (3, 2, false)]);
        assert_eq!(order.len(), 4);
        assert_eq!(dropped.len(), 2);
        assert!(dropped.iter().all(|(reference, _)| !reference.can_wait));
    }
}
