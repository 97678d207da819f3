//! Reads touches by window and the present state of their rows, and hands batches on; sleeps while there is
//! nothing.
//!
//! A batch is read by one session, one after the other, in two round trips: the touches first, then the rows,
//! an entity a statement. So the order of batches is the order in which states were read. No transaction is
//! held while the cloud is waited for.
//!
//! Failure: [`crate::source::rows`] says why something cannot be read. An entity that cannot be read now is
//! parked: its touches are kept in the site's database and touched again when it can. A row that cannot be
//! read goes to quarantine by its key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres::types::PgLsn;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug_span};

use super::described_tables::DescribedTables;
use super::merged_touches::{MergedTouches, ReadPage, assemble};
use super::wire_schema::RefusedSchemas;
use super::{BatchLimits, DrainBatch};
use crate::abort;
use crate::batch::Batch;
use crate::catalogue::{Catalogue, EntityIndex};
use crate::change::{Position, Snapshot};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::latency::Stopwatch;
use crate::retry::waits;
use crate::source::connect::Session;
use crate::source::describe;
use crate::source::outbox::{self, Outbox, OutboxPage, TouchOp};
use crate::source::rows::{ByteBudget, RowReadFailure, RowReader, TouchKey};
use crate::source::term::Fence;
use crate::source::wake::SleepState;
use crate::source::{drift, install, parked_touches};

/// The rest after a window, by the changes in it: from 5,000 changes a second on, windows come as seldom as
/// they may.
const PER_CHANGE: Duration = Duration::from_micros(200);

/// The longest rest after a window.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How long the source has to answer at the end.
const LEAVE: Duration = Duration::from_secs(1);

/// Bytes of a row before any was read.
const ROW_BYTES: usize = 512;

/// How often a batch is read again whose tables change while it is read. An entity whose reading fails each
/// time is parked.
const TRIES: usize = 20;

/// Why an entity is not read whose table does not fit at one moment, and does at the next.
const TABLE_CHANGES: &str = "its table changes";

/// An entity that cannot be read or sent now.
pub(super) struct ParkedEntity {
    pub(super) why: String,
    pub(super) probe_at: Instant,
    pub(super) wait: Duration,
}

/// The first stage.
pub(super) struct OutboxReader {
    pub(super) session: Session,
    pub(super) catalogue: Arc<Catalogue>,
    outbox: Outbox,
    /// Tells whether a column has changed.
    fingerprint: Statement,
    pub(super) schemas: Arc<DescribedTables>,
    /// Prepared when an entity is first read.
    pub(super) rows: HashMap<EntityIndex, RowReader>,
    pub(super) parked: BTreeMap<EntityIndex, ParkedEntity>,
    /// Entities that are parked since an operator has paused them: it is not tried whether they can be read.
    pub(super) paused: BTreeSet<EntityIndex>,
    /// The entities whose schema the cloud refuses: they are not read.
    pub(super) refused: watch::Receiver<RefusedSchemas>,
    limits: BatchLimits,
    pub(super) fence: Fence,
    /// How far was read, as the checkpoint that it will be.
    cursor: Checkpoint,
    /// Whether part of the cursor's window was handed on already.
    window_is_open: bool,
    /// The snapshot of the last window.
    snapshot_at_last_look: Option<Snapshot>,
    wake: SleepState,
    /// Whether the next window must list every transaction that runs, as those may not know yet that they
    /// must notify.
    going_to_sleep: bool,
    /// Bytes of a row, as the last batches had them.
    row_bytes: usize,
}

/// Why a page is read again.
enum RereadReason {
    /// A table is not as it was described; the entities whose reading failed for it, and why.
    Reshaped(Vec<(EntityIndex, String)>),
    /// These entities cannot be read now.
    Parked(Vec<(EntityIndex, String)>),
    /// Not even the first row found room.
    Smaller,
}

