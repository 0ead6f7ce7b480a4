//! Networks: the largest packet, fixed when a Network is created, and deletion that waits for
//! its users.

pub mod plan;
pub mod sharing;
