//! The school's rooms and cameras, what the cameras recognize, and the school's time zone.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::{Offset, TimeZone};
use rand::{RngExt, rngs::StdRng};

use super::people::Person;

/// The school's time zone, 8 hours ahead of UTC.
pub(super) const SCHOOL_OFFSET: Offset = Offset::constant(8);

/// A room.
pub(super) struct Room {
    /// Building, floor and door, as digits.
    pub(super) number: String,
    /// Building.
    pub(super) building: i64,
    /// Floor.
    pub(super) floor: i64,
}

impl Room {
    /// The room with this id. The camera in it has the same id.
    pub(super) fn new(id: i64) -> Self {
        let (building, floor) = ((id - 1) / 12 + 1, (id - 1) / 4 % 3 + 1);
        Self {
            number: format!("{building}{floor}{:02}", (id - 1) % 4 + 1),
            building,
            floor,
        }
    }
}

/// What a camera's face recognition logged.
pub(super) struct Recognition {
    /// The faculty that it recognized; `None` for an unknown person.
    pub(super) faculty: Option<i64>,
    /// The camera's name.
    pub(super) camera_name: String,
    /// The camera's room.
    pub(super) room_name: String,
    /// The camera's building.
    pub(super) building: String,
    /// The faculty's name, or `Unknown`.
    pub(super) name: String,
    /// `recognized` or `unknown`.
    pub(super) status: &'static str,
    /// The distance to the nearest known face, with six digits.
    pub(super) distance: String,
}

impl Recognition {
    /// A camera sees a faculty or, unless `known`, a person whom it does not know.
    pub(super) fn new(seed: u64, camera: i64, faculty: i64, known: bool, rng: &mut StdRng) -> Self {
        let room = Room::new(camera);
        let distance = if known {
            rng.random_range(0.18..0.45_f64)
        } else {
            rng.random_range(0.6..0.95)
        };
        Self {
            faculty: known.then_some(faculty),
            camera_name: format!("Camera {camera:02}"),
            room_name: format!("Lecture Room {}", room.number),
            building: room.building.to_string(),
            name: if known {
                Person::new(seed, faculty).name()
            } else {
                "Unknown".to_owned()
            },
            status: if known { "recognized" } else { "unknown" },
            distance: format!("{distance:.6}"),
        }
    }
}

/// A recording's path below the media root: day, camera, and the second in which it started.
pub(super) fn recording_path(camera: i64, start: Timestamp) -> String {
    let start = start.to_zoned(TimeZone::fixed(SCHOOL_OFFSET));
    let (day, stamp) = (start.strftime("%Y-%m-%d"), start.strftime("%Y%m%d_%H%M%S"));
    format!("stream_recordings/{day}/camera_{camera:02}_{stamp}.mp4")
}

/// A time in ISO 8601 with the school's offset, as the application writes it into text columns.
pub(super) fn school_time(at: Timestamp) -> String {
    let zoned = at.to_zoned(TimeZone::fixed(SCHOOL_OFFSET));
    zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// The date at the school.
pub(super) fn school_day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::fixed(SCHOOL_OFFSET)).date()
}

/// The path of a faculty's photo below the media root.
pub(super) fn photo_path(faculty: i64, shot: usize) -> String {
    format!("faculty_images/{faculty}/faculty_{faculty:03}_{shot}.jpg")
}
