//! Which package of a distribution brings a kernel module or a program that a host lacks.
//!
//! The distribution is told by the running kernel (`uname`, `/proc/version`), not by `/etc/os-release`: in a container that file is the image's, and it is the
//! kernel whose modules are missing. Distributions split them differently: RHEL 10 has all of ipset, xtables and `br_netfilter` in
//! `kernel-modules-extra` and IPVS and nf_tables in `kernel-modules-core`; small boards and cloud images have packages of their own; Talos and other image-based
//! systems have no packages, and load what their configuration names.

use std::fmt;

/// A distribution, as its kernel tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Distribution {
    /// RHEL and its rebuilds, with the major version.
    RedHat(u8),
    Fedora,
    Amazon,
    Oracle,
    Ubuntu,
    /// Ubuntu for the Raspberry Pi.
    UbuntuRaspi,
    Debian,
    /// Debian's kernel for clouds, with fewer modules.
    DebianCloud,
    Suse,
    Alpine,
    /// Alpine's kernel for virtual machines, with fewer modules.
    AlpineVirt,
    Talos,
    Flatcar,
    ContainerOptimized,
    Unknown,
}

/// The running kernel, as far as packages depend on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunningKernel {
    /// `uname -r`: `6.12.0-55.el10.x86_64`.
    pub release: String,
    pub distribution: Distribution,
}

impl RunningKernel {
    /// Returns the kernel with this release and version (`uname -r`; `uname -v` or, which names the compiler too, `/proc/version`).
    pub fn new(release: &str, version: &str) -> RunningKernel {
        RunningKernel { release: release.to_owned(), distribution: Distribution::of_kernel(release, version) }
    }

    /// Returns where this host gets a module from that its kernel does not have, for the end of a sentence.
    pub fn source_of_module(&self, module: &str) -> String {
        let release = &self.release;
        let of_same = format!(
            "of the version of the running kernel, {release}; where that is not to be had, update the kernel and reboot"
        );
        match self.distribution {
            Distribution::RedHat(10..) if is_extra_in_red_hat_10(module) => {
                format!("it is in the package kernel-modules-extra, {of_same}")
            }
            Distribution::RedHat(10..) => format!("it is in the package kernel-modules-core, {of_same}"),
            Distribution::RedHat(..=8) if module == "wireguard" => {
                "this distribution has it from version 9 on".to_owned()
            }
            Distribution::RedHat(_) | Distribution::Fedora => {
                format!("it is in one of the packages kernel-modules-core, kernel-modules and kernel-modules-extra, {of_same}")
            }
            Distribution::Amazon => format!("it is in the package kernel-modules-extra, {of_same}"),
            Distribution::Oracle => {
                format!("it is in one of the packages kernel-uek-modules and kernel-uek-modules-extra, {of_same}")
            }
            Distribution::Ubuntu => format!("it is in the package linux-modules-{release} or linux-modules-extra-{release}"),
            Distribution::UbuntuRaspi => "it is in the package linux-modules-extra-raspi".to_owned(),
            Distribution::Debian => format!("it is in the package linux-image-{release}: install that again, and reboot if the kernel was updated"),
            Distribution::DebianCloud => {
                "Debian's kernel for clouds may lack it: install linux-image-amd64 or linux-image-arm64 in its place and reboot".to_owned()
            }
            Distribution::Suse => "kernel-default-base may lack it: install kernel-default in its place and reboot".to_owned(),
            Distribution::AlpineVirt => "linux-virt may lack it: install linux-lts in its place and reboot".to_owned(),
            Distribution::Alpine => "it is in the package of the kernel, linux-lts: install that again and reboot".to_owned(),
            Distribution::Talos => format!("name it in the machine configuration: machine.kernel.modules, - name: {module}"),
            Distribution::Flatcar | Distribution::ContainerOptimized => {
                "it comes with the image of the operating system alone: use a version that has it".to_owned()
            }
            Distribution::Unknown => format!("install the package of the distribution with the modules of this kernel, {release}"),
        }
    }

    /// Returns how a module that the host has gets loaded where this program cannot do that, for the end of a sentence.
    pub fn way_to_load(&self, module: &str) -> String {
        match self.distribution {
            Distribution::Talos => {
                format!("name it in the machine configuration: machine.kernel.modules, - name: {module}")
            }
            _ => format!(
                "run modprobe {module} on the host, and write {module} into a file in its /etc/modules-load.d, for the next boot"
            ),
        }
    }

