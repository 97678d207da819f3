//! The SQL of an entity's capture: its four functions, one an event, and what they depend on.

use super::describe::Table;
use super::{image, quote_name};
use crate::catalogue::Entity;

/// Bumped whenever the generated functions change their form: older ones are then made anew.
const CAPTURE_VERSION: u32 = 4;

/// The advisory lock that the replicator holds only while it sleeps.
pub const WAKE_LOCK: i64 = 0x636c_6f75_6477_616b;

/// The number of the encoding in which rows are packed. Source: PostgreSQL, `pg_wchar.h`.
const UTF8: i32 = 6;

/// Comes between the two parts of a definition.
const PACKED: &str = "\npacked ";

const CAPTURE: &str = include_str!("../../sql/capture.sql");

/// What an event's trigger is called, and what it sees.
pub(super) const EVENTS: [(&str, &str); 4] = [
    ("insert", "referencing new table as new_rows"),
    (
        "update",
        "referencing old table as old_rows new table as new_rows",
    ),
    ("delete", "referencing old table as old_rows"),
    ("truncate", ""),
];

/// How a table's rows are packed: see migration 0007.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// The number that stands for it in the outbox.
    pub(super) number: i32,
    /// Of the columns' names and types.
    pub(super) fingerprint: String,
}

/// What the generated functions depend on, as text to compare.
pub(super) fn definition(entity: &Entity, table: &Table) -> String {
    let mut definition = format!(
        "v{CAPTURE_VERSION} {} {} {} {}{}{PACKED}",
        table.sql_name,
        image::key(entity, "n"),
        image::image(entity, table, "n"),
        image::filter(entity),
        image::settings(entity, table),
    );
    if image::packs(entity, table) {
        for column in &table.columns {
            definition.push_str(&format!("{} {},", quote_name(&column.name), column.sql_type));
        }
    }
    definition
}

/// The two parts of a [`definition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Definition<'a> {
    pub(super) rest: &'a str,
    /// The columns of packed rows; empty where they are not.
    pub(super) columns: &'a str,
}

impl<'a> Definition<'a> {
    pub(super) fn read(text: &'a str) -> Self {
        let (rest, columns) = text.split_once(PACKED).unwrap_or((text, ""));
        Self { rest, columns }
    }
}

/// The SQL of the entity's four capture functions; with `layout`, rows are packed.
///
/// Every name and operator that a function uses says its schema, so that a table of ordinary columns needs no pinned search
/// path: pinning costs a one-row transaction as much as writing to the outbox. What the site's own condition means, and
/// what images of odd types look like, is pinned where there are such.
pub(super) fn functions(entity: &Entity, table: &Table, id: i16, layout: Option<&Layout>) -> String {
    let filter = image::filter(entity);
    let unpacked = match image::document(entity, table, "n") {
        Some(document) => Form {
            columns: "key, document",
            upserts: format!(
                "select 'u'::pg_catalog.\"char\", ''::pg_catalog.text, {document} from new_rows n where {filter}"
            ),
            deleted: "null::pg_catalog.json",
        },
        None => Form {
            columns: "key, image",
            upserts: offered(
                entity,
                &format!(
                    "select 'u'::pg_catalog.\"char\", {}, {} from new_rows n where {filter}",
                    image::bare_key(entity),
                    image::image(entity, table, "n")
                ),
            ),
            deleted: "null::pg_catalog.text",
        },
    };
    let packed = layout.map(|layout| Form {
        columns: "key, layout, packed",
        upserts: format!(
            "select 'u'::pg_catalog.\"char\", null::pg_catalog.text, {}, pg_catalog.record_send(n.*) from new_rows n",
            layout.number
        ),
        deleted: "null::pg_catalog.int4, null::pg_catalog.bytea",
    });
    let functions = EVENTS.iter().map(|(event, _)| {
        let insert = |form: &Form, slot: usize| {
            format!(
                "insert into cloud_sync.outbox_{slot} (entity, op, {})\n        select {id}, c.* from ({}) c;",
                form.columns,
                form.rows(entity, event)
            )
        };
        let mut common = String::new();
        let mut slots = by_slot(|slot| insert(&unpacked, slot));
        if let (Some(form), Some(layout), "insert" | "update") = (&packed, layout, *event) {
            let packable = packable(table, layout);
            for (slot, keyword) in ["if", "elsif"].iter().enumerate() {
                common.push_str(&format!(
                    "    {keyword} pg_catalog.pg_sequence_last_value('cloud_sync.slot'::pg_catalog.regclass) \
                     operator(pg_catalog.=) {} and {packable} then\n        {}\n        return null;\n",
                    slot * 2,
                    insert(form, slot)
                ));
            }
            common.push_str("    end if;\n");
            slots = format!(
                "    if {packable} then\n{}\n    else\n{slots}\n    end if;",
                by_slot(|slot| insert(form, slot))
            );
        }
        if entity.filter.is_some() {
            slots = format!(
                "    begin\n{slots}\n    exception when others then\n        \
                 if left(sqlstate, 2) not in ('22', '42') or sqlstate = '42501' then raise; end if;\n        \
                 perform cloud_sync.put({id}::smallint, 'u', '', null);\n    end;",
            );
        }
        CAPTURE
            .replace("{function}", &format!("capture_{id}_{event}"))
            .replace("{settings}", &image::settings(entity, table))
            .replace("{wake}", &WAKE_LOCK.to_string())
            .replace("{common}", &common)
            .replace("{slots}", &slots)
            + "\n"
    });
    functions.collect()
}

