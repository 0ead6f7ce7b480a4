//! Arguments, telemetry, one role.

fn main() {}
