//! A secret: the key of TCP MD5 that neighbours share (RFC 2385), or this node's private key of WireGuard.
//!
//! That of neighbours comes as base64 (RFC 4648 section 4, with padding; line breaks inside are skipped, as Go's library does) and never shows
//! again: not in a log, not in a debug text, not in a file that we write.

use std::fmt;
use std::sync::Arc;

use super::base64::decoded;

/// At most 80 bytes, which is what the kernel takes (`TCP_MD5SIG_MAXKEYLEN`), and never none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Secret(Arc<[u8]>);

/// Why a text is no secret; in words that end a sentence and do not repeat the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoSecret {
    NotBase64,
    TooLong,
}

const LONGEST: usize = 80;

impl Secret {
    /// Reads a secret; `None` for an empty text, which means that there is none.
    ///
    /// # Errors
    /// The text is not base64, or the kernel takes no key of this form.
    pub fn from_base64(text: &str) -> Result<Option<Secret>, NoSecret> {
        let bytes = decoded(text).ok_or(NoSecret::NotBase64)?;
        match bytes.len() {
            0 => Ok(None),
            1..=LONGEST => Ok(Some(Secret(bytes.into()))),
            _ => Err(NoSecret::TooLong),
        }
    }

    /// A private key of WireGuard: 32 bytes, of which some bits are fixed as X25519 wants them (RFC 7748 5).
    pub fn private_key(mut bytes: [u8; 32]) -> Secret {
        let [first, .., last] = &mut bytes;
        *first &= 0b1111_1000;
        *last = *last & 0b0111_1111 | 0b0100_0000;
        Secret(Arc::from(bytes))
    }

    /// The key as the kernel takes it.
    pub fn key(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Display for NoSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoSecret::NotBase64 => "not base64",
            NoSecret::TooLong => "longer than the 80 bytes that the kernel takes",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Result<Option<Vec<u8>>, NoSecret> {
        Secret::from_base64(text).map(|secret| secret.map(|secret| secret.key().to_vec()))
    }

    #[test]
    fn base64_is_read_with_its_padding() {
        for (text, bytes) in [("cGFzcw==", "pass"), ("Zm9vYmE=", "fooba"), ("Zm9v\r\nYmFy", "foobar"), ("+/+/", "")] {
            let bytes = if bytes.is_empty() { vec![0xfb, 0xff, 0xbf] } else { bytes.as_bytes().to_vec() };
            assert_eq!(key(text), Ok(Some(bytes)), "{text}");
        }
        assert_eq!(key(""), Ok(None));
        for text in ["cGFzcw", "cGFzcw=", "c===", "cGF zcw=", "pässword", "=cGF", "a", "cG==".repeat(2).as_str()] {
            assert_eq!(key(text), Err(NoSecret::NotBase64), "{text}");
        }
    }

    #[test]
    fn what_the_kernel_does_not_take_is_no_secret() {
        let of = |count: usize| "QUJD".repeat(count);
        assert_eq!(key(&of(26)).map(|key| key.map(|key| key.len())), Ok(Some(78)));
        assert_eq!(key(&of(27)), Err(NoSecret::TooLong));
    }

    #[test]
    fn bits_of_private_keys_are_fixed() {
        for (bytes, first, last) in [([0xff; 32], 0xf8, 0x7f), ([0; 32], 0, 0x40)] {
            let secret = Secret::private_key(bytes);
            assert_eq!(
                (secret.key().first(), secret.key().last(), secret.key().len()),
                (Some(&first), Some(&last), 32)
            );
            assert_eq!(Secret::private_key(secret.key().try_into().expect("32 bytes")), secret);
        }
    }

    #[test]
    fn a_secret_does_not_show() {
        let secret = Secret::from_base64("cGFzcw==");
        assert!(!format!("{secret:?}").contains("pass") && !format!("{secret:?}").contains("112"));
    }
}
