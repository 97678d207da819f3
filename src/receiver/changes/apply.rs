//! Applies the changes of one batch in one transaction.
//!
//! Always holds:
//! - A batch is applied in its turn only, once, and recorded with its answer in the same transaction
//!   ([`turn`]).
//! - All rows of a batch have one version, (epoch, term, batch). A change takes effect if neither the row,
//!   its tombstone nor the entity's truncate mark has a newer one. PostgreSQL checks that on the row's own
//!   key, whatever the request says.
//! - Requests of one site go one after another (a lock that the transaction holds), so what is read stays
//!   true until the commit.
//! - A row that does not fit is rejected alone.
//!
//! The changes are sorted by entity: of each row the last change, of each entity its truncate, then its
//! deletes, then its upserts, each in few statements. A version can be equal only within a batch; so an
//! upsert wins over the truncate and the deletes before it, and of keys that are equal in the cloud's type
//! the row stays.
//!
//! The first attempt runs without savepoints. If the data of any row fails it, a second attempt halves the
//! statements under savepoints until each row that does not fit is alone.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::receiver::Shared;
use crate::receiver::changes::batch::{BatchToApply, EntityChanges, KeyedLine, answer_text, reject};
use crate::receiver::changes::fast_path;
use crate::receiver::changes::turn::{self, Turn};
use crate::receiver::db::apply_session::{ApplySession, Params};
use crate::receiver::db::db_error::DbError;
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::rows::copy::{CopyIn, CopyRefusal};
use crate::receiver::rows::row_batch::{RejectReason, RowBatch};
use crate::receiver::rows::row_version::RowVersion;
use crate::receiver::rows::statement::{self, StatementForm};
use crate::wire::{ChangesAnswer, Op, RejectCode};

/// How long a batch waits for those before it.
const PATIENCE: Duration = Duration::from_secs(10);

const STATE: &str = include_str!("../../../sql/receiver/state.sql");

/// Whether a row that does not fit fails the whole attempt, or is found and rejected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    WithoutSavepoints,
    WithSavepoints,
}

/// What became of an attempt.
enum AttemptOutcome {
    /// The batch is applied, now or before, with this answer.
    Applied(String),
    /// It is not its turn yet.
    Early(ApiError),
    /// It never will be.
    Refused(ApiError),
}

/// Applies a batch, and commits. Returns the answer's text: of a repeated batch the one that it had. A batch
/// that arrives a little too early waits for those before it, for a while.
pub(crate) async fn apply_batch(shared: &Shared, batch: &BatchToApply<'_>) -> ApiResult<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let queue_head = shared.apply_pool.site_queue(batch.site).await?;
        let mut connection = shared.apply_pool.take().await?;
        let outcome = match fast_path::apply(shared, &mut connection, batch).await? {
            Some(answer) => AttemptOutcome::Applied(answer),
            None => apply_in_transaction(shared, &mut connection, batch).await?,
        };
        shared.apply_pool.give_back(connection);
        match outcome {
            AttemptOutcome::Applied(answer) => {
                queue_head.batch_taken();
                return Ok(answer);
            }
            AttemptOutcome::Early(_) if Instant::now() < deadline => queue_head.wait_for_a_batch().await,
            AttemptOutcome::Early(refusal) | AttemptOutcome::Refused(refusal) => return Err(refusal),
        }
    }
}

/// Attempts to apply a batch, twice if a row does not fit.
async fn apply_in_transaction(
    shared: &Shared,
    session: &mut ApplySession,
    batch: &BatchToApply<'_>,
) -> Result<AttemptOutcome, DbError> {
    match apply_once(shared, session, batch, Attempt::WithoutSavepoints).await {
        Err(DbError::Data { .. }) => {
            session.rollback().await?;
            apply_once(shared, session, batch, Attempt::WithSavepoints).await
        }
        done => done,
    }
}

