//! Errors of the client and of the database server.

/// An error of the client or of the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was sent.
    #[error("not connected to the database at {endpoint}: {reason}")]
    NotConnected {
        /// Where the server should be.
        endpoint: String,
        /// Why there is no connection.
        reason: String,
    },
    /// The socket failed.
    #[error("{0}")]
    Io(String),
    /// There is no TLS: a file cannot be used, or one side does not trust the other.
    #[error("{0}")]
    Tls(String),
    /// The connection broke while the transaction was under way.
    #[error("lost the connection to the database; the transaction may or may not be committed")]
    Disconnected,
    /// The server did not answer in time.
    #[error("no answer from the database within {0:?}; the transaction may still be committed")]
    TimedOut(std::time::Duration),
    /// A `wait` did not hold, so nothing was changed.
    #[error("the database is not in the state that operation {index} waits for")]
    WaitFailed {
        /// Index of the `wait` among the operations.
        index: usize,
    },
    /// The server refused an operation, so nothing was changed.
    #[error("the database refused operation {index} ({operation}): {error}: {details}")]
    Refused {
        /// Index of the operation; one past the last when the commit was refused.
        index: usize,
        /// The operation and its table.
        operation: String,
        /// Name of the error, such as `constraint violation`.
        error: String,
        /// The server's message.
        details: String,
    },
    /// The server refused the request as a whole.
    #[error("the database refused the request {method}: {details}")]
    Request {
        /// The JSON-RPC method.
        method: String,
        /// The server's message.
        details: String,
    },
    /// The server sent a message that cannot be read.
    #[error("the database sent what cannot be read: {0}")]
    Protocol(String),
    /// A message is bigger than allowed.
    #[error("a message of {size} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// Size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The database lacks a table or column.
    #[error("the database {database} has no column {table}.{column}: its schema is too old")]
    Schema {
        /// Name of the database.
        database: String,
        /// Name of the table.
        table: String,
        /// Name of the column.
        column: String,
    },
}

/// Errors of a transaction that say nothing about what was to be written (RFC 7047, section 5.1).
const NOT_ABOUT_CONTENT: [&str; 6] = [
    "resources exhausted",
    "I/O error",
    "aborted",
    "canceled",
    "not owner",
    "permission error",
];

impl Error {
    /// Whether what was sent may be the cause, so that less of it might succeed. A connection
    /// that breaks may be one: the server drops it when it cannot read a message.
    #[must_use]
    pub fn may_be_about_content(&self) -> bool {
        match self {
            Self::Refused { error, .. } => !NOT_ABOUT_CONTENT.contains(&error.as_str()),
            Self::Disconnected | Self::Request { .. } | Self::TooLarge { .. } => true,
            Self::NotConnected { .. }
            | Self::Io(_)
            | Self::Tls(_)
            | Self::TimedOut(_)
            | Self::WaitFailed { .. }
            | Self::Protocol(_)
            | Self::Schema { .. } => false,
        }
    }
}
