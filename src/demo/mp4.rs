//! Motion JPEG in an MP4 file, written front to back, as a camera recorder does.
//!
//! The file is `ftyp`, `mdat`, `moov`. The frames go into `mdat` as they come, with its size still open; [`Mp4::finish`]
//! appends `moov` and then closes `mdat`'s size. Until then no player can open the file, and it grows: which is what a
//! replicator must cope with.
//!
//! Source: ISO/IEC 14496-12 (boxes), 14496-14 (`mp4v`), 14496-1 (`esds`; object type 0x6C is JPEG).

use std::io::{self, Seek, SeekFrom, Write};

/// Seconds from 1904, where MP4's clock starts, to 1970.
const FROM_1904: u64 = 2_082_844_800;
/// Ticks a second of the movie's own clock.
const MOVIE_SCALE: u64 = 1000;
/// The matrix that leaves a picture as it is.
const UPRIGHT: [u32; 9] = [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000];

/// A file in the making, with one video track.
pub(super) struct Mp4<W> {
    out: W,
    width: u16,
    height: u16,
    frames_a_second: u32,
    created: u64,
    mdat: u64,
    sizes: Vec<u32>,
}

impl<W: Write + Seek> Mp4<W> {
    /// Starts a file; `created` is in seconds since 1970.
    pub(super) fn start(
        mut out: W,
        (width, height): (u16, u16),
        frames_a_second: u32,
        created: u64,
    ) -> io::Result<Self> {
        let mut head = Vec::new();
        boxed(&mut head, b"ftyp", |body| {
            body.extend_from_slice(b"isom");
            body.extend_from_slice(&0x200_u32.to_be_bytes());
            body.extend_from_slice(b"isommp41mp42");
        });
        let mdat = head.len() as u64;
        // Size 1 says that the true size follows in 64 bits; 0 there until the file is finished.
        head.extend_from_slice(&1_u32.to_be_bytes());
        head.extend_from_slice(b"mdat");
        head.extend_from_slice(&0_u64.to_be_bytes());
        out.write_all(&head)?;
        Ok(Self {
            out,
            width,
            height,
            frames_a_second,
            created: created + FROM_1904,
            mdat,
            sizes: Vec::new(),
        })
    }

    /// Appends a frame, which is a JPEG file.
    pub(super) fn append(&mut self, jpeg: &[u8]) -> io::Result<()> {
        let size = u32::try_from(jpeg.len()).map_err(io::Error::other)?;
        self.out.write_all(jpeg)?;
        self.sizes.push(size);
        Ok(())
    }

    /// How many frames it has.
    pub(super) fn frames(&self) -> usize {
        self.sizes.len()
    }

    /// How many bytes of frames it has.
    pub(super) fn frame_bytes(&self) -> u64 {
        self.sizes.iter().map(|&size| u64::from(size)).sum()
    }

    /// Writes the index and closes the data, after which the file can be played.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let mut moov = Vec::new();
        self.moov(&mut moov);
        self.out.write_all(&moov)?;
        self.out.seek(SeekFrom::Start(self.mdat + 8))?;
        self.out.write_all(&(16 + self.frame_bytes()).to_be_bytes())?;
        self.out.seek(SeekFrom::End(0))?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn moov(&self, out: &mut Vec<u8>) {
        let frames = self.sizes.len() as u64;
        let duration = frames * MOVIE_SCALE / u64::from(self.frames_a_second);
        boxed(out, b"moov", |moov| {
            full(moov, b"mvhd", 1, 0, |body| {
                put64(body, &[self.created, self.created]);
                put32(body, &[MOVIE_SCALE as u32]);
                put64(body, &[duration]);
                put32(body, &[0x1_0000, 0x0100_0000, 0, 0]);
                put32(body, &UPRIGHT);
                put32(body, &[0; 6]);
                put32(body, &[2]);
            });
            boxed(moov, b"trak", |trak| {
                full(trak, b"tkhd", 1, 3, |body| {
                    put64(body, &[self.created, self.created]);
                    put32(body, &[1, 0]);
                    put64(body, &[duration]);
                    put32(body, &[0, 0, 0, 0]);
                    put32(body, &UPRIGHT);
                    put32(body, &[u32::from(self.width) << 16, u32::from(self.height) << 16]);
                });
                boxed(trak, b"mdia", |mdia| {
                    full(mdia, b"mdhd", 1, 0, |body| {
                        put64(body, &[self.created, self.created]);
                        put32(body, &[self.frames_a_second]);
                        put64(body, &[frames]);
                        // Language "und", five bits a letter.
                        body.extend_from_slice(&[0x55, 0xc4, 0, 0]);
                    });
                    full(mdia, b"hdlr", 0, 0, |body| {
                        put32(body, &[0]);
                        body.extend_from_slice(b"vide");
                        put32(body, &[0, 0, 0]);
                        body.extend_from_slice(b"Camera\0");
                    });
                    boxed(mdia, b"minf", |minf| {
                        full(minf, b"vmhd", 0, 1, |body| body.extend_from_slice(&[0; 8]));
                        boxed(minf, b"dinf", |dinf| {
                            full(dinf, b"dref", 0, 0, |body| {
                                put32(body, &[1]);
                                full(body, b"url ", 0, 1, |_| {});
                            });
                        });
                        boxed(minf, b"stbl", |stbl| self.sample_table(stbl));
                    });
                });
            });
        });
    }

