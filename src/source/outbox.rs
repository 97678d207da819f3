//! Reads the outbox by window, keeps the checkpoint's mirror, and gives the outbox's space back.
//!
//! A window holds the touches that became visible between two snapshots. It is read in pages, each by a
//! statement of its own, so that a slow cloud holds no snapshot in the source.

use std::collections::{BTreeMap, HashMap};

use futures::TryFutureExt;
use tokio_postgres::types::{FromSql, PgLsn, ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::connect::Session;
use super::identity::Identity;
use super::rows::{TouchKey, split_array};
use super::term::{Fence, taken_over};
use crate::abort;
use crate::catalogue::EntityIndex;
use crate::change::{Position, Snapshot};
use crate::checkpoint::{Checkpoint, Window};
use crate::error::{Error, Kind, Result};
use crate::sql_template::{fill, statement};
use crate::wire::column_values::calendar::MICROS_TO_2000;

/// Reads a page of a window.
#[doc(hidden)]
pub const WINDOW: &str = statement!("outbox", "window");

/// Opens a window and reads its first page.
#[doc(hidden)]
pub const OPEN_WINDOW: &str = statement!("outbox", "open_window");

/// How long a session that reads windows waits for a lock: a locked table must not hold up the others.
pub(crate) const LOCK: &str = "2s";

/// Settings of a session that reads windows.
#[doc(hidden)]
pub const READING: &str = statement!("session", "read_windows");

/// What a touch says of its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TouchOp {
    /// It was written: inserted, updated, deleted, or is to be read again.
    Written,
    /// Its key was changed: it is the old one.
    Moved,
    /// The whole table was truncated.
    Truncated,
    /// Rows were touched, and it is not known which.
    Unknown,
}

impl TouchOp {
    /// Its letter in the outbox.
    pub(crate) fn letter(self) -> u8 {
        match self {
            Self::Written => b'w',
            Self::Moved => b'm',
            Self::Truncated => b't',
            Self::Unknown => b'g',
        }
    }

    fn of_letter(letter: u8) -> Option<Self> {
        let all = [Self::Written, Self::Moved, Self::Truncated, Self::Unknown];
        all.into_iter().find(|op| op.letter() == letter)
    }
}

/// An entry of the outbox.
#[derive(Debug, Clone)]
pub(crate) struct Touch {
    pub(crate) position: Position,
    /// The entity's index in the catalogue.
    pub(crate) entity: EntityIndex,
    pub(crate) op: TouchOp,
    /// In microseconds since 1970.
    pub(crate) captured_at: i64,
    /// `None` for a truncate, and if a key column was gone.
    pub(crate) key: Option<TouchKey>,
}

/// A page of a window.
#[derive(Debug, Default)]
pub(crate) struct OutboxPage {
    /// In the order of positions.
    pub(crate) touches: Vec<Touch>,
    /// The position of the last touch, whether or not its entity is in the catalogue.
    pub(crate) last: Option<Position>,
    /// Whether the window has no more.
    pub(crate) exhausted: bool,
    /// The first position of each entity that the catalogue does not have, by its number in the outbox.
    pub(crate) foreign: BTreeMap<i16, Position>,
}

/// A window that was opened, with its first page.
#[derive(Debug)]
pub(crate) struct OpenedWindow {
    /// The snapshot that ends it.
    pub(crate) hi: Snapshot,
    /// Touches of transactions from `hi`'s `xmax` on have higher positions than this.
    pub(crate) last: Position,
    /// The page that begins after the requested position.
    pub(crate) page: OutboxPage,
}

/// The outbox as one session reads it.
pub(crate) struct Outbox {
    window: Statement,
    window_open: Statement,
    last: Statement,
    fence: Statement,
    entity_indexes: HashMap<i16, EntityIndex>,
}

impl Outbox {
    /// Prepares the queries. `ids` are the entities' numbers in the order of the catalogue.
    ///
    /// # Errors
    /// The source's.
    pub(crate) async fn prepare(session: &Session, ids: &[i16]) -> Result<Self> {
        let failed = |error| {
            Error::postgres("prepare to read the outbox", error)
                .remedy("if schema cloud_sync is of an older version, run `cloud-sync init`")
        };
        let client = session.client();
        client
            .batch_execute(&fill(
                statement!("session", "wait_for_locks"),
                &[("read_windows", READING), ("lock_timeout", LOCK)],
            ))
            .await
            .map_err(failed)?;
        let (window, window_open, last, fence) = futures::try_join!(
            client.prepare(WINDOW),
            client.prepare(OPEN_WINDOW),
            client.prepare(statement!("outbox", "last_position")),
            client.prepare(statement!("outbox", "fence")),
        )
        .map_err(failed)?;
        Ok(Self {
            window,
            window_open,
            last,
            fence,
            entity_indexes: ids
                .iter()
                .enumerate()
                .map(|(index, &id)| (id, EntityIndex(index)))
                .collect(),
        })
    }

