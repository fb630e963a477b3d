//! Which of the kernel's packet filters all subsystems program: nftables, or iptables with ipset.
//!
//! One choice for all of them: rules of both are in force side by side, and the order between them is nobody's decision.
//! `--netfilter` says which; `auto` is decided by what the host has, once, at the start ([`Netfilter::backend`]).

use super::flags::Flags;
use super::mistakes::Mistakes;

/// `--netfilter`. `--use-nftables-for-netpol` means nftables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Netfilter {
    Auto,
    Nftables,
    Iptables,
}

/// The packet filter that a subsystem programs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Backend {
    /// Chains of iptables, of either flavour, and sets of ipset.
    #[default]
    Iptables,
    /// A table of nf_tables for each subsystem.
    Nftables,
}

/// Backend that `auto` chooses where the host has both.
const PREFERRED: Backend = Backend::Iptables;

/// Modules and packages that a host may lack.
const PACKAGES: &str = "nftables needs the kernel modules nf_tables, nft_ct, nft_fib_inet, nft_reject_inet, nft_limit, nft_log, \
     nft_nat and nft_masq; iptables needs its programs and the modules ip_set, xt_set, xt_ipvs, xt_conntrack, xt_comment and \
     xt_addrtype; they are in kernel-modules-core and kernel-modules-extra (RHEL, Fedora), linux-modules-extra-$(uname -r) \
     (Ubuntu), linux-image-amd64 or -arm64 in place of a cloud image (Debian), linux-lts in place of linux-virt (Alpine), and \
     Talos has them built in";

impl Netfilter {
    /// Reads and checks the flags.
    pub(super) fn from_flags(flags: &Flags, mistakes: &mut Mistakes) -> Netfilter {
        let typed = match flags.netfilter.as_str() {
            "auto" => Netfilter::Auto,
            "nftables" => Netfilter::Nftables,
            "iptables" => Netfilter::Iptables,
            other => {
                mistakes.add(format!("--netfilter must be auto, nftables or iptables; it is {other:?}."));
                Netfilter::Auto
            }
        };
        if typed == Netfilter::Iptables && flags.use_nftables_for_netpol {
            mistakes.add("--netfilter=iptables contradicts --use-nftables-for-netpol: remove one of them.".to_owned());
        }
        if flags.use_nftables_for_netpol { Netfilter::Nftables } else { typed }
    }

    /// Returns the backend for all subsystems of this host. `nftables` tries what is needed of the kernel and returns what it
    /// refused; it is only called where the answer matters. `iptables`: the programs are there.
    ///
    /// # Errors
    /// The host has not what was asked for, as a sentence for its administrator.
    pub fn backend(self, nftables: impl FnOnce() -> Result<(), String>, iptables: bool) -> Result<Backend, String> {
        match self {
            Netfilter::Iptables => Ok(Backend::Iptables),
            Netfilter::Nftables => nftables().map(|()| Backend::Nftables).map_err(|refused| {
                format!(
                    "--netfilter is nftables, but this kernel refuses what that needs ({refused}): install what is missing or \
                     start with --netfilter=iptables: {PACKAGES}."
                )
            }),
            Netfilter::Auto => auto(PREFERRED, nftables, iptables),
        }
    }
}

/// Decides between the two by what the host has.
fn auto(preferred: Backend, nftables: impl FnOnce() -> Result<(), String>, iptables: bool) -> Result<Backend, String> {
    if iptables && preferred == Backend::Iptables {
        return Ok(Backend::Iptables);
    }
    match nftables() {
        Ok(()) => Ok(Backend::Nftables),
        Err(_) if iptables => Ok(Backend::Iptables),
        Err(refused) => Err(format!(
            "this host has neither iptables nor an nftables that can be used ({refused}): install one of them: {PACKAGES}."
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Result<(), String> {
        Err("no nft_fib".to_owned())
    }

    fn not_tried() -> Result<(), String> {
        panic!("nobody needs the answer")
    }

    #[test]
    fn who_names_a_backend_gets_it_or_one_sentence() {
        assert_eq!(Netfilter::Iptables.backend(not_tried, false), Ok(Backend::Iptables));
        assert_eq!(Netfilter::Nftables.backend(|| Ok(()), true), Ok(Backend::Nftables));
        let sentence = Netfilter::Nftables.backend(refused, true).expect_err("the kernel refuses");
        for word in [
            "--netfilter",
            "(no nft_fib)",
            "nft_masq",
            "kernel-modules-extra",
            "linux-modules-extra",
            "Talos",
            "Alpine",
        ] {
            assert!(sentence.contains(word), "{word}: {sentence}");
        }
        assert_eq!((sentence.lines().count(), sentence.ends_with('.')), (1, true));
    }

    #[test]
    fn auto_takes_what_the_host_has() {
        assert_eq!(Netfilter::Auto.backend(not_tried, true), Ok(Backend::Iptables), "as before there was a choice");
        for preferred in [Backend::Iptables, Backend::Nftables] {
            assert_eq!(auto(preferred, refused, true), Ok(Backend::Iptables));
            let sentence = auto(preferred, refused, false).expect_err("there is nothing to use");
            assert!(
                sentence.starts_with("this host has neither iptables nor ") && sentence.contains("xt_ipvs"),
                "{sentence}"
            );
            assert_eq!(auto(preferred, || Ok(()), false), Ok(Backend::Nftables));
        }
    }
}
