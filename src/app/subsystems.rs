//! Starts each subsystem on a thread of its own, with its inputs and outputs.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use crate::aws;
use crate::bgp::driver::Access as SpeakerAccess;
use crate::config::{Backend, FirewallConfig, LoadBalancerConfig, ProxyConfig, RouterConfig, Source};
use crate::firewall::explain;
use crate::firewall::judging::Judging;
use crate::firewall::oversized_policies::OversizedPolicies;
use crate::firewall::starting_pod::StartingPod;
use crate::firewall::{self, iptables, nftables};
use crate::k8s::allocation::Api;
use crate::k8s::client::{self, Access};
use crate::k8s::events::Events;
use crate::k8s::manifests;
use crate::kernel::Error;
use crate::kernel::monitor::Changes;
use crate::kernel::processor;
use crate::load_balancer;
use crate::model::{EventClock, PolicyProblems, Report, ServiceProblems, Table, World};
use crate::net::{PerFamily, Prefixes};
use crate::observe::health::{Health, Pulse};
use crate::observe::local;
use crate::observe::metrics::Registry;
use crate::proxy;
use crate::proxy::dsr::TunnelEnds;
use crate::proxy::health_check::{self, HealthChecks};
use crate::proxy::source_ranges::serve::{self as source_ranges, OutsideSources};
use crate::proxy::unjudged::driver::FirewallWaits;
use crate::reconcile::Account;
use crate::router;
use crate::router::explain::serve::{self as of_router, Answering, Inquiry};
use crate::source_guard;
use crate::source_guard::driver::{Call, GuardContext};
use crate::source_guard::ports_file::PortsFile;
use crate::subsystem::{Inputs, Names};

use super::DEADLINE;

pub const PROXY: Names = Names { health: "service proxy", metrics: "sluice_proxy", audit: "/audit/proxy" };
pub const FIREWALL: Names = Names { health: "firewall", metrics: "sluice_firewall", audit: "/audit/firewall" };
pub const ROUTER: Names = Names { health: "router", metrics: "sluice_router", audit: "/audit/router" };
pub const SOURCE_GUARD: Names =
    Names { health: "source guard", metrics: "sluice_source_guard", audit: "/audit/source-guard" };

/// Inputs and outputs of every subsystem.
pub struct Common {
    pub health: Health,
    pub registry: Registry,
    pub families: PerFamily<bool>,
    pub world: watch::Receiver<World>,
    pub changes: watch::Receiver<Changes>,
    pub stop: watch::Receiver<bool>,
}

/// Problems of Services that the service proxy finds, in calculating and in listening.
pub struct ProblemsOut {
    pub planned: watch::Sender<ServiceProblems>,
    pub listening: watch::Sender<ServiceProblems>,
    /// Of the tunnels in pods, which the service proxy tells who asks.
    pub of_pods: watch::Sender<ServiceProblems>,
    /// Faults of the objects themselves, which the service proxy tells who asks.
    pub of_objects: watch::Receiver<ServiceProblems>,
}

/// Channels of the firewall, from and to the rest of the program.
pub struct FirewallChannels {
    /// Pods that wait for their policies before they start.
    pub starting: mpsc::Receiver<StartingPod>,
    /// Told the number of the World that the firewall has judged.
    pub judged: watch::Sender<u64>,
    /// Told the problems of policies with too many blocks.
    pub oversized: watch::Sender<PolicyProblems>,
}

/// Sources of what the API server is told.
pub struct ToldToCluster {
    pub reports: watch::Receiver<Report>,
    /// From all who find problems of Services.
    pub problems: Vec<watch::Receiver<ServiceProblems>>,
    /// Of policies with too many blocks, from the firewall.
    pub oversized: watch::Receiver<PolicyProblems>,
    pub world: watch::Receiver<World>,
}

impl ToldToCluster {
    /// Builds it from the problems of Services and the World. Also returns where reports, and the problems of policies with too many blocks, are to be sent.
    pub fn new(
        problems: Vec<watch::Receiver<ServiceProblems>>,
        world: watch::Receiver<World>,
    ) -> (ToldToCluster, watch::Sender<Report>, watch::Sender<PolicyProblems>) {
        let (report, reports) = watch::channel(Report::default());
        let (oversized_out, oversized) = watch::channel(PolicyProblems::default());
        (ToldToCluster { reports, problems, oversized, world }, report, oversized_out)
    }
}

