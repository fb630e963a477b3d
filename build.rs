//! Makes Rust of `proto/`: messages, what a server of the two services of GoBGP needs, and both sides of the container
//! runtime's. No program has to be installed for it.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["proto/gobgp_v3.proto", "proto/gobgp_v4.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).build_transport(false).compile_fds(files)?;
    // The server's side is for tests, which stand in for a runtime.
    let files = protox::compile(["proto/container_runtime.proto"], ["proto"])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(files)?;
    Ok(())
}
