//! Reads the outbox by window and hands batches on; sleeps while there is nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::Statement;
use tokio_postgres::types::PgLsn;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug_span};

use super::{Limits, Portion};
use crate::abort;
use crate::batch::Batch;
use crate::catalogue::Catalogue;
use crate::change::{Change, Position, Snapshot};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::latency::Stopwatch;
use crate::source::connect::Session;
use crate::source::describe::{self, Table};
use crate::source::outbox::{Bounds, Look, Outbox};
use crate::source::wake::Wake;
use crate::source::{guard, image, install};

/// The rest after a window, by the changes in it: from 5,000 changes a second on, windows come as seldom as they may.
const PER_CHANGE: Duration = Duration::from_micros(200);

/// The longest rest after a window.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How long the source has to answer at the end.
const LEAVE: Duration = Duration::from_secs(1);

/// The tables as they are; a new one whenever a column changed.
pub(super) struct Shapes {
    pub(super) tables: Vec<Table>,
    /// The entities' numbers in the outbox.
    pub(super) numbers: Vec<i16>,
    /// The names of each entity's `bytea` columns.
    binaries: Vec<Vec<String>>,
    fingerprint: String,
}

/// The first stage.
pub(super) struct Reader {
    session: Session,
    catalogue: Arc<Catalogue>,
    outbox: Outbox,
    /// Tells whether a column has changed.
    fingerprint: Statement,
    shapes: Arc<Shapes>,
    limits: Limits,
    /// How far was read, as the checkpoint that it will be.
    cursor: Checkpoint,
    /// Whether part of the cursor's window was handed on already.
    under_way: bool,
    looked: Option<Look>,
    wake: Wake,
    /// Whether the next look must show every transaction that runs, as those may not know yet that they must notify.
    lying_down: bool,
    last: Position,
    /// All that the window under way shows lies before this place of the server's log.
    wal: PgLsn,
}

impl Reader {
    pub(super) async fn open(
        session: Session,
        catalogue: Arc<Catalogue>,
        limits: Limits,
        cursor: Checkpoint,
    ) -> Result<Self> {
        let fingerprint = describe::prepare_fingerprint(session.client()).await?;
        let mut shapes = shapes(&session, &fingerprint, &catalogue).await?;
        let attached = install::attached(session.client(), &catalogue, &shapes.tables).await?;
        for ((entity, table), attached) in catalogue.entities().iter().zip(&shapes.tables).zip(&attached) {
            if table.oid != 0 {
                guard::note_shape(session.client(), attached.id, table).await?;
            }
            if let Some(wrong) = &attached.wrong {
                tracing::error!(
                    entity = entity.name,
                    "capture is not in place: {wrong}; changes may be lost until `cloud-sync init` is run, and `cloud-sync sync` repairs them"
                );
            }
        }
        shapes.numbers = attached.iter().map(|attached| attached.id).collect();
        let keys: Vec<_> = catalogue
            .entities()
            .iter()
            .map(|entity| entity.key.as_slice())
            .collect();
        let outbox = Outbox::prepare(&session, &shapes.numbers, &keys).await?;
        let wake = Wake::listen(&session).await?;
        let Look { last, wal, .. } = outbox.look(&session, Position(i64::MAX)).await?;
        Ok(Self {
            under_way: cursor.window.is_some(),
            session,
            catalogue,
            outbox,
            fingerprint,
            shapes: Arc::new(shapes),
            limits,
            cursor,
            looked: None,
            wake,
            lying_down: false,
            last,
            wal,
        })
    }

    /// The outbox's last position when this stage was opened.
    pub(super) fn last_position(&self) -> Position {
        self.last
    }

    /// The next batch; none where nothing waits.
    pub(super) async fn next(&mut self) -> Result<Option<Portion>> {
        loop {
            if self.cursor.window.is_none() {
                let fenced = if std::mem::take(&mut self.lying_down) {
                    Position(-1)
                } else {
                    self.cursor.floor
                };
                let look = self.outbox.look(&self.session, fenced).await?;
                self.cursor.open(look.snapshot.clone(), look.last);
                self.wal = look.wal;
                self.looked = Some(look);
                self.under_way = false;
            }
            let Some(window) = &self.cursor.window else {
                continue;
            };
            // The columns are read after the window's snapshot was taken: a row in the window cannot have a column
            // that is not seen here.
            let oids: Vec<_> = self.shapes.tables.iter().map(|table| table.oid).collect();
            let bounds = Bounds {
                rows: self.limits.rows,
                bytes: self.limits.bytes,
                // Of a window that was under way before, nothing is known.
                small: self.looked.as_ref().is_some_and(|look| look.small),
            };
            let stopwatch = Stopwatch::start();
            let (read, fingerprint) = futures::try_join!(
                self.outbox
                    .read(&self.session, &self.cursor.lo, window, bounds)
                    .instrument(debug_span!("read")),
                describe::fingerprint(self.session.client(), &self.fingerprint, &oids),
            )?;
            if fingerprint != self.shapes.fingerprint {
                self.reshape().await?;
            }
            if let (Some(window), Some(last)) = (&mut self.cursor.window, read.last) {
                window.position = last;
                self.cursor.highest = self.cursor.highest.max(last);
                self.cursor.tally = self.cursor.tally.wrapping_add(read.tally);
            }
            if read.foreign > 0 {
                tracing::warn!(
                    changes = read.foreign,
                    "changes of entities that the catalogue no longer has are passed over"
                );
            }
            let nothing_new = read.changes.is_empty() && !self.under_way && read.foreign == 0;
            self.under_way = true;
            if read.exhausted {
                self.cursor.close();
                if nothing_new {
                    return Ok(None);
                }
            } else if read.changes.is_empty() {
                continue;
            }
            let mut changes = read.changes;
            self.set_aside(&mut changes).await?;
            for change in &mut changes {
                let binaries = &self.shapes.binaries[change.entity];
                if let (false, Some(row)) = (binaries.is_empty(), &change.row)
                    && let Some(mended) = image::mend_binaries(row, binaries)
                {
                    change.row = Some(mended.into());
                }
            }
            self.cursor.serial += 1;
            let batch = Batch::new(changes);
            return Ok(Some(Portion {
                stopwatch: stopwatch.read(batch.oldest()),
                batch,
                after: self.cursor.clone(),
                wal: self.wal,
                shapes: self.shapes.clone(),
            }));
        }
    }

