//! The SQL of an entity's capture: its four functions, one an event, and what they depend on.

use super::describe::Table;
use super::{image, quote_name};
use crate::catalogue::Entity;

/// Bumped whenever the generated functions change their form: older ones are then made anew.
const CAPTURE_VERSION: u32 = 3;

/// The advisory lock that the replicator holds only while it sleeps.
pub const WAKE_LOCK: i64 = 0x636c_6f75_6477_616b;

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

/// What the generated functions depend on, as text to compare.
pub(super) fn definition(entity: &Entity, table: &Table) -> String {
    format!(
        "v{CAPTURE_VERSION} {} {} {} {}{}",
        table.sql_name,
        image::key(entity, "n"),
        image::image(entity, table, "n"),
        image::filter(entity),
        image::settings(entity, table),
    )
}

/// The SQL of the entity's four capture functions.
///
/// Every name and operator that a function uses says its schema, so that a table of ordinary columns needs no pinned search
/// path: pinning costs a one-row transaction as much as writing to the outbox. What the site's own condition means, and
/// what images of odd types look like, is pinned where there are such.
pub(super) fn functions(entity: &Entity, table: &Table, id: i16) -> String {
    let (key, filter) = (image::bare_key(entity), image::filter(entity));
    let offered = |rows: &str| {
        format!(
            "select r.* from ({}) offered, lateral ({rows}) r",
            image::offered(entity)
        )
    };
    let (column, of, upserts) = match image::document(entity, table, "n") {
        Some(document) => (
            "document",
            "json",
            format!(
                "select 'u'::pg_catalog.\"char\", ''::pg_catalog.text, {document} from new_rows n where {filter}"
            ),
        ),
        None => (
            "image",
            "text",
            offered(&format!(
                "select 'u'::pg_catalog.\"char\", {key}, {} from new_rows n where {filter}",
                image::image(entity, table, "n")
            )),
        ),
    };
    let deletes = |except: &str| {
        format!(
            "select 'd'::pg_catalog.\"char\", {key}, null::pg_catalog.{of} from old_rows n where {filter}{except}"
        )
    };
    let numbered = |nth: usize| format!("cloud_sync_{nth}");
    let columns: Vec<_> = entity.key.iter().enumerate().collect();
    let given = columns
        .iter()
        .map(|(nth, column)| format!("{} as {}", quote_name(column), numbered(*nth)))
        .collect::<Vec<_>>()
        .join(", ");
    let same = columns
        .iter()
        .map(|(nth, column)| {
            format!(
                "k.{} operator(pg_catalog.=) {}",
                numbered(*nth),
                quote_name(column)
            )
        })
        .collect::<Vec<_>>()
        .join(" and ");
    let in_new =
        format!(" and not exists (select from (select {given} from new_rows where {filter}) k where {same})");
    let rows = |event: &str| match event {
        "insert" => upserts.clone(),
        "update" => format!("{} union all {upserts}", offered(&deletes(&in_new))),
        "delete" => offered(&deletes("")),
        // Which rows a truncated partition had is not told: an upsert that says nothing calls for a sync.
        _ => {
            format!(
                "select case when tg_nargs operator(pg_catalog.=) 0 then 't' else 'u' end::pg_catalog.\"char\", ''::pg_catalog.text, null::pg_catalog.{of}"
            )
        }
    };
    EVENTS
        .iter()
        .map(|(event, _)| {
            let rows = rows(event);
            let slots: Vec<_> = (0..4)
                .map(|slot| {
                    let branch = match slot {
                        0 => "if state operator(pg_catalog.&) 6 operator(pg_catalog.=) 0 then".to_owned(),
                        // A slot that nobody tells is any.
                        3 => "else".to_owned(),
                        _ => format!("elsif state operator(pg_catalog.&) 6 operator(pg_catalog.=) {} then", slot * 2),
                    };
                    format!(
                        "    {branch}\n        insert into cloud_sync.outbox_{slot} (entity, op, key, {column})\n        \
                         select {id}, c.* from ({rows}) c;\n",
                    )
                })
                .collect();
            let mut slots = slots.concat() + "    end if;";
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
                .replace("{slots}", &slots)
                + "\n"
        })
        .collect()
}
