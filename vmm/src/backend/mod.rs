//! The host's side of devices: descriptors of this process, never a guest's memory.

pub mod image;
pub mod stream;
pub mod tap;
pub mod vhost_net;
pub mod vhost_user;
pub mod vring;