    /// Returns how a module that the host has gets loaded where nobody can load any until the next boot, for the end of a sentence.
    pub fn way_to_load_at_boot(&self, module: &str) -> String {
        match self.distribution {
            Distribution::Talos => self.way_to_load(module),
            _ => format!("write {module} into a file in the host's /etc/modules-load.d, and reboot"),
        }
    }

    /// Returns the package with the programs of iptables.
    pub fn package_of_iptables(&self) -> &'static str {
        let is_of_variant = match self.distribution {
            Distribution::RedHat(major) => major >= 9,
            Distribution::Oracle => major(&self.release).is_some_and(|major| major >= 9),
            Distribution::Amazon => ![".amzn1.", ".amzn2."].iter().any(|older| self.release.contains(older)),
            Distribution::Fedora => true,
            _ => false,
        };
        if is_of_variant { "iptables-nft" } else { "iptables" }
    }
}

/// The major version of RHEL that a kernel was built for.
fn major(release: &str) -> Option<u8> {
    let number = release.split(".el").nth(1)?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// RHEL 10 keeps these apart from IPVS, nf_tables, bridges and tunnels.
fn is_extra_in_red_hat_10(module: &str) -> bool {
    let begins = ["ip_set", "xt_", "ipt_", "ip6t_", "iptable_", "ip6table_", "ebt", "arpt"];
    begins.iter().any(|begin| module.starts_with(begin))
        || ["br_netfilter", "nft_compat", "ip_tables", "ip6_tables", "sctp"].contains(&module)
}

impl Distribution {
    /// Tells the distribution by its kernel: `release` is `uname -r`, `version` is `uname -v` or `/proc/version`. By the compiler, whose name that has before the sign `#`,
    /// it is told only where nothing else tells: people build kernels of their own with any.
    pub fn of_kernel(release: &str, version: &str) -> Distribution {
        let has = |word: &str| release.contains(word);
        if has(".el") {
            return match major(release) {
                Some(_) if has("uek") => Distribution::Oracle,
                Some(major) => Distribution::RedHat(major),
                None => Distribution::Unknown,
            };
        }
        let (compiler, version) = version.rsplit_once('#').unwrap_or(("", version));
        let by_release = [
            (has("-talos"), Distribution::Talos),
            (has("-flatcar"), Distribution::Flatcar),
            (has(".amzn") || has("-amzn"), Distribution::Amazon),
            (has(".fc"), Distribution::Fedora),
            (has("-raspi"), Distribution::UbuntuRaspi),
            (has("-cloud-amd64") || has("-cloud-arm64"), Distribution::DebianCloud),
            (release.ends_with("-virt"), Distribution::AlpineVirt),
            // Arch has kernels that end so, too.
            (release.ends_with("-lts") && version.contains("Alpine"), Distribution::Alpine),
            (release.ends_with("-default"), Distribution::Suse),
            (version.contains("Ubuntu"), Distribution::Ubuntu),
            (version.contains("Debian"), Distribution::Debian),
            (release.ends_with('+') && compiler.contains("Chromium OS"), Distribution::ContainerOptimized),
        ];
        by_release.into_iter().find(|(is, _)| *is).map_or(Distribution::Unknown, |(_, distribution)| distribution)
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Distribution::RedHat(major) => return write!(f, "RHEL {major} or a rebuild of it"),
            Distribution::Fedora => "Fedora",
            Distribution::Amazon => "Amazon Linux",
            Distribution::Oracle => "Oracle Linux (UEK)",
            Distribution::Ubuntu => "Ubuntu",
            Distribution::UbuntuRaspi => "Ubuntu for the Raspberry Pi",
            Distribution::Debian => "Debian",
            Distribution::DebianCloud => "Debian (kernel for clouds)",
            Distribution::Suse => "SUSE",
            Distribution::Alpine => "Alpine",
            Distribution::AlpineVirt => "Alpine (linux-virt)",
            Distribution::Talos => "Talos",
            Distribution::Flatcar => "Flatcar",
            Distribution::ContainerOptimized => "Container-Optimized OS",
            Distribution::Unknown => "of no distribution that is known here",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_the_distribution() {
        let cases = [
            ("6.12.0-55.9.1.el10_0.x86_64", "#1 SMP PREEMPT_DYNAMIC", Distribution::RedHat(10)),
            ("5.14.0-427.el9.aarch64", "#1 SMP", Distribution::RedHat(9)),
            ("5.15.0-209.161.7.2.el9uek.x86_64", "#2 SMP", Distribution::Oracle),
            ("6.14.5-300.fc42.x86_64", "#1 SMP", Distribution::Fedora),
            ("6.1.141-155.222.amzn2023.x86_64", "#1 SMP", Distribution::Amazon),
            ("6.8.0-60-generic", "#63-Ubuntu SMP PREEMPT_DYNAMIC", Distribution::Ubuntu),
            ("5.15.0-1077-raspi", "#80-Ubuntu SMP", Distribution::UbuntuRaspi),
            ("6.1.0-56-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.147-1", Distribution::Debian),
            ("6.1.0-56-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.147-1", Distribution::DebianCloud),
            ("6.4.0-150600.23.50-default", "#1 SMP", Distribution::Suse),
            ("6.12.30-0-virt", "#1-Alpine SMP", Distribution::AlpineVirt),
            ("6.12.30-0-lts", "#1-Alpine SMP", Distribution::Alpine),
            ("6.18.2-talos", "#1 SMP", Distribution::Talos),
            ("6.12.31-flatcar", "#1 SMP", Distribution::Flatcar),
            ("6.18.44", "#1 SMP", Distribution::Unknown),
            ("6.12.30-1-lts", "#1 SMP PREEMPT_DYNAMIC Sun, 25 May 2025 11:47:18 +0000", Distribution::Unknown),
            (
                "6.6.93+",
                "Linux version 6.6.93+ (builder@localhost) (Chromium OS 17.0_pre498229-r33 clang version 17.0.0, LLD 17.0.0) #1 SMP Sat May  3 09:11:30 UTC 2025\n",
                Distribution::ContainerOptimized,
            ),
            (
                "6.1.0-56-amd64",
                "Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0) #1 SMP PREEMPT_DYNAMIC Debian 6.1.147-1\n",
                Distribution::Debian,
            ),
            (
                "6.18.44",
                "Linux version 6.18.44 (me@home) (gcc (Debian 14.2.0-19) 14.2.0, GNU ld (GNU Binutils for Debian) 2.44) #1 SMP\n",
                Distribution::Unknown,
            ),
        ];
        for (release, version, expected) in cases {
            assert_eq!(Distribution::of_kernel(release, version), expected, "{release}");
        }
    }

    #[test]
    fn a_module_comes_with_the_package_that_this_distribution_has_it_in() {
        let source =
            |release: &str, version: &str, module: &str| RunningKernel::new(release, version).source_of_module(module);
        let of_red_hat = |module| source("6.12.0-55.el10.x86_64", "#1 SMP", module);
        for module in ["br_netfilter", "ip_set_hash_ip", "xt_set", "nft_compat", "iptable_mangle", "ip6table_filter"] {
            assert!(
                of_red_hat(module)
                    .contains("kernel-modules-extra, of the version of the running kernel, 6.12.0-55.el10"),
                "{module}"
            );
        }
        for module in ["ip_vs", "nft_ct", "ipip", "dummy"] {
            assert!(of_red_hat(module).contains("kernel-modules-core"), "{module}");
        }
        assert!(source("6.8.0-60-generic", "Ubuntu", "ip_vs").contains("linux-modules-extra-6.8.0-60-generic"));
        assert_eq!(source("5.15.0-1077-raspi", "Ubuntu", "ip_vs"), "it is in the package linux-modules-extra-raspi");
        assert!(source("6.18.2-talos", "", "ip_vs").ends_with("machine.kernel.modules, - name: ip_vs"));
    }

    #[test]
    fn older_releases_have_the_programs_of_iptables_in_one_package() {
        for (release, package) in [
            ("6.12.0-55.el10.x86_64", "iptables-nft"),
            ("5.14.0-427.el9.aarch64", "iptables-nft"),
            ("4.18.0-553.el8_10.x86_64", "iptables"),
            ("3.10.0-1160.el7.x86_64", "iptables"),
            ("5.15.0-209.161.7.2.el9uek.x86_64", "iptables-nft"),
            ("5.15.0-209.161.7.2.el8uek.x86_64", "iptables"),
            ("6.1.141-155.222.amzn2023.x86_64", "iptables-nft"),
            ("5.10.236-227.928.amzn2.x86_64", "iptables"),
            ("6.14.5-300.fc42.x86_64", "iptables-nft"),
            ("6.4.0-150600.23.50-default", "iptables"),
        ] {
            assert_eq!(RunningKernel::new(release, "#1 SMP").package_of_iptables(), package, "{release}");
        }
    }

    #[test]
    fn where_nobody_loads_modules_any_more_the_next_boot_does() {
        let way = |release: &str| RunningKernel::new(release, "#1 SMP").way_to_load_at_boot("ip_vs");
        assert_eq!(way("6.18.44"), "write ip_vs into a file in the host's /etc/modules-load.d, and reboot");
        assert!(way("6.18.2-talos").ends_with("machine.kernel.modules, - name: ip_vs"));
    }
}
