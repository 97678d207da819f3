//! Live traffic: what a college's cameras, teachers and registrar write to the database and the media root
//! all day.
//!
//! Five loops share one connection, each with its own mean interval and random jitter: recognition logs,
//! attendance, slips, teaching loads and recordings. A slip's file is written before or after its row, at
//! once or piece by piece. A recording grows for some seconds, and its row is inserted when it starts or when
//! it ends. On shutdown each loop completes what it started, so that every row names a complete file and
//! every file has a row.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rand::{RngExt, rngs::StdRng};
use tokio::io::AsyncWriteExt;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};
use tokio_util::sync::CancellationToken;

use super::campus::{Recognition, recording_path, school_day, school_time};
use super::media_files::comment;
use super::people::{pick, rng_for};
use super::pictures::with_comment;
use super::recording::{FRAME_RATE, Recording};
use super::slips::{Leave, PassSlip};
use crate::error::{Error, Kind, Result};

/// How often things happen: the mean time between two activities of a kind, and the length of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rates {
    /// Between two recognition logs.
    pub recognition: Duration,
    /// Between two arrivals or departures.
    pub attendance: Duration,
    /// Between two leave or pass slips.
    pub slip: Duration,
    /// Between two changes of the timetable: each deletes a teaching load and inserts it again.
    pub teaching_load: Duration,
    /// Between two recordings.
    pub recording: Duration,
    /// From a recording's first frame to its last.
    pub recording_length: Duration,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            recognition: Duration::from_secs(1),
            attendance: Duration::from_secs(2),
            slip: Duration::from_secs(8),
            teaching_load: Duration::from_secs(20),
            recording: Duration::from_secs(30),
            recording_length: Duration::from_secs(8),
        }
    }
}

/// Makes traffic at these rates in an existing sample school, until shutdown.
///
/// # Errors
/// The connection to the database fails, the database refuses a row, or a file cannot be written.
pub async fn run_at(
    rates: Rates,
    database_url: String,
    media_root: PathBuf,
    seed: u64,
    shutdown: CancellationToken,
    observe: impl Fn(&str) + Send + Sync,
) -> Result<()> {
    let (client, connection) = tokio_postgres::connect(&database_url, NoTls)
        .await
        .map_err(postgres_error)?;
    let connection = tokio::spawn(connection);
    let counts = "select (select max(faculty_id) from tbl_faculty), (select max(camera_id) from tbl_camera), \
                  (select max(teaching_load_id) from tbl_teaching_load)";
    let row = client.query_one(counts, &[]).await.map_err(postgres_error)?;
    let (Some(faculties), Some(cameras), Some(loads)) = (row.get(0), row.get(1), row.get(2)) else {
        return Err(Error::new(
            Kind::Local,
            "make live traffic",
            "the school has no faculties, cameras or teaching loads",
        )
        .remedy("create the sample school first"));
    };
    let traffic = Traffic {
        client,
        media_root,
        seed,
        shutdown,
        rates,
        faculties,
        cameras,
        loads,
        observe,
    };
    tokio::try_join!(
        traffic.repeat(Activity::Recognition),
        traffic.repeat(Activity::Attendance),
        traffic.repeat(Activity::Slip),
        traffic.repeat(Activity::Timetable),
        traffic.repeat(Activity::Recording),
    )?;
    drop(traffic);
    // The connection ends with its client. Everything is committed: an error of it changes nothing.
    connection.await.ok();
    Ok(())
}

/// A kind of thing that happens in the school.
#[derive(Clone, Copy)]
enum Activity {
    Recognition,
    Attendance,
    Slip,
    Timetable,
    Recording,
}

struct Traffic<F> {
    client: Client,
    media_root: PathBuf,
    seed: u64,
    shutdown: CancellationToken,
    rates: Rates,
    faculties: i64,
    cameras: i64,
    loads: i64,
    observe: F,
}

impl<F: Fn(&str) + Send + Sync> Traffic<F> {
    /// Repeats an activity until shutdown.
    async fn repeat(&self, activity: Activity) -> Result<()> {
        let mean = match activity {
            Activity::Recognition => self.rates.recognition,
            Activity::Attendance => self.rates.attendance,
            Activity::Slip => self.rates.slip,
            Activity::Timetable => self.rates.teaching_load,
            Activity::Recording => self.rates.recording,
        };
        let mut rng = rng_for(self.seed, "traffic", activity as i64);
        let mut present = Vec::new();
        // The first of each kind happens soon.
        let mut wait = mean / 4;
        while self.pause(wait, &mut rng).await {
            match activity {
                Activity::Recognition => self.recognise(&mut rng).await?,
                Activity::Attendance => self.attend(&mut present, &mut rng).await?,
                Activity::Slip => self.slip(&mut rng).await?,
                Activity::Timetable => self.reschedule(&mut rng).await?,
                Activity::Recording => self.record(&mut rng).await?,
            }
            wait = mean;
        }
        Ok(())
    }

