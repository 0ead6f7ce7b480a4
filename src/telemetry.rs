//! Logs, health and metrics endpoints.