/// Whether rows can be packed now: their columns are the ones that the function is made for, and texts are sent as they are.
/// The relation is named by its number, so that it may be renamed; that it is named makes its plan follow its columns.
fn packable(table: &Table, layout: &Layout) -> String {
    format!(
        "pg_catalog.pg_char_to_encoding(pg_catalog.pg_client_encoding()) operator(pg_catalog.=) {UTF8} \
         and cloud_sync.layout_of('{}'::pg_catalog.regclass) operator(pg_catalog.=) '{}'::pg_catalog.text",
        table.oid, layout.fingerprint
    )
}

/// How images are written down.
struct Form {
    /// The outbox's columns after entity and op.
    columns: &'static str,
    /// The query of the new rows' (op, key, …).
    upserts: String,
    /// What stands in the place of a deleted row's image.
    deleted: &'static str,
}

impl Form {
    /// The query of what an event changed.
    fn rows(&self, entity: &Entity, event: &str) -> String {
        match event {
            "insert" => self.upserts.clone(),
            "update" => format!(
                "{} union all {}",
                offered(entity, &self.deletes(entity, &not_in_new(entity))),
                self.upserts
            ),
            "delete" => offered(entity, &self.deletes(entity, "")),
            // Which rows a truncated partition had is not told: an upsert that says nothing calls for a sync.
            _ => format!(
                "select case when tg_nargs operator(pg_catalog.=) 0 then 't' else 'u' end::pg_catalog.\"char\", \
                 ''::pg_catalog.text, {}",
                self.deleted
            ),
        }
    }

    fn deletes(&self, entity: &Entity, except: &str) -> String {
        format!(
            "select 'd'::pg_catalog.\"char\", {}, {} from old_rows n where {}{except}",
            image::bare_key(entity),
            self.deleted,
            image::filter(entity)
        )
    }
}

/// The query `rows`, within one that offers nulls under the names of the key columns.
fn offered(entity: &Entity, rows: &str) -> String {
    format!(
        "select r.* from ({}) offered, lateral ({rows}) r",
        image::offered(entity)
    )
}

/// The condition that an old row's key is none of the new rows'.
fn not_in_new(entity: &Entity) -> String {
    let columns = || {
        (0..)
            .zip(&entity.key)
            .map(|(nth, name)| (format!("cloud_sync_{nth}"), quote_name(name)))
    };
    let given: Vec<_> = columns().map(|(own, name)| format!("{name} as {own}")).collect();
    let same: Vec<_> = columns()
        .map(|(own, name)| format!("k.{own} operator(pg_catalog.=) {name}"))
        .collect();
    format!(
        " and not exists (select from (select {} from new_rows where {}) k where {})",
        given.join(", "),
        image::filter(entity),
        same.join(" and ")
    )
}

/// A branch for each slot that writers may use.
fn by_slot(insert: impl Fn(usize) -> String) -> String {
    let branches = (0..4).map(|slot| {
        let branch = match slot {
            0 => "if state operator(pg_catalog.&) 6 operator(pg_catalog.=) 0 then".to_owned(),
            // A slot that nobody tells is any.
            3 => "else".to_owned(),
            _ => format!(
                "elsif state operator(pg_catalog.&) 6 operator(pg_catalog.=) {} then",
                slot * 2
            ),
        };
        format!("    {branch}\n        {}\n", insert(slot))
    });
    branches.collect::<String>() + "    end if;"
}
