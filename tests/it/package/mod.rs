//! Packages and the repository itself.

mod house;
mod installed;
mod nix;
mod scripts;