impl OutboxReader {
    pub(super) async fn open(
        session: Session,
        catalogue: Arc<Catalogue>,
        limits: BatchLimits,
        cursor: Checkpoint,
        fence: Fence,
        refused: watch::Receiver<RefusedSchemas>,
        paused: BTreeSet<EntityIndex>,
    ) -> Result<Self> {
        let fingerprint = describe::prepare_fingerprint(session.client()).await?;
        let mut schemas = DescribedTables::read(&session, &fingerprint, &catalogue).await?;
        let attached = install::attached(session.client(), &catalogue, &schemas.tables).await?;
        let numbered = attached.iter().map(|attached| attached.id).zip(&schemas.tables);
        drift::note_shapes(session.client(), numbered).await?;
        let mut parked = BTreeMap::new();
        for ((entity_index, entity), attached) in catalogue.indexed().zip(&attached) {
            if let Some(wrong) = &attached.wrong {
                tracing::error!(
                    entity = entity.name,
                    "capture is not in place: {wrong}; changes may be lost until `cloud-sync init` is run, and `cloud-sync sync` repairs them"
                );
            }
            if let Some(why) = &attached.parked {
                parked.insert(entity_index, ParkedEntity::now(why.clone()));
            }
        }
        for &entity_index in &paused {
            parked.insert(entity_index, ParkedEntity::now(parked_touches::PAUSED.to_owned()));
        }
        schemas.numbers = attached.iter().map(|attached| attached.id).collect();
        let outbox = Outbox::prepare(&session, &schemas.numbers).await?;
        let wake = SleepState::listen(&session).await?;
        Ok(Self {
            window_is_open: cursor.window.is_some(),
            session,
            catalogue,
            outbox,
            fingerprint,
            schemas: Arc::new(schemas),
            rows: HashMap::new(),
            parked,
            paused,
            refused,
            limits,
            fence,
            cursor,
            snapshot_at_last_look: None,
            wake,
            going_to_sleep: false,
            row_bytes: ROW_BYTES,
        })
    }

    /// The outbox's last position.
    pub(super) async fn last_position(&self) -> Result<Position> {
        self.outbox.last_position(self.session.client()).await
    }

    /// The next batch; `None` if nothing waits.
    pub(super) async fn next(&mut self) -> Result<Option<DrainBatch>> {
        let mut rows = (self.limits.bytes / self.row_bytes.max(1)).clamp(1, self.limits.rows.max(1));
        let mut tries = 0;
        loop {
            self.probe_parked().await?;
            let stopwatch = Stopwatch::start();
            let page = self.page(rows).instrument(debug_span!("read")).await?;
            let (Some(window), false) = (
                &self.cursor.window,
                page.touches.is_empty() && page.last.is_none(),
            ) else {
                // Nothing is left of the window.
                self.cursor.close_window();
                if self.window_is_open {
                    self.window_is_open = false;
                    return Ok(Some(self.drain_batch(Batch::default(), None, stopwatch)));
                }
                return Ok(None);
            };
            let before = window.position;
            let read = match self
                .read_row_states(&page)
                .instrument(debug_span!("rows"))
                .await?
            {
                Ok(read) => read,
                Err(again) => {
                    tries += 1;
                    match again {
                        // It is as it was described, and cannot be read all the same.
                        RereadReason::Reshaped(entities) if tries > TRIES && !entities.is_empty() => {
                            self.park_entities(entities, waits::PARKED_ENTITY.most);
                            tries = 0;
                        }
                        RereadReason::Parked(entities) => {
                            self.park_entities(entities, waits::PARKED_ENTITY.least)
                        }
                        _ if tries > TRIES => {
                            return Err(Error::new(
                                Kind::SourceUnreachable,
                                "read touched rows",
                                "the tables change all the time",
                            )
                            .remedy("it is tried again"));
                        }
                        RereadReason::Reshaped(_) => self.reshape().await?,
                        RereadReason::Smaller => rows = 1,
                    }
                    continue;
                }
            };
            let upto = read.cut.or(page.last).unwrap_or(before);
            self.keep_parked(&page, upto).await?;
            self.mark_gaps(&page, upto).await?;
            if let Some(window) = &mut self.cursor.window {
                window.position = upto;
            }
            self.window_is_open = true;
            if page.exhausted && read.cut.is_none() {
                self.cursor.close_window();
                self.window_is_open = false;
            }
            let mut batch = Batch::merged(read.changes, read.merged);
            for (change_index, fate) in read.fates {
                batch.set_fate(change_index, fate);
            }
            return Ok(Some(self.drain_batch(batch, read.wal, stopwatch)));
        }
    }

