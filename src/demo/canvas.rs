//! A small drawing surface: shapes with soft edges, bitmap text and grain, written out as JPEG.
//!
//! Coordinates are pixels from the top left; what lies outside the surface is cut off. Drawing is plain arithmetic on
//! bytes, so that a picture is the same on every machine.

use jpeg_encoder::{ColorType, Encoder};
use rand::{Rng, RngExt};

use super::font;
use crate::error::{Error, Kind, Result};

/// Red, green, blue.
pub(super) type Colour = [u8; 3];

/// Pixels in rows from the top, three bytes each.
#[derive(Clone)]
pub(super) struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

/// A stretch of random bytes, drawn once and laid over many pictures from a different start.
pub(super) struct Grain(Vec<i8>);

impl Grain {
    /// Grain of at most `strength` steps of brightness up and down.
    pub(super) fn new(rng: &mut impl Rng, strength: i8) -> Self {
        // A prime length, so that the rows of a picture do not line up.
        Self(
            (0..65_537)
                .map(|_| rng.random_range(-strength..=strength))
                .collect(),
        )
    }
}

impl Canvas {
    /// A surface of one colour.
    pub(super) fn new(width: usize, height: usize, colour: Colour) -> Self {
        Self {
            width,
            height,
            pixels: colour.repeat(width * height),
        }
    }

    /// A surface that fades from `top` to `bottom`.
    pub(super) fn fading(width: usize, height: usize, top: Colour, bottom: Colour) -> Self {
        let mut pixels = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            let colour = mix(top, bottom, y as f32 / height as f32);
            pixels.extend_from_slice(&colour.repeat(width));
        }
        Self {
            width,
            height,
            pixels,
        }
    }

    /// An upright rectangle.
    pub(super) fn rect(&mut self, x: i32, y: i32, width: i32, height: i32, colour: Colour) {
        let (left, right) = clip(x, x + width, self.width);
        let (top, bottom) = clip(y, y + height, self.height);
        for row in top..bottom {
            for pixel in self.pixels[(row * self.width + left) * 3..(row * self.width + right.max(left)) * 3]
                .chunks_exact_mut(3)
            {
                pixel.copy_from_slice(&colour);
            }
        }
    }

    /// An ellipse around a centre, given as `[x, y]`, with its two radii. `shadow` darkens it towards the right, from
    /// 0 for flat to 1 for black.
    pub(super) fn ellipse(&mut self, centre: [f32; 2], radii: [f32; 2], colour: Colour, shadow: f32) {
        let [cx, cy] = centre;
        let [rx, ry] = radii;
        let (left, right) = clip((cx - rx) as i32 - 1, (cx + rx) as i32 + 2, self.width);
        let (top, bottom) = clip((cy - ry) as i32 - 1, (cy + ry) as i32 + 2, self.height);
        let softness = rx.min(ry);
        for y in top..bottom {
            let dy = (y as f32 - cy) / ry;
            for x in left..right {
                let dx = (x as f32 - cx) / rx;
                let distance = (dx * dx + dy * dy).sqrt();
                let cover = ((1.0 - distance) * softness + 0.5).clamp(0.0, 1.0);
                if cover > 0.0 {
                    let shade = 1.0 - shadow * (dx * 0.5 + 0.5 + dy * 0.15).clamp(0.0, 1.0);
                    self.blend(x, y, dim(colour, shade), cover);
                }
            }
        }
    }

    /// A straight stroke with round ends.
    pub(super) fn stroke(&mut self, from: [f32; 2], to: [f32; 2], thickness: f32, colour: Colour) {
        let half = thickness / 2.0;
        let (left, right) = clip(
            (from[0].min(to[0]) - half) as i32 - 1,
            (from[0].max(to[0]) + half) as i32 + 2,
            self.width,
        );
        let (top, bottom) = clip(
            (from[1].min(to[1]) - half) as i32 - 1,
            (from[1].max(to[1]) + half) as i32 + 2,
            self.height,
        );
        let along = [to[0] - from[0], to[1] - from[1]];
        let square = (along[0] * along[0] + along[1] * along[1]).max(1e-6);
        for y in top..bottom {
            for x in left..right {
                let offset = [x as f32 - from[0], y as f32 - from[1]];
                let part = ((offset[0] * along[0] + offset[1] * along[1]) / square).clamp(0.0, 1.0);
                let (dx, dy) = (offset[0] - along[0] * part, offset[1] - along[1] * part);
                let cover = (half - (dx * dx + dy * dy).sqrt() + 0.5).clamp(0.0, 1.0);
                if cover > 0.0 {
                    self.blend(x, y, colour, cover);
                }
            }
        }
    }

    /// Strokes from point to point.
    pub(super) fn path(&mut self, points: &[[f32; 2]], thickness: f32, colour: Colour) {
        for pair in points.windows(2) {
            self.stroke(pair[0], pair[1], thickness, colour);
        }
    }

    /// A filled convex polygon.
    pub(super) fn polygon(&mut self, points: &[[f32; 2]], colour: Colour) {
        let lowest = points.iter().fold(f32::MAX, |least, point| least.min(point[1]));
        let highest = points.iter().fold(f32::MIN, |most, point| most.max(point[1]));
        let (top, bottom) = clip(lowest as i32, highest as i32 + 1, self.height);
        for y in top..bottom {
            let level = y as f32 + 0.5;
            let (mut left, mut right) = (f32::MAX, f32::MIN);
            for (nth, &[x0, y0]) in points.iter().enumerate() {
                let [x1, y1] = points[(nth + 1) % points.len()];
                if (y0 <= level) != (y1 <= level) {
                    let x = x0 + (level - y0) / (y1 - y0) * (x1 - x0);
                    left = left.min(x);
                    right = right.max(x);
                }
            }
            if left < right {
                self.rect(
                    left.round() as i32,
                    y as i32,
                    (right.round() - left.round()) as i32,
                    1,
                    colour,
                );
            }
        }
    }

    /// Text whose dots are `scale` pixels wide; answers the x at which it ends.
    pub(super) fn text(&mut self, x: i32, y: i32, scale: i32, colour: Colour, text: &str) -> i32 {
        let mut left = x;
        for character in text.chars() {
            for (column, bits) in font::glyph(character).into_iter().enumerate() {
                for row in (0..font::HEIGHT).filter(|row| bits >> row & 1 == 1) {
                    let (dx, dy) = (column as i32 * scale, row as i32 * scale);
                    self.rect(left + dx, y + dy, scale, scale, colour);
                }
            }
            left += (font::WIDTH as i32 + 1) * scale;
        }
        left
    }

    /// Lays grain over the whole surface.
    pub(super) fn grain(&mut self, grain: &Grain, rng: &mut impl Rng) {
        let start = rng.random_range(0..grain.0.len());
        let steps = grain.0[start..].iter().chain(grain.0.iter().cycle());
        for (pixel, &step) in self.pixels.chunks_exact_mut(3).zip(steps) {
            for part in pixel {
                *part = part.saturating_add_signed(step);
            }
        }
    }

    /// The surface, turned by a small angle in radians, as by a careless hand at the scanner; `around` fills the gaps.
    pub(super) fn tilted(&self, angle: f32, around: Colour) -> Self {
        let mut tilted = Self::new(self.width, self.height, around);
        let (half_width, half_height) = (self.width as f32 / 2.0, self.height as f32 / 2.0);
        let (sin, cos) = angle.sin_cos();
        for y in 0..self.height {
            let dy = y as f32 - half_height;
            for x in 0..self.width {
                let dx = x as f32 - half_width;
                let from_x = (half_width + dx * cos - dy * sin + 0.5).floor();
                let from_y = (half_height + dx * sin + dy * cos + 0.5).floor();
                if from_x >= 0.0 && from_y >= 0.0 && from_x < self.width as f32 && from_y < self.height as f32
                {
                    let from = (from_y as usize * self.width + from_x as usize) * 3;
                    let to = (y * self.width + x) * 3;
                    tilted.pixels[to..to + 3].copy_from_slice(&self.pixels[from..from + 3]);
                }
            }
        }
        tilted
    }

    /// Lays another surface of the same size over it as translucent ink: white leaves what is there.
    pub(super) fn multiply(&mut self, ink: &Self) {
        for (part, &by) in self.pixels.iter_mut().zip(&ink.pixels) {
            *part = (u16::from(*part) * u16::from(by) / 255) as u8;
        }
    }

    /// A JPEG file of it.
    pub(super) fn jpeg(&self, quality: u8) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.pixels.len() / 8);
        // The sides of every picture here are far below 65536.
        let (width, height) = (self.width as u16, self.height as u16);
        Encoder::new(&mut bytes, quality)
            .encode(&self.pixels, width, height, ColorType::Rgb)
            .map_err(|error| Error::new(Kind::Local, "encode a sample picture", error.to_string()))?;
        Ok(bytes)
    }

    fn blend(&mut self, x: usize, y: usize, colour: Colour, cover: f32) {
        let at = (y * self.width + x) * 3;
        for (part, &new) in self.pixels[at..at + 3].iter_mut().zip(&colour) {
            *part = (*part as f32 + (new as f32 - *part as f32) * cover) as u8;
        }
    }
}

