//! The sample school's pictures: portraits of its faculties, and scanned leave and pass slips.

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::canvas::{Canvas, Colour, Grain, dim, mix};
use crate::error::Result;

const SKINS: [Colour; 6] = [
    [244, 214, 188],
    [232, 190, 155],
    [214, 166, 126],
    [190, 138, 98],
    [150, 104, 72],
    [112, 76, 54],
];
const HAIRS: [Colour; 6] = [
    [28, 24, 22],
    [48, 34, 26],
    [84, 56, 34],
    [120, 84, 48],
    [150, 146, 142],
    [62, 22, 18],
];
const SHIRTS: [Colour; 7] = [
    [36, 58, 110],
    [128, 36, 44],
    [238, 236, 230],
    [50, 92, 70],
    [70, 70, 78],
    [180, 140, 60],
    [92, 58, 112],
];
const WALLS: [Colour; 5] = [
    [196, 206, 216],
    [214, 206, 190],
    [176, 196, 186],
    [222, 222, 222],
    [168, 178, 200],
];

/// A person's portrait, 480x600, 20 to 80 KB. The same person looks alike in each of the shots.
pub(super) fn portrait(person: u64, shot: u64) -> Result<Vec<u8>> {
    let mut face = StdRng::seed_from_u64(person);
    let mut moment = StdRng::seed_from_u64(person ^ (shot + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let skin = vary(SKINS[face.random_range(0..SKINS.len())], 8, &mut face);
    let hair = vary(HAIRS[face.random_range(0..HAIRS.len())], 6, &mut face);
    let (wide, tall) = (
        face.random_range(92.0..112.0_f32),
        face.random_range(122.0..142.0_f32),
    );
    let long_hair = face.random_bool(0.45);
    let glasses = face.random_bool(0.35);
    let lips = mix(skin, [170, 50, 60], face.random_range(0.3..0.6));
    let (eyes_apart, nose_long) = (
        face.random_range(36.0..44.0_f32),
        face.random_range(26.0..38.0_f32),
    );

    let wall = vary(WALLS[moment.random_range(0..WALLS.len())], 10, &mut moment);
    let shirt = vary(SHIRTS[moment.random_range(0..SHIRTS.len())], 10, &mut moment);
    let turn = (shot as f32 - 1.0) * 16.0 + moment.random_range(-4.0..4.0_f32);
    let (x, y) = (
        240.0 + moment.random_range(-14.0..14.0_f32),
        250.0 + moment.random_range(-12.0..12.0_f32),
    );
    let smile = moment.random_range(2.0..12.0_f32);

    let mut canvas = Canvas::fading(480, 600, wall, dim(wall, 0.72));
    if long_hair {
        canvas.ellipse([x, y + 50.0], [wide + 30.0, tall + 62.0], dim(hair, 0.8), 0.3);
    }
    canvas.ellipse([x, 640.0], [218.0, 196.0], shirt, 0.45);
    canvas.ellipse(
        [x + turn * 0.2, y + tall + 18.0],
        [46.0, 72.0],
        dim(skin, 0.82),
        0.35,
    );
    canvas.polygon(
        &[[x - 62.0, 470.0], [x, 556.0], [x - 90.0, 520.0]],
        dim(shirt, 1.25),
    );
    canvas.polygon(
        &[[x + 62.0, 470.0], [x, 556.0], [x + 90.0, 520.0]],
        dim(shirt, 1.1),
    );
    for side in [-1.0, 1.0] {
        canvas.ellipse(
            [x + side * (wide - 2.0) - turn * 0.3, y + 14.0],
            [16.0, 28.0],
            dim(skin, 0.9),
            0.3,
        );
    }
    canvas.ellipse([x, y - 26.0], [wide + 12.0, tall + 8.0], hair, 0.35);
    canvas.ellipse([x + turn * 0.25, y + 12.0], [wide - 2.0, tall - 8.0], skin, 0.28);
    // The fringe, with a parting on the side that the head turns from.
    canvas.ellipse([x - 30.0 - turn, y - 100.0], [wide * 0.72, 40.0], hair, 0.2);
    canvas.ellipse([x + 52.0 - turn, y - 96.0], [wide * 0.52, 36.0], hair, 0.3);
    for side in [-1.0, 1.0] {
        let eye = x + turn + side * eyes_apart;
        canvas.path(
            &[[eye - 22.0, y - 24.0], [eye, y - 33.0], [eye + 20.0, y - 26.0]],
            6.0,
            dim(hair, 0.9),
        );
        canvas.ellipse([eye, y], [18.0, 9.5], [246, 244, 240], 0.15);
        canvas.ellipse([eye + turn * 0.15, y], [8.5, 8.5], [64, 42, 28], 0.2);
        canvas.ellipse([eye + turn * 0.15, y], [4.0, 4.0], [8, 8, 8], 0.0);
        canvas.ellipse(
            [eye + turn * 0.15 - 3.0, y - 3.0],
            [2.0, 2.0],
            [255, 255, 255],
            0.0,
        );
        canvas.path(
            &[[eye - 18.0, y - 2.0], [eye, y - 10.0], [eye + 18.0, y - 2.0]],
            2.5,
            dim(skin, 0.45),
        );
        canvas.ellipse(
            [x + turn + side * 52.0, y + 46.0],
            [24.0, 16.0],
            mix(skin, [214, 110, 100], 0.06),
            0.1,
        );
    }
    let nose = x + turn * 1.3;
    canvas.path(
        &[
            [nose - 3.0, y + 8.0],
            [nose + 7.0, y + 12.0 + nose_long],
            [nose - 9.0, y + 18.0 + nose_long],
        ],
        3.0,
        dim(skin, 0.72),
    );
    let mouth: Vec<[f32; 2]> = (-6..=6)
        .map(|step| {
            let part = step as f32 / 6.0;
            [x + turn + part * 36.0, y + 84.0 + smile * (1.0 - part * part)]
        })
        .collect();
    canvas.path(&mouth, 8.0, lips);
    canvas.path(&mouth, 1.8, dim(lips, 0.5));
    if glasses {
        let frame = [36, 34, 40];
        for side in [-1.0, 1.0] {
            let eye = x + turn + side * eyes_apart;
            let rim: Vec<[f32; 2]> = (0..=20)
                .map(|step| {
                    let (sin, cos) = (step as f32 / 20.0 * std::f32::consts::TAU).sin_cos();
                    [eye + cos * 29.0, y + 2.0 + sin * 22.0]
                })
                .collect();
            canvas.path(&rim, 3.5, frame);
            canvas.stroke(
                [eye + side * 29.0, y - 2.0],
                [x + side * (wide + 4.0), y - 8.0],
                3.0,
                frame,
            );
        }
        canvas.stroke(
            [x + turn - eyes_apart + 28.0, y],
            [x + turn + eyes_apart - 28.0, y],
            3.0,
            frame,
        );
    }
    let grain = Grain::new(&mut moment, 7);
    canvas.grain(&grain, &mut moment);
    canvas.jpeg(82)
}

/// What is written on a slip.
pub(super) struct Slip<'a> {
    /// The printed title: LEAVE SLIP or PASS SLIP.
    pub(super) title: &'a str,
    /// The number stamped at the top.
    pub(super) number: i64,
    /// The printed labels, each with what a hand wrote behind it.
    pub(super) fields: &'a [(&'a str, String)],
    /// The stamped verdict: APPROVED, PENDING, DENIED.
    pub(super) verdict: &'a str,
}