    fn drain_batch(&mut self, batch: Batch, wal: Option<PgLsn>, stopwatch: Stopwatch) -> DrainBatch {
        self.cursor.serial += 1;
        DrainBatch {
            stopwatch: stopwatch.read(batch.oldest()),
            batch,
            after: self.cursor.clone(),
            wal,
            schemas: self.schemas.clone(),
            to_baseline: false,
        }
    }

    /// The next page of the open window, or the first one of a new window.
    async fn page(&mut self, rows: usize) -> Result<OutboxPage> {
        if self.cursor.window.is_none() {
            let fenced = if std::mem::take(&mut self.going_to_sleep) {
                Position(-1)
            } else {
                self.cursor.low_water
            };
            let after = self.cursor.low_water;
            let opened = self
                .outbox
                .open(&self.session, &self.cursor.lo, after, fenced, rows)
                .await?;
            self.snapshot_at_last_look = Some(opened.hi.clone());
            self.cursor.open_window(opened.hi, opened.last);
            // A transaction that has ended late may have touches below.
            if self
                .cursor
                .window
                .as_ref()
                .is_some_and(|window| window.position == after)
            {
                return Ok(opened.page);
            }
        }
        match &self.cursor.window {
            Some(window) => {
                self.outbox
                    .read(&self.session, &self.cursor.lo, window, rows)
                    .await
            }
            None => Ok(OutboxPage::default()),
        }
    }

    /// Reads the states of the page's rows.
    async fn read_row_states(
        &mut self,
        page: &OutboxPage,
    ) -> Result<std::result::Result<ReadPage, RereadReason>> {
        let touched = self.touched(page);
        let (mut parked, mut reshaped) = (Vec::new(), Vec::new());
        for &entity_index in touched.keys() {
            match self.prepare_row_reader(entity_index).await {
                Ok(()) => {}
                Err(RowReadFailure::Entity(error)) => parked.push((entity_index, error.to_string())),
                Err(RowReadFailure::Session(error)) => return Err(error),
                Err(RowReadFailure::Reshaped(why) | RowReadFailure::Row(why)) => {
                    reshaped.push((entity_index, why))
                }
            }
        }
        if !parked.is_empty() {
            return Ok(Err(RereadReason::Parked(parked)));
        }
        if !reshaped.is_empty() {
            return Ok(Err(RereadReason::Reshaped(reshaped)));
        }
        let room = ByteBudget::new(self.limits.bytes);
        let client = self.session.client();
        let oids: Vec<u32> = touched
            .keys()
            .map(|&entity_index| self.schemas.tables[entity_index.0].oid)
            .collect();
        let entities = self.catalogue.entities();
        let names: Vec<&str> = touched
            .keys()
            .map(|&entity_index| entities[entity_index.0].table.as_str())
            .collect();
        let reads = touched
            .iter()
            .map(|(entity_index, of)| self.rows[entity_index].read(client, &of.keys, &room));
        // One round trip: each statement is a transaction of its own, and begins when the one before it has
        // ended. So the columns were these while the rows were read, where they still are.
        let (states, fingerprint, log_end) = tokio::join!(
            join_all(reads),
            describe::fingerprint(client, &self.fingerprint, &oids, &names),
            outbox::log_end(client),
        );
        // A reader that needed more statements has read after these two.
        let (fingerprint, log_end) = if room.statements() > touched.len() {
            tokio::join!(
                describe::fingerprint(client, &self.fingerprint, &oids, &names),
                outbox::log_end(client),
            )
        } else {
            (fingerprint, log_end)
        };
        let fingerprint = fingerprint?;
        let (written, flushed) =
            log_end.map_err(|error| Error::postgres("read the end of the log", error))?;
        let mut all = Vec::with_capacity(states.len());
        for ((&entity_index, of), states) in touched.iter().zip(states) {
            match states {
                Ok(states) => all.push((entity_index, of, states)),
                Err(RowReadFailure::Entity(error)) => parked.push((entity_index, error.to_string())),
                Err(RowReadFailure::Session(error)) => return Err(error),
                Err(RowReadFailure::Reshaped(why) | RowReadFailure::Row(why)) => {
                    reshaped.push((entity_index, why))
                }
            }
        }
        let known = touched
            .keys()
            .map(|&entity_index| self.schemas.fingerprints[entity_index.0]);
        // Entities may share a table, whose columns count once.
        let distinct: BTreeMap<u32, i64> = oids
            .iter()
            .copied()
            .zip(known.clone().map(|(columns, _)| columns))
            .collect();
        let columns = distinct.values().fold(0, |sum, columns| sum ^ columns);
        let named: Vec<Option<u32>> = known.map(|(_, named)| named).collect();
        if !reshaped.is_empty() || fingerprint != (columns, named) {
            return Ok(Err(RereadReason::Reshaped(reshaped)));
        }
        for (entity_index, _, states) in &all {
            if let Some(collation) = &self.schemas.tables[entity_index.0].stale_collation
                && states.iter().flatten().any(|state| state.row.is_none())
            {
                parked.push((
                    *entity_index,
                    stale_collation(&self.catalogue[*entity_index].name, collation),
                ));
            }
        }
        if !parked.is_empty() {
            return Ok(Err(RereadReason::Parked(parked)));
        }
        let rows: usize = all
            .iter()
            .map(|(_, _, states)| states.iter().flatten().count())
            .sum();
        if let Some(bytes) = room.used().checked_div(rows) {
            // Slowly down, at once up.
            self.row_bytes = bytes.max((self.row_bytes * 3 + bytes) / 4);
        }
        Ok(assemble(page, all, &self.schemas)
            .map(|mut read| {
                read.wal = (flushed < written).then_some(written);
                read
            })
            .ok_or(RereadReason::Smaller))
    }

