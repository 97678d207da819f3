//! How large a sample school is.

/// How large a school is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchoolSize {
    /// Rooms.
    pub rooms: i64,
    /// Cameras, at most as many as rooms.
    pub cameras: i64,
    /// Faculties, with three photos each.
    pub faculties: i64,
    /// Teaching loads.
    pub teaching_loads: i64,
    /// Attendance records.
    pub attendance_records: i64,
    /// Leaves, with a scanned slip each.
    pub leaves: i64,
    /// Passes, with a scanned slip each.
    pub passes: i64,
    /// Recognition logs.
    pub recognition_logs: i64,
    /// Recordings, with a video each. Seven of ten are younger than their retention.
    pub recordings: i64,
    /// Bytes of the smallest and the largest video, at least.
    pub video_bytes: (u64, u64),
}

impl SchoolSize {
    /// The demo's school: 30,830 rows, 590 files of about 140 MB.
    pub fn full() -> Self {
        Self {
            rooms: 40,
            cameras: 20,
            faculties: 60,
            teaching_loads: 300,
            attendance_records: 20_000,
            leaves: 200,
            passes: 200,
            recognition_logs: 10_000,
            recordings: 10,
            video_bytes: (1_000_000, 19_500_000),
        }
    }

    /// A school for tests: a few rows and files of each kind.
    pub fn small() -> Self {
        Self {
            rooms: 4,
            cameras: 3,
            faculties: 4,
            teaching_loads: 8,
            attendance_records: 200,
            leaves: 6,
            passes: 6,
            recognition_logs: 100,
            recordings: 3,
            video_bytes: (100_000, 300_000),
        }
    }
}
