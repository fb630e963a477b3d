//! Messages and the two services, generated from `proto/` at build time.
//!
//! Messages are the same for both versions; `proto/messages.proto` explains how.

#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::indexing_slicing, reason = "nobody wrote it by hand")]
pub mod messages {
    tonic::include_proto!("messages");
}

/// Service of GoBGP 3.x.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, reason = "nobody wrote it by hand")]
pub mod apipb {
    tonic::include_proto!("apipb");
}

/// Service of GoBGP 4.x.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, reason = "nobody wrote it by hand")]
pub mod api {
    tonic::include_proto!("api");
}
