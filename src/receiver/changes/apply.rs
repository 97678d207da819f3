//! Applies the changes of one batch in one transaction.
//!
//! Invariants:
//! - A batch is applied in its turn only, once, and noted with its answer in the same transaction ([`turn`]).
//! - All rows of a batch have one version, (epoch, term, batch). A change takes effect where neither the row, its tombstone
//!   nor the entity's truncate mark has a newer one. PostgreSQL checks that on the row's own key, whatever the request
//!   says.
//! - Requests of one site go one after another (a transaction's lock), so what is read stays true until commit.
//! - A row that does not fit is rejected alone.
//!
//! The changes are sorted by entity: of each row the last change, of each entity its truncate, then its deletes, then its
//! upserts, each in few statements. A version can be equal only within a batch; so an upsert wins over the truncate and
//! the deletes before it, and of keys that are equal in the cloud's type the row stays.
//!
//! A first attempt runs without savepoints. If the data of any row fails it, a second one halves the statements under
//! savepoints until the rows that do not fit stand alone.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::receiver::Shared;
use crate::receiver::changes::fast_path;
use crate::receiver::changes::turn::{self, BatchRefusal};
use crate::receiver::db::pool::{self, DbError};
use crate::receiver::http::api_error::{ApiResult, words};
use crate::receiver::rows::copy::{CopyIn, CopyRefusal};
use crate::receiver::rows::row_batch::{RejectReason, RowBatch, canonical_key};
use crate::receiver::rows::statement::{self, StatementForm};
use crate::receiver::tables::schema::EntityTable;
use crate::wire::{BatchHeaders, ChangeLine, ChangesAnswer, Op, RejectCode, RejectedChange};

/// How long a batch waits for those before it.
const PATIENCE: Duration = Duration::from_secs(10);

const STATE: &str = include_str!("../../../sql/receiver/state.sql");

/// One batch.
pub(crate) struct BatchToApply<'a> {
    pub(crate) site: &'a Arc<str>,
    pub(crate) headers: &'a BatchHeaders<'a>,
    /// The hash of the body's text.
    pub(crate) body_hash: [u8; 32],
    pub(crate) lines: &'a [ChangeLine<'a>],
}

impl BatchToApply<'_> {
    /// What its rows are of: epoch, and version in it.
    fn at(&self) -> (i64, i64) {
        (self.headers.epoch, self.headers.row_version())
    }
}

/// The answer's text.
pub(crate) fn answer_text(answer: &ChangesAnswer) -> Result<String, DbError> {
    serde_json::to_string(answer).map_err(|error| DbError::Fault(error.to_string()))
}

/// An entity's changes in a batch.
pub(crate) struct EntityChanges<'a> {
    table: Arc<EntityTable>,
    buried: bool,
    mark: Option<(i64, i64)>,
    /// Whether it is truncated.
    truncated: bool,
    /// The last change of each row.
    last: HashMap<Cow<'a, str>, usize>,
    /// What a later change of the same row superseded, in the order of the lines, in case that one is rejected.
    superseded: HashMap<Cow<'a, str>, Vec<usize>>,
}

/// Applies a batch, and commits. Returns the answer's text: of a repeated batch the one that it had. A batch that comes a
/// little too early waits for those before it, for a while.
pub(crate) async fn apply(shared: &Shared, delivery: &BatchToApply<'_>) -> ApiResult<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let place = shared.writers.site_queue(delivery.site).await?;
        let mut writer = shared.writers.take().await?;
        let taken = match fast_path::apply(shared, &mut writer, delivery).await? {
            Some(answer) => Ok(answer),
            None => match attempt(shared, &mut writer.connection, delivery, false).await {
                Err(DbError::Data { .. }) => attempt(shared, &mut writer.connection, delivery, true).await?,
                done => done?,
            },
        };
        shared.writers.give_back(writer);
        match taken {
            Ok(answer) => {
                place.taken();
                return Ok(answer);
            }
            Err(BatchRefusal::Yet(_)) if Instant::now() < deadline => place.wait().await,
            Err(BatchRefusal::Yet(refusal) | BatchRefusal::Ever(refusal)) => return Err(refusal),
        }
    }
}

