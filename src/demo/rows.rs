//! The rows of the sample school's tables, and the files that they name.

use std::fmt::Write;

use bytes::Bytes;
use futures::SinkExt;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, rngs::StdRng};
use tokio_postgres::Transaction;

use super::campus::{Recognition, Room, SCHOOL_OFFSET, photo_path, recording_path, school_day, school_time};
use super::media_files::{SampleFile, WrittenRecording};
use super::people::{COURSES, DAYS, Person, age, pick, rng_for};
use super::pictures;
use super::school_size::SchoolSize;
use super::slips::{Leave, PassSlip};

const NULL: &str = "\\N";

/// Rows of one table in COPY's text format. No value here has a tab, a newline or a backslash.
pub(super) struct TableRows {
    /// The table's name.
    pub(super) name: &'static str,
    columns: &'static str,
    text: String,
    /// How many rows it has.
    pub(super) rows: u64,
}

impl TableRows {
    fn new(name: &'static str, columns: &'static str) -> Self {
        Self {
            name,
            columns,
            text: String::new(),
            rows: 0,
        }
    }

    /// Adds a row: the values of the columns, and when it was created. It was not updated since.
    fn row(&mut self, created: Timestamp, fields: &[&dyn std::fmt::Display]) {
        for field in fields {
            // Writing to a string cannot fail.
            let _ = write!(self.text, "{field}\t");
        }
        let _ = writeln!(self.text, "{created}\t{created}");
        self.rows += 1;
    }

    /// Writes the rows. Returns how many the server has written.
    pub(super) async fn copy(
        self,
        transaction: &Transaction<'_>,
    ) -> std::result::Result<u64, tokio_postgres::Error> {
        let statement = format!(
            "copy {} ({}, created_at, updated_at) from stdin",
            self.name, self.columns
        );
        let sink = transaction.copy_in::<_, Bytes>(&statement).await?;
        let mut sink = std::pin::pin!(sink);
        sink.send(self.text.into()).await?;
        sink.finish().await
    }
}

/// The contents of a school: they follow from its size, its seed, and the hour of its creation.
pub(super) struct School {
    size: SchoolSize,
    seed: u64,
    now: Timestamp,
}

impl School {
    /// The school as it is in the present hour.
    pub(super) fn new(size: SchoolSize, seed: u64) -> Self {
        let second = Timestamp::now().as_second();
        let now = Timestamp::from_second(second - second % 3600).unwrap_or_default();
        Self { size, seed, now }
    }

    fn rng(&self, kind: &str) -> StdRng {
        rng_for(self.seed, kind, 0)
    }

    fn ago(&self, seconds: i64) -> Timestamp {
        self.now
            .saturating_sub(SignedDuration::from_secs(seconds))
            .unwrap_or(self.now)
    }

    /// When the rows of a table with a retention were created, oldest first. Three of five are younger than
    /// the retention, which is in days, as `oldest` is.
    fn creation_times(&self, kind: &str, count: i64, retention: i64, oldest: i64) -> Vec<Timestamp> {
        let mut rng = self.rng(kind);
        let mut ages: Vec<i64> = (0..count)
            .map(|index| age(retention, oldest, index % 5 < 3, &mut rng))
            .collect();
        ages.sort_unstable_by(|a, b| b.cmp(a));
        ages.into_iter().map(|seconds| self.ago(seconds)).collect()
    }

    /// Every table except the recordings: their rows contain the sizes of their files, which must be written
    /// first.
    pub(super) fn tables(&self) -> [TableRows; 8] {
        [
            self.rooms(),
            self.cameras(),
            self.faculties(),
            self.teaching_loads(),
            self.attendance_records(),
            self.leaves(),
            self.passes(),
            self.recognition_logs(),
        ]
    }

    fn rooms(&self) -> TableRows {
        let mut table = TableRows::new("tbl_room", "room_no, room_name, room_building_no, room_floor_no");
        for id in 1..=self.size.rooms {
            let room = Room::new(id);
            let name = if id % 6 == 0 { "Laboratory" } else { "Lecture Room" };
            table.row(
                self.ago(700 * 86_400 - id),
                &[
                    &room.number,
                    &format_args!("{name} {}", room.number),
                    &room.building,
                    &room.floor,
                ],
            );
        }
        table
    }

