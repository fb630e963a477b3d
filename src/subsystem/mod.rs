//! Common to all subsystems (service proxy, firewall, source guard, router): newest World → plan → kernel, in one loop.
//!
//! - [`kinds!`] declares which kinds of kernel objects a subsystem keeps ([`Kinds`]);
//! - [`Subsystem`] is the loop's interface to it: its desired state, and what only it knows;
//! - [`run`] is the loop: waiting, deadlines, taking a new World, looking at what others changed ([`disturbances`]), audits,
//!   health, metrics and the log of the first sync.
//!
//! Another kind of kernel objects is: its target (`kernel`, and in memory for tests), a type in the subsystem's `Kernel`, a line
//! in its `kinds!`, its map in `Desired` with its keys in `…Changes`, and where it grows and shrinks in `round`. Audits, retries,
//! notices, health, metrics, logs and cleanup follow from the line.
//!
//! Each subsystem runs as one task on a thread of its own, which owns its plan and its mirrors; kernel calls block it and
//! nothing else. Cancelling it between two turns loses nothing: what is programmed stays, and the next start adopts it.

mod abandoned;
mod command_looks;
pub mod disturbances;
mod driver;
mod inspection;
mod kinds;
mod leftovers;
mod patrol;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::kernel::monitor::{Changes, Notice};
use crate::model::{Authority, EventClock, World};
use crate::observe::health::Pulse;
use crate::observe::local::Question;
use crate::reconcile::{Account, Found, Moment};

pub use command_looks::OthersCommands;
pub use driver::run;
pub use inspection::LeftOut;
pub use kinds::{Kind, Kinds};

pub(crate) use kinds::{kinds, mirror};

/// Inputs and outputs of a subsystem's loop.
pub struct Inputs {
    pub world: watch::Receiver<World>,
    pub clock: Arc<EventClock>,
    /// Counters of changes of the kernel by others.
    pub disturbances: watch::Receiver<Changes>,
    pub pulse: Pulse,
    /// State of the kinds of kernel objects, in log and metrics.
    pub account: Account,
    /// Questions of users on this host for what differs from the kernel.
    pub audits: mpsc::Receiver<Question>,
}

/// Names of a subsystem.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// In health.
    pub health: &'static str,
    /// The beginning of the names of its metrics.
    pub metrics: &'static str,
    /// The path of questions for what differs from the kernel, on the local socket.
    pub audit: &'static str,
}

/// A subsystem, as the loop sees it.
///
/// A turn calls, in this order: [`hear`](Subsystem::hear) with what woke it, [`look_around`](Subsystem::look_around),
/// [`take_world`](Subsystem::take_world) where there is another one, [`disturbed`](Subsystem::disturbed),
/// [`calculate`](Subsystem::calculate), [`round`](Subsystem::round), [`count`](Subsystem::count), [`audit`](Subsystem::audit) where one is due, [`troubles`](Subsystem::troubles), [`publish`](Subsystem::publish).
pub trait Subsystem {
    type Mirrors: Kinds;
    /// Input that wakes it besides the World, the kernel and the time.
    type News;
    /// Result of one round.
    type Round;

    /// Notices that it waits for besides those of its kinds.
    const NOTICES: &'static [Notice] = &[];

    /// Number of courses of [`look_closely`](Subsystem::look_closely).
    const CLOSE_LOOKS: usize = 1;

    /// Number of those courses, the first ones, that rest while the kernel counts what others do to their objects.
    const COUNTED_LOOKS: usize = 0;

    fn mirrors(&mut self) -> &mut Self::Mirrors;

    /// The time from the end of an audit to the next.
    fn audit_period(&self) -> Duration;

    /// Waits for other input. Loses nothing when the wait is cancelled.
    fn next(&mut self) -> impl Future<Output = Self::News>;

