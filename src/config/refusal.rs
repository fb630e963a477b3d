//! Refusal of a command line.

/// Message to the user, and exit code.
#[derive(Debug)]
pub struct Refusal {
    /// Text to print, without the last line end.
    pub text: String,
    pub exit_code: u8,
}