    /// The highest position that was taken.
    ///
    /// # Errors
    /// The source's.
    pub(crate) async fn last_position(&self, client: &Client) -> Result<Position> {
        let row = client
            .query_one(&self.last, &[])
            .await
            .map_err(|error| Error::postgres("read the outbox's last position", error))?;
        Ok(Position(row.get(0)))
    }

    /// Opens the window behind `lo` and reads its first page above `after`. In one round trip it reads the
    /// sequence's value before that: so what the window does not show has positions above that value.
    ///
    /// A snapshot ends at the highest transaction that has ended: later ones may run already, with positions
    /// below the value that was read, and it does not list them. So a transaction of our own begins and ends
    /// in between: the snapshot ends above it, lists all that began before it, and what it does not list
    /// began after the value was read. That costs a transaction number; none is taken if no position above
    /// `fenced`, an earlier window's value, has been taken since. The transaction writes a message, so that
    /// its commit waits for the disk: else its own end would not be on the disk yet, and each batch would
    /// wait for that in two further round trips. If `fenced` is below 0, nothing is expected to be read, and
    /// it does not wait for the disk.
    ///
    /// # Errors
    /// The source's.
    pub(crate) async fn open(
        &self,
        session: &Session,
        lo: &Snapshot,
        after: Position,
        fenced: Position,
        rows: usize,
    ) -> Result<OpenedWindow> {
        let client = session.client();
        let fence: [&(dyn ToSql + Sync); 1] = [&fenced.0];
        let (lo, limit) = (lo.to_string(), rows as i64 + 1);
        let open: [&(dyn ToSql + Sync); 3] = [&after.0, &lo, &limit];
        let (last, _, rows_) = futures::try_join!(
            client.query_one(&self.last, &[]),
            client.query_one(&self.fence, &fence),
            client.query(&self.window_open, &open),
        )
        .map_err(|error| Error::postgres("read the outbox", error))?;
        let is_head = |row: &&Row| row.get::<_, i64>(0) == 0;
        let head = rows_.iter().find(is_head).map(|row| row.get::<_, &str>(5));
        Ok(OpenedWindow {
            hi: snapshot_of(head.unwrap_or_default())?,
            last: Position(last.get(0)),
            page: self.page(rows_.iter().filter(|row| !is_head(row)), rows)?,
        })
    }

    /// Reads the next page of a window.
    ///
    /// # Errors
    /// The source's.
    pub(crate) async fn read(
        &self,
        session: &Session,
        lo: &Snapshot,
        window: &Window,
        rows: usize,
    ) -> Result<OutboxPage> {
        let (lo, hi, limit) = (lo.to_string(), window.hi.to_string(), rows as i64 + 1);
        let parameters: [&(dyn ToSql + Sync); 4] = [&window.position.0, &hi, &lo, &limit];
        let read = session
            .client()
            .query(&self.window, &parameters)
            .map_err(|error| Error::postgres("read the outbox", error))
            .await?;
        self.page(read.iter(), rows)
    }

    /// A page of at most `limit` touches: one row more only shows that there are more.
    fn page<'a>(&self, rows: impl Iterator<Item = &'a Row>, limit: usize) -> Result<OutboxPage> {
        let mut page = OutboxPage {
            exhausted: true,
            ..OutboxPage::default()
        };
        for (row_index, row) in rows.enumerate() {
            if row_index == limit {
                page.exhausted = false;
                break;
            }
            let position = Position(row.get(0));
            page.last = Some(position);
            let Some(&entity) = self.entity_indexes.get(&row.get::<_, i16>(1)) else {
                page.foreign.entry(row.get(1)).or_insert(position);
                continue;
            };
            let op = TouchOp::of_letter(row.get::<_, i8>(2) as u8).ok_or_else(|| {
                Error::new(
                    Kind::Config,
                    "read the outbox",
                    format!("position {position} has an unknown operation"),
                )
                .remedy("a newer cloud-sync may have written it: use that version")
            })?;
            let UnixMicros(captured_at) = row.get(3);
            page.touches.push(Touch {
                position,
                entity,
                op,
                captured_at,
                key: touch_key(row.get(4), row.get(5)),
            });
        }
        Ok(page)
    }
}

/// A key from its two forms; `None` if a part of it is null.
fn touch_key(number: Option<i64>, text: Option<&str>) -> Option<TouchKey> {
    match (number, text) {
        (Some(number), _) => Some(TouchKey::Number(number)),
        (None, Some(text)) => Some(TouchKey::Texts(Box::new([Some(text.into())]))),
        (None, None) => None,
    }
}

