//! Reads the outbox by window, keeps the checkpoint's mirror, and trims what is accepted.
//!
//! A window holds the changes that became visible between two snapshots. It is read in batches, each by a query of its
//! own, so that no snapshot is held in the source while the cloud is slow.

use std::collections::HashMap;

use futures::{StreamExt, TryFutureExt};
use tokio_postgres::Statement;
use tokio_postgres::types::{FromSql, PgLsn, ToSql, Type};

use super::connect::Session;
use super::identity::Identity;
use super::key::KeyColumns;
use super::packed::{self, Layout};
use crate::abort;
use crate::change::{Change, Op, Position, Snapshot};
use crate::checkpoint::{self, Checkpoint, Window};
use crate::error::{Error, Kind, Result};

const WINDOW: &str = include_str!("../../sql/window.sql");
const WINDOW_SMALL: &str = include_str!("../../sql/window_small.sql");
const LAG: &str = include_str!("../../sql/lag.sql");
const BETWEEN: &str = include_str!("../../sql/between.sql");

/// A look at the source: a snapshot, and a sequence value that was read before it was taken.
#[derive(Debug, Clone)]
pub struct Look {
    /// Which transactions had ended.
    pub snapshot: Snapshot,
    /// Changes of transactions from the snapshot's `xmax` on lie above this position.
    pub last: Position,
    /// All that the snapshot shows lies before this place of the server's log.
    pub wal: PgLsn,
    /// Whether none of the changes that the snapshot shows is kept out of line.
    pub small: bool,
}

/// Part of a window.
#[derive(Debug, Default)]
pub struct Portion {
    /// Changes in the order of positions.
    pub changes: Vec<Change>,
    /// The position of the last row that was read, whether or not its entity is in the catalogue.
    pub last: Option<Position>,
    /// Whether the window has no more.
    pub exhausted: bool,
    /// Rows that were read.
    rows: usize,
    /// Bytes of the changes.
    bytes: usize,
    /// Rows of entities that the catalogue does not have.
    pub foreign: usize,
    /// The sum of the marks of all rows that were read.
    pub tally: u64,
}

/// The bounds of a portion.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Rows at most.
    pub rows: usize,
    /// About so many bytes at most, but one row in any case.
    pub bytes: usize,
    /// Whether none of the window's rows is kept out of line: see [`Look::small`].
    pub small: bool,
}

/// The outbox as one session reads it.
pub struct Outbox {
    window: Statement,
    window_small: Statement,
    last: Statement,
    fence: Statement,
    snapshot: Statement,
    places: HashMap<i16, usize>,
    /// The key columns of each entity.
    keys: Vec<KeyColumns>,
    /// The layouts of packed rows, by their numbers; those that were made since are read when one is met.
    layouts: HashMap<i32, Layout>,
    /// The bytes of a row, as the last portion had them.
    row_bytes: usize,
}

/// The bytes of a row before any was read.
const ROW_BYTES: usize = 512;