    /// Takes out what cannot be delivered, since it says that something changed and not what: the gap that it tells of is
    /// durable before the checkpoint can pass it, and a sync closes it. Other entities go on.
    async fn set_aside(&self, changes: &mut Vec<Change>) -> Result<()> {
        let mut gaps = BTreeMap::new();
        changes.retain(|change| match guard::undeliverable(change) {
            Some(why) => {
                gaps.insert(change.entity, why);
                false
            }
            None => true,
        });
        for (place, why) in gaps {
            tracing::error!(entity = self.catalogue.entities()[place].name, "{why}");
            guard::mark(self.session.client(), self.shapes.numbers[place], why).await?;
        }
        Ok(())
    }

    /// Reads the tables anew after a column changed. The triggers go on as they are until the guard makes them anew.
    async fn reshape(&mut self) -> Result<()> {
        let mut shapes = shapes(&self.session, &self.fingerprint, &self.catalogue).await?;
        shapes.numbers.clone_from(&self.shapes.numbers);
        for (table, &number) in shapes.tables.iter().zip(&shapes.numbers) {
            if table.oid != 0 {
                guard::note_shape(self.session.client(), number, table).await?;
            }
        }
        tracing::info!("a column of the catalogue's tables has changed: the cloud is told");
        self.shapes = Arc::new(shapes);
        Ok(())
    }

    /// Reads until `shutdown`; sleeps between commits.
    ///
    /// One commit now and then finds the replicator asleep, and is read at once. While changes come without end, writers
    /// are told that it is awake, and it rests between two small windows: each costs the site, the cloud and the disk of
    /// both about the same, however few changes are in it.
    pub(super) async fn run(
        mut self,
        batches: mpsc::Sender<Portion>,
        shutdown: &CancellationToken,
    ) -> Result<()> {
        self.read_until(batches, shutdown).await?;
        // Nobody sleeps any more: writers need not look. Where that cannot be said, they look, and find nobody.
        let _ = tokio::time::timeout(LEAVE, self.wake.get_up(&self.session)).await;
        Ok(())
    }

    async fn read_until(
        &mut self,
        batches: mpsc::Sender<Portion>,
        shutdown: &CancellationToken,
    ) -> Result<()> {
        let mut first = false;
        // The changes of the last portion; none where it slept since.
        let mut before = None;
        while !shutdown.is_cancelled() {
            if let Some(portion) = self.next().await? {
                abort::point("after a read");
                let changes = portion.batch.len();
                // Who waits for the cloud hears no notification either.
                if before.is_some() || batches.capacity() == 0 {
                    self.wake.get_up(&self.session).await?;
                }
                if batches.send(portion).await.is_err() {
                    return Ok(());
                }
                let steady = before.replace(changes).map_or(0, |before| before.min(changes));
                if self.cursor.window.is_none() {
                    wait(rest(steady), &self.session, shutdown).await;
                }
                continue;
            }
            before = None;
            if self.wake.lie_down(&self.session).await? {
                first = true;
                self.lying_down = true;
                continue;
            }
            self.wake.looked(&self.snapshot()?, std::mem::take(&mut first));
            tokio::select! {
                () = self.wake.wait(&self.session).instrument(debug_span!("wake")) => {}
                () = self.session.closed() => {
                    return Err(Error::new(Kind::SourceUnreachable, "wait for changes", "the connection broke off"));
                }
                () = shutdown.cancelled() => {}
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot> {
        self.looked
            .as_ref()
            .map(|look| look.snapshot.clone())
            .ok_or_else(|| Error::new(Kind::Source, "wait for changes", "no snapshot was taken"))
    }
}

/// How long to rest after a window, where this many changes came in it and in the one before: longer the more there are, as
/// then more come meanwhile.
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

async fn shapes(session: &Session, prepared: &Statement, catalogue: &Catalogue) -> Result<Shapes> {
    // The fingerprint first: a column that is added in between is then noticed by the next look.
    let mut tables = describe::tables_as_they_stand(session.client(), catalogue).await?;
    loop {
        let oids: Vec<_> = tables.iter().map(|table| table.oid).collect();
        let fingerprint = describe::fingerprint(session.client(), prepared, &oids).await?;
        let again = describe::tables_as_they_stand(session.client(), catalogue).await?;
        if again == tables {
            let names = |table: &Table| table.binaries().into_iter().map(str::to_owned).collect();
            return Ok(Shapes {
                binaries: tables.iter().map(names).collect(),
                tables,
                numbers: Vec::new(),
                fingerprint,
            });
        }
        tables = again;
    }
}