    fn cameras(&self) -> TableRows {
        let mut table = TableRows::new(
            "tbl_camera",
            "camera_name, camera_ip_address, camera_username, camera_password, camera_live_feed, room_no, \
             room_name, room_building_no",
        );
        let mut rng = self.rng("cameras");
        for id in 1..=self.size.cameras {
            let room = Room::new(id);
            let address = format!("10.20.{}.{}", room.building, 100 + id);
            let password: String = (0..10)
                .map(|_| char::from(rng.random_range(b'a'..=b'z')))
                .collect();
            let feed = format!("rtsp://viewer:{password}@{address}:554/stream{}", id % 2 + 1);
            table.row(
                self.ago(600 * 86_400 - id),
                &[
                    &format_args!("Camera {id:02}"),
                    &address,
                    &"viewer",
                    &password,
                    &feed,
                    &room.number,
                    &format_args!("Lecture Room {}", room.number),
                    &room.building,
                ],
            );
        }
        table
    }

    fn faculties(&self) -> TableRows {
        let mut table = TableRows::new(
            "tbl_faculty",
            "faculty_fname, faculty_mname, faculty_lname, faculty_department, faculty_images, \
             faculty_face_embedding",
        );
        for id in 1..=self.size.faculties {
            let person = Person::new(self.seed, id);
            let images = serde_json::json!([photo_path(id, 1), photo_path(id, 2), photo_path(id, 3)]);
            let mut rng = rng_for(self.seed, "embedding", id);
            let numbers: Vec<String> = (0..128)
                .map(|_| format!("{:.6}", rng.random_range(-0.25..0.25_f64)))
                .collect();
            table.row(
                self.ago(500 * 86_400 - id * 3600),
                &[
                    &person.first,
                    &person.middle,
                    &person.last,
                    &person.department,
                    &images,
                    &format_args!("[{}]", numbers.join(",")),
                ],
            );
        }
        table
    }

    fn teaching_loads(&self) -> TableRows {
        let mut table = TableRows::new(
            "tbl_teaching_load",
            "faculty_id, room_no, teaching_load_course_code, teaching_load_subject, \
             teaching_load_class_section, teaching_load_day_of_week, teaching_load_time_in, \
             teaching_load_time_out, teaching_load_semester, teaching_load_school_year",
        );
        for id in 1..=self.size.teaching_loads {
            let mut rng = rng_for(self.seed, "teaching load", id);
            let (code, subject) = pick(&COURSES, &mut rng);
            let hour = rng.random_range(7..17);
            table.row(
                self.ago(150 * 86_400 - id * 60),
                &[
                    &(id % self.size.faculties + 1),
                    &Room::new(rng.random_range(1..=self.size.rooms)).number,
                    &code,
                    &subject,
                    &format_args!(
                        "{}-{}",
                        rng.random_range(1..5),
                        char::from(rng.random_range(b'A'..=b'F'))
                    ),
                    &pick(&DAYS, &mut rng),
                    &format_args!("{hour:02}:00:00"),
                    &format_args!("{:02}:30:00", hour + 1),
                    &"First",
                    &"2026-2027",
                ],
            );
        }
        table
    }

    fn attendance_records(&self) -> TableRows {
        let mut table = TableRows::new(
            "tbl_attendance_record",
            "faculty_id, teaching_load_id, camera_id, record_date, record_time_in, record_time_out, \
             time_duration_seconds, record_status, record_remarks",
        );
        let mut rng = self.rng("attendance");
        for created in self.creation_times("attendance", self.size.attendance_records, 30, 150) {
            let load = rng.random_range(1..=self.size.teaching_loads);
            let seconds = rng.random_range(1800..5400);
            let day = created.to_zoned(TimeZone::fixed(SCHOOL_OFFSET)).start_of_day();
            let out = created
                .saturating_add(SignedDuration::from_secs(seconds))
                .unwrap_or(created);
            let late = rng.random_bool(0.12);
            table.row(
                created,
                &[
                    &(load % self.size.faculties + 1),
                    &load,
                    &rng.random_range(1..=self.size.cameras),
                    &day.map_or(created, |day| day.timestamp()),
                    &created,
                    &out,
                    &seconds,
                    &if late { "Late" } else { "Present" },
                    &if late { "Came after the bell" } else { NULL },
                ],
            );
        }
        table
    }

    fn leaves(&self) -> TableRows {
        let mut table = TableRows::new(
            "tbl_leave",
            "faculty_id, leave_reason, leave_start_date, leave_end_date, leave_type, leave_status, \
             leave_slip_image",
        );
        for (created, leave) in self.leave_slips() {
            table.row(
                created,
                &[
                    &leave.faculty,
                    &leave.reason,
                    &leave.start,
                    &leave.end,
                    &leave.kind,
                    &leave.status,
                    &leave.path(),
                ],
            );
        }
        table
    }

