//! Builds the statements on an entity's table from the templates in `sql/receiver`.
//!
//! Always holds: what goes into a template is a quoted identifier, a type's own name, or SQL of this module;
//! never a value.

use tokio_postgres::types::Type;

use crate::receiver::rows::array_params::ArrayParam;
use crate::receiver::tables::column_type::base64;
use crate::receiver::tables::schema::{EntityTable, TableColumn};
use crate::sql_template::fill;

const UPSERT: &str = include_str!("../../../sql/receiver/upsert.sql");
const UPSERT_GUARD: &str = include_str!("../../../sql/receiver/upsert_guard.sql");
const POST: &str = include_str!("../../../sql/receiver/post.sql");
const DELETE: &str = include_str!("../../../sql/receiver/delete.sql");
const DELETE_ROW: &str = include_str!("../../../sql/receiver/delete_row.sql");
const TRUNCATE: &str = include_str!("../../../sql/receiver/truncate.sql");
const KNOWN: &str = include_str!("../../../sql/receiver/known.sql");
const TAKEN: &str = include_str!("../../../sql/receiver/taken.sql");
const HIGHEST: &str = include_str!("../../../sql/receiver/highest.sql");
const COPY: &str = include_str!("../../../sql/receiver/copy.sql");
const LIST: &str = include_str!("../../../sql/receiver/list.sql");

/// Parameters before the columns' arrays: site and entity, and for a batch also its epoch and version.
const BASELINE: usize = 2;
const BATCH: usize = 4;