impl Outbox {
    /// Prepares the queries. `ids` are the entities' numbers in the order of the catalogue, `keys` their key columns.
    ///
    /// # Errors
    /// The source's.
    pub async fn prepare(session: &Session, ids: &[i16], keys: &[&[String]]) -> Result<Self> {
        let failed = |error| {
            Error::postgres("prepare to read the outbox", error)
                .remedy("if schema cloud_sync is of an older version, run `cloud-sync init`")
        };
        let client = session.client();
        // A batch is the beginning of a long window, in the order of the slots' indexes. With statistics from an unlucky
        // moment the planner would rather sort the whole window anew for each of its batches. There is one such plan, and
        // making it anew for each batch would cost a lone commit more than reading it.
        client
            .batch_execute(
                "set enable_sort = off; set enable_seqscan = off; set enable_bitmapscan = off; \
                 set plan_cache_mode = force_generic_plan",
            )
            .await
            .map_err(failed)?;
        let mut outbox = Self {
            window: client.prepare(WINDOW).await.map_err(failed)?,
            window_small: client.prepare(WINDOW_SMALL).await.map_err(failed)?,
            last: client
                .prepare(
                    "select case when is_called then last_value else last_value - 1 end from cloud_sync.position",
                )
                .await
                .map_err(failed)?,
            fence: client
                .prepare("select (case when last_value > $1 then pg_current_xact_id() end)::text from cloud_sync.position")
                .await
                .map_err(failed)?,
            snapshot: client
                .prepare(
                    "select pg_current_snapshot()::text, pg_current_wal_insert_lsn(), \
                     (select coalesce(sum(pg_relation_size(reltoastrelid)) = 0, true) from pg_class where oid = any (array['cloud_sync.outbox_0', \
                      'cloud_sync.outbox_1', 'cloud_sync.outbox_2', 'cloud_sync.outbox_3']::regclass[]))",
                )
                .await
                .map_err(failed)?,
            places: ids.iter().enumerate().map(|(place, &id)| (id, place)).collect(),
            keys: keys.iter().map(|names| KeyColumns::new(names)).collect(),
            layouts: HashMap::new(),
            row_bytes: ROW_BYTES,
        };
        outbox.read_layouts(session).await?;
        Ok(outbox)
    }

    async fn read_layouts(&mut self, session: &Session) -> Result<()> {
        let rows = session
            .client()
            .query_typed("select id, columns from cloud_sync.layout", &[])
            .await
            .map_err(|error| Error::postgres("read the layouts of packed rows", error))?;
        let layout = |row: &tokio_postgres::Row| (row.get(0), Layout::new(&row.get::<_, Vec<&str>>(1)));
        self.layouts = rows.iter().map(layout).collect();
        Ok(())
    }

    /// Takes a snapshot, after the sequence's value: in this order, so that what the snapshot does not show lies above.
    ///
    /// A snapshot ends at the highest transaction that has ended: later ones may run already, with positions below the
    /// value that was read, and it does not list them. So a transaction of its own is begun and ended in between: the
    /// snapshot ends above it, lists all that began before it, and what it does not list began after the value was read.
    /// That costs a transaction number; none is taken where no position above `fenced`, an earlier look's value, has been
    /// taken since.
    ///
    /// # Errors
    /// The source's.
    pub async fn look(&self, session: &Session, fenced: Position) -> Result<Look> {
        let client = session.client();
        let fenced: [&(dyn ToSql + Sync); 1] = [&fenced.0];
        let (last, _, snapshot) = futures::try_join!(
            client.query_one(&self.last, &[]),
            client.query_one(&self.fence, &fenced),
            client.query_one(&self.snapshot, &[])
        )
        .map_err(|error| Error::postgres("take a snapshot of the source", error))?;
        Ok(Look {
            snapshot: snapshot_of(snapshot.get(0))?,
            last: Position(last.get(0)),
            wal: snapshot.get(1),
            small: snapshot.get(2),
        })
    }

    /// Reads the next part of a window.
    ///
    /// # Errors
    /// The source's.
    pub async fn read(
        &mut self,
        session: &Session,
        lo: &Snapshot,
        window: &Window,
        bounds: Bounds,
    ) -> Result<Portion> {
        let mut portion = self.portion(session, lo, window, bounds).await?;
        if portion.is_none() {
            self.read_layouts(session).await?;
            portion = self.portion(session, lo, window, bounds).await?;
        }
        let portion = portion.ok_or_else(|| broken(window.position))?;
        if let Some(bytes) = portion.bytes.checked_div(portion.rows) {
            self.row_bytes = bytes;
        }
        Ok(portion)
    }

