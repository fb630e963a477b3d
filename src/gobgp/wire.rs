//! The messages and the two services, as they are made of `proto/` when the program is built.
//!
//! Messages are the same for both versions; see `proto/messages.proto` for how that can be.

#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::indexing_slicing, reason = "nobody wrote it by hand")]
pub mod messages {
    tonic::include_proto!("messages");
}

/// The service of GoBGP 3.x.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, reason = "nobody wrote it by hand")]
pub mod apipb {
    tonic::include_proto!("apipb");
}

/// The service of GoBGP 4.x.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, reason = "nobody wrote it by hand")]
pub mod api {
    tonic::include_proto!("api");
}
