//! Being written.

mod canvas;
mod font;
mod mp4;
mod pictures;
mod video;
