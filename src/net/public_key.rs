//! The public key of a node's end of a WireGuard tunnel (X25519, RFC 7748), written as base64 like by `wg`.

use std::fmt;
use std::str::FromStr;

use super::base64::{decoded, encoded};

/// 32 bytes, never all zero: the kernel gives that to a device without a private key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// Why a text is no public key; in words that end a sentence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it is not the base64 of 32 bytes")]
pub struct NoPublicKey;

impl PublicKey {
    /// The key of these bytes; `None` for another number of them, and where all are zero.
    pub fn new(bytes: &[u8]) -> Option<PublicKey> {
        let bytes = <[u8; 32]>::try_from(bytes).ok()?;
        (bytes != [0; 32]).then_some(PublicKey(bytes))
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = NoPublicKey;

    /// Reads the one text that stands for a key; no other one with the same bytes.
    fn from_str(text: &str) -> Result<PublicKey, NoPublicKey> {
        let key = decoded(text).and_then(|bytes| PublicKey::new(&bytes)).ok_or(NoPublicKey)?;
        if key.to_string() == text { Ok(key) } else { Err(NoPublicKey) }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encoded(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_text() {
        let text = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        assert_eq!(text.parse::<PublicKey>().map(|key| key.to_string()), Ok(text.to_owned()));
        let zero = "A".repeat(43) + "=";
        for wrong in [
            "",
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg",
            " xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
            // The same bytes in another text.
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dh=",
            "xTIBA5rboUvnH4htodjb\n6e697QjLERt1NAB4mZqp8Dg=",
            "cGFzcw==",
            &zero,
        ] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(NoPublicKey), "{wrong:?}");
        }
    }
}