/// A scanned paper form, 640x880: printed lines and labels, handwriting, a signature and a stamp, laid on the glass a
/// little askew.
pub(super) fn slip(slip: &Slip<'_>, seed: u64) -> Result<Vec<u8>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let paper = vary([244, 240, 228], 6, &mut rng);
    let print = [46, 46, 52];
    let ink = [[28, 44, 132], [22, 24, 34], [36, 70, 150]][rng.random_range(0..3)];
    let mut canvas = Canvas::fading(640, 880, paper, dim(paper, 0.94));
    for punched in [270.0, 610.0] {
        canvas.ellipse([26.0, punched], [12.0, 12.0], [96, 94, 92], 0.3);
    }
    canvas.text(112, 58, 3, print, "SAMPLE STATE COLLEGE");
    canvas.text(166, 92, 2, print, "OFFICE OF THE REGISTRAR");
    canvas.rect(60, 120, 530, 3, print);
    let width = slip.title.len() as i32 * 30;
    canvas.text(325 - width / 2, 144, 5, print, slip.title);
    canvas.text(430, 200, 2, [176, 40, 44], &format!("NO. {:06}", slip.number));
    let mut y = 256;
    for (label, written) in slip.fields {
        let end = canvas.text(64, y, 2, print, &format!("{label}:"));
        canvas.rect(end + 6, y + 18, 580 - end, 1, print);
        let mut x = end + 16;
        for letter in written.chars() {
            let lift = rng.random_range(-7..=-3);
            canvas.text(x, y + lift, 3, ink, letter.encode_utf8(&mut [0; 4]));
            x += 18 + rng.random_range(-1..=1);
        }
        y += 58;
    }
    for (nth, choice) in ["WITH PAY", "WITHOUT PAY", "OFFICIAL"].into_iter().enumerate() {
        let x = 70 + nth as i32 * 180;
        canvas.rect(x, y, 18, 18, print);
        canvas.rect(x + 2, y + 2, 14, 14, paper);
        canvas.text(x + 28, y + 3, 2, print, choice);
        if rng.random_bool(0.4) {
            let (x, y) = (x as f32, y as f32);
            canvas.path(
                &[[x + 2.0, y + 8.0], [x + 8.0, y + 15.0], [x + 20.0, y - 6.0]],
                2.5,
                ink,
            );
        }
    }
    let signature = signature(&mut rng, [360.0, 748.0]);
    canvas.path(&signature, 2.4, ink);
    canvas.rect(340, 774, 240, 1, print);
    canvas.text(388, 782, 2, print, "SIGNATURE");
    let stamp = [[190, 40, 52], [44, 74, 156]][rng.random_range(0..2)];
    let mut stamped = Canvas::new(640, 880, [255; 3]);
    let (x, y) = (70 + rng.random_range(0..40), 716 + rng.random_range(0..30));
    let width = slip.verdict.len() as i32 * 24 + 28;
    stamped.rect(x, y, width, 62, stamp);
    stamped.rect(x + 4, y + 4, width - 8, 54, [255; 3]);
    stamped.text(x + 16, y + 17, 4, stamp, slip.verdict);
    canvas.multiply(&stamped.tilted(rng.random_range(-0.06..0.06), [255; 3]));
    let glass = [70, 70, 74];
    let mut scan = canvas.tilted(rng.random_range(-0.02..0.02), glass);
    scan.rect(636, 0, 4, 880, dim(glass, 0.7));
    let grain = Grain::new(&mut rng, 5);
    scan.grain(&grain, &mut rng);
    scan.jpeg(70)
}