    async fn recognise(&self, rng: &mut StdRng) -> Result<()> {
        let (camera, faculty) = (
            rng.random_range(1..=self.cameras),
            rng.random_range(1..=self.faculties),
        );
        let seen = Recognition::new(self.seed, camera, faculty, rng.random_bool(0.85), rng);
        let insert = "insert into tbl_recognition_logs (camera_id, faculty_id, recognition_time, \
                      camera_name, room_name, building_no, faculty_name, status, distance) \
                      values ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::numeric) returning log_id";
        let id: i64 = self
            .query_one(
                insert,
                &[
                    &camera,
                    &seen.faculty,
                    &school_time(Timestamp::now()),
                    &seen.camera_name,
                    &seen.room_name,
                    &seen.building,
                    &seen.name,
                    &seen.status,
                    &seen.distance,
                ],
            )
            .await?
            .get(0);
        (self.observe)(&format!("recognition log {id}: {}", seen.status));
        Ok(())
    }

    /// A faculty arrives, or one of those who are present departs.
    async fn attend(&self, present: &mut Vec<i64>, rng: &mut StdRng) -> Result<()> {
        if present.is_empty() || (present.len() < 40 && rng.random_bool(0.55)) {
            present.push(self.arrive(rng).await?);
            return Ok(());
        }
        let record = present.swap_remove(rng.random_range(0..present.len()));
        self.depart(record).await
    }

    async fn arrive(&self, rng: &mut StdRng) -> Result<i64> {
        // If the load is deleted at this moment, the lookup finds nothing and the record has no load.
        let insert = "insert into tbl_attendance_record (faculty_id, teaching_load_id, camera_id, \
                      record_date, record_time_in, record_status) \
                      values ($1, (select teaching_load_id from tbl_teaching_load \
                      where teaching_load_id = $2 for share), \
                      $3, date_trunc('day', now()), now(), 'Present') returning record_id";
        let load = rng.random_range(1..=self.loads);
        let camera = rng.random_range(1..=self.cameras);
        let id = self
            .query_one(insert, &[&(load % self.faculties + 1), &load, &camera])
            .await?
            .get(0);
        (self.observe)(&format!("attendance record {id}: time in"));
        Ok(id)
    }

    async fn depart(&self, record: i64) -> Result<()> {
        let update = "update tbl_attendance_record set record_time_out = now(), updated_at = now(), \
                      time_duration_seconds = extract(epoch from now() - record_time_in)::int \
                      where record_id = $1";
        self.client
            .execute(update, &[&record])
            .await
            .map_err(postgres_error)?;
        (self.observe)(&format!("attendance record {record}: time out"));
        Ok(())
    }

    async fn slip(&self, rng: &mut StdRng) -> Result<()> {
        let today = school_day(Timestamp::now());
        let (seed, leave) = (self.seed, rng.random_bool(0.5));
        let (table, key) = if leave {
            ("tbl_leave", "leave_id")
        } else {
            ("tbl_pass", "pass_id")
        };
        let next = "select nextval(pg_get_serial_sequence($1, $2))";
        let id: i64 = self.query_one(next, &[&table, &key]).await?.get(0);
        let file_first = rng.random_bool(0.5);
        let order = if file_first {
            "file, then row"
        } else {
            "row, then file"
        };
        let gap = Duration::from_millis(rng.random_range(100..2000));
        let (path, picture, row) = if leave {
            let leave = Leave::new(seed, id, self.faculties, today);
            (leave.path(), leave.scan(), SlipRow::Leave(leave))
        } else {
            let pass = PassSlip::new(seed, id, self.faculties, today);
            (pass.path(), pass.scan(), SlipRow::Pass(pass))
        };
        let scan = with_comment(picture, &comment(&path, seed));
        let file = self.media_root.join(&path);
        let method = pick(
            &[WriteMethod::Rename, WriteMethod::Whole, WriteMethod::Pieces],
            rng,
        );
        if file_first {
            self.write(&file, &scan, method).await?;
            self.wait(gap).await;
            self.insert_slip(id, &path, &row).await?;
        } else {
            self.insert_slip(id, &path, &row).await?;
            self.wait(gap).await;
            self.write(&file, &scan, method).await?;
        }
        let kind = if leave { "leave" } else { "pass" };
        (self.observe)(&format!("{kind} slip {id}: {order}, {} KB", scan.len() / 1000));
        Ok(())
    }

