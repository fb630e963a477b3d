//! Messages and both sides of the runtime's service, generated from `proto/container_runtime.proto` at build time.

#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, reason = "nobody wrote it by hand")]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
