//! Where this node's private key of WireGuard is, and when it changes.
//!
//! `--state-dir`, `--overlay-wireguard-rotate-key`.

use std::path::PathBuf;
use std::time::Duration;

use super::duration::GoDuration;
use super::flags::Flags;
use super::mistakes::Mistakes;

/// The file of the private key in the directory of the state.
pub const KEY_FILE: &str = "wireguard.key";
/// Shortest time after which a key may change: a change takes minutes, and others wait for it.
const SHORTEST_PERIOD: Duration = Duration::from_secs(3600);

/// Returns the file of the private key. `flag`: the one by which packets of other nodes are decrypted; `None` where they are not.
pub(super) fn key_file(flags: &Flags, flag: Option<&str>, mistakes: &mut Mistakes) -> Option<PathBuf> {
    let flag = flag?;
    if flags.state_dir.is_empty() {
        mistakes.add(format!(
            "--{flag}=wireguard keeps this node's private key in the directory of --state-dir, which is empty: name one."
        ));
    }
    Some(PathBuf::from(&flags.state_dir).join(KEY_FILE))
}

/// Returns whether that key changes by itself.
pub(super) fn changes_keys(flags: &Flags) -> bool {
    flags.overlay_wireguard_rotate_key != GoDuration::from(Duration::ZERO)
}

/// Returns the age at which that key changes; `None` for never by itself.
pub(super) fn key_period(flags: &Flags, mistakes: &mut Mistakes) -> Option<Duration> {
    let period = Some(flags.overlay_wireguard_rotate_key).filter(|_| changes_keys(flags))?;
    let length = period.positive_or_zero().filter(|period| *period >= SHORTEST_PERIOD);
    if length.is_none() {
        mistakes.add(format!("--overlay-wireguard-rotate-key must be 0 or at least 1h; it is {period}."));
    }
    length
}