async fn attempt(
    shared: &Shared,
    connection: &mut PgConnection,
    delivery: &BatchToApply<'_>,
    careful: bool,
) -> Result<Result<String, BatchRefusal>, DbError> {
    let begin = format!("begin; {}", pool::site_lock(delivery.site));
    let mut transaction = connection.begin_with(AssertSqlSafe(begin)).await?;
    let (site, headers, body_hash) = (delivery.site, delivery.headers, &delivery.body_hash);
    match turn::ask(&mut transaction, site, headers, body_hash).await? {
        Ok(None) => {}
        answered => {
            transaction.rollback().await?;
            return Ok(answered.map(Option::unwrap_or_default));
        }
    }
    let mut outcome = ChangesAnswer::default();
    let groups = groups(shared, &mut transaction, delivery, &mut outcome).await?;
    for group in groups {
        let mut run = EntityApply {
            connection: &mut transaction,
            delivery,
            careful,
            history: shared.history,
            outcome: &mut outcome,
            group,
        };
        run.all().await?;
    }
    outcome.rejected.sort_by_key(|rejected| rejected.line);
    let answer = answer_text(&outcome)?;
    turn::take(&mut transaction, site, headers, body_hash, &answer).await?;
    transaction.commit().await?;
    Ok(Ok(answer))
}

fn reject(outcome: &mut ChangesAnswer, line: &ChangeLine<'_>, reason: RejectReason) {
    outcome.rejected.push(RejectedChange {
        position: line.position,
        line: Some(line.number),
        code: reason.code,
        error: reason.error,
    });
}

/// Sorts the lines by entity, in the order in which the entities first appear. Counts what is superseded as skipped.
async fn groups<'a>(
    shared: &Shared,
    connection: &mut PgConnection,
    delivery: &BatchToApply<'a>,
    outcome: &mut ChangesAnswer,
) -> Result<Vec<EntityChanges<'a>>, DbError> {
    let mut names: Vec<&str> = Vec::new();
    let mut of_line: Vec<usize> = Vec::with_capacity(delivery.lines.len());
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for line in delivery.lines {
        let name: &str = &line.entity;
        // Most lines name the entity of the line before.
        let place = match of_line.last() {
            Some(&last) if names[last] == name => last,
            _ => *seen.entry(name).or_insert_with(|| {
                names.push(name);
                names.len() - 1
            }),
        };
        of_line.push(place);
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(STATE)
        .bind(&**delivery.site)
        .bind(&names)
        .fetch_all(&mut *connection)
        .await?;
    let mut groups: Vec<Option<EntityChanges<'a>>> = names.iter().map(|_| None).collect();
    for row in rows {
        let entity: &str = row.try_get("entity")?;
        let table = shared
            .tables
            .get(connection, entity, row.try_get("table_version")?)
            .await?;
        let epoch: Option<i64> = row.try_get("epoch")?;
        let version: Option<i64> = row.try_get("version")?;
        if let Some(&place) = seen.get(entity) {
            groups[place] = Some(EntityChanges::new(
                table,
                epoch.zip(version),
                row.try_get("buried")?,
            ));
        }
    }
    for (nth, (line, &place)) in delivery.lines.iter().zip(&of_line).enumerate() {
        let sorted = match &mut groups[place] {
            Some(group) => group.add(delivery.lines, nth, outcome),
            None => Err(RejectReason::new(
                RejectCode::UnknownEntity,
                "this site has not declared the entity; PUT /schema/{path} comes first",
            )),
        };
        if let Err(reason) = sorted {
            reject(outcome, line, reason);
        }
    }
    Ok(groups.into_iter().flatten().collect())
}

impl<'a> EntityChanges<'a> {
    pub(crate) fn new(table: Arc<EntityTable>, mark: Option<(i64, i64)>, buried: bool) -> Self {
        Self {
            table,
            buried,
            mark,
            truncated: false,
            last: HashMap::new(),
            superseded: HashMap::new(),
        }
    }

    /// The last change of each row, in the order of the request, so that rows which came together lie together.
    pub(crate) fn pending(&mut self) -> Vec<(Cow<'a, str>, usize)> {
        let mut pending: Vec<_> = self.last.drain().collect();
        pending.sort_unstable_by_key(|(_, nth)| *nth);
        pending
    }