    /// Processes the input that woke it; a turn follows.
    fn hear(&mut self, news: Self::News, at: Moment, context: &Context<'_>) -> impl Future<Output = ()>;

    /// Returns its own next deadline.
    fn deadline(&self) -> Option<Instant>;

    /// Reads inputs that wake nobody, before the World.
    fn look_around(&mut self, _now: Instant) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    /// Processes a World, and marks what is desired differently. Returns its authority.
    fn take_world(&mut self, world: &World, at: Moment) -> impl Future<Output = Authority>;

    /// Does what is due by the clock, whether there is another World or not.
    fn calculate(&mut self, at: Moment) -> impl Future<Output = ()>;

    /// Handles a change by others that this notice is about; its kinds have been compared.
    fn disturbed(&mut self, _notice: Notice) {}

    /// Brings the desired state into the kernel, as far as `authority` allows.
    fn round(&mut self, authority: Authority, at: Moment) -> Self::Round;

    /// Returns whether everything that replaces what earlier runs left is in place.
    fn replaces_abandoned(&mut self) -> bool {
        self.mirrors().replaces_abandoned()
    }

    /// Returns whether something is there that earlier runs left with another packet filter. What cannot be read is not.
    fn has_abandoned(&mut self) -> bool {
        false
    }

    /// Removes what earlier runs left where it no longer belongs; called when what replaces it is in place, and again while
    /// something remains. Returns why something could not be removed; `None` where that was a part of the removal alone, and the
    /// next part is to follow: inputs and changes go first.
    fn remove_abandoned(&mut self) -> Option<Vec<String>>;

    /// Counts and logs the result of a round of `steps` steps.
    fn count(&mut self, round: Self::Round, steps: u64, times: &Times);

    /// Compares the next portion with the kernel. Returns the drift, and whether everything has been compared.
    fn audit(&mut self, at: Moment) -> (Vec<Found>, bool) {
        self.mirrors().audit_portion(at)
    }

    /// Makes due now what waits for another try besides failed steps of its kinds: a user has asked for a repair.
    fn retry_now(&mut self, _now: Instant) {}

    /// Called before the kernel is read for a user's question.
    fn prepare_to_read(&mut self) {}

    /// Returns what the kernel refuses and nothing that is desired asks for any more, so that no comparison finds it: who asks what differs is told of it.
    fn left_out(&mut self) -> Vec<LeftOut> {
        Vec::new()
    }

    /// Looks for traces of others' changes without notifications, every few seconds; returns the drift. `counted_rest`: objects whose
    /// commands are counted may be left out.
    fn glance(&mut self, _counted_rest: bool, at: Moment) -> Vec<Found> {
        self.mirrors().glance_at_all(at)
    }

    /// Looks at the next portion of the objects of this course, counted from 0, in a way that sees every change; all courses go on
    /// side by side, all the time. Returns the drift, and whether it was the last portion.
    fn look_closely(&mut self, _course: usize, at: Moment) -> (Vec<Found>, bool) {
        (self.mirrors().scan_all(at), true)
    }

    /// Returns whether others have given commands to the objects of the first [`COUNTED_LOOKS`](Subsystem::COUNTED_LOOKS) courses since the
    /// last call.
    fn others_commands(&mut self, _now: Instant) -> OthersCommands {
        OthersCommands::NotCounted
    }

    /// Looks at the next portion of all that those commands may have changed, from the beginning where `begins`.
    fn look_after_commands(&mut self, _begins: bool, _at: Moment) -> LookedAt {
        LookedAt { found: Vec::new(), finished: true, missed: false }
    }

    /// Called at the end of an audit.
    fn audited(&mut self, _at: Moment) {}

    /// Called when much work is over: rebuilds more densely what was filled one by one (`packed`).
    fn pack(&mut self) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    /// Returns the troubles besides those of the kinds of kernel objects. Logs those that begin or end.
    fn troubles(&mut self, account: &mut Account, standing: &Standing) -> Vec<String>;

    /// Returns whether everything that it needs besides the kernel runs: there is no first sync before.
    fn is_equipped(&self) -> bool {
        true
    }

    /// Logs that the kernel holds the whole desired state for the first time.
    fn log_first_sync(&mut self, sync: &FirstSync);

    /// Publishes its state; returns whether it has done what it is there for.
    fn publish(&mut self, standing: &Standing) -> bool;
}

/// Result of a portion of a look after others' commands.
#[derive(Debug)]
pub struct LookedAt {
    pub found: Vec<Found>,
    /// It was the last portion.
    pub finished: bool,
    /// The kernel did not show everything: there has to be another look.
    pub missed: bool,
}

/// Parts of the loop that a subsystem may use meanwhile.
pub struct Context<'a> {
    pub world: &'a watch::Receiver<World>,
    pub authority: Authority,
    pub account: &'a Account,
}

/// State of a subsystem at the end of a turn.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub now: Instant,
    pub authority: Authority,
    /// Something is known of the cluster, and there is no trouble. Not known yet, so false, while troubles are
    /// requested.
    pub is_well: bool,
    pub synced: bool,
}

/// The times of one turn.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Time at which the earliest event of the World that was taken was seen.
    pub seen: Option<Instant>,
    pub begun: Instant,
    pub computed: Instant,
    pub done: Instant,
}

/// Durations up to the first sync.
#[derive(Clone, Copy, Debug)]
pub struct FirstSync {
    pub authority: Authority,
    pub steps: u64,
    /// From the start to the first World with any content, and to now.
    pub input: Option<Duration>,
    pub took: Duration,
    /// Time spent on calculating, and on comparing and changing the kernel.
    pub computing: Duration,
    pub programming: Duration,
}
