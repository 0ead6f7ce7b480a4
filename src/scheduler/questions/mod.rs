//! Questions of users about placement, answered by the code that also decides.

pub mod advice;
pub mod cluster;
pub mod simulate;
pub mod why;