    fn passes(&self) -> TableRows {
        let mut table = TableRows::new(
            "tbl_pass",
            "faculty_id, pass_reason, pass_date, pass_time_out, pass_time_in, pass_status, pass_slip_image",
        );
        for (created, pass) in self.pass_slips() {
            table.row(
                created,
                &[
                    &pass.faculty,
                    &pass.reason,
                    &pass.date,
                    &pass.time_out,
                    &pass.time_in,
                    &pass.status,
                    &pass.path(),
                ],
            );
        }
        table
    }

    fn recognition_logs(&self) -> TableRows {
        let mut table = TableRows::new(
            "tbl_recognition_logs",
            "camera_id, faculty_id, recognition_time, camera_name, room_name, building_no, faculty_name, \
             status, distance",
        );
        let mut rng = self.rng("recognition");
        for created in self.creation_times("recognition", self.size.recognition_logs, 7, 60) {
            let (camera, faculty) = (
                rng.random_range(1..=self.size.cameras),
                rng.random_range(1..=self.size.faculties),
            );
            let seen = Recognition::new(self.seed, camera, faculty, rng.random_bool(0.85), &mut rng);
            let id = seen.faculty.map_or(NULL.to_owned(), |id| id.to_string());
            table.row(
                created,
                &[
                    &camera,
                    &id,
                    &school_time(created),
                    &seen.camera_name,
                    &seen.room_name,
                    &seen.building,
                    &seen.name,
                    &seen.status,
                    &seen.distance,
                ],
            );
        }
        table
    }

    /// The recordings that were written.
    pub(super) fn recordings(recordings: &[WrittenRecording]) -> TableRows {
        let mut table = TableRows::new(
            "tbl_stream_recordings",
            "camera_id, filename, filepath, start_time, duration, frames, file_size",
        );
        for recording in recordings {
            let filename = recording.path.rsplit('/').next().unwrap_or(&recording.path);
            table.row(
                recording.start,
                &[
                    &recording.camera,
                    &filename,
                    &recording.path,
                    &school_time(recording.start),
                    &recording.facts.seconds,
                    &recording.facts.frames,
                    &recording.facts.bytes,
                ],
            );
        }
        table
    }

    /// Every file.
    pub(super) fn files(&self) -> Vec<SampleFile> {
        let mut rng = self.rng("recordings");
        let count = self.size.recordings;
        let mut ages: Vec<i64> = (0..count)
            .map(|index| age(7, 40, index % 10 < 7, &mut rng))
            .collect();
        ages.sort_unstable_by(|a, b| b.cmp(a));
        let (smallest, largest) = self.size.video_bytes;
        let videos = ages.into_iter().zip(0..).map(|(seconds, index)| {
            let start = self.ago(seconds);
            let camera = rng.random_range(1..=self.size.cameras);
            SampleFile::Recording {
                path: recording_path(camera, start),
                camera,
                start,
                // The sizes are evenly distributed, and large and small ones alternate over the dates.
                bytes: smallest
                    + (largest - smallest) * (index * 7 % count) as u64 / (count - 1).max(1) as u64,
            }
        });
        let leaves = self.leave_slips().map(|(_, leave)| SampleFile::Picture {
            path: leave.path(),
            picture: leave.scan(),
        });
        let passes = self.pass_slips().map(|(_, pass)| SampleFile::Picture {
            path: pass.path(),
            picture: pass.scan(),
        });
        let photos = (1..=self.size.faculties).flat_map(|id| {
            (1..=3).map(move |shot| SampleFile::Picture {
                path: photo_path(id, shot),
                picture: pictures::photo(id, shot),
            })
        });
        videos.chain(leaves).chain(passes).chain(photos).collect()
    }

    fn leave_slips(&self) -> impl Iterator<Item = (Timestamp, Leave)> {
        let creation_times = self
            .creation_times("leaves", self.size.leaves, 90, 240)
            .into_iter()
            .zip(1..);
        creation_times.map(|(created, id)| {
            (
                created,
                Leave::new(self.seed, id, self.size.faculties, school_day(created)),
            )
        })
    }

    fn pass_slips(&self) -> impl Iterator<Item = (Timestamp, PassSlip)> {
        let creation_times = self
            .creation_times("passes", self.size.passes, 90, 240)
            .into_iter()
            .zip(1..);
        creation_times.map(|(created, id)| {
            (
                created,
                PassSlip::new(self.seed, id, self.size.faculties, school_day(created)),
            )
        })
    }
}