    /// Sorts a line in; the entity is its own.
    pub(crate) fn add(
        &mut self,
        lines: &'a [ChangeLine<'a>],
        nth: usize,
        outcome: &mut ChangesAnswer,
    ) -> Result<(), RejectReason> {
        let line = &lines[nth];
        match line.op {
            Some(Op::Truncate) => {
                outcome.skipped += u64::from(self.truncated);
                self.truncated = true;
                return Ok(());
            }
            Some(Op::Upsert) if line.row.is_none() => {
                return Err(RejectReason::new(
                    RejectCode::RowMissing,
                    "an upsert must carry the row",
                ));
            }
            Some(Op::Upsert | Op::Delete) => {}
            None => {
                return Err(RejectReason::new(
                    RejectCode::UnknownOp,
                    "op is not upsert, delete or truncate",
                ));
            }
        }
        let key = line
            .key
            .ok_or_else(|| RejectReason::new(RejectCode::KeyMissing, "the change carries no key"))?;
        let key = canonical_key(&self.table, key)?;
        match self.last.entry(key) {
            Entry::Vacant(place) => {
                place.insert(nth);
            }
            Entry::Occupied(mut place) => {
                let before = place.insert(nth);
                self.superseded
                    .entry(place.key().clone())
                    .or_default()
                    .push(before);
                outcome.skipped += 1;
            }
        }
        Ok(())
    }
}

/// One entity's changes on their way into its table.
struct EntityApply<'a, 'r> {
    connection: &'r mut PgConnection,
    delivery: &'r BatchToApply<'a>,
    careful: bool,
    history: bool,
    outcome: &'r mut ChangesAnswer,
    group: EntityChanges<'a>,
}

