//! The names of all tables and chains of nf_tables, whoever made them: to tell which other programs are at work on this host.
//!
//! Those of `iptables-nft` are among them: its chains are chains of `table ip` and `table ip6`. A kernel without nf_tables has none.

use std::collections::BTreeSet;

use super::foreign::unless_absent;
use super::wire::{TABLE, chain, message};
use crate::kernel::Error;
use crate::kernel::netlink::{Bus, Messages, Socket};

/// Names of tables and chains, of any family.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ChainNames {
    /// Only those that have chains.
    pub tables: BTreeSet<String>,
    pub chains: BTreeSet<String>,
}

/// Reads the names in the network namespace of the calling thread.
///
/// # Errors
/// The kernel refuses to say.
pub fn chain_names() -> Result<ChainNames, Error> {
    let mut socket = match Socket::open(Bus::Netfilter) {
        Ok(socket) => socket,
        Err(error) if error.is_unsupported() => return Ok(ChainNames::default()),
        Err(error) => return Err(error),
    };
    let mut message = Messages::new();
    message.begin(message::GET_CHAIN, 0).header(&[0; 4]);
    let listed = socket.dump(&mut message, |answer| {
        let attributes = answer.attributes(super::wire::HEADER);
        Some((attributes.get(TABLE)?.text()?.to_owned(), attributes.get(chain::NAME)?.text()?.to_owned()))
    });
    let listed = unless_absent(listed).map_err(|fault| Error::new("list chains", "", fault.into()))?;
    let (tables, chains) = listed.into_iter().unzip();
    Ok(ChainNames { tables, chains })
}