/// Loops that lean to the right, smaller and smaller.
fn signature(rng: &mut impl Rng, from: [f32; 2]) -> Vec<[f32; 2]> {
    let (loops, height) = (rng.random_range(3.0..7.0_f32), rng.random_range(18.0..30.0_f32));
    (0..=90)
        .map(|step| {
            let part = step as f32 / 90.0;
            let (sin, cos) = (part * loops * std::f32::consts::TAU).sin_cos();
            let size = height * (1.0 - part * 0.75);
            [
                from[0] + part * 170.0 + cos * size * 0.6 + sin * size * 0.3,
                from[1] - sin * size,
            ]
        })
        .collect()
}

fn vary(colour: Colour, by: i8, rng: &mut impl Rng) -> Colour {
    colour.map(|part| part.saturating_add_signed(rng.random_range(-by..=by)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Width and height out of a JPEG's frame header, having walked the markers from its start to its scan.
    fn size(jpeg: &[u8]) -> (u16, u16) {
        assert_eq!(jpeg[..2], [0xff, 0xd8], "starts with SOI");
        assert_eq!(jpeg[jpeg.len() - 2..], [0xff, 0xd9], "ends with EOI");
        let mut at = 2;
        let mut size = None;
        while jpeg[at + 1] != 0xda {
            assert_eq!(jpeg[at], 0xff, "a marker at {at}");
            let number = |at: usize| u16::from_be_bytes([jpeg[at], jpeg[at + 1]]);
            if matches!(jpeg[at + 1], 0xc0..=0xc2) {
                size = Some((number(at + 7), number(at + 5)));
            }
            at += 2 + number(at + 2) as usize;
        }
        size.expect("a frame header")
    }

    #[test]
    fn portraits_are_jpegs_of_20_to_80_kb_and_differ() {
        let shots: Vec<_> = (0..3).map(|shot| portrait(7, shot).unwrap()).collect();
        for shot in &shots {
            assert_eq!(size(shot), (480, 600));
            assert!((20_000..80_000).contains(&shot.len()), "{} bytes", shot.len());
        }
        assert_ne!(shots[0], shots[1]);
        assert_eq!(shots[0], portrait(7, 0).unwrap());
        assert_ne!(shots[0], portrait(8, 0).unwrap());
    }

    #[test]
    fn slips_are_jpegs() {
        let fields = [("NAME", "ANA CRUZ".to_owned()), ("DATE", "2026-03-01".to_owned())];
        let paper = Slip {
            title: "LEAVE SLIP",
            number: 12,
            fields: &fields,
            verdict: "APPROVED",
        };
        let scan = slip(&paper, 5).unwrap();
        assert_eq!(size(&scan), (640, 880));
        assert!((20_000..200_000).contains(&scan.len()), "{} bytes", scan.len());
    }
}
