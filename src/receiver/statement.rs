//! Builds the statements on an entity's table out of the templates under `sql/receiver`.
//!
//! What goes into a template is either a quoted identifier, a type's own name, or SQL of this module.

use super::column_type::base64;
use super::encode::Encoded;
use super::schema::{Column, Table};

const UPSERT: &str = include_str!("../../sql/receiver/upsert.sql");
const UPSERT_GUARD: &str = include_str!("../../sql/receiver/upsert_guard.sql");
const POST: &str = include_str!("../../sql/receiver/post.sql");
const DELETE: &str = include_str!("../../sql/receiver/delete.sql");
const DELETE_ROW: &str = include_str!("../../sql/receiver/delete_row.sql");
const TRUNCATE: &str = include_str!("../../sql/receiver/truncate.sql");
const KNOWN: &str = include_str!("../../sql/receiver/known.sql");
const HIGHEST: &str = include_str!("../../sql/receiver/highest.sql");
const COPY: &str = include_str!("../../sql/receiver/copy.sql");
const LIST: &str = include_str!("../../sql/receiver/list.sql");

/// Parameters before the columns' arrays.
const FIXED: usize = 4;

/// A template without its header, with `{name}` replaced, in one pass: what was put in is not looked at again.
fn fill(template: &str, parts: &[(&str, &str)]) -> String {
    let mut rest = template;
    while rest.starts_with("--") {
        rest = rest.split_once('\n').map_or("", |(_, after)| after);
    }
    let mut sql = String::with_capacity(rest.len() * 4);
    while let Some(open) = rest.find('{') {
        sql.push_str(&rest[..open]);
        rest = &rest[open..];
        let part = rest.find('}').and_then(|close| {
            parts
                .iter()
                .find(|(name, _)| *name == &rest[1..close])
                .map(|part| (part, close))
        });
        match part {
            Some((&(_, text), close)) => {
                sql.push_str(text);
                rest = &rest[close + 1..];
            }
            None => {
                sql.push('{');
                rest = &rest[1..];
            }
        }
    }
    sql.push_str(rest.trim_end());
    sql
}

fn join(columns: &[&Column], each: impl Fn(&Column) -> String) -> String {
    columns
        .iter()
        .map(|column| each(column))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A key as a tombstone has it: the JSON array of its values as texts, the same for equal keys, and the same after
/// the column has become wider.
fn key_text(table: &Table, row: &str) -> String {
    let values: Vec<String> = table
        .key
        .iter()
        .map(|&place| {
            let column = &table.columns[place];
            let value = format!("{row}.{}", column.quoted);
            match column.of.name {
                _ if column.of.array => format!("to_json({value}) #>> '{{}}'"),
                "smallint" | "integer" | "bigint" | "text" | "character varying" => {
                    format!("{value}::text")
                }
                "numeric" => format!("trim_scale({value})::text"),
                "bytea" => base64(&value),
                _ => format!("to_json({value}) #>> '{{}}'"),
            }
        })
        .collect();
    format!("json_build_array({})::text", values.join(", "))
}

fn same_key(table: &Table) -> String {
    table
        .key
        .iter()
        .map(|&place| {
            let name = &table.columns[place].quoted;
            format!("t.{name} = i.{name}")
        })
        .collect::<Vec<_>>()
        .join(" and ")
}

/// What a statement does beside changing rows.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// What it applied goes into the history too.
    pub(super) kept: bool,
    /// It does all that a request asks, and answers whether the table was still of its version and how many changes it
    /// applied. It has three more parameters: see known.sql.
    pub(super) brief: bool,
}

impl Form {
    /// What wraps a statement.
    fn wrap(self, op: &str, returning: &str) -> (String, String) {
        let open = ", applied as (".to_owned();
        let history = format!(
            "insert into cloud_meta.history (site, entity, key, epoch, position, op, digest) \
             select $1, $3, key, epoch, position, '{op}', digest from applied"
        );
        let answer = "select (select fits from known), (select count(*) from applied)";
        match (self.kept, self.brief) {
            (false, false) => Default::default(),
            (true, false) => (open, format!(" returning {returning}) {history}")),
            (false, true) => (open, format!(" returning 1) {answer}")),
            (true, true) => (
                open,
                format!(" returning {returning}), kept as ({history}) {answer}"),
            ),
        }
    }

