//! Images.

mod cache;
mod download;
