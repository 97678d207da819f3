//! Applies a batch of few changes in one round trip: what a lone commit waits for.
//!
//! The batch must be all upserts or all deletes of one entity whose table is known. It becomes two statements in one
//! message: the site's lock, and, prepared by name, one statement that checks the batch's turn, changes the rows, and notes
//! the batch with its answer. PostgreSQL commits them together, and the second sees all that was committed before the
//! lock was given. The values travel as text, and PostgreSQL's own input functions read them.
//!
//! Whatever is unusual is left to [`crate::receiver::changes::apply`], and nothing has taken effect then: a batch that does not follow the
//! newest one of its term, a change that is refused, a table that has become another version, a value that does not fit.

use std::fmt::Write;

use sqlx::{AssertSqlSafe, Row};

use crate::receiver::Shared;
use crate::receiver::changes::apply::{BatchToApply, EntityChanges, answer_text};
use crate::receiver::db::apply_pool::ApplyConnection;
use crate::receiver::db::pool::{self, DbError};
use crate::receiver::rows::array_params::{ArrayParam, as_text};
use crate::receiver::rows::row_batch::RowBatch;
use crate::receiver::rows::statement::{self, StatementForm};
use crate::wire::{ChangeLine, ChangesAnswer, Op};

/// Changes and bytes of a brief batch, at most: above, the round trips are small beside the work.
const CHANGES: usize = 64;
const BYTES: usize = 64 * 1024;

/// Applies a brief batch, and commits. Returns its answer; `None` if it is not brief, or not a usual one.
pub(crate) async fn apply(
    shared: &Shared,
    writer: &mut ApplyConnection<'_>,
    delivery: &BatchToApply<'_>,
) -> Result<Option<String>, DbError> {
    let lines = delivery.lines;
    let Some(first) = lines.first().filter(|_| lines.len() <= CHANGES) else {
        return Ok(None);
    };
    let (entity, op) = (&first.entity, first.op);
    let delete = op == Some(Op::Delete);
    let alike = lines.iter().all(|line| line.entity == *entity && line.op == op);
    let size = |line: &ChangeLine<'_>| line.row.or(line.key).map_or(0, str::len);
    let table = shared.tables.known(entity);
    let Some(table) = table.filter(|_| {
        alike && (delete || op == Some(Op::Upsert)) && lines.iter().map(size).sum::<usize>() <= BYTES
    }) else {
        return Ok(None);
    };
    let columns: Vec<usize> = if delete {
        table.key.clone()
    } else {
        (0..table.columns.len()).collect()
    };
    let mut outcome = ChangesAnswer::default();
    let mut group = EntityChanges::new(std::sync::Arc::clone(&table), None, true);
    for nth in 0..lines.len() {
        if group.add(lines, nth, &mut outcome).is_err() {
            return Ok(None);
        }
    }
    let mut grid = RowBatch::new(&table, &columns);
    for (key, nth) in group.pending() {
        let line = &lines[nth];
        let text = if delete { line.key } else { line.row };
        if grid.push(text.unwrap_or_default(), &key, !delete).is_err() {
            return Ok(None);
        }
    }
    let Some(values) = grid
        .columns()
        .iter()
        .enumerate()
        .map(|(place, column)| as_text(column.of, grid.column(place, 0..grid.len())))
        .collect::<Option<Vec<_>>>()
    else {
        return Ok(None);
    };
    let form = StatementForm {
        kept: shared.history,
        brief: true,
    };
    let sql = || {
        let body = if delete {
            statement::delete(&table, grid.columns(), &values, form)
        } else {
            statement::upsert(&table, grid.columns(), &values, true, form)
        };
        (statement::brief_types(values.len()), body)
    };
    let ApplyConnection {
        connection, prepared, ..
    } = writer;
    let named = (table.entity.as_str(), delete, table.version);
    let Some(name) = prepared.name(connection, named, sql).await? else {
        return Ok(None);
    };
    let Some(message) = message(delivery, &name, &grid, &values) else {
        return Ok(None);
    };
    let answered = sqlx::raw_sql(AssertSqlSafe(message))
        .fetch_all(connection)
        .await
        .map_err(DbError::from);
    let rows = match answered {
        Ok(rows) => rows,
        Err(DbError::Data { .. }) => return Ok(None),
        Err(trouble) => return Err(trouble),
    };
    let answer = rows
        .last()
        .ok_or_else(|| DbError::Fault("a batch's statement returned nothing".to_owned()))?;
    if answer.try_get::<Option<bool>, _>(0)? != Some(true) {
        return Ok(None);
    }
    let applied = u64::try_from(answer.try_get::<i64, _>(1)?).unwrap_or_default();
    outcome.applied += applied;
    outcome.skipped += grid.len() as u64 - applied;
    answer_text(&outcome).map(Some)
}

/// Both statements; none where a value holds a zero byte, which ends a message.
fn message(
    delivery: &BatchToApply<'_>,
    name: &str,
    grid: &RowBatch<'_>,
    values: &[ArrayParam<'_>],
) -> Option<String> {
    let mut sql = pool::site_lock(delivery.site);
    let _ = write!(sql, "; execute {name} (");
    literal(&mut sql, delivery.site);
    sql.push_str(", ");
    literal(&mut sql, &grid.table.entity);
    let headers = delivery.headers;
    let _ = write!(sql, ", '{}', '{}'", headers.epoch, headers.row_version());
    for column in values {
        sql.push_str(", '{");
        for (nth, value) in column.texts()?.enumerate() {
            if nth > 0 {
                sql.push(',');
            }
            match value {
                Some(value) => element(&mut sql, value),
                None => sql.push_str("null"),
            }
        }
        sql.push_str("}'");
    }
    let _ = write!(sql, ", '{}', ", grid.table.version);
    literal(&mut sql, headers.source);
    let _ = write!(sql, ", '{}', ", headers.term);
    literal(&mut sql, headers.nonce);
    let _ = write!(sql, ", '{}', '\\x", headers.batch);
    for byte in delivery.body_hash {
        let _ = write!(sql, "{byte:02x}");
    }
    let _ = write!(sql, "', '{}', ", delivery.lines.len());
    match headers.database {
        Some(database) => literal(&mut sql, database),
        None => sql.push_str("null"),
    }
    sql.push(')');
    (!sql.contains('\0')).then_some(sql)
}

/// A text as a literal; backslashes mean themselves on the receiver's connections.
fn literal(sql: &mut String, text: &str) {
    sql.push('\'');
    for letter in text.chars() {
        if letter == '\'' {
            sql.push('\'');
        }
        sql.push(letter);
    }
    sql.push('\'');
}

/// An element of an array within a literal.
fn element(sql: &mut String, text: &str) {
    sql.push('"');
    for letter in text.chars() {
        match letter {
            '\'' => sql.push('\''),
            '"' | '\\' => sql.push('\\'),
            _ => {}
        }
        sql.push(letter);
    }
    sql.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_stays_one_value() {
        let mut sql = String::new();
        literal(&mut sql, "it's \\ \"so\"");
        assert_eq!(sql, "'it''s \\ \"so\"'");
        sql.clear();
        element(&mut sql, "it's \\ \"so\", {null}");
        assert_eq!(sql, "\"it''s \\\\ \\\"so\\\", {null}\"");
    }
}
