//! Floor 2: what will be done, as data. Nothing here touches the machine: the same spec, facts and
//! paths give the same command line, seed and tap settings, byte for byte.

pub mod admission;
pub mod anti_spoof;
pub mod archive;
pub mod argv;
pub mod bpf;
pub mod device;
pub mod disk;
pub mod doctor;
pub mod facets;
pub mod facts;
pub mod firmware;
pub mod handed;
pub mod identity;
pub mod image;
pub mod iso9660;
pub mod isolation;
pub mod keys;
pub mod layout;
pub mod live;
pub mod log_text;
pub mod machined;
pub mod pending;
pub mod qcow2;
pub mod readiness;
pub mod resources;
mod sandbox;
pub mod saved;
pub mod seed;
pub mod stagger;
pub mod sums;
pub mod tap;
pub mod unit;
pub mod vm_file;
pub mod vm_text;
pub mod weights;