    /// None where a row's layout is not known yet.
    async fn portion(
        &self,
        session: &Session,
        lo: &Snapshot,
        window: &Window,
        bounds: Bounds,
    ) -> Result<Option<Portion>> {
        let failed = |error| Error::postgres("read the outbox", error);
        let (lo, hi) = (lo.to_string(), window.hi.to_string());
        let (rows, bytes) = (bounds.rows as i64, bounds.bytes as i64);
        // Small rows are asked for as many as will about fit, and one more, which only tells that there are more.
        let fit = (bounds.bytes / self.row_bytes.max(1)).clamp(1, bounds.rows.max(1));
        let further = (fit as i64).saturating_add(1);
        let all: [&(dyn ToSql + Sync); 5] = [
            &window.position.0,
            &hi,
            &lo,
            if bounds.small { &further } else { &rows },
            &bytes,
        ];
        let (statement, parameters) = if bounds.small {
            (&self.window_small, &all[..4])
        } else {
            (&self.window, &all[..])
        };
        let stream = session
            .client()
            .query_raw(statement, parameters.iter().copied())
            .map_err(failed)
            .await?;
        futures::pin_mut!(stream);
        let mut unpacked = Vec::new();
        let mut portion = Portion {
            exhausted: true,
            ..Portion::default()
        };
        while let Some(row) = stream.next().await {
            let row = row.map_err(failed)?;
            if bounds.small && (portion.rows == fit || portion.bytes >= bounds.bytes) {
                // What still comes is passed over by the session.
                portion.exhausted = false;
                break;
            }
            portion.rows += 1;
            let position = Position(row.get(0));
            let Moment(captured_at) = row.get(3);
            portion.last = Some(position);
            portion.tally = portion
                .tally
                .wrapping_add(checkpoint::mark(position, captured_at));
            if !bounds.small {
                portion.exhausted = !row.get::<_, bool>(9);
            }
            let Some(&entity) = self.places.get(&row.get::<_, i16>(1)) else {
                portion.foreign += 1;
                continue;
            };
            let op = Op::from_letter(row.get::<_, i8>(2) as u8).ok_or_else(|| {
                Error::new(
                    Kind::Config,
                    "read the outbox",
                    format!("position {position} has an unknown operation"),
                )
                .remedy("a newer cloud-sync may have written it: use that version")
            })?;
            let image: Option<Box<str>> = match row.get::<_, Option<i32>>(7) {
                Some(number) => {
                    let Some(layout) = self.layouts.get(&number) else {
                        return Ok(None);
                    };
                    let packed = row.get::<_, Option<&[u8]>>(8);
                    let json = packed.and_then(|packed| layout.json(packed, &mut unpacked));
                    Some(json.ok_or_else(|| broken(position))?.into())
                }
                None => match row.get::<_, Option<Document>>(6) {
                    Some(Document(document)) => Some(document.into()),
                    None => row.get::<_, Option<&str>>(5).map(Into::into),
                },
            };
            let key: &str = row.get::<_, Option<&str>>(4).unwrap_or_default();
            portion.bytes += key.len() + image.as_ref().map_or(0, |image| image.len()) + 64;
            portion.changes.push(Change {
                position,
                entity,
                op,
                captured_at,
                key: match &image {
                    Some(image) if key.is_empty() => self.keys[entity]
                        .of_image(image)
                        .ok_or_else(|| broken(position))?,
                    _ => key.into(),
                },
                row: image,
            });
        }
        Ok(Some(portion))
    }
}

/// A `timestamptz`, in microseconds since 1970.
struct Moment(i64);

impl FromSql<'_> for Moment {
    fn from_sql(_: &Type, raw: &[u8]) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?) + packed::MICROS_TO_2000))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::TIMESTAMPTZ
    }
}

/// A value of type `json`, as it is written.
struct Document<'a>(&'a str);

impl<'a> FromSql<'a> for Document<'a> {
    fn from_sql(
        _: &Type,
        raw: &'a [u8],
    ) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(std::str::from_utf8(raw)?))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::JSON
    }
}

fn broken(position: Position) -> Error {
    Error::new(
        Kind::Source,
        "read the outbox",
        format!("the image at or after position {position} is not a row"),
    )
    .remedy("someone wrote to schema cloud_sync: delete the row, then run `cloud-sync sync`")
}