async fn apply_once(
    shared: &Shared,
    session: &mut ApplySession,
    batch: &BatchToApply<'_>,
    attempt: Attempt,
) -> Result<AttemptOutcome, DbError> {
    let (site, headers, body_hash) = (batch.site, batch.headers, &batch.body_hash);
    let lock = session.site_lock(site).await?;
    let question = turn::question(session).await?;
    let state = session.statement(STATE, &[Type::TEXT, Type::TEXT_ARRAY]).await?;
    let entities = EntityNames::of(batch);
    let client = session.client();
    let site_text: &str = site;
    let (begun, locked, asked, states) = tokio::join!(
        client.batch_execute("begin"),
        lock.take(client),
        turn::ask(client, &question, site, headers),
        async { client.query(&state, &[&site_text, &entities.names]).await },
    );
    begun?;
    locked?;
    let outcome = match turn::turn_of(headers, body_hash, asked?.as_ref())? {
        Turn::Now => None,
        Turn::Repeated(answer) => Some(AttemptOutcome::Applied(answer)),
        Turn::Early(refusal) => Some(AttemptOutcome::Early(refusal)),
        Turn::Refused(refusal) => Some(AttemptOutcome::Refused(refusal)),
    };
    if let Some(outcome) = outcome {
        session.rollback().await?;
        return Ok(outcome);
    }
    let mut answer = ChangesAnswer::default();
    let sorted = sort_by_entity(shared, session, batch, &entities, states?, &mut answer).await?;
    for changes in sorted {
        let mut entity = EntityApply {
            session,
            batch,
            attempt,
            history: shared.history,
            answer: &mut answer,
            changes,
        };
        entity.apply_all().await?;
    }
    answer.rejected.sort_by_key(|rejected| rejected.line);
    let answer = answer_text(&answer)?;
    turn::record_and_commit(session, site, headers, body_hash, &answer).await?;
    Ok(AttemptOutcome::Applied(answer))
}

/// The entities that a batch names.
struct EntityNames<'a> {
    /// Each once, in the order in which they first appear.
    names: Vec<&'a str>,
    /// For each line the index of its entity in `names`.
    of_line: Vec<usize>,
}

impl<'a> EntityNames<'a> {
    fn of(batch: &BatchToApply<'a>) -> Self {
        let mut names: Vec<&str> = Vec::new();
        let mut of_line: Vec<usize> = Vec::with_capacity(batch.lines.len());
        let mut index_of: HashMap<&str, usize> = HashMap::new();
        for line in batch.lines {
            let name: &str = &line.entity;
            // Most lines name the entity of the line before.
            let entity_index = match of_line.last() {
                Some(&last) if names[last] == name => last,
                _ => *index_of.entry(name).or_insert_with(|| {
                    names.push(name);
                    names.len() - 1
                }),
            };
            of_line.push(entity_index);
        }
        Self { names, of_line }
    }
}

/// Sorts the lines by entity, in the order in which the entities first appear. Counts what is superseded as
/// skipped.
async fn sort_by_entity<'a>(
    shared: &Shared,
    session: &mut ApplySession,
    batch: &BatchToApply<'a>,
    entities: &EntityNames<'_>,
    states: Vec<Row>,
    answer: &mut ChangesAnswer,
) -> Result<Vec<EntityChanges<'a>>, DbError> {
    let mut by_entity: HashMap<&str, EntityChanges<'a>> = HashMap::new();
    for state in &states {
        let entity: &str = state.try_get("entity")?;
        let table_version = state.try_get("table_version")?;
        let table = shared.tables.get(session, entity, table_version).await?;
        let epoch: Option<i64> = state.try_get("epoch")?;
        let version: Option<i64> = state.try_get("version")?;
        let mark = epoch
            .zip(version)
            .map(|(epoch, version)| RowVersion { epoch, version });
        by_entity.insert(entity, EntityChanges::new(table, mark, state.try_get("buried")?));
    }
    let mut sorted: Vec<Option<EntityChanges<'a>>> =
        entities.names.iter().map(|name| by_entity.remove(name)).collect();
    for (line_index, &entity_index) in entities.of_line.iter().enumerate() {
        let added = match &mut sorted[entity_index] {
            Some(changes) => changes.add(batch.lines, line_index, answer),
            None => Err(RejectReason::new(
                RejectCode::UnknownEntity,
                "this site has not declared the entity; PUT /schema/{path} comes first",
            )),
        };
        if let Err(reason) = added {
            reject(answer, &batch.lines[line_index], reason);
        }
    }
    Ok(sorted.into_iter().flatten().collect())
}