impl<'a> EntityApply<'a, '_> {
    async fn all(&mut self) -> Result<(), DbError> {
        if self.group.truncated {
            self.truncate().await?;
        }
        let mut pending = self.group.pending();
        if self.group.mark > Some(self.delivery.at()) {
            self.outcome.skipped += pending.len() as u64;
            return Ok(());
        }
        let lines = self.delivery.lines;
        while !pending.is_empty() {
            let (upserts, deletes): (Vec<_>, Vec<_>) = pending
                .into_iter()
                .partition(|(_, nth)| lines[*nth].op == Some(Op::Upsert));
            let mut refused = self.rows(deletes, true).await?;
            refused.extend(self.rows(upserts, false).await?);
            pending = self.next_best(refused);
        }
        Ok(())
    }

    async fn truncate(&mut self) -> Result<(), DbError> {
        let at = self.delivery.at();
        let sql = statement::truncate(&self.group.table, self.history);
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(&**self.delivery.site)
            .bind(&self.group.table.entity)
            .bind(at.0)
            .bind(at.1)
            .execute(&mut *self.connection)
            .await?;
        if done.rows_affected() > 0 {
            self.outcome.applied += 1;
        } else {
            self.outcome.skipped += 1;
        }
        self.group.mark = self.group.mark.max(Some(at));
        Ok(())
    }

    /// For each refused change, the last one that it had superseded.
    fn next_best(&mut self, refused: Vec<(Cow<'a, str>, usize)>) -> Vec<(Cow<'a, str>, usize)> {
        let mut next = Vec::new();
        for (key, _) in refused {
            if let Some(nth) = self.group.superseded.get_mut(&key).and_then(Vec::pop) {
                next.push((key, nth));
                self.outcome.skipped -= 1;
            }
        }
        next
    }

    /// Applies changes of different rows, all deletes or all upserts. Answers those that were rejected.
    async fn rows(
        &mut self,
        changes: Vec<(Cow<'a, str>, usize)>,
        delete: bool,
    ) -> Result<Vec<(Cow<'a, str>, usize)>, DbError> {
        let mut refused = Vec::new();
        let table = Arc::clone(&self.group.table);
        let columns: Vec<usize> = if delete {
            table.key.clone()
        } else {
            (0..table.columns.len()).collect()
        };
        let plain = !delete && !self.careful && !self.history && !self.group.buried;
        let changes = if plain {
            self.copied(changes, &mut refused).await?
        } else {
            changes
        };
        let mut left = changes.into_iter().peekable();
        while left.peek().is_some() {
            let mut grid = RowBatch::new(&table, &columns);
            let mut taken = Vec::new();
            for (key, nth) in left.by_ref().take(grid.room()) {
                let line = &self.delivery.lines[nth];
                let text = if delete { line.key } else { line.row };
                match grid.push(text.unwrap_or_default(), &key, !delete) {
                    Ok(()) => taken.push((key, nth)),
                    Err(reason) => {
                        reject(self.outcome, line, reason);
                        refused.push((key, nth));
                    }
                }
            }
            for (place, reason) in self.grid(&grid, delete).await? {
                let (key, nth) = &taken[place];
                reject(self.outcome, &self.delivery.lines[*nth], reason);
                refused.push((key.clone(), *nth));
            }
        }
        Ok(refused)
    }

    /// Copies the upserts of rows that are new to the table. Answers the others.
    async fn copied(
        &mut self,
        changes: Vec<(Cow<'a, str>, usize)>,
        refused: &mut Vec<(Cow<'a, str>, usize)>,
    ) -> Result<Vec<(Cow<'a, str>, usize)>, DbError> {
        let table = Arc::clone(&self.group.table);
        let (site, at) = (self.delivery.site, self.delivery.at());
        let keys = changes.iter().map(|(key, _)| &**key);
        let Some(mut copy) = CopyIn::find(self.connection, &table, site, at, keys).await? else {
            return Ok(changes);
        };
        let mut left = Vec::new();
        for (key, nth) in changes {
            let line = &self.delivery.lines[nth];
            match copy.push(&key, line.row.unwrap_or_default()).await {
                Ok(true) => {}
                Ok(false) => left.push((key, nth)),
                Err(CopyRefusal::Row(reason)) => {
                    reject(self.outcome, line, reason);
                    refused.push((key, nth));
                }
                Err(CopyRefusal::All(trouble)) => return Err(trouble),
            }
        }
        self.outcome.applied += copy.finish().await?;
        Ok(left)
    }

    /// Applies a grid's rows. Answers the places of those that do not fit; without `careful` that is an error.
    async fn grid(
        &mut self,
        grid: &RowBatch<'_>,
        delete: bool,
    ) -> Result<Vec<(usize, RejectReason)>, DbError> {
        let target = ApplyTarget {
            site: self.delivery.site,
            at: self.delivery.at(),
            delete,
            guarded: self.group.buried,
            form: StatementForm {
                kept: self.history,
                brief: false,
            },
        };
        let mut refused = Vec::new();
        let mut ranges: Vec<Range<usize>> = std::iter::once(0..grid.len()).collect();
        while let Some(range) = ranges.pop() {
            if range.is_empty() {
                continue;
            }
            let done = if self.careful {
                let mut savepoint = self.connection.begin().await?;
                let done = target.execute(&mut savepoint, grid, &range).await;
                match done {
                    Ok(_) => savepoint.commit().await?,
                    Err(_) => savepoint.rollback().await?,
                }
                done
            } else {
                target.execute(self.connection, grid, &range).await
            };
            match done {
                Ok(count) => {
                    self.outcome.applied += count;
                    self.outcome.skipped += range.len() as u64 - count;
                    // Tombstones may have come, which the upserts after them must heed.
                    self.group.buried |= delete && count > 0;
                }
                Err(DbError::Data { .. }) if self.careful && range.len() > 1 => {
                    let middle = range.start + range.len() / 2;
                    ranges.push(middle..range.end);
                    ranges.push(range.start..middle);
                }
                Err(DbError::Data { state, column }) if self.careful => {
                    let column = column.or_else(|| grid.suspect(range.start));
                    let error = words(&state, column.as_deref());
                    let code = RejectCode::Other(Cow::Owned(state));
                    refused.push((range.start, RejectReason { code, error }));
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(refused)
    }
}

/// What a statement needs to know beside its rows.
struct ApplyTarget<'a> {
    site: &'a str,
    at: (i64, i64),
    delete: bool,
    guarded: bool,
    form: StatementForm,
}

impl ApplyTarget<'_> {
    /// Runs one statement over some rows of a grid. Answers how many took effect.
    async fn execute(
        &self,
        connection: &mut PgConnection,
        grid: &RowBatch<'_>,
        rows: &Range<usize>,
    ) -> Result<u64, DbError> {
        let encoded = grid.encode(rows)?;
        let sql = if self.delete {
            statement::delete(grid.table, grid.columns(), &encoded, self.form)
        } else {
            statement::upsert(grid.table, grid.columns(), &encoded, self.guarded, self.form)
        };
        let mut query = sqlx::query(AssertSqlSafe(sql))
            .bind(self.site)
            .bind(&grid.table.entity)
            .bind(self.at.0)
            .bind(self.at.1);
        for values in encoded {
            query = values.bind(query);
        }
        Ok(query.execute(connection).await?.rows_affected())
    }
}
