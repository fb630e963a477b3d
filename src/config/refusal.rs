//! Why a command line cannot be followed.

/// What the user is told, and how the program ends.
#[derive(Debug)]
pub struct Refusal {
    /// What to print, without the last line end.
    pub text: String,
    pub exit_code: u8,
}
