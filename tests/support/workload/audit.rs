//! The audit: a second record of every committed touch, and whether the cloud has what counts as accepted.

use std::collections::{HashMap, HashSet};

use crate::support::site::{Cloud, SITE, Site, connect};

/// A second record of every committed touch, and of every touch that waits because its entity is parked.
/// Nothing trims it.
pub(super) const AUDIT: &str = "
create table audit (position bigint primary key, captured_at timestamptz, entity smallint, op \"char\", \
key text);
create function public.audit() returns trigger language plpgsql as $$
begin
    insert into public.audit select position, captured_at, entity, op, coalesce(number::text, key) from added;
    return null;
end $$;
create trigger audit after insert on cloud_sync.segment_0 referencing new table as added execute function \
audit();
create trigger audit after insert on cloud_sync.segment_1 referencing new table as added execute function \
audit();
create trigger audit after insert on cloud_sync.segment_2 referencing new table as added execute function \
audit();
create trigger audit after insert on cloud_sync.segment_3 referencing new table as added execute function \
audit();
create table audit_parked (entity smallint, key text, parked_at timestamptz);
create function public.audit_parked() returns trigger language plpgsql as $$
begin
    insert into public.audit_parked select entity, coalesce(number::text, key), clock_timestamp() from added;
    return null;
end $$;
create trigger audit after insert on cloud_sync.parked_key referencing new table as added execute function \
audit_parked();
";

/// What of the audit must be in the cloud and is not, by row: each touch that the checkpoint counts as
/// accepted, and each that is no longer in the outbox. Such a row was read after the touch: the cloud has
/// applied its state since, or has no such row, or refused it. Holds at any moment.
///
/// A touch that was parked has left the outbox without being accepted; when its entity flows again, the row
/// is touched again, and that touch is in the audit too. A truncate that was parked replaces all touches
/// before it. A touch of a partition's truncate names no row.
pub(crate) async fn audited(site: &Site, cloud: &Cloud) -> Vec<String> {
    // A key of one column is the text itself, that of several an array of texts.
    let (names, composite): (Vec<String>, Vec<bool>) = site
        .settings
        .catalogue
        .entities()
        .iter()
        .map(|entity| (entity.name.clone(), entity.key.len() > 1))
        .unzip();
    let rows = site
        .client
        .query(
            &format!(
                "with c as (select (b->>'lo')::pg_snapshot as lo, (b->'window'->>'hi')::pg_snapshot as hi, \
                     (b->'window'->>'position')::bigint as position \
                     from cloud_sync.checkpoint, lateral (select body::json as b) b \
                     where source_id = '{SITE}'), \
                 known as (select e.id, e.name, k.composite from unnest($1::text[], $2::boolean[]) k (name, \
                 composite) join cloud_sync.entity e using (name)), \
                 parked as (select p.entity, k.key, max(p.parked_at) as parked_at \
                     from audit_parked p join known on known.id = p.entity, \
                     lateral (select case when p.key is null then '' \
                                     when known.composite then to_jsonb(p.key::text[])::text \
                                     else jsonb_build_array(p.key)::text end) k (key) group by 1, 2) \
                 select known.name, k.key, max(a.position), extract(epoch from max(a.captured_at))::float8 \
                 from audit a join known on known.id = a.entity \
                 cross join lateral (select case when a.op = 't' then '' \
                                 when known.composite then to_jsonb(a.key::text[])::text \
                                 else jsonb_build_array(a.key)::text end) k (key) \
                 left join cloud_sync.outbox o on o.position = a.position \
                 left join parked p on p.entity = a.entity and p.key = k.key \
                 left join parked t on t.entity = a.entity and t.key = '' \
                 left join c on true \
                 where (a.op = 't' or a.key is not null) and a.captured_at > coalesce(greatest(p.parked_at, \
                 t.parked_at), '-infinity') and (o.position is null or pg_visible_in_snapshot(o.xid, c.lo) \
                          or (pg_visible_in_snapshot(o.xid, c.hi) and o.position <= c.position)) \
                 group by 1, 2"
            ),
            &[&names, &composite],
        )
        .await
        .unwrap();
    // What the cloud refused waits for a person.
    let refused = site
        .client
        .query(
            "select entity, coalesce((select jsonb_agg(value) \
             from json_each_text(nullif(key, '')::json))::text, '') \
             from cloud_sync.quarantine",
            &[],
        )
        .await
        .unwrap();
    let refused: HashSet<(&str, &str)> = refused.iter().map(|row| (row.get(0), row.get(1))).collect();
    // The cloud after the site: what is accepted is there by then.
    let there = connect(&cloud.database_url).await;
    let reached = there
        .query(
            "select distinct on (entity, key) entity, coalesce(key::jsonb::text, ''), extract(epoch \
             from at)::float8, op from cloud_meta.history order by entity, key, id desc",
            &[],
        )
        .await
        .unwrap();
    let reached: HashMap<(&str, &str), (f64, &str)> = reached
        .iter()
        .map(|row| ((row.get(0), row.get(1)), (row.get(2), row.get(3))))
        .collect();
    let mut found = Vec::new();
    for row in &rows {
        let (entity, key, position, touched): (&str, &str, i64, f64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        // A truncate settles every older state of its entity.
        let truncated = reached.get(&(entity, "")).map_or(f64::MIN, |(at, _)| *at);
        if refused.contains(&(entity, key)) || refused.contains(&(entity, "")) {
            continue;
        }
        let missing = match reached.get(&(entity, key)) {
            // Where the row is not in the cloud, deleted or gone with a truncate, there was nothing to
            // delete.
            Some((at, op)) => *op != "delete" && *at > truncated && *at < touched,
            None => key.is_empty() && truncated < touched,
        };
        if missing {
            found.push(format!(
                "position {position} of {entity} {key} counts as accepted, \
                 and the cloud has an older state of the row"
            ));
        }
    }
    found
}

/// Empties the audit once all of it was found in the cloud.
pub(crate) async fn forget(site: &Site) {
    site.run("truncate audit, audit_parked").await;
}
