//! Which of the kernel's packet filters all subsystems program: nftables, or iptables with ipset.
//!
//! One choice for all of them: rules of both are in force side by side, and the order between them is nobody's decision.
//! `--netfilter` says which; `auto` is decided by what the host has, once, at the start ([`Netfilter::backend`]): nftables where the kernel
//! can do all of it, but not on a host with rules of legacy iptables. What those drop by default a table of nf_tables cannot let pass, and
//! nothing but their own programs can write into their chains.

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

/// The variant of iptables that a host uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    NfTables,
    Legacy,
}

/// Modules and packages that a host may lack.
const PACKAGES: &str = "nftables needs the kernel modules nf_tables, nft_ct, nft_fib_inet, nft_reject_inet, nft_limit, nft_log, \
     nft_nat and nft_masq; iptables needs its programs and the modules ip_set, xt_set, xt_ipvs, xt_conntrack, xt_comment and \
     xt_addrtype; they are in kernel-modules-core and kernel-modules-extra (RHEL, Fedora), linux-modules-extra-$(uname -r) \
     (Ubuntu), linux-image-amd64 or -arm64 in place of a cloud image (Debian), kernel-default in place of kernel-default-base (SUSE), \
     linux-lts in place of linux-virt (Alpine), and Talos has them built in; the programs are in iptables (Debian, Ubuntu, SUSE, Alpine) \
     or iptables-nft (RHEL, Fedora)";

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
    /// refused; `variant` looks which iptables the host uses, `None` without its programs; `iptables` tries whether ipset and, where rules
    /// of this variant need not be there already, these programs work on this kernel. Each is only called where the answer matters.
    ///
    /// # Errors
    /// The host has not what was asked for, as a sentence for its administrator.
    pub fn backend(
        self,
        nftables: impl FnOnce() -> Result<(), String>,
        variant: impl FnOnce() -> Option<Variant>,
        iptables: impl FnOnce(Variant) -> Result<(), String>,
    ) -> Result<Backend, String> {
        match self {
            Netfilter::Iptables => Ok(Backend::Iptables),
            Netfilter::Nftables => nftables().map(|()| Backend::Nftables).map_err(|refused| {
                format!(
                    "--netfilter is nftables, but this kernel refuses what that needs ({refused}): install what is missing or \
                     start with --netfilter=iptables: {PACKAGES}."
                )
            }),
            Netfilter::Auto => auto(nftables, variant(), iptables),
        }
    }
}

/// Decides between the two by what the host has.
fn auto(
    nftables: impl FnOnce() -> Result<(), String>,
    variant: Option<Variant>,
    iptables: impl FnOnce(Variant) -> Result<(), String>,
) -> Result<Backend, String> {
    if variant == Some(Variant::Legacy) {
        return iptables(Variant::Legacy).map(|()| Backend::Iptables).map_err(|lacking| {
            format!(
                "the rules of this host are those of legacy iptables, and what those drop nftables cannot let pass, but this kernel \
                 refuses what rules of iptables need beside them ({lacking}): install what is missing: {PACKAGES}."
            )
        });
    }
    let Err(refused) = nftables() else { return Ok(Backend::Nftables) };
    if variant.is_none() {
        return Err(format!(
            "this host has neither iptables nor an nftables that can be used ({refused}): install one of them: {PACKAGES}."
        ));
    }
    iptables(Variant::NfTables).map(|()| Backend::Iptables).map_err(|also| {
        format!(
            "this kernel refuses what nftables needs ({refused}), and the installed iptables cannot be used on it either ({also}): \
             install what one of them lacks: {PACKAGES}."
        )
    })
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

    fn nor_iptables(_: Variant) -> Result<(), String> {
        not_tried()
    }

    fn not_looked_at() -> Option<Variant> {
        panic!("nobody needs the answer")
    }

    #[test]
    fn who_names_a_backend_gets_it_or_one_sentence() {
        assert_eq!(Netfilter::Iptables.backend(not_tried, not_looked_at, nor_iptables), Ok(Backend::Iptables));
        assert_eq!(Netfilter::Nftables.backend(|| Ok(()), not_looked_at, nor_iptables), Ok(Backend::Nftables));
        let sentence =
            Netfilter::Nftables.backend(refused, not_looked_at, nor_iptables).expect_err("the kernel refuses");
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
        let with = |nftables: fn() -> Result<(), String>, variant, iptables: fn(Variant) -> Result<(), String>| {
            Netfilter::Auto.backend(nftables, move || variant, iptables)
        };
        let auto = |nftables, variant| with(nftables, variant, nor_iptables);
        for iptables in [None, Some(Variant::NfTables)] {
            assert_eq!(auto(|| Ok(()), iptables), Ok(Backend::Nftables), "{iptables:?}");
        }
        assert_eq!(
            with(not_tried, Some(Variant::Legacy), |_| Ok(())),
            Ok(Backend::Iptables),
            "what legacy rules drop only legacy rules let pass"
        );
        assert_eq!(with(refused, Some(Variant::NfTables), |_| Ok(())), Ok(Backend::Iptables));
        let sentence = auto(refused, None).expect_err("there is nothing to use");
        assert!(
            sentence.starts_with("this host has neither iptables nor ") && sentence.contains("xt_ipvs"),
            "{sentence}"
        );
    }

    #[test]
    fn rules_of_legacy_iptables_without_what_they_need_are_no_packet_filter() {
        let no_sets = |variant| {
            assert_eq!(variant, Variant::Legacy);
            Err("ipset: the kernel has no ip_set".to_owned())
        };
        let sentence = Netfilter::Auto.backend(not_tried, || Some(Variant::Legacy), no_sets).expect_err("no sets");
        for word in ["legacy iptables", "(ipset: the kernel has no ip_set)", "kernel-modules-extra"] {
            assert!(sentence.contains(word), "{word}: {sentence}");
        }
    }

    #[test]
    fn installed_programs_that_the_kernel_refuses_are_no_packet_filter() {
        let iptables = |_| Err("iptables-nft-restore: Could not fetch rule set generation id".to_owned());
        let variant = || Some(Variant::NfTables);
        let sentence = Netfilter::Auto.backend(refused, variant, iptables).expect_err("there is nothing to use");
        for word in
            ["(no nft_fib)", "generation id", "nft_ct", "xt_set", "kernel-modules-extra", "SUSE", "iptables-nft (RHEL"]
        {
            assert!(sentence.contains(word), "{word}: {sentence}");
        }
        assert_eq!((sentence.lines().count(), sentence.ends_with('.')), (1, true));
    }
}
