//! The kinds of kernel objects that a subsystem keeps, declared once.
//!
//! [`kinds!`] makes of one list, which is in the order of growing, the struct of targets, the struct of mirrors, and
//! [`Kinds`]: the operations on all kinds together.

use std::time::Instant;

use crate::kernel::monitor::Notice;
use crate::kernel::sysctl;
use crate::reconcile::{Audits, Found, Moment, Reflection, compare_after_notice, glance, scan};

/// The kinds of kernel objects of a subsystem, in the order of growing.
pub trait Kinds {
    /// All kinds, for reading.
    fn reflections(&self) -> Vec<&dyn Reflection>;

    /// Calls this with each of them, in the order of growing. It costs no memory: every turn does so several times.
    fn each(&self, see: &mut dyn FnMut(&dyn Reflection));

    /// All kinds, for changes.
    fn kinds(&mut self) -> Vec<Kind<'_>>;

    /// Progress of the audit of all kinds.
    fn audits(&mut self) -> &mut Audits;

    /// Steps performed in all kinds since the start.
    fn steps_done(&self) -> u64 {
        let mut sum = 0;
        self.each(&mut |kind| sum += kind.steps_done());
        sum
    }

    /// Returns whether every kind is known to be as desired.
    fn is_as_wanted(&self) -> bool {
        let mut is_all = true;
        self.each(&mut |kind| is_all &= kind.is_settled());
        is_all
    }

    /// Returns when the next retry of a failed step of any kind is due.
    fn first_retry(&self) -> Option<Instant> {
        let mut first: Option<Instant> = None;
        self.each(&mut |kind| first = first.into_iter().chain(kind.retry_at()).min());
        first
    }

    /// Returns whether every kind but the settings is known to be as desired: then nothing that an earlier run left in the
    /// other iptables backend is needed. A setting that the kernel refuses for ever must not keep old rules in force.
    fn replaces_abandoned(&self) -> bool {
        self.reflections().into_iter().all(|kind| kind.name() == sysctl::KIND || kind.is_settled())
    }

    /// Compares the next portion with the kernel. Returns the drift, and whether all kinds have been compared.
    fn audit_portion(&mut self, at: Moment) -> (Vec<Found>, bool) {
        let mut audits = *self.audits();
        let mut mirrors: Vec<&mut dyn Reflection> = self.kinds().into_iter().map(|kind| kind.mirror).collect();
        let audited = audits.next_portion(&mut mirrors, at);
        *self.audits() = audits;
        audited
    }

    /// Looks for traces of others' changes in all kinds; returns the drift.
    fn glance_at_all(&mut self, at: Moment) -> Vec<Found> {
        self.kinds().into_iter().flat_map(|kind| glance(kind.mirror, at)).collect()
    }

    /// Looks for every change by others in those kinds in which that costs much less than an audit; returns the drift.
    fn scan_all(&mut self, at: Moment) -> Vec<Found> {
        self.kinds().into_iter().flat_map(|kind| scan(kind.mirror, at)).collect()
    }

    /// Compares the kinds that this notice is about with the kernel, at once; returns the drift.
    fn audit_after(&mut self, notice: Notice, at: Moment) -> Vec<Found> {
        let concerned = self.kinds().into_iter().filter(|kind| kind.after.contains(&notice));
        concerned.flat_map(|kind| compare_after_notice(kind.mirror, at)).collect()
    }
}

/// One kind of kernel objects.
pub struct Kind<'a> {
    pub mirror: &'a mut dyn Reflection,
    /// The notices after which it is compared with the kernel at once.
    pub after: &'static [Notice],
}

/// Declares the kinds of kernel objects of a subsystem: field, associated type of its `Kernel`, and the notice after which
/// the kind is compared with the kernel at once, where there is one, and before that the form of what is desired and seen, where it is
/// not the usual one. Behind `with` stands what else the mirrors remember;
/// it begins as its default.
macro_rules! kinds {
    (
        $(#[$about:meta])*
        pub struct $mirrors:ident {
            $($field:ident: $kind:ident $(in $form:ident)? $(after $notice:ident)?,)+
        }
        with {
            $($(#[$more:meta])* $beside:ident: $type:ty,)*
        }
    ) => {
        /// The targets of one kernel.
        pub struct Targets<K: Kernel> {
            pub kernel: K,
            $(pub $field: K::$kind,)+
        }

        $(#[$about])*
        pub struct $mirrors<K: Kernel> {
            kernel: K,
            $($field: $crate::subsystem::mirror!(K::$kind $(in $form)?),)+
            audits: $crate::reconcile::Audits,
            $($(#[$more])* $beside: $type,)*
        }

        impl<K: Kernel> $mirrors<K> {
            /// Mirrors of these targets that have seen nothing yet.
            fn of(targets: Targets<K>) -> $mirrors<K> {
                $mirrors {
                    kernel: targets.kernel,
                    $($field: $crate::reconcile::Mirror::keeping(targets.$field),)+
                    audits: Default::default(),
                    $($beside: Default::default(),)*
                }
            }
        }

        impl<K: Kernel> $crate::subsystem::Kinds for $mirrors<K> {
            fn reflections(&self) -> Vec<&dyn $crate::reconcile::Reflection> {
                vec![$(&self.$field),+]
            }

            fn each(&self, see: &mut dyn FnMut(&dyn $crate::reconcile::Reflection)) {
                $(see(&self.$field);)+
            }

            fn kinds(&mut self) -> Vec<$crate::subsystem::Kind<'_>> {
                vec![$($crate::subsystem::Kind {
                    mirror: &mut self.$field,
                    after: &[$($crate::kernel::monitor::Notice::$notice)?],
                }),+]
            }

            fn audits(&mut self) -> &mut $crate::reconcile::Audits {
                &mut self.audits
            }
        }
    };
}

/// The mirror of a kind, in this form or in the usual one.
macro_rules! mirror {
    ($kernel:ident::$kind:ident) => { $crate::reconcile::Mirror<$kernel::$kind> };
    ($kernel:ident::$kind:ident in $form:ident) => {
        $crate::reconcile::Mirror<
            $kernel::$kind,
            $form<<$kernel::$kind as $crate::reconcile::Target>::Key, <$kernel::$kind as $crate::reconcile::Target>::Value>,
        >
    };
}

pub(crate) use kinds;
pub(crate) use mirror;
