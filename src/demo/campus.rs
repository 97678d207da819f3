//! The school's rooms and cameras, what the cameras see, and how the school tells time.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::{Offset, TimeZone};
use rand::{RngExt, rngs::StdRng};

use super::people::Person;

/// The clock on the wall of the school, 8 hours ahead of UTC.
pub(super) const SCHOOL_TIME: Offset = Offset::constant(8);

/// A room, by its id.
pub(super) struct Room {
    /// Building, floor and door.
    pub(super) no: String,
    /// Building.
    pub(super) building: i64,
    /// Floor.
    pub(super) floor: i64,
}

impl Room {
    /// The room with this id; a camera hangs in the room with its own id.
    pub(super) fn of(id: i64) -> Self {
        let (building, floor) = ((id - 1) / 12 + 1, (id - 1) / 4 % 3 + 1);
        Self {
            no: format!("{building}{floor}{:02}", (id - 1) % 4 + 1),
            building,
            floor,
        }
    }
}

/// What a camera's face recognition wrote down.
pub(super) struct Sighting {
    /// Whom it knew, if anyone.
    pub(super) faculty: Option<i64>,
    /// The camera's name.
    pub(super) camera_name: String,
    /// Where the camera hangs.
    pub(super) room_name: String,
    /// In which building.
    pub(super) building: String,
    /// The name of whom it knew, or `Unknown`.
    pub(super) name: String,
    /// `recognized` or `unknown`.
    pub(super) status: &'static str,
    /// How far the face lay from the nearest known one, with six digits.
    pub(super) distance: String,
}

impl Sighting {
    /// A sighting of a faculty by a camera; of a stranger where it is not `known`.
    pub(super) fn new(seed: u64, camera: i64, faculty: i64, known: bool, rng: &mut StdRng) -> Self {
        let room = Room::of(camera);
        let distance = if known {
            rng.random_range(0.18..0.45_f64)
        } else {
            rng.random_range(0.6..0.95)
        };
        Self {
            faculty: known.then_some(faculty),
            camera_name: format!("Camera {camera:02}"),
            room_name: format!("Lecture Room {}", room.no),
            building: room.building.to_string(),
            name: if known {
                Person::of(seed, faculty).name()
            } else {
                "Unknown".to_owned()
            },
            status: if known { "recognized" } else { "unknown" },
            distance: format!("{distance:.6}"),
        }
    }
}

/// Where a recording lies below the media root: by day, camera and the second in which it started.
pub(super) fn recording_path(camera: i64, start: Timestamp) -> String {
    let start = start.to_zoned(TimeZone::fixed(SCHOOL_TIME));
    let (day, stamp) = (start.strftime("%Y-%m-%d"), start.strftime("%Y%m%d_%H%M%S"));
    format!("stream_recordings/{day}/camera_{camera:02}_{stamp}.mp4")
}

/// ISO 8601 with the school's offset, as the application writes times into text columns.
pub(super) fn school_time(at: Timestamp) -> String {
    let zoned = at.to_zoned(TimeZone::fixed(SCHOOL_TIME));
    zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// The school's date at a moment.
pub(super) fn school_day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::fixed(SCHOOL_TIME)).date()
}

/// Where a faculty's photo lies below the media root.
pub(super) fn photo_path(faculty: i64, shot: usize) -> String {
    format!("faculty_images/{faculty}/faculty_{faculty:03}_{shot}.jpg")
}