    /// Where the frames are: one chunk, right after `mdat`'s header, holds them all.
    fn sample_table(&self, out: &mut Vec<u8>) {
        let frames = self.sizes.len() as u32;
        full(out, b"stsd", 0, 0, |body| {
            put32(body, &[1]);
            boxed(body, b"mp4v", |entry| {
                entry.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
                put32(entry, &[0; 4]);
                entry.extend_from_slice(&self.width.to_be_bytes());
                entry.extend_from_slice(&self.height.to_be_bytes());
                // 72 dots an inch, one frame a sample, no compressor name, 24 bits deep.
                put32(entry, &[0x48_0000, 0x48_0000, 0]);
                entry.extend_from_slice(&[0, 1]);
                entry.extend_from_slice(&[0; 32]);
                entry.extend_from_slice(&[0, 24, 0xff, 0xff]);
                full(entry, b"esds", 0, 0, |body| self.stream_descriptor(body));
            });
        });
        full(out, b"stts", 0, 0, |body| put32(body, &[1, frames, 1]));
        full(out, b"stsc", 0, 0, |body| put32(body, &[1, 1, frames, 1]));
        full(out, b"stsz", 0, 0, |body| {
            put32(body, &[0, frames]);
            put32(body, &self.sizes);
        });
        full(out, b"stco", 0, 0, |body| {
            put32(body, &[1, self.mdat as u32 + 16]);
        });
    }

    fn stream_descriptor(&self, out: &mut Vec<u8>) {
        let largest = self.sizes.iter().copied().max().unwrap_or(0);
        let seconds = (self.sizes.len() as u64 / u64::from(self.frames_a_second)).max(1);
        let average = u32::try_from(self.frame_bytes() * 8 / seconds).unwrap_or(u32::MAX);
        out.extend_from_slice(&[3, 21, 0, 1, 0]);
        // Object type JPEG; a visual stream.
        out.extend_from_slice(&[4, 13, 0x6c, 0x11]);
        out.extend_from_slice(&largest.to_be_bytes()[1..]);
        put32(out, &[largest.saturating_mul(8 * self.frames_a_second), average]);
        out.extend_from_slice(&[6, 1, 2]);
    }
}

/// A box: its size, its kind, its body.
fn boxed(out: &mut Vec<u8>, kind: &[u8; 4], body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(kind);
    body(out);
    let size = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

/// A box whose body starts with a version and flags.
fn full(out: &mut Vec<u8>, kind: &[u8; 4], version: u8, flags: u8, body: impl FnOnce(&mut Vec<u8>)) {
    boxed(out, kind, |out| {
        out.extend_from_slice(&[version, 0, 0, flags]);
        body(out);
    });
}

fn put32(out: &mut Vec<u8>, numbers: &[u32]) {
    out.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
}

fn put64(out: &mut Vec<u8>, numbers: &[u64]) {
    out.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn sample(frames: &[&[u8]]) -> Vec<u8> {
        let mut mp4 = Mp4::start(Cursor::new(Vec::new()), (640, 360), 5, 1_800_000_000).unwrap();
        for frame in frames {
            mp4.append(frame).unwrap();
        }
        mp4.finish().unwrap().into_inner()
    }

    /// The boxes of a body: kind and contents.
    fn boxes(mut bytes: &[u8]) -> Vec<([u8; 4], &[u8])> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let small = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
            let (head, size) = match small {
                1 => (16, u64::from_be_bytes(bytes[8..16].try_into().unwrap()) as usize),
                size => (8, size),
            };
            found.push((bytes[4..8].try_into().unwrap(), &bytes[head..size]));
            bytes = &bytes[size..];
        }
        found
    }

    fn inside<'a>(bytes: &'a [u8], path: &[&[u8; 4]]) -> &'a [u8] {
        path.iter().fold(bytes, |bytes, &kind| {
            boxes(bytes)
                .into_iter()
                .find(|(name, _)| name == kind)
                .map(|(_, body)| body)
                .unwrap_or_else(|| panic!("no box {}", String::from_utf8_lossy(kind)))
        })
    }

    #[test]
    fn boxes_fill_the_file_without_a_gap() {
        let file = sample(&[b"one", b"second", b"3"]);
        let kinds: Vec<_> = boxes(&file).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [*b"ftyp", *b"mdat", *b"moov"]);
        let stbl = inside(&file, &[b"moov", b"trak", b"mdia", b"minf", b"stbl"]);
        let kinds: Vec<_> = boxes(stbl).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [*b"stsd", *b"stts", *b"stsc", *b"stsz", *b"stco"]);
    }

    #[test]
    fn the_index_points_at_the_frames() {
        let file = sample(&[b"one", b"second", b"3"]);
        let stbl = inside(&file, &[b"moov", b"trak", b"mdia", b"minf", b"stbl"]);
        let number = |bytes: &[u8], nth: usize| {
            u32::from_be_bytes(bytes[nth * 4..nth * 4 + 4].try_into().unwrap()) as usize
        };
        let offset = number(inside(stbl, &[b"stco"]), 2);
        assert_eq!(&file[offset..offset + 10], b"onesecond3");
        let sizes = inside(stbl, &[b"stsz"]);
        assert_eq!(
            (2..6).map(|nth| number(sizes, nth)).collect::<Vec<_>>(),
            [3, 3, 6, 1]
        );
    }
}