/// Channels of the service proxy, from and to the rest of the program.
pub struct ProxyChannels {
    /// The service addresses that neighbours may still believe in, from the router.
    pub believed: watch::Receiver<Table<IpAddr, ()>>,
    /// Told when the proxy's first sync is done; the router waits for it.
    pub served: watch::Sender<bool>,
    pub problems: ProblemsOut,
    /// The number of the World that the firewall has judged, where there are tunnels.
    pub judged: Option<watch::Receiver<u64>>,
    /// Endpoints on this node in which no tunnel ends.
    pub tunnel_ends: watch::Receiver<Arc<TunnelEnds>>,
}

/// A subsystem on its thread.
pub struct Running {
    pub name: &'static str,
    pub thread: JoinHandle<()>,
}

impl Common {
    /// Starts the service proxy.
    ///
    /// # Errors
    /// A metric or a listener is missing, or the kernel cannot be opened: which, as a sentence.
    pub async fn start_proxy(
        &self,
        config: ProxyConfig,
        inputs: Inputs,
        channels: ProxyChannels,
        answerers: &mut local::Answerers,
    ) -> anyhow::Result<Running> {
        let ProxyChannels { believed, served, problems, judged, tunnel_ends } = channels;
        let ProblemsOut { planned: problems, listening, of_pods, of_objects } = problems;
        let problems_of_others = vec![of_objects, listening.subscribe(), of_pods.subscribe()];
        let (ask, questions) = mpsc::channel(1);
        let paths = [proxy::explain::serve::SERVICES, proxy::explain::serve::AT];
        answerers.extend(paths.map(|path| (path, ask.clone())));
        let metrics = proxy::metrics::Metrics::register(&self.registry)?;
        let (owners, owners_in) = watch::channel(Default::default());
        proxy::serve::register(&self.registry, owners_in)?;
        let (health_checks, wanted) = watch::channel(HealthChecks::default());
        let listeners = health_check::serve::Inputs {
            wanted,
            problems: listening,
            health: self.health.clone(),
            component: PROXY.health,
        };
        health_check::serve::spawn(listeners).context("the health checks of Services have no thread")?;
        let health = self.health.clone();
        let (ranged, families_ranged) = watch::channel(PerFamily::default());
        let programs = Arc::new(OnceLock::new());
        let outside = OutsideSources::new(families_ranged, source_ranges::reader(config.backend, programs.clone()))?;
        self.registry.register(Box::new(outside.clone()))?;
        let context = proxy::driver::ProxyContext {
            believed,
            served,
            owners,
            health_checks,
            problems,
            problems_of_others,
            metrics,
            questions,
            firewall: FirewallWaits::new(judged, health.note("tunnels")),
            tunnel_ends,
            ranged,
            outside,
            health,
        };
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let kernel = proxy::settings::kernel_version(&release).unwrap_or((u32::MAX, 0));
        let (families, stop, config) = (self.families, self.stop.clone(), Arc::new(config));
        let opened = config.clone();
        let open = move || proxy::linux::open(&opened);
        let run =
            move |targets| proxy::driver::Driver::new(config, families, kernel, targets, context).run(inputs, stop);
        let (running, found) = start(PROXY.health, "proxy", open, run).await?;
        programs.get_or_init(|| found);
        Ok(running)
    }