    async fn insert_slip(&self, id: i64, path: &str, slip: &SlipRow) -> Result<()> {
        let inserted = match slip {
            SlipRow::Leave(leave) => {
                let insert = "insert into tbl_leave (leave_id, faculty_id, leave_reason, leave_start_date, \
                              leave_end_date, leave_type, leave_status, leave_slip_image) \
                              values ($1, $2, $3, $4::text::date, $5::text::date, $6, $7, $8)";
                let (start, end) = (leave.start.to_string(), leave.end.to_string());
                self.client
                    .execute(
                        insert,
                        &[
                            &id,
                            &leave.faculty,
                            &leave.reason,
                            &start,
                            &end,
                            &leave.kind,
                            &leave.status,
                            &path,
                        ],
                    )
                    .await
            }
            SlipRow::Pass(pass) => {
                let insert = "insert into tbl_pass (pass_id, faculty_id, pass_reason, pass_date, \
                              pass_time_out, pass_time_in, pass_status, pass_slip_image) \
                              values ($1, $2, $3, $4::text::date, $5::text::time, $6::text::time, $7, $8)";
                let (date, out, back) = (
                    pass.date.to_string(),
                    pass.time_out.to_string(),
                    pass.time_in.to_string(),
                );
                self.client
                    .execute(
                        insert,
                        &[
                            &id,
                            &pass.faculty,
                            &pass.reason,
                            &date,
                            &out,
                            &back,
                            &pass.status,
                            &path,
                        ],
                    )
                    .await
            }
        };
        inserted.map(drop).map_err(postgres_error)
    }

    /// Deletes a teaching load and inserts it again, with its old id or with a new one.
    async fn reschedule(&self, rng: &mut StdRng) -> Result<()> {
        let delete = "delete from tbl_teaching_load l where teaching_load_id = \
                      (select teaching_load_id from tbl_teaching_load offset $1 limit 1) \
                      returning teaching_load_id, to_json(l)::text";
        let offset = rng.random_range(0..self.loads);
        let Some(deleted) = self
            .client
            .query_opt(delete, &[&offset])
            .await
            .map_err(postgres_error)?
        else {
            return Ok(());
        };
        let (id, row): (i64, String) = (deleted.get(0), deleted.get(1));
        (self.observe)(&format!("teaching load {id}: taken out"));
        self.wait(Duration::from_millis(rng.random_range(50..3000))).await;
        let insert = "insert into tbl_teaching_load select r.* from \
                      jsonb_populate_record(null::tbl_teaching_load, \
                      $1::text::jsonb || jsonb_build_object('updated_at', now(), 'teaching_load_id', \
                      coalesce($2, nextval(pg_get_serial_sequence('tbl_teaching_load', \
                      'teaching_load_id'))))) r returning teaching_load_id";
        let old_id = rng.random_bool(0.5).then_some(id);
        let id: i64 = self.query_one(insert, &[&row, &old_id]).await?.get(0);
        (self.observe)(&format!("teaching load {id}: put in"));
        Ok(())
    }