fn snapshot_of(text: &str) -> Result<Snapshot> {
    text.parse().map_err(|error: crate::change::NotASnapshot| {
        Error::new(Kind::Source, "take a snapshot of the source", error.to_string())
    })
}

/// Writes the checkpoint's mirror; it is on the source's disk when this returns.
///
/// # Errors
/// The source's.
pub async fn mirror(session: &Session, checkpoint: &Checkpoint) -> Result<()> {
    let body = serde_json::to_string(checkpoint)
        .map_err(|error| Error::new(Kind::Local, "write the checkpoint's mirror", error.to_string()))?;
    session
        .client()
        .execute_typed(
            "insert into cloud_sync.checkpoint (source_id, serial, body) values ($1, $2, $3) \
             on conflict (source_id) do update set serial = excluded.serial, body = excluded.body, mirrored_at = now()",
            &[
                (&checkpoint.identity.source_id, Type::TEXT),
                (&(checkpoint.serial as i64), Type::INT8),
                (&body, Type::TEXT),
            ],
        )
        .await
        .map_err(|error| Error::postgres("write the checkpoint's mirror", error))?;
    Ok(())
}

/// Reads the checkpoint's mirror; none where there is none, or where it is another outbox's.
///
/// # Errors
/// The source's.
pub async fn mirrored(session: &Session, identity: &Identity) -> Result<Option<Checkpoint>> {
    let row = session
        .client()
        .query_opt(
            "select body from cloud_sync.checkpoint where source_id = $1",
            &[&identity.source_id],
        )
        .await
        .map_err(|error| Error::postgres("read the checkpoint's mirror", error))?;
    let Some(row) = row else { return Ok(None) };
    let checkpoint: Checkpoint = serde_json::from_str(row.get(0)).map_err(|error| {
        Error::new(Kind::Config, "read the checkpoint's mirror", error.to_string())
            .remedy("a newer cloud-sync may have written it: use that version")
    })?;
    Ok((checkpoint.identity == *identity).then_some(checkpoint))
}

