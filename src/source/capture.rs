//! The SQL of an entity's capture: a function for each event, and the triggers that call them.
//!
//! Capture says which rows were touched. A statement trigger with transition tables writes the key of each
//! row that the statement wrote: all new keys, and the old keys that are not among them. It reads no other
//! value, so a writer can fail only for a full disk and its own reasons. Rows that logical replication
//! applies fire row triggers only: a row trigger captures these, and ordinary writers do not fire it.

use super::column_type::SourceColumn;
use super::describe::SourceTable;
use super::{output, quote_name, quote_text};
use crate::catalogue::Entity;
use crate::sql_template::{fill, statement};

/// Raised whenever the generated functions change: older ones are then re-created.
const CAPTURE_VERSION: u32 = 6;

/// Segments that have a branch of their own in the functions. Writers reach other segments by a statement
/// that is planned each time: there are such only while long transactions hold all of these.
const BRANCHES: u32 = 4;

/// The trigger of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CapturedEvent {
    /// The last part of the names of function and trigger.
    pub(super) name: &'static str,
    /// Between `create trigger NAME` and `on`.
    when: &'static str,
    /// After the table's name.
    referencing: &'static str,
    each: &'static str,
    /// When it fires: also for replicated rows, or for these alone.
    enabled: &'static str,
}

/// The events, in the order in which their triggers are created.
pub(super) const EVENTS: [CapturedEvent; 5] = [
    CapturedEvent {
        name: "insert",
        when: "after insert",
        referencing: "referencing new table as new_rows",
        each: "statement",
        enabled: "always",
    },
    CapturedEvent {
        name: "update",
        when: "after update",
        referencing: "referencing old table as old_rows new table as new_rows",
        each: "statement",
        enabled: "always",
    },
    CapturedEvent {
        name: "delete",
        when: "after delete",
        referencing: "referencing old table as old_rows",
        each: "statement",
        enabled: "always",
    },
    // Before the truncate: a trigger of the site's own may insert rows after it, and their touches must come
    // later.
    CapturedEvent {
        name: "truncate",
        when: "before truncate",
        referencing: "",
        each: "statement",
        enabled: "always",
    },
    CapturedEvent {
        name: "row",
        when: "after insert or update or delete",
        referencing: "",
        each: "row",
        enabled: "replica",
    },
];

impl CapturedEvent {
    /// The trigger's name on a table. A row trigger's says which table it was created on: PostgreSQL clones
    /// it to partitions, and refuses to attach one that has a trigger of the same name already.
    pub(super) fn trigger(self, id: i16, root: u32) -> String {
        match self.each {
            "row" => format!("cloud_sync_{id}_row_{root}"),
            _ => format!("cloud_sync_{id}_{}", self.name),
        }
    }

    /// Whether it needs a trigger on each partition: PostgreSQL itself clones row triggers.
    pub(super) fn on_partitions(self) -> bool {
        self.each == "statement"
    }

    /// The letter of a trigger's state in `pg_trigger.tgenabled`.
    pub(super) fn enabled_letter(self) -> char {
        if self.enabled == "always" { 'A' } else { 'R' }
    }

    /// Creates the trigger on `table`, a name in SQL. That of a `partition` has an argument, since a
    /// partition's truncate is not the entity's.
    pub(super) fn create(self, id: i16, root: u32, table: &str, partition: bool) -> String {
        let Self {
            when,
            referencing,
            each,
            enabled,
            ..
        } = self;
        fill(
            statement!("capture", "trigger"),
            &[
                ("trigger", &self.trigger(id, root)),
                ("when", when),
                ("table", table),
                ("referencing", referencing),
                ("each", each),
                ("enabled", enabled),
                ("function", &self.function(id)),
                ("argument", if partition { "'partition'" } else { "" }),
            ],
        )
    }

    /// The name of the function that the trigger calls, in schema `cloud_sync`.
    pub(super) fn function(self, id: i16) -> String {
        format!("capture_{id}_{}", self.name)
    }
}

/// What the generated functions depend on, as text to compare.
pub(super) fn definition(entity: &Entity, table: &SourceTable) -> String {
    let key: Vec<_> = entity
        .key
        .iter()
        .map(|name| {
            let sql_type = table.column(name).map_or("", |column| column.sql_type.as_str());
            format!("{} {sql_type}", quote_name(name))
        })
        .collect();
    format!("v{CAPTURE_VERSION} {} ({})", table.sql_name, key.join(", "))
}

