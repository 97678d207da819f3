//! Camera recordings: a corridor, someone walking through it, and the clock in the corner.

use std::fs::File;
use std::path::Path;

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::canvas::{Canvas, Colour, Grain, dim, mix};
use super::mp4::Mp4;
use crate::error::{Error, Result};

/// The picture's width and height.
const SIZE: (u16, u16) = (640, 360);
/// Frames a second.
pub(super) const RATE: u32 = 5;
/// Where the corridor's lines meet.
const VANISHING: [f32; 2] = [320.0, 128.0];
/// The clock on the wall of the school, 8 hours ahead of UTC.
pub(super) const SCHOOL_TIME: Offset = Offset::constant(8);

/// What a finished recording's row says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// Length in seconds, rounded up.
    pub(super) seconds: i32,
    /// Number of frames.
    pub(super) frames: i32,
    /// Bytes of the file.
    pub(super) bytes: i64,
}

/// A recording in the making: its file grows with each frame.
pub(super) struct Recording {
    mp4: Mp4<File>,
    scene: Scene,
    start: Timestamp,
}

impl Recording {
    /// Starts the file; its folder must be there.
    pub(super) fn create(path: &Path, camera: i64, start: Timestamp, seed: u64) -> Result<Self> {
        let created = u64::try_from(start.as_second()).unwrap_or(0);
        let mp4 = File::create(path)
            .and_then(|file| Mp4::start(file, SIZE, RATE, created))
            .map_err(|error| Error::local(format!("write {}", path.display()), error))?;
        Ok(Self {
            mp4,
            scene: Scene::new(camera, seed),
            start,
        })
    }

    /// Appends the next frame.
    pub(super) fn append(&mut self) -> Result<()> {
        let frame = self.scene.frame(self.mp4.frames() as u32, self.start)?;
        self.mp4
            .append(&frame)
            .map_err(|error| Error::local("append to a recording", error))
    }

    /// Bytes of frames so far.
    pub(super) fn bytes(&self) -> u64 {
        self.mp4.frame_bytes()
    }

    /// Writes the index, after which the file can be played.
    pub(super) fn finish(self) -> Result<Facts> {
        let frames = self.mp4.frames() as u32;
        let finished = self.mp4.finish().and_then(|file| file.metadata());
        let bytes = finished
            .map_err(|error| Error::local("finish a recording", error))?
            .len();
        Ok(Facts {
            seconds: frames.div_ceil(RATE) as i32,
            frames: frames as i32,
            bytes: bytes as i64,
        })
    }
}

/// A corridor as one camera sees it, and the one who walks there.
struct Scene {
    corridor: Canvas,
    grain: Grain,
    rng: StdRng,
    label: String,
    coat: Colour,
    lane: f32,
    /// Seconds from one end to the other.
    walk: f32,
}

impl Scene {
    fn new(camera: i64, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tone = StdRng::seed_from_u64(camera as u64);
        let wall = mix([186, 190, 184], [150, 168, 186], tone.random());
        Self {
            corridor: corridor(wall),
            grain: Grain::new(&mut rng, 11),
            label: format!("CAM {camera:02}"),
            coat: mix([60, 40, 40], [40, 80, 150], rng.random()),
            lane: rng.random_range(-0.45..0.45),
            walk: rng.random_range(6.0..11.0),
            rng,
        }
    }

    fn frame(&mut self, number: u32, start: Timestamp) -> Result<Vec<u8>> {
        let seconds = number as f32 / RATE as f32;
        let mut canvas = self.corridor.clone();
        // There and back again.
        let turns = seconds / self.walk;
        let away = if (turns as u32).is_multiple_of(2) {
            turns.fract()
        } else {
            1.0 - turns.fract()
        };
        walker(&mut canvas, away, self.lane, seconds, self.coat);
        canvas.grain(&self.grain, &mut self.rng);
        let now = Timestamp::from_second(start.as_second() + i64::from(number / RATE)).unwrap_or(start);
        let clock = now
            .to_zoned(TimeZone::fixed(SCHOOL_TIME))
            .strftime("%Y-%m-%d %H:%M:%S");
        canvas.rect(8, 8, 268, 40, [16, 18, 20]);
        canvas.text(14, 12, 2, [236, 236, 220], &self.label);
        canvas.text(14, 30, 2, [236, 236, 220], &clock.to_string());
        canvas.ellipse([262.0, 19.0], [5.0, 5.0], [220, 40, 40], 0.0);
        canvas.jpeg(72)
    }
}

/// A point of the corridor: `across` from -1 (left wall) to 1, `up` from -1 (floor) to 1 (ceiling), `depth` from 1
/// (at the camera) upward.
fn project(across: f32, up: f32, depth: f32) -> [f32; 2] {
    [
        VANISHING[0] + across * 380.0 / depth,
        VANISHING[1] - up * 250.0 / depth,
    ]
}