/// The colour that lies `part` of the way from one to the other.
pub(super) fn mix(from: Colour, to: Colour, part: f32) -> Colour {
    std::array::from_fn(|nth| (from[nth] as f32 + (to[nth] as f32 - from[nth] as f32) * part) as u8)
}

/// The colour with its brightness multiplied.
pub(super) fn dim(colour: Colour, by: f32) -> Colour {
    colour.map(|part| (part as f32 * by).clamp(0.0, 255.0) as u8)
}

/// The part of a range that lies between 0 and `limit`.
fn clip(from: i32, to: i32, limit: usize) -> (usize, usize) {
    let inside = |value: i32| usize::try_from(value).unwrap_or(0).min(limit);
    (inside(from), inside(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_across_the_edges_are_cut_off() {
        let mut canvas = Canvas::new(20, 10, [0; 3]);
        canvas.rect(-5, -5, 8, 8, [255; 3]);
        canvas.rect(18, 8, 50, 50, [255; 3]);
        canvas.rect(30, 2, 5, 5, [255; 3]);
        canvas.ellipse([-2.0, 5.0], [6.0, 30.0], [9; 3], 0.5);
        canvas.stroke([-9.0, -9.0], [40.0, 40.0], 3.0, [7; 3]);
        canvas.polygon(&[[-5.0, -5.0], [50.0, 2.0], [10.0, 40.0]], [3; 3]);
        canvas.text(15, 5, 2, [1; 3], "8");
        assert_eq!(canvas.pixels.len(), 20 * 10 * 3);
    }

    #[test]
    fn text_sets_the_dots_of_its_glyphs() {
        let mut canvas = Canvas::new(12, 7, [0; 3]);
        assert_eq!(canvas.text(0, 0, 1, [255; 3], "IL"), 12);
        let row = |y: usize| -> String {
            (0..12)
                .map(|x| {
                    if canvas.pixels[(y * 12 + x) * 3] == 0 {
                        '.'
                    } else {
                        '#'
                    }
                })
                .collect()
        };
        assert_eq!(row(0), ".###..#.....");
        assert_eq!(row(6), ".###..#####.");
    }
}