fn join(columns: &[&TableColumn], each: impl Fn(&TableColumn) -> String) -> String {
    columns
        .iter()
        .map(|column| each(column))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The key of a tombstone: the JSON array of its values as texts. It is the same for equal keys, and the same
/// after a column has become wider. A long key is replaced by its hash, as an index entry has a greatest
/// size.
fn key_text(table: &EntityTable, row: &str) -> String {
    let values: Vec<String> = table
        .key
        .iter()
        .map(|&column_index| {
            let column = &table.columns[column_index];
            let value = format!("{row}.{}", column.quoted);
            match column.column_type.name {
                _ if column.column_type.array => format!("to_json({value}) #>> '{{}}'"),
                "smallint" | "integer" | "bigint" | "text" | "character varying" => {
                    format!("{value}::text")
                }
                "numeric" => format!("trim_scale({value})::text"),
                "bytea" => base64(&value),
                _ => format!("to_json({value}) #>> '{{}}'"),
            }
        })
        .collect();
    let text = format!("json_build_array({})::text", values.join(", "));
    let is_short = |name| {
        matches!(
            name,
            "smallint" | "integer" | "bigint" | "uuid" | "date" | "boolean"
        )
    };
    let short = |&column_index: &usize| {
        let column_type = table.columns[column_index].column_type;
        !column_type.array && is_short(column_type.name)
    };
    if table.key.iter().all(short) {
        return text;
    }
    format!("case when octet_length({text}) > 1000 then md5({text}) else {text} end")
}

fn same_key(table: &EntityTable) -> String {
    table
        .key
        .iter()
        .map(|&column_index| {
            let name = &table.columns[column_index].quoted;
            format!("t.{name} = i.{name}")
        })
        .collect::<Vec<_>>()
        .join(" and ")
}

/// What a statement does besides changing rows.
#[derive(Clone, Copy)]
pub(crate) struct StatementForm {
    /// What it applied goes into the history too.
    pub(crate) history: bool,
    /// It does all that a batch asks. It returns whether it was the batch's turn and the table still had its
    /// version, and how many changes it applied. It has more parameters: see [`FastPathParameters`].
    pub(crate) whole_batch: bool,
}

/// The parameters that a statement for a whole batch has after its arrays, as SQL. See known.sql and
/// taken.sql.
struct FastPathParameters([String; 8]);

impl FastPathParameters {
    const NAMES: [&str; 8] = [
        "table_version",
        "source",
        "term",
        "nonce",
        "batch",
        "body_hash",
        "lines",
        "database",
    ];
    const TYPES: [Type; 8] = [
        Type::INT8,
        Type::TEXT,
        Type::INT8,
        Type::TEXT,
        Type::INT8,
        Type::BYTEA,
        Type::INT8,
        Type::TEXT,
    ];

    /// Those after the arrays of this many columns.
    fn after(columns: usize) -> Self {
        Self(std::array::from_fn(|index| {
            format!("${}", BATCH + columns + index + 1)
        }))
    }

    /// The values of a template's placeholders.
    fn values(&self) -> [(&str, &str); 8] {
        std::array::from_fn(|index| (Self::NAMES[index], self.0[index].as_str()))
    }
}

impl StatementForm {
    /// What begins and ends a statement over this many columns, around its last part.
    fn wrap(self, op: &str, returning: &str, columns: usize) -> (String, String) {
        let open = ", applied as (".to_owned();
        let history = format!(
            "insert into cloud_meta.history (site, entity, key, epoch, version, op, digest) \
             select $1, $2, key, epoch, version, '{op}', digest from applied"
        );
        let answer = || {
            let parameters = FastPathParameters::after(columns);
            let kept_batches = crate::wire::limits::MAX_IN_FLIGHT.to_string();
            let values = [&parameters.values()[..], &[("kept_batches", &kept_batches)]].concat();
            let record = fill(TAKEN, &values);
            format!(", {record} select (select fits from known), (select count(*) from applied)")
        };
        match (self.history, self.whole_batch) {
            (false, false) => Default::default(),
            (true, false) => (open, format!(" returning {returning}) {history}")),
            (false, true) => (open, format!(" returning 1){}", answer())),
            (true, true) => (
                open,
                format!(" returning {returning}), recorded as ({history}){}", answer()),
            ),
        }
    }

    fn wrap_upsert(self, table: &EntityTable, columns: usize) -> (String, String) {
        let key = key_text(table, "t");
        self.wrap(
            "upsert",
            &format!(
                "{key} as key, t.\"_epoch\" as epoch, t.\"_version\" as version, \
                 md5(row_to_json(t.*)::text) as digest"
            ),
            columns,
        )
    }

    /// What precedes the statement's reading of its arrays, and the condition under which it reads them.
    fn known(self, columns: usize) -> (String, &'static str) {
        if !self.whole_batch {
            return Default::default();
        }
        let known = fill(KNOWN, &FastPathParameters::after(columns).values());
        (
            known + " ",
            " cross join known k where k.fits and (k.epoch is null or (k.epoch, k.version) <= ($3, $4))",
        )
    }
}

/// The types of the parameters of a statement that does a whole batch, over this many columns as text.
pub(crate) fn whole_batch_types(columns: usize) -> Vec<Type> {
    let mut types = vec![Type::TEXT, Type::TEXT, Type::INT8, Type::INT8];
    types.extend(std::iter::repeat_n(Type::TEXT_ARRAY, columns));
    types.extend(FastPathParameters::TYPES);
    types
}

/// The parts that every statement over arrays has.
struct ArrayParts {
    expressions: String,
    arrays: String,
    columns: String,
}

/// The parts for the arrays of these columns, which are the parameters after the first `before`.
fn array_parts(columns: &[&TableColumn], encoded: &[ArrayParam<'_>], before: usize) -> ArrayParts {
    let mut expressions = Vec::with_capacity(columns.len());
    let mut arrays = Vec::with_capacity(columns.len());
    for (array_index, (column, values)) in columns.iter().zip(encoded).enumerate() {
        let element = format!("r.{}", column.quoted);
        expressions.push(format!(
            "{} as {}",
            values.expression(column.column_type, &element),
            column.quoted
        ));
        arrays.push(format!(
            "unnest(${}::{}[]) as {}",
            before + array_index + 1,
            values.element(),
            column.quoted
        ));
    }
    ArrayParts {
        expressions: expressions.join(", "),
        arrays: arrays.join(", "),
        columns: join(columns, |column| column.quoted.clone()),
    }
}

fn key_list(table: &EntityTable) -> String {
    let columns: Vec<&TableColumn> = table
        .key
        .iter()
        .map(|&column_index| &table.columns[column_index])
        .collect();
    join(&columns, |column| column.quoted.clone())
}

/// Upserts of a batch. `guarded` if the entity may have tombstones.
pub(crate) fn upsert(
    table: &EntityTable,
    columns: &[&TableColumn],
    encoded: &[ArrayParam<'_>],
    guarded: bool,
    form: StatementForm,
) -> String {
    let parts = array_parts(columns, encoded, BATCH);
    let key_text = key_text(table, "i");
    let guard = fill(UPSERT_GUARD, &[("key_text", &key_text)]);
    let (open, close) = form.wrap_upsert(table, columns.len());
    let (known, within) = form.known(columns.len());
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

fn set(columns: &[&TableColumn]) -> String {
    join(columns, |column| format!("{0} = excluded.{0}", column.quoted))
}

/// Upserts without a version.
pub(crate) fn post(
    table: &EntityTable,
    columns: &[&TableColumn],
    encoded: &[ArrayParam<'_>],
    history: bool,
) -> String {
    let parts = array_parts(columns, encoded, BASELINE);
    let (open, close) = StatementForm {
        history,
        whole_batch: false,
    }
    .wrap_upsert(table, columns.len());
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

/// Deletes of a batch; `columns` are the key's.
pub(crate) fn delete(
    table: &EntityTable,
    columns: &[&TableColumn],
    encoded: &[ArrayParam<'_>],
    form: StatementForm,
) -> String {
    let parts = array_parts(columns, encoded, BATCH);
    let (open, close) = form.wrap(
        "delete",
        "t.key, t.epoch, t.version, null::text as digest",
        columns.len(),
    );
    let (known, within) = form.known(columns.len());
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

/// Deletes without a version; `columns` are the key's.
pub(crate) fn delete_row(
    table: &EntityTable,
    columns: &[&TableColumn],
    encoded: &[ArrayParam<'_>],
    history: bool,
) -> String {
    let parts = array_parts(columns, encoded, BASELINE);
    let recorded = if history {
        ", recorded as (insert into cloud_meta.history (site, entity, key, epoch, version, op) \
         select $1, $2, key, epoch, version, 'delete' from gone)"
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
            ("recorded", recorded),
        ],
    )
}

/// Truncates, in a batch.
pub(crate) fn truncate(table: &EntityTable, history: bool) -> String {
    let (open, close) = StatementForm {
        history,
        whole_batch: false,
    }
    .wrap(
        "truncate",
        "null::text as key, t.epoch, t.version, null::text as digest",
        0,
    );
    fill(
        TRUNCATE,
        &[("table", &table.quoted), ("open", &open), ("close", &close)],
    )
}

/// Asks for the highest key in a range, by the first key column.
pub(crate) fn highest(table: &EntityTable) -> String {
    let key = table
        .key
        .first()
        .map_or("", |&column_index| table.columns[column_index].quoted.as_str());
    fill(HIGHEST, &[("table", &table.quoted), ("key", key)])
}

/// Copies new rows with these columns, after site, epoch and version.
pub(crate) fn copy(table: &EntityTable, columns: &[&TableColumn]) -> String {
    let columns = join(columns, |column| column.quoted.clone());
    fill(COPY, &[("table", &table.quoted), ("columns", &columns)])
}

/// Lists living rows as JSON texts: these columns, and only rows of the last `$2` days if there is a
/// retention column.
///
/// A row without a time is listed. For a column without a time zone the time is a day longer, as the site's
/// clock may differ from UTC by up to a day: a row that is listed needlessly does no harm, a row that is
/// missing is sent again.
pub(crate) fn list(table: &EntityTable, columns: &[&TableColumn], retention: Option<&TableColumn>) -> String {
    let condition = retention.map_or(String::new(), |column| {
        let name = format!("t.{}", column.quoted);
        let since = match column.column_type.name {
            "date" => "current_date - $2::int - 1",
            "timestamp without time zone" => "localtimestamp - make_interval(days => $2::int + 1)",
            _ => "now() - make_interval(days => $2::int)",
        };
        format!(" and ({name} is null or {name} >= {since})")
    });
    let listed = join(columns, |column| {
        if column.column_type.is("bytea") {
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