    fn wrap_upsert(self, table: &Table) -> (String, String) {
        let key = key_text(table, "t");
        self.wrap(
            "upsert",
            &format!(
                "{key} as key, t.\"_epoch\" as epoch, t.\"_position\" as position, \
                 md5(row_to_json(t.*)::text) as digest"
            ),
        )
    }

    /// What stands before and within the statement's reading of its arrays.
    fn known(self, columns: &[&Column]) -> (String, &'static str) {
        if !self.brief {
            return Default::default();
        }
        let [version, source, highest] = [1, 2, 3].map(|nth| format!("${}", FIXED + columns.len() + nth));
        let known = fill(
            KNOWN,
            &[("version", &version), ("source", &source), ("highest", &highest)],
        );
        (
            known + " ",
            " cross join known k where k.fits and (k.epoch is null or (k.epoch, k.position) < ($2, r.\"_position\"))",
        )
    }
}

/// The types of a brief statement's parameters.
pub(super) fn brief_types(columns: usize) -> String {
    format!(
        "text, bigint, text, bigint[]{}, bigint, text, bigint",
        ", text[]".repeat(columns)
    )
}

/// The parts that every statement over arrays has.
struct Arrays {
    expressions: String,
    arrays: String,
    columns: String,
}

fn arrays(columns: &[&Column], encoded: &[Encoded<'_>]) -> Arrays {
    let mut expressions = Vec::with_capacity(columns.len());
    let mut arrays = vec!["unnest($4::bigint[]) as \"_position\"".to_owned()];
    for (nth, (column, values)) in columns.iter().zip(encoded).enumerate() {
        let element = format!("r.{}", column.quoted);
        expressions.push(format!(
            "{} as {}",
            values.expression(column.of, &element),
            column.quoted
        ));
        arrays.push(format!(
            "unnest(${}::{}[]) as {}",
            nth + FIXED + 1,
            values.element(),
            column.quoted
        ));
    }
    Arrays {
        expressions: expressions.join(", "),
        arrays: arrays.join(", "),
        columns: join(columns, |column| column.quoted.clone()),
    }
}

fn key_list(table: &Table) -> String {
    let columns: Vec<&Column> = table.key.iter().map(|&place| &table.columns[place]).collect();
    join(&columns, |column| column.quoted.clone())
}

/// Upserts with positions. `guarded` where the entity has tombstones.
pub(super) fn upsert(
    table: &Table,
    columns: &[&Column],
    encoded: &[Encoded<'_>],
    guarded: bool,
    form: Form,
) -> String {
    let parts = arrays(columns, encoded);
    let key_text = key_text(table, "i");
    let guard = fill(UPSERT_GUARD, &[("key_text", &key_text)]);
    let (open, close) = form.wrap_upsert(table);
    let (known, within) = form.known(columns);
    fill(
        UPSERT,
        &[
            ("table", &table.quoted),
            ("expressions", &parts.expressions),
            ("arrays", &parts.arrays),
            ("columns", &parts.columns),
            ("values", &join(columns, |column| format!("i.{}", column.quoted))),
            ("set", &set(columns)),
            ("key", &key_list(table)),
            ("guard", if guarded { &guard } else { "" }),
            ("from", if guarded { "live" } else { "incoming" }),
            ("known", &known),
            ("within", within),
            ("open", &open),
            ("close", &close),
        ],
    )
}

fn set(columns: &[&Column]) -> String {
    join(columns, |column| format!("{0} = excluded.{0}", column.quoted))
}

/// Upserts without positions.
pub(super) fn post(table: &Table, columns: &[&Column], encoded: &[Encoded<'_>], kept: bool) -> String {
    let parts = arrays(columns, encoded);
    let (open, close) = Form { kept, brief: false }.wrap_upsert(table);
    fill(
        POST,
        &[
            ("table", &table.quoted),
            ("expressions", &parts.expressions),
            ("arrays", &parts.arrays),
            ("columns", &parts.columns),
            ("values", &join(columns, |column| format!("i.{}", column.quoted))),
            ("set", &set(columns)),
            ("key", &key_list(table)),
            ("key_text", &key_text(table, "i")),
            ("open", &open),
            ("close", &close),
        ],
    )
}

/// Deletes with positions; `columns` are the key's.
pub(super) fn delete(table: &Table, columns: &[&Column], encoded: &[Encoded<'_>], form: Form) -> String {
    let parts = arrays(columns, encoded);
    let (open, close) = form.wrap("delete", "t.key, t.epoch, t.position, null::text as digest");
    let (known, within) = form.known(columns);
    fill(
        DELETE,
        &[
            ("table", &table.quoted),
            ("expressions", &parts.expressions),
            ("arrays", &parts.arrays),
            ("same_key", &same_key(table)),
            ("key_text", &key_text(table, "i")),
            ("known", &known),
            ("within", within),
            ("open", &open),
            ("close", &close),
        ],
    )
}

/// Deletes without positions; `columns` are the key's.
pub(super) fn delete_row(table: &Table, columns: &[&Column], encoded: &[Encoded<'_>], kept: bool) -> String {
    let parts = arrays(columns, encoded);
    let noted = if kept {
        ", noted as (insert into cloud_meta.history (site, entity, key, epoch, position, op) \
         select $1, $3, key, epoch, position, 'delete' from gone)"
    } else {
        ""
    };
    fill(
        DELETE_ROW,
        &[
            ("table", &table.quoted),
            ("expressions", &parts.expressions),
            ("arrays", &parts.arrays),
            ("same_key", &same_key(table)),
            ("deleted_key", &key_text(table, "t")),
            ("noted", noted),
        ],
    )
}

/// Truncates with a position.
pub(super) fn truncate(table: &Table, kept: bool) -> String {
    let (open, close) = Form { kept, brief: false }.wrap(
        "truncate",
        "null::text as key, t.epoch, t.position, null::text as digest",
    );
    fill(
        TRUNCATE,
        &[("table", &table.quoted), ("open", &open), ("close", &close)],
    )
}

/// Asks for the highest key in a range, by the first key column.
pub(super) fn highest(table: &Table) -> String {
    let key = table
        .key
        .first()
        .map_or("", |&place| table.columns[place].quoted.as_str());
    fill(HIGHEST, &[("table", &table.quoted), ("key", key)])
}

/// Takes new rows with these columns, after site, epoch and position.
pub(super) fn copy(table: &Table, columns: &[&Column]) -> String {
    let columns = join(columns, |column| column.quoted.clone());
    fill(COPY, &[("table", &table.quoted), ("columns", &columns)])
}

/// Lists living rows as JSON texts: of these columns, and not older than `$2` days where there is a window.
///
/// A row without a time is listed. On columns without a time zone the window is a day longer, since the site's
/// clock may stand up to a day apart from UTC: what is listed too much does no harm, what is missing is sent again.
pub(super) fn list(table: &Table, columns: &[&Column], window: Option<&Column>) -> String {
    let condition = window.map_or(String::new(), |column| {
        let name = format!("t.{}", column.quoted);
        let since = match column.of.name {
            "date" => "current_date - $2::int - 1",
            "timestamp without time zone" => "localtimestamp - make_interval(days => $2::int + 1)",
            _ => "now() - make_interval(days => $2::int)",
        };
        format!(" and ({name} is null or {name} >= {since})")
    });
    let listed = join(columns, |column| {
        if column.of.is("bytea") {
            format!("{} as {}", base64(&format!("t.{}", column.quoted)), column.quoted)
        } else {
            format!("t.{}", column.quoted)
        }
    });
    fill(
        LIST,
        &[
            ("table", &table.quoted),
            ("columns", &listed),
            ("window", &condition),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn what_is_filled_in_is_not_looked_at_again() {
        let sql = fill(
            "-- {a}\nselect {a}, {b}, '{}' {c",
            &[("a", "\"{b}\""), ("b", "2")],
        );
        assert_eq!(sql, "select \"{b}\", 2, '{}' {c");
    }
}
