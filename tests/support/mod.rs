//! What integration tests share. Use it with `mod support;`.

pub mod apiserver;
pub mod lab;