    /// Records for a while. The row is inserted with the first frame and updated with the last, or inserted
    /// with the last.
    async fn record(&self, rng: &mut StdRng) -> Result<()> {
        let (camera, start) = (rng.random_range(1..=self.cameras), Timestamp::now());
        let path = recording_path(camera, start);
        let file = self.media_root.join(&path);
        if file.exists() {
            // The camera started another recording in the same second.
            return Ok(());
        }
        create_folder(&file).await?;
        let row_first = rng.random_bool(0.5);
        let insert = "insert into tbl_stream_recordings (camera_id, filename, filepath, start_time, \
                      duration, frames, \
                      file_size) values ($1, $2, $3, $4, $5, $6, $7) returning recording_id";
        let filename = path.rsplit('/').next().unwrap_or(&path);
        let started = school_time(start);
        let mut id: Option<i64> = None;
        if row_first {
            let row = self
                .query_one(
                    insert,
                    &[&camera, &filename, &path, &started, &0_i32, &0_i32, &0_i64],
                )
                .await?;
            id = Some(row.get(0));
        }
        (self.observe)(&format!("camera {camera} records"));
        let comment = comment(&path, self.seed);
        let mut recording = on_blocking_thread(move || Recording::create(&file, &comment)).await?;
        let mut clock = tokio::time::interval(Duration::from_secs(1) / FRAME_RATE);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let frames = (self.rates.recording_length.as_secs_f64() * f64::from(FRAME_RATE)) as u32;
        for frame in 0..frames.max(1) {
            // A recording has at least one frame.
            tokio::select! {
                () = self.shutdown.cancelled(), if frame > 0 => break,
                _ = clock.tick() => {}
            }
            recording = on_blocking_thread(move || {
                recording.append()?;
                Ok(recording)
            })
            .await?;
        }
        let facts = on_blocking_thread(move || recording.finish()).await?;
        let id = match id {
            Some(id) => {
                let update = "update tbl_stream_recordings set duration = $2, frames = $3, file_size = $4, \
                              updated_at = now() where recording_id = $1";
                let values: [&(dyn ToSql + Sync); 4] = [&id, &facts.seconds, &facts.frames, &facts.bytes];
                self.client
                    .execute(update, &values)
                    .await
                    .map_err(postgres_error)?;
                id
            }
            None => {
                let values: [&(dyn ToSql + Sync); 7] = [
                    &camera,
                    &filename,
                    &path,
                    &started,
                    &facts.seconds,
                    &facts.frames,
                    &facts.bytes,
                ];
                self.query_one(insert, &values).await?.get(0)
            }
        };
        (self.observe)(&format!(
            "recording {id}: {} s, {} KB",
            facts.seconds,
            facts.bytes / 1000
        ));
        Ok(())
    }

    async fn write(&self, file: &Path, bytes: &[u8], method: WriteMethod) -> Result<()> {
        let operation = || format!("write {}", file.display());
        create_folder(file).await?;
        let written = match method {
            WriteMethod::Whole => tokio::fs::write(file, bytes).await,
            WriteMethod::Rename => {
                let mut part = file.as_os_str().to_owned();
                part.push(".part");
                match tokio::fs::write(&part, bytes).await {
                    Ok(()) => tokio::fs::rename(&part, file).await,
                    Err(error) => Err(error),
                }
            }
            WriteMethod::Pieces => self.write_pieces(file, bytes).await,
        };
        written.map_err(|error| Error::local(operation(), error))
    }

    /// Writes as over a slow network share: for a while, the file is incomplete.
    async fn write_pieces(&self, file: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = tokio::fs::File::create(file).await?;
        for piece in bytes.chunks(bytes.len().div_ceil(4).max(1)) {
            out.write_all(piece).await?;
            out.flush().await?;
            self.wait(Duration::from_millis(150)).await;
        }
        Ok(())
    }

    /// Waits about `mean`. Returns false if shutdown came first.
    async fn pause(&self, mean: Duration, rng: &mut StdRng) -> bool {
        let seconds = mean.as_secs_f64() * rng.random_range(0.5..1.5);
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or(mean);
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => false,
            () = tokio::time::sleep(wait) => true,
        }
    }

    /// Waits in the middle of an activity. Shutdown ends the wait, not the activity.
    async fn wait(&self, wait: Duration) {
        // The activity continues after the wait and after a shutdown.
        let _ = tokio::time::timeout(wait, self.shutdown.cancelled()).await;
    }

    async fn query_one(&self, statement: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        self.client
            .query_one(statement, values)
            .await
            .map_err(postgres_error)
    }
}

enum SlipRow {
    Leave(Leave),
    Pass(PassSlip),
}

/// How a file is written.
#[derive(Clone, Copy)]
enum WriteMethod {
    /// With another name, and then renamed.
    Rename,
    /// At once.
    Whole,
    /// Slowly, piece by piece.
    Pieces,
}

async fn create_folder(file: &Path) -> Result<()> {
    let folder = file.parent().unwrap_or(file);
    tokio::fs::create_dir_all(folder)
        .await
        .map_err(|error| Error::local(format!("create the folder {}", folder.display()), error))
}

/// Runs work that writes to the disk on a thread that may block.
async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(Kind::Local, "write a recording", error.to_string()).caused_by(error))?
}

fn postgres_error(error: tokio_postgres::Error) -> Error {
    Error::postgres("make live traffic", error)
}