    /// Starts the firewall with the backend of its configuration.
    ///
    /// # Errors
    /// A metric cannot be registered, or the kernel cannot be opened: which, as a sentence.
    pub async fn start_firewall(
        &self,
        config: FirewallConfig,
        inputs: Inputs,
        channels: FirewallChannels,
        answerers: &mut local::Answerers,
    ) -> anyhow::Result<Running> {
        let (ask, questions) = mpsc::channel(1);
        let paths = [explain::EXPLAIN, explain::DIFF, explain::DROPS, explain::ISOLATION];
        answerers.extend(paths.map(|path| (path, ask.clone())));
        let metrics = firewall::metrics::Metrics::register(&self.registry)?;
        let context = firewall::driver::FirewallContext {
            questions,
            starting: channels.starting,
            metrics,
            flows: Arc::new(firewall::flows::Kernel::default()),
            read_policies: manifests::policies,
            note: self.health.note("firewall"),
            judging: Judging::new(channels.judged),
            oversized: OversizedPolicies::new(channels.oversized),
        };
        let (families, stop, config) = (self.families, self.stop.clone(), Arc::new(config));
        if config.backend == Backend::Nftables {
            let (owners, owners_in) = watch::channel(Arc::default());
            let open = || Ok((nftables::linux::open()?, ()));
            let run = move |targets| {
                let backend = nftables::Nftables::new(config.clone(), families, targets, owners);
                firewall::driver::Driver::new(families, backend, context).run(inputs, stop)
            };
            let (running, ()) = start("firewall", "firewall", open, run).await?;
            let counters = nftables::serve::Counters::new(owners_in)?;
            self.registry.register(Box::new(firewall::serve::Refused::new(counters)?))?;
            return Ok(running);
        }
        let (owners, owners_in) = watch::channel(Arc::default());
        let run = move |targets| {
            let backend = iptables::Iptables::new(config.clone(), families, targets, owners);
            firewall::driver::Driver::new(families, backend, context).run(inputs, stop)
        };
        let (running, programs) = start("firewall", "firewall", iptables::linux::open, run).await?;
        let counters = iptables::serve::Counters::new(owners_in, programs);
        self.registry.register(Box::new(firewall::serve::Refused::new(counters)?))?;
        Ok(running)
    }

    /// Starts the source guard where there is a file of guarded ports.
    ///
    /// # Errors
    /// As [`start_firewall`](Common::start_firewall); also where the kernel lacks what the guard needs.
    pub async fn start_source_guard(
        &self,
        file: Option<PortsFile>,
        calls: mpsc::Receiver<Call>,
        clock: Arc<EventClock>,
        answerers: &mut local::Answerers,
    ) -> anyhow::Result<Option<Running>> {
        let Some(file) = file else { return Ok(None) };
        let inputs = self.inputs(SOURCE_GUARD, clock, answerers)?;
        let metrics = source_guard::metrics::Metrics::register(&self.registry)?;
        let note = self.health.note("source guard");
        let context = GuardContext { calls, file, metrics, note };
        let stop = self.stop.clone();
        let open = || Ok((source_guard::linux::open()?, ()));
        let run = move |targets| source_guard::driver::Driver::new(targets, context).run(inputs, stop);
        let started = start("source guard", "source-guard", open, run).await;
        let (running, ()) = started
            .context("--netpol-source-guard needs nf_tables for bridges, hosts and ARP (CONFIG_NF_TABLES_BRIDGE, CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_ARP) in this kernel")?;
        self.registry.register(Box::new(source_guard::serve::DroppedFrames::new()?))?;
        Ok(Some(running))
    }

    /// Starts the router. `pod_ranges`: told which ranges of pods the monitor is to watch routes of.
    ///
    /// # Errors
    /// As [`start_firewall`](Common::start_firewall).
    pub async fn start_router(
        &self,
        config: RouterConfig,
        inputs: Inputs,
        context: router::driver::RouterContext,
        pod_ranges: watch::Sender<Prefixes>,
    ) -> anyhow::Result<Running> {
        let (families, stop, config) = (self.families, self.stop.clone(), Arc::new(config));
        let opened = config.clone();
        let open = move || {
            processor::set_nice(processor::PROMPT);
            Ok((router::linux::open(&opened, families, pod_ranges)?, ()))
        };
        let run = move |targets| router::driver::Driver::new(config, families, targets, context).run(inputs, stop);
        let (running, ()) = start("router", "router", open, run).await?;
        Ok(running)
    }

    /// Has the source/destination check of EC2 switched off where the router runs, the flag is on, and the own Node turns out to be an instance.
    pub fn start_source_dest_check(&self, config: Option<&RouterConfig>, events: Option<Events>) {
        if config.is_some_and(|config| config.disable_source_dest_check) {
            let (world, note) = (self.world.clone(), self.health.note("AWS"));
            let endpoints = aws::driver::Endpoints::of_process();
            tokio::spawn(aws::driver::run(aws::driver::Inputs { world, endpoints, note, events }));
        }
    }