/// What of a row is sent, as text to compare: after it has changed, the cloud may have rows that it should
/// not have.
pub(super) fn selection(entity: &Entity) -> String {
    format!(
        "where {:?} exclude {:?} redact {:?}",
        entity.filter, entity.exclude, entity.redact
    )
}

/// The SQL of the entity's capture functions.
pub(super) fn functions(entity: &Entity, table: &SourceTable, id: i16) -> String {
    EVENTS
        .iter()
        .map(|event| {
            let rows = rows(entity, table, event.name);
            let function = fill(
                statement!("capture", "function"),
                &[
                    ("function", &event.function(id)),
                    ("settings", &settings(entity, table, event.name)),
                    ("branches", &branches(id, &rows, *event)),
                ],
            );
            function + "\n"
        })
        .collect()
}

/// The insert into each segment that writers may use. The branches of the first two segments without a
/// sleeping replicator come first: they are the common case.
fn branches(id: i16, rows: &str, event: CapturedEvent) -> String {
    let id = id.to_string();
    let insert = |segment: &str| {
        let values = [("segment", segment), ("id", &id), ("rows", rows)];
        fill(statement!("capture", "insert"), &values)
    };
    let mut sql = String::new();
    for segment in ["0", "1"] {
        let keyword = if segment == "0" { "if" } else { "elsif" };
        let values = [
            ("keyword", keyword),
            ("segment", segment),
            ("insert", &insert(segment)),
        ];
        sql += &fill(statement!("capture", "branch_awake"), &values);
        sql.push('\n');
    }
    for segment in 0..BRANCHES {
        let segment = segment.to_string();
        let values = [("segment", &*segment), ("insert", &insert(&segment))];
        sql += &fill(statement!("capture", "branch_asleep"), &values);
        sql.push('\n');
    }
    // Statements that are planned each time see the transition tables, but no variable of the function:
    // neither `new` nor `old`, nor the trigger's arguments. A segment that writers do not use is truncated
    // like any other.
    let further = if event.each == "row" || event.name == "truncate" {
        insert("3")
    } else {
        let insert = quote_text(&insert("#"));
        fill(statement!("capture", "planned_insert"), &[("insert", &insert)])
    };
    sql + &fill(statement!("capture", "branch_others"), &[("further", &further)])
}

/// The query of what an event touched, as (op, number, key).
fn rows(entity: &Entity, table: &SourceTable, event: &str) -> String {
    let keys = |op: &str, from: &str, condition: &str| keys(entity, table, op, from, condition);
    let new = || keys("'w'", "select n.* from new_rows n", "");
    match event {
        "insert" => new(),
        "update" => format!(
            "{} union all {}",
            new(),
            keys(
                "'m'",
                "select n.* from old_rows n",
                &not_among(entity, table, "select n.* from new_rows n")
            )
        ),
        "delete" => keys("'w'", "select n.* from old_rows n", ""),
        "row" => {
            let new = keys(
                "'w'",
                "select new.* where tg_op operator(pg_catalog.<>) 'DELETE'::pg_catalog.text",
                "",
            );
            let same = not_among(
                entity,
                table,
                "select new.* where tg_op operator(pg_catalog.=) 'UPDATE'::pg_catalog.text",
            );
            // The key of a deleted row has not changed.
            let old = keys(
                "case when tg_op operator(pg_catalog.=) 'UPDATE'::pg_catalog.text then 'm' else 'w' end",
                "select old.* where tg_op operator(pg_catalog.<>) 'INSERT'::pg_catalog.text",
                &same,
            );
            format!("{new} union all {old}")
        }
        _ => statement!("capture", "truncate").to_owned(),
    }
}

/// The touches of the rows of `from`, below a query that offers nulls under the names of the key columns.
fn keys(entity: &Entity, table: &SourceTable, op: &str, from: &str, condition: &str) -> String {
    let (number, key) = number_and_key(entity, table);
    let values = [
        ("op", op),
        ("offered", &offered(entity)),
        ("number", &number),
        ("key", &key),
        ("from", from),
        ("condition", condition),
    ];
    fill(statement!("capture", "touches"), &values)
}