/// Waits until the source's log is on its disk up to `wal`. What a snapshot shows need not be: a transaction number that
/// wrote nothing never is, and a writer may commit without waiting for the disk. A crash of the server then gives the
/// same numbers and positions again, to other changes.
///
/// # Errors
/// The source's.
pub async fn flush(session: &Session, wal: PgLsn) -> Result<()> {
    let failed = |error| Error::postgres("wait for the source's disk", error);
    let client = session.client();
    let row = client
        .query_typed_one("select pg_current_wal_flush_lsn() >= $1", &[(&wal, Type::PG_LSN)])
        .await
        .map_err(failed)?;
    if !row.get::<_, bool>(0) {
        // Its commit takes all before it to the disk, and to the standby where one is waited for.
        client
            .query_typed_one("select pg_logical_emit_message(true, 'cloud_sync', '')", &[])
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// Whether the outbox still has every change that `to` has accepted and `from`, its own mirror, has not. It has none
/// of them trimmed, and it lacks some where the database went back to an older state.
///
/// # Errors
/// The source's.
pub async fn leads_to(session: &Session, from: &Checkpoint, to: &Checkpoint) -> Result<bool> {
    let failed = |error| Error::postgres("compare the outbox with the checkpoint", error);
    let bounds = |checkpoint: &Checkpoint| {
        let lo = checkpoint.lo.to_string();
        match &checkpoint.window {
            Some(window) => (lo, window.hi.to_string(), window.position.0),
            None => (lo.clone(), lo, 0),
        }
    };
    let ((lo, hi, position), (to_lo, to_hi, to_position)) = (bounds(from), bounds(to));
    let after = from.bound().0;
    let parameters: [&(dyn ToSql + Sync); 8] = [
        &after,
        &lo,
        &hi,
        &position,
        &to_lo,
        &to_hi,
        &to_position,
        &to.highest.0,
    ];
    let rows = session
        .client()
        .query_raw(BETWEEN, parameters)
        .await
        .map_err(failed)?;
    futures::pin_mut!(rows);
    let mut tally = from.tally;
    while let Some(row) = rows.next().await {
        let row = row.map_err(failed)?;
        tally = tally.wrapping_add(checkpoint::mark(Position(row.get(0)), row.get(1)));
    }
    Ok(tally == to.tally)
}

/// What a trim did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Bytes given back to the operating system.
    pub bytes: u64,
    /// Writers were sent on to another slot: the one that they left can be trimmed when they have ended there.
    pub moved_on: bool,
    /// Something is left that a later trim may give back.
    pub left: bool,
}

/// Truncates each slot that holds only what the checkpoint has accepted and that writers do not use. Where `move_on` says
/// so, writers are then sent to the next slot. The checkpoint must be in the mirror already: what is trimmed can never be
/// read again.
///
/// # Errors
/// The source's.
pub async fn trim(session: &Session, checkpoint: &Checkpoint, move_on: bool) -> Result<Trimmed> {
    let failed = |error| Error::postgres("trim the outbox", error);
    let (snapshot, upto) = match &checkpoint.window {
        Some(window) => (&window.hi, window.position),
        None => (&checkpoint.lo, Position(i64::MAX)),
    };
    let mut trimmed = Trimmed::default();
    for slot in 0..4_i32 {
        let row = session
            .client()
            .query_typed_one(
                "select cloud_sync.trim_slot($1, $2::text::pg_snapshot, $3)",
                &[
                    (&slot, Type::INT4),
                    (&snapshot.to_string(), Type::TEXT),
                    (&upto.0, Type::INT8),
                ],
            )
            .await
            .map_err(failed)?;
        let freed = row.get::<_, Option<i64>>(0);
        if freed.is_some() {
            abort::point("amid a trim");
        }
        trimmed.bytes += freed.unwrap_or(0).max(0) as u64;
    }
    let row = session
        .client()
        .query_typed_one(
            "select case when $1 then cloud_sync.move_on() else false end, \
             exists (select from generate_series(0, 3) slot where pg_relation_size('cloud_sync.outbox_' || slot) > 0)",
            &[(&move_on, Type::BOOL)],
        )
        .await
        .map_err(failed)?;
    trimmed.moved_on = row.get(0);
    trimmed.left = row.get(1);
    Ok(trimmed)
}

/// What the cloud has not accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Lag {
    /// How many changes.
    pub changes: u64,
    /// The age of the oldest, in seconds.
    pub seconds: f64,
}

/// Counts what the checkpoint has not accepted.
///
/// # Errors
/// The source's.
pub async fn lag(session: &Session, checkpoint: &Checkpoint) -> Result<Lag> {
    let lo = checkpoint.lo.to_string();
    let (hi, position) = match &checkpoint.window {
        Some(window) => (window.hi.to_string(), window.position),
        None => (lo.clone(), Position(0)),
    };
    let row = session
        .client()
        .query_one(LAG, &[&lo, &hi, &position.0, &checkpoint.bound().0])
        .await
        .map_err(|error| Error::postgres("count the changes that wait", error))?;
    Ok(Lag {
        changes: row.get::<_, i64>(0).max(0) as u64,
        seconds: row.get::<_, f64>(1).max(0.0),
    })
}

/// Bytes that the outbox takes on the source's disk.
///
/// # Errors
/// The source's.
pub async fn bytes(session: &Session) -> Result<u64> {
    let row = session
        .client()
        .query_one(
            "select sum(pg_total_relation_size('cloud_sync.outbox_' || slot))::bigint from generate_series(0, 3) slot",
            &[],
        )
        .await
        .map_err(|error| Error::postgres("measure the outbox", error))?;
    Ok(row.get::<_, i64>(0).max(0) as u64)
}
