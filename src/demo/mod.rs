//! Being written.

mod campus;
mod canvas;
pub mod equality;
mod font;
mod mp4;
mod people;
mod pictures;
pub mod postgres;
mod rows;
pub mod school;
mod slips;
mod studio;
pub mod traffic;
mod video;