    /// The page's touches of entities that are not parked, merged by key.
    fn touched(&self, page: &OutboxPage) -> BTreeMap<EntityIndex, MergedTouches> {
        let mut touched: BTreeMap<EntityIndex, MergedTouches> = BTreeMap::new();
        for touch in &page.touches {
            if self.parked.contains_key(&touch.entity) {
                continue;
            }
            let columns = self.catalogue[touch.entity].key.len();
            let mut key = touch.key.clone().and_then(|key| key.split(columns));
            // Both forms of one key are one key: else its row would be read twice, at two moments.
            if self.schemas.tables[touch.entity.0].number_key().is_some() {
                key = key.map(TouchKey::into_number);
            }
            match (touch.op, key) {
                (TouchOp::Truncated, _) => {
                    touched.entry(touch.entity).or_default().truncate =
                        Some((touch.position, touch.captured_at));
                }
                (TouchOp::Written | TouchOp::Moved, Some(key)) => {
                    touched.entry(touch.entity).or_default().add(touch, key);
                }
                // See `mark_gaps`.
                _ => {}
            }
        }
        touched
    }

    pub(super) async fn prepare_row_reader(
        &mut self,
        entity_index: EntityIndex,
    ) -> std::result::Result<(), RowReadFailure> {
        if self.rows.contains_key(&entity_index) {
            return Ok(());
        }
        let (entity, table) = (
            &self.catalogue[entity_index],
            &self.schemas.tables[entity_index.0],
        );
        if !table.fits(entity) {
            let described = describe::described_table(self.session.client(), entity)
                .await
                .map_err(RowReadFailure::Session)?;
            return match described.unfit {
                Some(error) if !described.table.fits(entity) => Err(RowReadFailure::Entity(error)),
                _ => Err(RowReadFailure::Reshaped(TABLE_CHANGES.to_owned())),
            };
        }
        let reader = RowReader::prepare(self.session.client(), entity, table).await?;
        self.rows.insert(entity_index, reader);
        Ok(())
    }

    /// Describes the tables again after a column changed. The triggers go on as they are until the drift monitor
    /// re-creates them.
    pub(super) async fn reshape(&mut self) -> Result<()> {
        let mut schemas = DescribedTables::read(&self.session, &self.fingerprint, &self.catalogue).await?;
        schemas.numbers.clone_from(&self.schemas.numbers);
        let numbered = schemas.numbers.iter().copied().zip(&schemas.tables);
        drift::note_shapes(self.session.client(), numbered).await?;
        self.rows.clear();
        self.schemas = Arc::new(schemas);
        Ok(())
    }

