//! Camera recordings: MP4 files that grow frame by frame, made from a short one that is part of the program.
//!
//! The short file is fragmented (ISO/IEC 14496-12, 8.8): `ftyp` and `moov` describe the track, and each frame
//! is a fragment, a `moof` and its `mdat`. A recording repeats the fragments, each with its own number and
//! time, so that the file is valid after every frame. A `free` box, which players skip, has a comment that
//! makes the file unique. The last step writes the recording's length into `mehd`, near the start of the
//! file, as cameras do.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::LazyLock;

use crate::error::{Error, Result};

/// Frames per second.
pub(super) const FRAME_RATE: u32 = 5;

/// The boxes of the short recording: `ftyp` and `moov`, and then a `moof` and an `mdat` for each frame.
static SAMPLE: LazyLock<Vec<&[u8]>> = LazyLock::new(|| split_boxes(include_bytes!("media/recording.mp4")));
const HEADER_BOXES: usize = 2;
/// Offsets in a fragment: of its sequence number, and of its decode time, which is in frames.
const SEQUENCE_NUMBER: usize = 20;
const DECODE_TIME: usize = 60;

/// What the row of a finished recording contains.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordingFacts {
    /// Length in seconds, rounded up.
    pub(super) seconds: i32,
    /// Number of frames.
    pub(super) frames: i32,
    /// Bytes of the file.
    pub(super) bytes: i64,
}

/// A recording that is being written: its file grows with each frame.
pub(super) struct Recording {
    file: File,
    frames: u32,
    bytes: u64,
    /// The offset of the recording's length in the header.
    length_field: u64,
}

impl Recording {
    /// Creates the file; its folder must exist.
    pub(super) fn create(path: &Path, comment: &str) -> Result<Self> {
        let mut start = SAMPLE[..HEADER_BOXES].concat();
        let length_field = length_field(&start) as u64;
        start.extend_from_slice(&(8 + comment.len() as u32).to_be_bytes());
        start.extend_from_slice(b"free");
        start.extend_from_slice(comment.as_bytes());
        let file = File::create(path)
            .and_then(|mut file| file.write_all(&start).map(|()| file))
            .map_err(|error| Error::local(format!("write {}", path.display()), error))?;
        Ok(Self {
            file,
            frames: 0,
            bytes: start.len() as u64,
            length_field,
        })
    }

    /// Appends the next frame.
    pub(super) fn append(&mut self) -> Result<()> {
        let fragment = fragment(self.frames);
        self.file
            .write_all(&fragment)
            .map_err(|error| Error::local("append to a recording", error))?;
        self.frames += 1;
        self.bytes += fragment.len() as u64;
        Ok(())
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the length into the header.
    pub(super) fn finish(mut self) -> Result<RecordingFacts> {
        self.file
            .seek(SeekFrom::Start(self.length_field))
            .and_then(|_| self.file.write_all(&self.frames.to_be_bytes()))
            .map_err(|error| Error::local("finish a recording", error))?;
        Ok(RecordingFacts {
            seconds: self.frames.div_ceil(FRAME_RATE) as i32,
            frames: self.frames as i32,
            bytes: self.bytes as i64,
        })
    }
}

/// Splits an MP4 file into its boxes. Each begins with its size in four bytes, and its name.
fn split_boxes(mut file: &[u8]) -> Vec<&[u8]> {
    let mut boxes = Vec::new();
    while let Some(size) = file.first_chunk() {
        let (whole, rest) = file.split_at(u32::from_be_bytes(*size) as usize);
        boxes.push(whole);
        file = rest;
    }
    boxes
}

/// The offset of the recording's length in the header: after the name, the version and the flags of `mehd`.
fn length_field(header: &[u8]) -> usize {
    let name = header.windows(4).position(|bytes| bytes == b"mehd");
    name.unwrap_or_default() + 8
}

/// The fragment for a frame of a recording. The first frame is 0.
fn fragment(frame: u32) -> Vec<u8> {
    let fragments = &SAMPLE[HEADER_BOXES..];
    let first = frame as usize * 2 % fragments.len();
    let mut fragment = fragments[first..first + 2].concat();
    fragment[SEQUENCE_NUMBER..SEQUENCE_NUMBER + 4].copy_from_slice(&(frame + 1).to_be_bytes());
    fragment[DECODE_TIME..DECODE_TIME + 4].copy_from_slice(&frame.to_be_bytes());
    fragment
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn a_recording_grows_with_each_frame_and_ends_with_its_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corridor.mp4");
        let mut recording = Recording::create(&path, "camera 3").unwrap();
        let mut before = path.metadata().unwrap().len();
        for _ in 0..8 {
            recording.append().unwrap();
            let now = path.metadata().unwrap().len();
            assert!(now > before);
            assert_eq!(now, recording.bytes());
            before = now;
        }
        let facts = recording.finish().unwrap();
        assert_eq!((facts.frames, facts.seconds), (8, 2));
        let file = std::fs::read(&path).unwrap();
        assert_eq!(file.len() as i64, facts.bytes);
        assert_eq!(number(&file, length_field(&file)), 8);
    }

    #[test]
    fn boxes_fill_the_file_without_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corridor.mp4");
        let mut recording = Recording::create(&path, "camera 3").unwrap();
        for _ in 0..8 {
            recording.append().unwrap();
        }
        recording.finish().unwrap();
        let file = std::fs::read(&path).unwrap();
        let boxes = split_boxes(&file);
        let kinds: Vec<_> = boxes.iter().map(|whole| &whole[4..8]).collect();
        assert_eq!(kinds[..3], [b"ftyp", b"moov", b"free"]);
        assert_eq!(boxes[2][8..], *b"camera 3");
        assert_eq!(kinds[3..], [&b"moof"[..], b"mdat"].repeat(8));
    }

    #[test]
    fn each_fragment_has_its_number_its_time_and_a_whole_jpeg() {
        let frames = SAMPLE[HEADER_BOXES..].len() as u32 / 2;
        for frame in [0, 1, frames - 1, frames, 70_000] {
            let fragment = fragment(frame);
            let [moof, mdat] = split_boxes(&fragment)[..] else {
                panic!("two boxes");
            };
            let [header, track] = split_boxes(&moof[8..])[..] else {
                panic!("mfhd and traf");
            };
            assert_eq!((&header[4..8], number(header, 12)), (&b"mfhd"[..], frame + 1));
            let [track_header, time, samples] = split_boxes(&track[8..])[..] else {
                panic!("tfhd, tfdt and trun");
            };
            assert_eq!(&track_header[4..8], b"tfhd");
            assert_eq!((&time[4..8], number(time, 12)), (&b"tfdt"[..], frame));
            // One sample, which begins after the header of `mdat` and fills it.
            assert_eq!(&samples[4..8], b"trun");
            let [count, offset, size] = [12, 16, 20].map(|at| number(samples, at) as usize);
            assert_eq!((count, offset, size), (1, moof.len() + 8, mdat.len() - 8));
            let picture = &fragment[offset..];
            assert!(picture.starts_with(&[0xff, 0xd8]) && picture.ends_with(&[0xff, 0xd9]));
        }
        assert_ne!(fragment(0)[88..], fragment(1)[88..]);
        assert_eq!(fragment(0)[88..], fragment(frames)[88..]);
    }
}
