//! The tables of frames of the firewall, in memory.

use std::collections::BTreeMap;

use rustix::io::Errno;
use sluice::firewall::frames;
use sluice::kernel::Error;
use sluice::kernel::nftables::{Content, Object};
use sluice::reconcile::{Failure, Phase, Step, Target};

use super::MemoryKernel;

/// One of the tables, by its name as a kind.
pub struct Frames {
    pub machine: MemoryKernel,
    pub name: &'static str,
}

impl Frames {
    /// Both tables: that of the family `bridge` and that of the family `inet`.
    pub fn of(machine: &MemoryKernel) -> [Frames; 2] {
        [frames::NAME, frames::GROUPS_NAME].map(|name| Frames { machine: machine.clone(), name })
    }
}

impl Target for Frames {
    type Key = Object;
    type Value = Content;
    type Error = Error;

    fn name(&self) -> &'static str {
        self.name
    }

    fn read(&mut self) -> Result<BTreeMap<Object, Content>, Error> {
        Ok(self.machine.with(|machine| machine.frames.get(self.name).cloned().unwrap_or_default()))
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, Object, Content>]) -> Vec<Failure<Error>> {
        self.machine.with(|machine| {
            if machine.frames_fail {
                let failed = |step| Failure { step, error: Error::errno("change", self.name, Errno::NOBUFS) };
                return (0..steps.len()).map(failed).collect();
            }
            let table = machine.frames.entry(self.name).or_default();
            for step in steps {
                match step.want {
                    Some(content) => table.insert(step.key.clone(), content.clone()),
                    None => table.remove(step.key),
                };
            }
            Vec::new()
        })
    }
}