    /// Starts the allocator of load balancer addresses where it is to run. Its only effects are requests to the API.
    ///
    /// # Errors
    /// A metric cannot be registered, or there is no thread for it.
    pub fn start_load_balancer(
        &self,
        config: Option<LoadBalancerConfig>,
        source: &Source,
        events: Option<Events>,
    ) -> anyhow::Result<Option<Running>> {
        let (Some(config), Source::Api { kubeconfig, master }) = (config, source) else { return Ok(None) };
        let Some(events) = events else { return Ok(None) };
        let access = Access { kubeconfig: kubeconfig.clone(), master: master.clone() };
        let name = "address allocator";
        let metrics = load_balancer::metrics::Metrics::register(&self.registry)?;
        let (pulse, note, stop) = (self.pulse(name), self.health.note(name), self.stop.clone());
        let (lease_note, world) = (self.health.note("election of the address allocator"), self.world.clone());
        let run = async move {
            let client = match client::client(&access).await {
                Ok(client) => client,
                Err(error) => return error!(%error, "Address allocator has no client of the API"),
            };
            let api = Api::new(client.clone(), config.namespace.clone());
            let timing = load_balancer::election::TIMING;
            let driver = load_balancer::driver::Driver {
                config,
                access,
                client,
                api,
                events,
                pulse,
                note,
                lease_note,
                metrics,
                world,
                timing,
            };
            driver.run(stop).await;
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread =
            std::thread::Builder::new().name("load-balancer".to_owned()).spawn(move || runtime.block_on(run))?;
        Ok(Some(Running { name, thread }))
    }

    /// Inputs of the loop of a subsystem, which answers questions for what differs from the kernel from now on.
    ///
    /// # Errors
    /// A metric of that subsystem cannot be registered.
    pub fn inputs(
        &self,
        names: Names,
        clock: Arc<EventClock>,
        answerers: &mut local::Answerers,
    ) -> anyhow::Result<Inputs> {
        let (ask, audits) = mpsc::channel(1);
        answerers.insert(names.audit, ask);
        Ok(Inputs {
            world: self.world.clone(),
            clock,
            disturbances: self.changes.clone(),
            pulse: self.pulse(names.health),
            account: Account::register(&self.registry, names.metrics)?,
            audits,
        })
    }

    pub fn pulse(&self, name: &'static str) -> Pulse {
        self.health.register(name, DEADLINE, Instant::now())
    }
}

/// Answers questions about BGP, and about the way to an address, from now on; returns those to the router's loop.
pub fn answer_for_router(
    speaker: watch::Receiver<Option<SpeakerAccess>>,
    world: watch::Receiver<World>,
    answerers: &mut local::Answerers,
) -> mpsc::Receiver<Inquiry> {
    let (ask, questions) = mpsc::channel(1);
    answerers.extend([of_router::PEERS, of_router::ROUTES, of_router::WAY].map(|path| (path, ask.clone())));
    let (router, inquiries) = mpsc::channel(1);
    tokio::spawn(of_router::run(Answering { questions, speaker, router, world }));
    inquiries
}

/// Starts a subsystem on a thread of its own, and waits until it has opened the kernel. `open` also says something to
/// whoever starts it.
async fn start<T, S, F>(
    name: &'static str,
    thread: &'static str,
    open: impl FnOnce() -> Result<(T, S), Error> + Send + 'static,
    run: impl FnOnce(T) -> F + Send + 'static,
) -> anyhow::Result<(Running, S)>
where
    S: Send + 'static,
    F: Future<Output = ()>,
{
    let (opened, is_open) = oneshot::channel();
    let thread = std::thread::Builder::new().name(thread.to_owned()).spawn(move || {
        let targets = match open() {
            Ok((targets, said)) => {
                // The receiver only goes when the program ends.
                let _ = opened.send(Ok(said));
                targets
            }
            Err(error) => {
                let _ = opened.send(Err(error));
                return;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        match runtime {
            Ok(runtime) => runtime.block_on(run(targets)),
            Err(error) => error!(%error, subsystem = name, "Starting the event loop of a subsystem failed"),
        }
    })?;
    let said = is_open.await.with_context(|| format!("the {name} broke off"))?;
    let said = said.with_context(|| format!("the {name} cannot reach the kernel"))?;
    Ok((Running { name, thread }, said))
}