impl TouchKey {
    /// As a number, if the text is one.
    pub(crate) fn into_number(self) -> Self {
        let Self::Texts(texts) = &self else { return self };
        match texts.as_ref() {
            [Some(text)] => match text.parse::<i64>() {
                Ok(number) if number.to_string() == **text => Self::Number(number),
                _ => self,
            },
            _ => self,
        }
    }

    /// The key of an entity with several key columns, whose texts are in the text of one array; `None` if one
    /// of them is null or missing.
    pub(crate) fn split(self, columns: usize) -> Option<Self> {
        let Self::Texts(texts) = &self else {
            return (columns == 1).then_some(self);
        };
        if columns == 1 {
            return Some(self);
        }
        let split = split_array(texts.first()?.as_deref()?)?;
        (split.len() == columns && split.iter().all(Option::is_some)).then_some(Self::Texts(split))
    }
}

/// A `timestamptz`, in microseconds since 1970.
struct UnixMicros(i64);

impl FromSql<'_> for UnixMicros {
    fn from_sql(_: &Type, raw: &[u8]) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?) + MICROS_TO_2000))
    }

    fn accepts(sql_type: &Type) -> bool {
        *sql_type == Type::TIMESTAMPTZ
    }
}

fn snapshot_of(text: &str) -> Result<Snapshot> {
    text.parse().map_err(|error: crate::change::NotASnapshot| {
        Error::new(Kind::Source, "take a snapshot of the source", error.to_string()).caused_by(error)
    })
}

/// Writes the checkpoint's mirror while the term is this drain's; it is on the source's disk when this
/// returns.
///
/// # Errors
/// The source's; [`Kind::SourceUnreachable`] if another drain has taken over.
pub(crate) async fn mirror(client: &Client, fence: &Fence, checkpoint: &Checkpoint) -> Result<()> {
    let body = checkpoint.to_json()?;
    let written = client
        .execute_typed(
            statement!("checkpoint", "mirror"),
            &[
                (&checkpoint.identity.source_id, Type::TEXT),
                (&fence.term(), Type::INT8),
                (&(checkpoint.serial as i64), Type::INT8),
                (&body, Type::TEXT),
                (&checkpoint.term, Type::INT8),
            ],
        )
        .await
        .map_err(|error| Error::postgres("write the checkpoint's mirror", error))?;
    if written == 0 {
        return Err(taken_over());
    }
    Ok(())
}

/// Reads the checkpoint's mirror; `None` if there is none, or if it is another outbox's.
///
/// # Errors
/// The source's.
pub async fn mirrored(session: &Session, identity: &Identity) -> Result<Option<Checkpoint>> {
    let row = session
        .client()
        .query_opt(statement!("checkpoint", "mirrored"), &[&identity.source_id])
        .await
        .map_err(|error| Error::postgres("read the checkpoint's mirror", error))?;
    let Some(row) = row else { return Ok(None) };
    let checkpoint: Checkpoint = serde_json::from_str(row.get(0)).map_err(|error| {
        Error::new(Kind::Config, "read the checkpoint's mirror", error.to_string())
            .caused_by(error)
            .remedy("a newer cloud-sync may have written it: use that version")
    })?;
    Ok((checkpoint.identity == *identity).then_some(checkpoint))
}

/// The end of the server's log, and the position up to which it is on the disk.
///
/// # Errors
/// The source's.
pub(crate) async fn log_end(client: &Client) -> std::result::Result<(PgLsn, PgLsn), tokio_postgres::Error> {
    let row = client
        .query_typed_one(statement!("outbox", "log_end"), &[])
        .await?;
    Ok((row.get(0), row.get(1)))
}

