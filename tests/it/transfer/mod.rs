//! Export, import, clone, rename.

mod archive;
mod carry;
