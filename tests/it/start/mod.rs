//! From a VM file to a running guest.

mod admission;
mod files;
mod life;
mod liveness;
mod ready;
mod surroundings;
mod tiny;
mod unknown;
mod unprivileged;