/// Waits until the source's log is on its disk up to `wal`. What a snapshot shows need not be on the disk: a
/// writer may commit without waiting for it. A crash of the server would undo that, and the cloud would have
/// what the site has not.
///
/// # Errors
/// The source's.
pub(crate) async fn flush(client: &Client, wal: PgLsn) -> Result<()> {
    let failed = |error| Error::postgres("wait for the source's disk", error);
    let row = client
        .query_typed_one(statement!("outbox", "is_flushed"), &[(&wal, Type::PG_LSN)])
        .await
        .map_err(failed)?;
    if !row.get::<_, bool>(0) {
        // The commit of this message waits until all before it is on the disk, and on a synchronous standby.
        client
            .query_typed_one(statement!("outbox", "flush"), &[])
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// What a trim did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrimOutcome {
    /// Bytes given back to the operating system.
    pub bytes: u64,
    /// Writers were sent to another segment: the one that they left can be truncated when their transactions
    /// have ended.
    pub rotated: bool,
    /// A later trim may give more back.
    pub left: bool,
}

/// If the segment that writers use is this large and no other is empty, one is added.
const LARGE_SEGMENT: i64 = 64 * 1024 * 1024;

/// Truncates each segment that holds only what the checkpoint has accepted and that writers do not use. If
/// `rotate`, it then sends writers to another segment. The checkpoint must be in the mirror already: what is
/// truncated can never be read again.
///
/// # Errors
/// The source's.
pub(crate) async fn trim(
    client: &Client,
    fence: &Fence,
    checkpoint: &Checkpoint,
    rotate: bool,
) -> Result<TrimOutcome> {
    let failed = |error| Error::postgres("trim the outbox", error);
    let (snapshot, upto) = match &checkpoint.window {
        Some(window) => (&window.hi, window.position),
        None => (&checkpoint.lo, Position(i64::MAX)),
    };
    let segments: Vec<i32> = client
        .query_typed_one(statement!("segments", "left"), &[])
        .await
        .map_err(failed)?
        .get(0);
    let mut trimmed = TrimOutcome::default();
    for segment in segments {
        let row = client
            .query_typed_one(
                statement!("segments", "trim"),
                &[
                    (&segment, Type::INT4),
                    (&snapshot.to_string(), Type::TEXT),
                    (&upto.0, Type::INT8),
                    (&fence.term(), Type::INT8),
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
    let row = client
        .query_typed_one(
            statement!("segments", "rotate"),
            &[(&rotate, Type::BOOL), (&LARGE_SEGMENT, Type::INT8)],
        )
        .await
        .map_err(failed)?;
    trimmed.rotated = row.get(0);
    trimmed.left = row.get(1);
    Ok(trimmed)
}

/// What the cloud has not accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct OutboxLag {
    /// How many changes.
    pub changes: u64,
    /// The age of the oldest, in seconds.
    pub seconds: f64,
}

/// Counts what the checkpoint has not accepted.
///
/// # Errors
/// The source's.
pub async fn lag(session: &Session, checkpoint: &Checkpoint) -> Result<OutboxLag> {
    let bounds = LagBounds::of(checkpoint);
    let row = session
        .client()
        .query_one(
            statement!("outbox", "lag"),
            &[&bounds.lo, &bounds.hi, &bounds.position, &bounds.above],
        )
        .await
        .map_err(|error| Error::postgres("count the changes that wait", error))?;
    Ok(OutboxLag {
        changes: row.get::<_, i64>(0).max(0) as u64,
        seconds: row.get::<_, f64>(1).max(0.0),
    })
}

/// What a checkpoint says of the touches that wait, as the statements on them take it.
pub(super) struct LagBounds {
    pub(super) lo: String,
    /// Equal to `lo` if no window is being delivered.
    pub(super) hi: String,
    /// The position accepted within the window.
    pub(super) position: i64,
    /// A position below which all that `lo` does not see cannot lie.
    pub(super) above: i64,
}

impl LagBounds {
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        let lo = checkpoint.lo.to_string();
        let (hi, position) = match &checkpoint.window {
            Some(window) => (window.hi.to_string(), window.position),
            None => (lo.clone(), Position(0)),
        };
        Self {
            lo,
            hi,
            position: position.0,
            above: checkpoint.low_bound().0,
        }
    }
}

/// The first position that is not below `from`; `None` if there is none.
///
/// # Errors
/// The source's.
pub(crate) async fn first_from_position(client: &Client, from: Position) -> Result<Option<i64>> {
    let row = client
        .query_one(statement!("outbox", "first_from_position"), &[&from.0])
        .await
        .map_err(|error| Error::postgres("look for the first change to replay", error))?;
    Ok(row.get(0))
}

/// The position of the first touch that was captured at this time, ISO 8601, or later; `None` if there is
/// none.
///
/// # Errors
/// The source's.
pub(crate) async fn first_from_time(client: &Client, from: &str) -> Result<Option<i64>> {
    let row = client
        .query_one(statement!("outbox", "first_from_time"), &[&from])
        .await
        .map_err(|error| Error::postgres("look for the first change to replay", error))?;
    Ok(row.get(0))
}

/// Bytes that the outbox takes on the source's disk.
///
/// # Errors
/// The source's.
pub async fn bytes(session: &Session) -> Result<u64> {
    let row = session
        .client()
        .query_one(statement!("outbox", "bytes"), &[])
        .await
        .map_err(|error| Error::postgres("measure the outbox", error))?;
    Ok(row.get::<_, i64>(0).max(0) as u64)
}
