//! VM files.

mod check;
mod corpus;
