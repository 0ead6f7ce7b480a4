//! A client of the Open vSwitch Database protocol (RFC 7047), as small as OVN needs it.
//!
//! One task holds the connection, answers echoes, keeps an in-memory [`Replica`] of the
//! monitored columns and carries transactions. It reconnects by itself, with backoff, and
//! starts each connection with a full resync. A transaction under way when the connection was lost
//! ends in [`Error::Disconnected`]: it may or may not have been committed, so callers read
//! the replica and decide again.
//!
//! After [`Client::transact`] has returned, the replica holds what it changed: the server
//! sends the monitor's update ahead of the reply.

mod client;
mod datum;
mod endpoint;
mod error;
mod framing;
mod operation;
mod replica;
mod schema;
mod tls;

pub use client::{Client, ConnectionState, Options, View};
pub use datum::{Atom, Datum, Row, RowId};
pub use endpoint::{Endpoint, EndpointError, parse_endpoints};
pub use error::Error;
pub use operation::{Clause, Function, Mutation, Mutator, OpResult, Operation, Until, by_id};
pub use replica::{Monitor, Replica, Table};
pub use schema::{ColumnShape, Schema};
pub use tls::Tls;