/// The two forms of a key. A key of one integer column is a number, as long as the column is one.
fn number_and_key(entity: &Entity, table: &SourceTable) -> (String, String) {
    let texts = texts(entity, table);
    let [text] = texts.as_slice() else {
        let array = format!("(array[{}])::pg_catalog.text", texts.join(", "));
        return ("null::pg_catalog.int8".to_owned(), array);
    };
    let column = quote_name(&entity.key[0]);
    let oid = match table
        .column(&entity.key[0])
        .map(|column| column.sql_type.as_str())
    {
        Some("bigint") => "20",
        Some("integer") => "23",
        Some("smallint") => "21",
        _ => return ("null::pg_catalog.int8".to_owned(), text.clone()),
    };
    // The type is looked up when the statement runs: after it has changed, the text is no integer.
    let is = |operator: &str| {
        let values = [("column", &*column), ("operator", operator), ("oid", oid)];
        fill(statement!("capture", "key_is_of_type"), &values)
    };
    (
        format!("case when {} then {text}::pg_catalog.int8 end", is("=")),
        format!("case when {} then {text} end", is("<>")),
    )
}

/// The condition that the key is none of those of `from`, compared as text and byte by byte.
fn not_among(entity: &Entity, table: &SourceTable, from: &str) -> String {
    let columns: Vec<_> = (0..)
        .zip(texts(entity, table))
        .map(|(number, text)| (format!("cloud_sync_{number}"), text))
        .collect();
    let keys: Vec<_> = columns
        .iter()
        .map(|(name, text)| format!("{text} as {name}"))
        .collect();
    let same: Vec<_> = columns
        .iter()
        .map(|(name, text)| format!("k.{name} operator(pg_catalog.=) ({text} collate pg_catalog.\"C\")"))
        .collect();
    let values = [
        ("keys", &*keys.join(", ")),
        ("from", from),
        ("same", &same.join(" and ")),
    ];
    format!(" {}", fill(statement!("capture", "not_among"), &values))
}

/// The key columns as texts, named without their table. A cast to text may be the site's own, or may change
/// the value: that of `character` loses the padding, which the cloud has. Then it is the type's output
/// instead.
fn texts(entity: &Entity, table: &SourceTable) -> Vec<String> {
    let is_cast = |name: &String| {
        let sql_type = table.column(name).map_or("", |column| column.sql_type.as_str());
        SETTLED.contains(&sql_type) && !["bpchar", "inet"].contains(&sql_type)
    };
    let text = |name: &String| match quote_name(name) {
        column if is_cast(name) => format!("{column}::pg_catalog.text"),
        column => output(&column),
    };
    entity.key.iter().map(text).collect()
}

/// The SQL query of one row of nulls under the names of the key columns.
fn offered(entity: &Entity) -> String {
    let nulls: Vec<_> = entity
        .key
        .iter()
        .map(|column| format!("null::pg_catalog.text as {}", quote_name(column)))
        .collect();
    format!("select {}", nulls.join(", "))
}

/// Settings that a capture function pins, if the text of a key would depend on the writer's session
/// otherwise. Pinning costs a transaction of one row as much as writing to the outbox.
fn settings(entity: &Entity, table: &SourceTable, event: &str) -> String {
    // A session that has updated many rows keeps a plan whose cost is above the threshold of compiling, and
    // would compile it again for each row that it updates later.
    let jit = if event == "update" { " set jit = off" } else { "" };
    let settled = |column: &SourceColumn| SETTLED.contains(&column.sql_type.as_str());
    if entity
        .key
        .iter()
        .all(|name| table.column(name).is_some_and(settled))
    {
        return jit.to_owned();
    }
    format!(
        "set search_path = pg_catalog, pg_temp set extra_float_digits = 1 set datestyle = 'ISO, YMD' \
         set timezone = 'UTC' set intervalstyle = postgres set bytea_output = hex set xmlbinary = base64 \
         set lc_monetary = 'C' \
         set quote_all_identifiers = off set standard_conforming_strings = on{jit}"
    )
}

/// Types whose text no setting changes.
const SETTLED: [&str; 13] = [
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "text",
    "character varying",
    "bpchar",
    "uuid",
    "boolean",
    "name",
    "oid",
    "inet",
    "cidr",
];
