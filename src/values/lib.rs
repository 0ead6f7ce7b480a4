//! Values parsed once, at the edge, and trusted from there on.

pub mod identity;
pub mod mac;
pub mod quantity;
pub mod range;
pub mod text;

pub use identity::{ClusterId, Owner, stable_id};
pub use mac::Mac;
pub use quantity::{Bytes, parse_milli, parse_signed_milli};
pub use range::AddressRange;
pub use text::printable;