fn corridor(wall: Colour) -> Canvas {
    let (width, height) = (usize::from(SIZE.0), usize::from(SIZE.1));
    let mut canvas = Canvas::new(width, height, wall);
    let quad = |canvas: &mut Canvas, corners: [[f32; 3]; 4], colour: Colour| {
        canvas.polygon(
            &corners.map(|[across, up, depth]| project(across, up, depth)),
            colour,
        );
    };
    // From the far end to the camera, the light falls off.
    for step in (0..24).rev() {
        let (near, far) = (1.0 + step as f32 * 0.5, 1.5 + step as f32 * 0.5);
        let light = 1.0 - step as f32 * 0.018;
        let tile: Colour = if step % 2 == 0 {
            [126, 118, 106]
        } else {
            [114, 107, 97]
        };
        quad(
            &mut canvas,
            [
                [-1.0, -1.0, near],
                [1.0, -1.0, near],
                [1.0, -1.0, far],
                [-1.0, -1.0, far],
            ],
            dim(tile, light),
        );
        quad(
            &mut canvas,
            [
                [-1.0, 1.0, near],
                [1.0, 1.0, near],
                [1.0, 1.0, far],
                [-1.0, 1.0, far],
            ],
            dim([214, 214, 208], light),
        );
        for side in [-1.0, 1.0] {
            let shade = if side < 0.0 { 0.92 } else { 0.8 };
            quad(
                &mut canvas,
                [
                    [side, -1.0, near],
                    [side, 1.0, near],
                    [side, 1.0, far],
                    [side, -1.0, far],
                ],
                dim(wall, light * shade),
            );
            quad(
                &mut canvas,
                [
                    [side, -1.0, near],
                    [side, -0.55, near],
                    [side, -0.55, far],
                    [side, -1.0, far],
                ],
                dim([92, 116, 104], light * shade),
            );
        }
        if step % 3 == 1 {
            quad(
                &mut canvas,
                [
                    [-0.25, 1.0, near],
                    [0.25, 1.0, near],
                    [0.25, 1.0, far],
                    [-0.25, 1.0, far],
                ],
                [250, 250, 242],
            );
        }
        if step % 5 == 2 {
            for side in [-1.0, 1.0] {
                quad(
                    &mut canvas,
                    [
                        [side, -1.0, near],
                        [side, 0.35, near],
                        [side, 0.35, far + 0.3],
                        [side, -1.0, far + 0.3],
                    ],
                    dim([112, 76, 50], light),
                );
                quad(
                    &mut canvas,
                    [
                        [side, 0.0, near + 0.15],
                        [side, 0.2, near + 0.15],
                        [side, 0.2, far],
                        [side, 0.0, far],
                    ],
                    dim([176, 196, 206], light),
                );
            }
        }
    }
    let [left, top] = project(-1.0, 1.0, 13.0);
    let [right, bottom] = project(1.0, -1.0, 13.0);
    canvas.rect(
        left as i32,
        top as i32,
        (right - left) as i32,
        (bottom - top) as i32,
        dim(wall, 0.6),
    );
    canvas.rect(
        left as i32 + 14,
        top as i32 + 8,
        (right - left) as i32 - 28,
        (bottom - top) as i32 - 8,
        [198, 214, 224],
    );
    canvas
}

/// Someone at `away` (0 near, 1 at the far end) in a lane of the corridor, in mid-step.
fn walker(canvas: &mut Canvas, away: f32, lane: f32, seconds: f32, coat: Colour) {
    let depth = 1.7 + away * 8.0;
    let [x, floor] = project(lane, -1.0, depth);
    let tall = 330.0 / depth;
    let at = |across: f32, up: f32| [x + across * tall, floor - up * tall];
    let swing = (seconds * 7.0).sin() * 0.13;
    let light = 1.0 - away * 0.35;
    let (coat, trousers) = (dim(coat, light), dim([44, 46, 58], light));
    let skin = dim([206, 164, 132], light);
    canvas.ellipse(
        [x, floor],
        [tall * 0.24, tall * 0.05],
        dim([70, 66, 60], light),
        0.0,
    );
    for side in [-1.0, 1.0] {
        let knee = at(side * 0.06 + side * swing * 0.5, 0.24);
        canvas.path(
            &[at(side * 0.05, 0.48), knee, at(side * 0.06 + side * swing, 0.02)],
            tall * 0.085,
            trousers,
        );
        canvas.path(
            &[
                at(side * 0.13, 0.78),
                at(side * 0.17 - side * swing * 0.4, 0.6),
                at(side * 0.15 - side * swing, 0.46),
            ],
            tall * 0.06,
            dim(coat, 0.85),
        );
    }
    canvas.ellipse(at(0.0, 0.64), [tall * 0.135, tall * 0.2], coat, 0.35);
    canvas.ellipse(at(0.0, 0.93), [tall * 0.065, tall * 0.085], skin, 0.3);
    canvas.ellipse(
        at(0.0, 0.965),
        [tall * 0.07, tall * 0.055],
        dim([40, 32, 28], light),
        0.2,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_grows_with_each_frame_and_ends_with_its_index() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corridor.mp4");
        let start = Timestamp::from_second(1_790_000_000).unwrap();
        let mut recording = Recording::create(&path, 3, start, 9).unwrap();
        let mut before = path.metadata().unwrap().len();
        for _ in 0..6 {
            recording.append().unwrap();
            let now = path.metadata().unwrap().len();
            assert!(now > before);
            before = now;
        }
        let facts = recording.finish().unwrap();
        assert_eq!((facts.frames, facts.seconds), (6, 2));
        let file = std::fs::read(&path).unwrap();
        assert_eq!(file.len() as i64, facts.bytes);
        assert_eq!(&file[4..8], b"ftyp");
        assert!(file.windows(4).any(|four| four == b"moov"));
    }
}
