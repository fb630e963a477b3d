//! Whether bridges learn from frames that they do not forward.
//!
//! A bridge keeps frames to the groups 01:80:c2:00:00:00 to 0f to itself (IEEE 802.1Q 8.6.3), and learns the sender's address from them nevertheless,
//! before most of its hooks. The option `no_linklocal_learn` ends that (since 5.0).
//!
//! Ours: the option of the bridges that [`GroupLearning::of`] lists, where it is set. It is never reset: nobody knows its former value,
//! and no bridge needs to learn from such frames.
//!
//! Kernel: rtnetlink `RTM_NEWLINK` with `IFLA_BR_MULTI_BOOLOPT` (include/uapi/linux/if_bridge.h, `BR_BOOLOPT_NO_LL_LEARN`).

use std::collections::{BTreeMap, BTreeSet};

use crate::kernel::Error;
use crate::kernel::link::LinkName;
use crate::kernel::netlink::{Answer, Bus, Messages, Socket};
use crate::reconcile::{Failure, Phase, Step, Target};

/// The option of some bridges.
pub struct GroupLearning {
    socket: Socket,
    bridges: BTreeSet<LinkName>,
}

/// The bridge learns from no frame that it does not forward.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoGroupLearning;

/// The name of the kind of kernel objects.
const KIND: &str = "bridge options";

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;
const NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const BRIDGE: &str = "bridge";
/// `IFLA_BR_MULTI_BOOLOPT`: values and mask of options.
const OPTIONS: u16 = 46;
const NO_GROUP_LEARNING: u32 = 1;

impl GroupLearning {
    /// Opens a socket in the network namespace of the calling thread. Concerns no bridge yet.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open() -> Result<GroupLearning, Error> {
        Ok(GroupLearning { socket: Socket::open(Bus::Route)?, bridges: BTreeSet::new() })
    }
}

/// Options of bridges that somebody lists.
pub trait OfBridges: Target<Key = LinkName, Value = NoGroupLearning> {
    /// From now on these bridges are concerned, and no others.
    fn of(&mut self, bridges: BTreeSet<LinkName>);
}

impl OfBridges for GroupLearning {
    fn of(&mut self, bridges: BTreeSet<LinkName>) {
        self.bridges = bridges;
    }
}

impl Target for GroupLearning {
    type Key = LinkName;
    type Value = NoGroupLearning;
    type Error = Error;

    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&mut self) -> Result<BTreeMap<LinkName, NoGroupLearning>, Error> {
        if self.bridges.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut message = Messages::new();
        message.begin(GET_LINK, 0).header(&[0; HEADER]);
        let listed =
            self.socket.dump(&mut message, set).map_err(|fault| Error::new("list bridges", "", fault.into()))?;
        let concerned = listed.into_iter().filter(|bridge| self.bridges.contains(bridge));
        Ok(concerned.map(|bridge| (bridge, NoGroupLearning)).collect())
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, LinkName, NoGroupLearning>]) -> Vec<Failure<Error>> {
        let mut failures = Vec::new();
        for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.want.is_some()) {
            let mut message = Messages::new();
            // ip link set NAME type bridge no_linklocal_learn 1
            message.begin(NEW_LINK, 0).header(&[0; HEADER]).text(NAME, &step.key.0);
            let options = [NO_GROUP_LEARNING.to_ne_bytes(), NO_GROUP_LEARNING.to_ne_bytes()].concat();
            message.nest(LINK_INFO).text(INFO_KIND, BRIDGE).nest(INFO_DATA).attribute(OPTIONS, &options).end().end();
            let cause = match self.socket.batch(&mut message) {
                Ok(refusals) => refusals.into_iter().next().map(Into::into),
                Err(fault) => Some(fault.into()),
            };
            failures.extend(cause.map(|cause| Failure {
                step: index,
                error: Error::new("set no_linklocal_learn of bridge", step.key.to_string(), cause),
            }));
        }
        failures
    }
}

/// The bridge that a message describes, if its option is set.
fn set(answer: &Answer<'_>) -> Option<LinkName> {
    let attributes = answer.attributes(HEADER);
    let info = attributes.get(LINK_INFO)?.attributes();
    let is_bridge = info.get(INFO_KIND)?.text() == Some(BRIDGE);
    let options = info.get(INFO_DATA)?.attributes().get(OPTIONS)?.u32()?;
    let name = attributes.get(NAME)?.text()?;
    (is_bridge && options & NO_GROUP_LEARNING != 0).then(|| LinkName(name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = set(&Answer { kind: 16, flags: 0, sequence: 0, port: 0, payload: &bytes });
        }
    }
}
