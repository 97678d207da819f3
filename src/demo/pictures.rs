//! The sample school's pictures. Each is a copy of one of a few JPEG files that are part of the program.
//!
//! There are three photos of each of two faculties, and scans of two leave slips and two pass slips. A
//! comment segment makes each copy unique; programs that show a picture skip the comment.

const PHOTOS: [[&[u8]; 3]; 2] = [
    [
        include_bytes!("media/photo-a1.jpg"),
        include_bytes!("media/photo-a2.jpg"),
        include_bytes!("media/photo-a3.jpg"),
    ],
    [
        include_bytes!("media/photo-b1.jpg"),
        include_bytes!("media/photo-b2.jpg"),
        include_bytes!("media/photo-b3.jpg"),
    ],
];
const LEAVE_SLIPS: [&[u8]; 2] = [
    include_bytes!("media/leave-slip-1.jpg"),
    include_bytes!("media/leave-slip-2.jpg"),
];
const PASS_SLIPS: [&[u8]; 2] = [
    include_bytes!("media/pass-slip-1.jpg"),
    include_bytes!("media/pass-slip-2.jpg"),
];

/// One of a faculty's three photos, 480x600. All three show the same person.
pub(super) fn photo(faculty: i64, shot: usize) -> &'static [u8] {
    let shots = choose(&PHOTOS, faculty);
    shots[shot % shots.len()]
}

/// The scan of a leave slip, 640x880.
pub(super) fn leave_slip(number: i64) -> &'static [u8] {
    choose(&LEAVE_SLIPS, number)
}

/// The scan of a pass slip, 640x880.
pub(super) fn pass_slip(number: i64) -> &'static [u8] {
    choose(&PASS_SLIPS, number)
}

/// A copy of a picture with a comment segment after its JFIF header, which must come first.
pub(super) fn with_comment(picture: &[u8], comment: &str) -> Vec<u8> {
    // The segment's length includes its own two bytes. The comment is a path and a number, far below 64 KB.
    let length = (comment.len() + 2) as u16;
    let header_end = 4 + usize::from(u16::from_be_bytes([picture[4], picture[5]]));
    let (header, image) = picture.split_at(header_end);
    [
        header,
        &[0xff, 0xfe],
        &length.to_be_bytes(),
        comment.as_bytes(),
        image,
    ]
    .concat()
}

fn choose<T: Copy>(choices: &[T; 2], number: i64) -> T {
    choices[usize::from(number % 2 != 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Width, height and comment of a JPEG file, from its markers up to the scan.
    fn inspect(jpeg: &[u8]) -> ((u16, u16), Option<&str>) {
        assert_eq!(jpeg[..2], [0xff, 0xd8], "starts with SOI");
        assert_eq!(jpeg[2..4], [0xff, 0xe0], "the JFIF header comes first");
        assert_eq!(jpeg[jpeg.len() - 2..], [0xff, 0xd9], "ends with EOI");
        let number = |at: usize| u16::from_be_bytes([jpeg[at], jpeg[at + 1]]);
        let (mut size, mut comment) = (None, None);
        let mut at = 2;
        while jpeg[at + 1] != 0xda {
            assert_eq!(jpeg[at], 0xff, "a marker at {at}");
            let end = at + 2 + usize::from(number(at + 2));
            match jpeg[at + 1] {
                0xc0..=0xc2 => size = Some((number(at + 7), number(at + 5))),
                0xfe => comment = Some(str::from_utf8(&jpeg[at + 4..end]).unwrap()),
                _ => {}
            }
            at = end;
        }
        (size.expect("a frame header"), comment)
    }

    #[test]
    fn photos_are_jpegs_of_20_to_80_kb_and_differ() {
        let shots: Vec<_> = (0..3)
            .map(|shot| with_comment(photo(7, shot), "faculty 7"))
            .collect();
        for shot in &shots {
            assert_eq!(inspect(shot), ((480, 600), Some("faculty 7")));
            assert!((20_000..80_000).contains(&shot.len()), "{} bytes", shot.len());
        }
        assert_ne!(shots[0], shots[1]);
        assert_ne!(shots[1], shots[2]);
        assert_eq!(shots[0], with_comment(photo(7, 0), "faculty 7"));
        assert_ne!(shots[0], with_comment(photo(8, 0), "faculty 7"));
        assert_ne!(shots[0], with_comment(photo(7, 0), "faculty 9"));
    }

    #[test]
    fn slips_are_jpegs() {
        for slip in [leave_slip(1), leave_slip(2), pass_slip(1), pass_slip(2)] {
            assert_eq!(inspect(slip), ((640, 880), None));
            let scan = with_comment(slip, "slip 12");
            assert_eq!(inspect(&scan), ((640, 880), Some("slip 12")));
            assert!((20_000..200_000).contains(&scan.len()), "{} bytes", scan.len());
        }
    }
}