/// One entity's changes on their way into its table.
struct EntityApply<'a, 'r> {
    session: &'r mut ApplySession,
    batch: &'r BatchToApply<'a>,
    attempt: Attempt,
    history: bool,
    answer: &'r mut ChangesAnswer,
    changes: EntityChanges<'a>,
}

impl<'a> EntityApply<'a, '_> {
    async fn apply_all(&mut self) -> Result<(), DbError> {
        if self.changes.truncated {
            self.truncate().await?;
        }
        let mut pending = self.changes.take_last();
        if self.changes.truncate_mark > Some(self.batch.row_version()) {
            self.answer.skipped += pending.len() as u64;
            return Ok(());
        }
        let lines = self.batch.lines;
        while !pending.is_empty() {
            let (upserts, deletes): (Vec<_>, Vec<_>) = pending
                .into_iter()
                .partition(|(_, line_index)| lines[*line_index].op == Some(Op::Upsert));
            let mut refused = self.apply_rows(deletes, true).await?;
            refused.extend(self.apply_rows(upserts, false).await?);
            pending = self.next_best(refused);
        }
        Ok(())
    }

    async fn truncate(&mut self) -> Result<(), DbError> {
        let row_version = self.batch.row_version();
        let sql = statement::truncate(&self.changes.table, self.history);
        let types = [Type::TEXT, Type::TEXT, Type::INT8, Type::INT8];
        let statement = self.session.statement(&sql, &types).await?;
        let site: &str = self.batch.site;
        let count = self
            .session
            .client()
            .execute(
                &statement,
                &[
                    &site,
                    &self.changes.table.entity,
                    &row_version.epoch,
                    &row_version.version,
                ],
            )
            .await?;
        if count > 0 {
            self.answer.applied += 1;
        } else {
            self.answer.skipped += 1;
        }
        self.changes.truncate_mark = self.changes.truncate_mark.max(Some(row_version));
        Ok(())
    }

    /// For each refused change, the last one that it had superseded.
    fn next_best(&mut self, refused: Vec<KeyedLine<'a>>) -> Vec<KeyedLine<'a>> {
        let mut next = Vec::new();
        for (key, _) in refused {
            if let Some(line_index) = self.changes.take_superseded(&key) {
                next.push((key, line_index));
                self.answer.skipped -= 1;
            }
        }
        next
    }

    /// Applies changes of different rows, all deletes or all upserts. Returns those that were rejected.
    async fn apply_rows(
        &mut self,
        changes: Vec<KeyedLine<'a>>,
        delete: bool,
    ) -> Result<Vec<KeyedLine<'a>>, DbError> {
        let mut refused = Vec::new();
        let table = Arc::clone(&self.changes.table);
        let columns: Vec<usize> = if delete {
            table.key.clone()
        } else {
            (0..table.columns.len()).collect()
        };
        let may_copy = !delete
            && self.attempt == Attempt::WithoutSavepoints
            && !self.history
            && !self.changes.has_tombstones;
        let changes = if may_copy {
            self.copy_new_rows(changes, &mut refused).await?
        } else {
            changes
        };
        let mut left = changes.into_iter().peekable();
        while left.peek().is_some() {
            let mut rows = RowBatch::new(&table, &columns);
            let mut taken = Vec::new();
            for (key, line_index) in left.by_ref().take(rows.room()) {
                let line = &self.batch.lines[line_index];
                let json = if delete { line.key } else { line.row };
                match rows.push(json.unwrap_or_default(), &key, !delete) {
                    Ok(()) => taken.push((key, line_index)),
                    Err(reason) => {
                        reject(self.answer, line, reason);
                        refused.push((key, line_index));
                    }
                }
            }
            for (row_index, reason) in self.write(&rows, delete).await? {
                let (key, line_index) = &taken[row_index];
                reject(self.answer, &self.batch.lines[*line_index], reason);
                refused.push((key.clone(), *line_index));
            }
        }
        Ok(refused)
    }

    /// Copies the upserts of rows that are new to the table. Returns the others.
    async fn copy_new_rows(
        &mut self,
        changes: Vec<KeyedLine<'a>>,
        refused: &mut Vec<KeyedLine<'a>>,
    ) -> Result<Vec<KeyedLine<'a>>, DbError> {
        let table = Arc::clone(&self.changes.table);
        let (site, row_version) = (self.batch.site, self.batch.row_version());
        let keys = changes.iter().map(|(key, _)| &**key);
        let Some(mut copy) = CopyIn::begin(self.session, &table, site, row_version, keys).await? else {
            return Ok(changes);
        };
        let mut left = Vec::new();
        for (key, line_index) in changes {
            let line = &self.batch.lines[line_index];
            match copy.push(&key, line.row.unwrap_or_default()).await {
                Ok(true) => {}
                Ok(false) => left.push((key, line_index)),
                Err(CopyRefusal::Row(reason)) => {
                    reject(self.answer, line, reason);
                    refused.push((key, line_index));
                }
                Err(CopyRefusal::All(error)) => return Err(error),
            }
        }
        self.answer.applied += copy.finish().await?;
        Ok(left)
    }

    /// Writes rows. Returns the indexes of those that do not fit; without savepoints that is an error.
    async fn write(
        &mut self,
        rows: &RowBatch<'_>,
        delete: bool,
    ) -> Result<Vec<(usize, RejectReason)>, DbError> {
        let target = WriteTarget {
            site: self.batch.site,
            row_version: self.batch.row_version(),
            delete,
            guarded: self.changes.has_tombstones,
            form: StatementForm {
                history: self.history,
                whole_batch: false,
            },
        };
        let savepoints = self.attempt == Attempt::WithSavepoints;
        let mut refused = Vec::new();
        let mut ranges: Vec<Range<usize>> = std::iter::once(0..rows.len()).collect();
        while let Some(range) = ranges.pop() {
            if range.is_empty() {
                continue;
            }
            let written = if savepoints {
                self.session.client().batch_execute("savepoint part").await?;
                let written = target.write(self.session, rows, &range).await;
                let end = match written {
                    Ok(_) => "release savepoint part",
                    Err(_) => "rollback to savepoint part; release savepoint part",
                };
                self.session.client().batch_execute(end).await?;
                written
            } else {
                target.write(self.session, rows, &range).await
            };
            match written {
                Ok(count) => {
                    self.answer.applied += count;
                    self.answer.skipped += range.len() as u64 - count;
                    // There may be tombstones now, which the upserts after them must heed.
                    self.changes.has_tombstones |= delete && count > 0;
                }
                Err(DbError::Data { .. }) if savepoints && range.len() > 1 => {
                    let middle = range.start + range.len() / 2;
                    ranges.push(middle..range.end);
                    ranges.push(range.start..middle);
                }
                Err(DbError::Data { sqlstate, column }) if savepoints => {
                    let column = column.or_else(|| rows.suspect(range.start));
                    let reason = RejectReason::of_sqlstate(sqlstate, column.as_deref());
                    refused.push((range.start, reason));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }
}

/// What a statement needs to know besides its rows.
struct WriteTarget<'a> {
    site: &'a str,
    row_version: RowVersion,
    delete: bool,
    guarded: bool,
    form: StatementForm,
}

impl WriteTarget<'_> {
    /// Writes a range of the rows by one statement. Returns how many took effect.
    async fn write(
        &self,
        session: &mut ApplySession,
        rows: &RowBatch<'_>,
        range: &Range<usize>,
    ) -> Result<u64, DbError> {
        let arrays = rows.encode(range)?;
        let sql = if self.delete {
            statement::delete(rows.table, rows.columns(), &arrays, self.form)
        } else {
            statement::upsert(rows.table, rows.columns(), &arrays, self.guarded, self.form)
        };
        let mut types = vec![Type::TEXT, Type::TEXT, Type::INT8, Type::INT8];
        types.extend(arrays.iter().map(|array| array.array_type()));
        let statement = session.statement(&sql, &types).await?;
        let mut params: Params<'_> = vec![
            &self.site,
            &rows.table.entity,
            &self.row_version.epoch,
            &self.row_version.version,
        ];
        params.extend(arrays.iter().map(|array| array.value()));
        Ok(session.client().execute(&statement, &params).await?)
    }
}