    /// Reads until `shutdown`; sleeps between commits.
    ///
    /// One commit now and then finds the replicator asleep, and is read at once. While changes come without
    /// end, writers learn that it is awake, and it rests between two small windows: each costs the site, the
    /// cloud and the disk of both about the same, however few changes are in it.
    pub(super) async fn run(
        mut self,
        batches: mpsc::Sender<DrainBatch>,
        shutdown: CancellationToken,
    ) -> Result<()> {
        self.read_until(batches, &shutdown).await?;
        // Nobody sleeps any more: writers need not notify. Where that cannot be said, they do until the time
        // is over.
        let _ = tokio::time::timeout(LEAVE, self.wake.disarm(&self.session)).await;
        Ok(())
    }

    async fn read_until(
        &mut self,
        batches: mpsc::Sender<DrainBatch>,
        shutdown: &CancellationToken,
    ) -> Result<()> {
        let mut first = false;
        // The changes of the last batch; `None` if it has slept since.
        let mut before = None;
        while !shutdown.is_cancelled() {
            if let Some(drain_batch) = self.next().await? {
                abort::point("after a read");
                let changes = drain_batch.batch.len();
                // Who waits for the cloud hears no notification either.
                if before.is_some() || batches.capacity() == 0 {
                    self.wake.disarm(&self.session).await?;
                }
                if batches.send(drain_batch).await.is_err() {
                    return Ok(());
                }
                let steady = before.replace(changes).map_or(0, |before| before.min(changes));
                if self.cursor.window.is_none() {
                    wait(rest(steady), &self.session, shutdown).await;
                }
                continue;
            }
            before = None;
            if self.wake.arm(&self.session).await? {
                first = true;
                self.going_to_sleep = true;
                continue;
            }
            self.wake.looked(&self.snapshot()?, std::mem::take(&mut first));
            let probe = self.next_probe();
            tokio::select! {
                () = self.wake.wait(&self.session).instrument(debug_span!("wake")) => {}
                () = self.session.closed() => {
                    return Err(Error::new(Kind::SourceUnreachable, "wait for changes", "the connection was lost"));
                }
                () = tokio::time::sleep_until(probe.unwrap_or_else(Instant::now)), if probe.is_some() => {}
                // The sender lives as long as batches are sent.
                Ok(()) = self.refused.changed() => {}
                () = shutdown.cancelled() => {}
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot> {
        self.snapshot_at_last_look
            .clone()
            .ok_or_else(|| Error::new(Kind::Source, "wait for changes", "no snapshot was taken"))
    }
}

impl ParkedEntity {
    /// It is tried at once whether it can be read.
    pub(super) fn now(why: String) -> Self {
        Self {
            why,
            probe_at: Instant::now(),
            wait: waits::PARKED_ENTITY.least,
        }
    }
}

fn stale_collation(entity: &str, collation: &str) -> String {
    Error::config(
        format!("delete rows of {entity}"),
        format!(
            "collation {collation} has another version than its index was made with: the index may not find rows that are there"
        ),
    )
    .remedy(format!(
        "run `reindex` on the key's index, then `alter collation … refresh version` (of the database's default collation: \
         `alter database … refresh collation version`) for {collation}"
    ))
    .to_string()
}

/// How long to rest after a window, if this many changes came in it and in the one before: longer the more
/// there are, as more come during the rest then.
fn rest(changes: usize) -> Duration {
    (PER_CHANGE * u32::try_from(changes).unwrap_or(u32::MAX)).min(LONGEST_REST)
}

/// Waits as long, or until the session or the replicator ends.
async fn wait(rest: Duration, session: &Session, shutdown: &CancellationToken) {
    if rest < Duration::from_millis(1) {
        return;
    }
    tokio::select! {
        () = tokio::time::sleep(rest) => {}
        () = session.closed() => {}
        () = shutdown.cancelled() => {}
    }
}
