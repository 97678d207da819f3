//! Applies a batch of few changes in one round trip: what a lone commit waits for.
//!
//! The batch must be all upserts or all deletes of one entity whose table is known. It becomes a transaction
//! of two statements, sent together with its `begin` and `commit`: the site's lock, and one statement that
//! checks the batch's turn, changes the rows, and records the batch with its answer. The second statement
//! sees all that was committed before the lock was given. The values travel as text, and PostgreSQL's own
//! input functions read them.
//!
//! Whatever is unusual is left to [`apply`](crate::receiver::changes::apply), and nothing has taken effect
//! then: a batch that does not follow the newest one of its term, a change that is refused, a table that has
//! another version, a value that does not fit.

use std::sync::Arc;

use crate::receiver::Shared;
use crate::receiver::changes::batch::{BatchToApply, EntityChanges, answer_text};
use crate::receiver::db::apply_session::{ApplySession, Params};
use crate::receiver::db::db_error::DbError;
use crate::receiver::rows::array_params::as_text;
use crate::receiver::rows::row_batch::RowBatch;
use crate::receiver::rows::statement::{self, StatementForm};
use crate::wire::{ChangeLine, ChangesAnswer, Op};

/// Changes and bytes that take the fast path, at most: above, the round trips cost little compared with the
/// work.
const CHANGES: usize = 64;
const BYTES: usize = 64 * 1024;

/// Applies a small batch, and commits. Returns its answer; `None` if it is not small, or not a usual one.
pub(crate) async fn apply(
    shared: &Shared,
    session: &mut ApplySession,
    batch: &BatchToApply<'_>,
) -> Result<Option<String>, DbError> {
    let lines = batch.lines;
    let Some(first) = lines.first().filter(|_| lines.len() <= CHANGES) else {
        return Ok(None);
    };
    let (entity, op) = (&first.entity, first.op);
    let delete = op == Some(Op::Delete);
    let alike = lines.iter().all(|line| line.entity == *entity && line.op == op);
    let size = |line: &ChangeLine<'_>| line.row.or(line.key).map_or(0, str::len);
    if !alike || !(delete || op == Some(Op::Upsert)) || lines.iter().map(size).sum::<usize>() > BYTES {
        return Ok(None);
    }
    let Some(table) = shared.tables.known(entity) else {
        return Ok(None);
    };
    let columns: Vec<usize> = if delete {
        table.key.clone()
    } else {
        (0..table.columns.len()).collect()
    };
    let mut answer = ChangesAnswer::default();
    let mut changes = EntityChanges::new(Arc::clone(&table), None, true);
    for line_index in 0..lines.len() {
        if changes.add(lines, line_index, &mut answer).is_err() {
            return Ok(None);
        }
    }
    let mut rows = RowBatch::new(&table, &columns);
    for (key, line_index) in changes.take_last() {
        let line = &lines[line_index];
        let json = if delete { line.key } else { line.row };
        if rows.push(json.unwrap_or_default(), &key, !delete).is_err() {
            return Ok(None);
        }
    }
    let Some(arrays) = rows
        .columns()
        .iter()
        .enumerate()
        .map(|(column_index, column)| as_text(column.column_type, rows.column(column_index, 0..rows.len())))
        .collect::<Option<Vec<_>>>()
    else {
        return Ok(None);
    };
    let form = StatementForm {
        history: shared.history,
        whole_batch: true,
    };
    let verb = if delete { "delete" } else { "upsert" };
    let name = format!("{verb} {} {}", table.version, table.entity);
    let statement = session
        .statement_named(&name, || {
            let sql = if delete {
                statement::delete(&table, rows.columns(), &arrays, form)
            } else {
                statement::upsert(&table, rows.columns(), &arrays, true, form)
            };
            (sql, statement::whole_batch_types(arrays.len()))
        })
        .await?;
    let lock = session.site_lock(batch.site).await?;
    let (headers, row_version) = (batch.headers, batch.row_version());
    let site: &str = batch.site;
    let (body_hash, line_count) = (&batch.body_hash[..], lines.len() as i64);
    let mut params: Params<'_> = vec![&site, &table.entity, &row_version.epoch, &row_version.version];
    params.extend(arrays.iter().map(|array| array.value()));
    params.extend([
        &table.version as &(dyn tokio_postgres::types::ToSql + Sync),
        &headers.source,
        &headers.term,
        &headers.nonce,
        &headers.batch,
        &body_hash,
        &line_count,
        &headers.database,
    ]);
    let client = session.client();
    let (begun, locked, applied, committed) = tokio::join!(
        client.batch_execute("begin"),
        lock.take(client),
        client.query_one(&statement, &params),
        client.batch_execute("commit"),
    );
    begun?;
    locked?;
    let counted = match applied.map_err(DbError::from) {
        Ok(counted) => counted,
        Err(DbError::Data { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    committed?;
    if counted.try_get::<_, Option<bool>>(0)? != Some(true) {
        return Ok(None);
    }
    let applied = u64::try_from(counted.try_get::<_, i64>(1)?).unwrap_or_default();
    answer.applied += applied;
    answer.skipped += rows.len() as u64 - applied;
    answer_text(&answer).map(Some)
}
