//! The subsystems that run, the order in which they start, and how they end.
//!
//! Threads:
//! - this one, with the World's task, the API watches and the signals;
//! - `listeners`, for health and metrics;
//! - `health-checks`, where load balancers ask about Services (`proxy::health_check`);
//! - `manifests`, where the cluster is a directory;
//! - `established`, while connections that policies newly deny are looked for (`firewall::established`);
//! - `policy-diff`, while somebody asks what a policy would change (`firewall::diff`);
//! - `proxy`, `firewall`, `router` and, with `--netpol-source-guard`, `source-guard`, each of which owns everything that its subsystem does to the kernel (`subsystem`);
//! - the BGP speaker's, which the router starts;
//! - `pod-tunnels`, where direct server return is used: tunnels end in this node's pods (`pod_tunnels`);
//! - `load-balancer`, with `--run-loadbalancer`: the election, and what its winner does (`load_balancer`), or where the cluster is a directory,
//!   addresses in memory, with `manifests-lb`, which reads the directory for it;
//! - `monitor`, which waits for notifications of the kernel.
//!
//! Start: listeners are bound first, because a mistake there must be known before anything is written; then
//! the host's facts, the World, its sources, and, when it is known which packet filter they use (`app/packet_filter.rs`: a host without one is waited for), the subsystems. A subsystem begins when the World says something. None of them
//! waits for another but for one case: the router's speaker waits for the service proxy's first sync, and not for long.
//!
//! End, by SIGTERM or SIGINT: the loops finish their turn and nothing in the kernel is taken back.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::bgp;
use crate::cleanup;
use crate::cni;
use crate::cni::serve::Calls;
use crate::config::{Cleanup, Config, ObserveConfig, RouterConfig, Source, TOOLCHAIN, VERSION};
use crate::firewall::starting_pod::StartingPod;
use crate::gobgp;
use crate::gobgp::serve::{Place, Ports};
use crate::gobgp::service::Service;
use crate::k8s::client::{self, Access};
use crate::k8s::events::{self, Events};
use crate::k8s::outage::Outages;
use crate::k8s::service_events::Subjects;
use crate::k8s::{Message, Wanted, manifests, own_annotations, report, service_events, watch as watch_api};
use crate::kernel::Error;
use crate::kernel::address::host_addresses;
use crate::kernel::file_system::is_of_container;
use crate::kernel::ipvs::ClientConnections;
use crate::kernel::link::LinkName;
use crate::kernel::monitor::{self, Changes, Watched};
use crate::kernel::processor;
use crate::kernel::route::sources_to;
use crate::model::{EventClock, Host, PolicyProblems, Report, ServiceProblems, Table, World};
use crate::net::Prefixes;
use crate::observe::health::{Health, Pulse};
use crate::observe::http::{self, Site};
use crate::observe::local::Answerers;
use crate::observe::metrics::Registry;
use crate::observe::recent::Recent;
use crate::pod_tunnels::places::Announced;
use crate::proxy::names::{BRIDGE, DEVICE, DSR_TABLE, EMPTY_TABLE};
use crate::router;
use crate::router::drain::ClientLook;
use crate::router::explain::serve::Inquiry;
use crate::router::names::PROTOCOL;
use crate::router::plugin_entry::{CniFiles, keep_without_plugin};
use crate::source_guard;
use crate::source_guard::driver::Call as GuardCall;
use crate::source_guard::ports_file::PortsFile;
use crate::world::{self, Attaching, AttachmentsFile, LastKnown};

pub use self::wanted::wanted;

use self::packet_filter::Deciding;
use self::pod_tunnels::PodTunnelsOut;
use self::pod_tunnels::awaited::with_awaited;
use self::questions::{QuestionContext, answer_questions};
use self::signals::Signals;
use self::subsystems::{
    Common, FIREWALL, FirewallChannels, PROXY, ProblemsOut, ProxyChannels, ROUTER, Running, ToldToCluster,
    answer_for_router,
};

mod addresses_in_memory;
mod packet_filter;
mod pod_tunnels;
mod questions;
mod signals;
mod subsystems;
mod wanted;

/// The socket for clients of GoBGP, beside the one of `--socket`.
pub const GOBGP_SOCKET: &str = "gobgp.sock";
/// How many announced pods may wait to be taken in; the plugin waits itself then.
const STARTING: usize = 256;
/// How many messages of a source may wait; a source that is faster waits itself.
const MESSAGES: usize = 4096;
/// Time that work in the background has for its end when the program ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A subsystem that has not turned for so long is stuck. One turn may have to wait for other programs' locks.
const DEADLINE: Duration = Duration::from_secs(120);

/// Runs until a signal ends it, or cleans up where that is asked for. `recent`: the last lines of the log.
///
/// # Errors
/// Reason why the program cannot start, as a sentence.
pub fn run(config: Config, recent: Recent) -> anyhow::Result<()> {
    match config.cleanup {
        Some(Cleanup::Everything) => return cleanup::run(&config),
        Some(Cleanup::Tables) => return cleanup::remove_tables(&config),
        Some(Cleanup::KubeProxy) => return cleanup::remove_kube_proxy(&config),
        None => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let packet_filter = Deciding::begin(&config);
        serve(config, recent, packet_filter).await
    });
    // A name that is being looked up, and a packet filter that is being tried, keep nobody from the reason or the end.
    runtime.shutdown_timeout(if result.is_ok() { LAST_WORDS } else { Duration::ZERO });
    result
}

async fn serve(config: Config, recent: Recent, packet_filter: Deciding) -> anyhow::Result<()> {
    // Whoever is killed at any step of a start leaves what its successor adopts, so a signal ends one at once.
    let mut signals = Signals::new()?;
    let Started { stop, world_task, running } = tokio::select! {
        started = start(config, recent, packet_filter) => started?,
        () = signals.end() => return Ok(()),
    };
    signals.end().await;
    end(stop, world_task, running).await
}

/// All that runs.
struct Started {
    stop: watch::Sender<bool>,
    world_task: tokio::task::JoinHandle<()>,
    running: Vec<Running>,
}

async fn start(config: Config, recent: Recent, mut packet_filter: Deciding) -> anyhow::Result<Started> {
    let (config, started) = (pod_tunnels::with_tunnels(config), Instant::now());
    let (health, registry) = (Health::default(), Registry::new(VERSION, TOOLCHAIN));
    let main = listen(&config.observe, &health, &registry).await?;
    let (stop, stopped) = watch::channel(false);

    let (pod_ranges, changes) = start_monitor(&config).context("the kernel cannot be listened to")?;
    let host = with_awaited(&config, published_host(&config, &changes).await?, &health);
    packet_filter.awaited(&health).await?;
    let (world_out, world) = watch::channel(World::empty());
    let clocks = event_clocks();
    let [for_proxy, for_firewall, for_router, for_guard] = clocks.clone();
    let ((parsed_problems, problems_out), problems) = service_problems();
    let ((guard, guard_calls), (pods, announced)) = (mpsc::channel(STARTING), mpsc::channel(STARTING));
    let pod_tunnels = pod_tunnels::settings(&config);
    let (told, report, oversized) = ToldToCluster::new(problems, world.clone());
    let (outages, messages, events) = start_source(&config, &registry, &health, told).await?;
    // The cluster is read meanwhile. Where there is none that can be used, nothing was written yet.
    let config = config.decided(packet_filter.decided().await?);
    let asked = QuestionContext::new(&config, started, recent, outages.unread_since());
    let (attaching, starting) = start_cni(&config, &registry, &health, guard, pods)?;
    let inputs = world::Inputs {
        messages,
        wanted: wanted(&config),
        annotations: config.node_annotations.clone(),
        host,
        last_known: config.state_dir.as_deref().map(LastKnown::new),
        clocks: clocks.to_vec(),
        report: report.clone(),
        service_warnings: parsed_problems,
        sync_timeout: config.cache_sync_timeout,
        note: health.note("node"),
        age: health.note("last known state"),
        attaching,
    };
    let world_task = start_world(inputs, world_out, stopped.clone());

    let common = Common { health, registry, families: config.families, world, changes, stop: stopped };
    // What the router's neighbours believe is the service proxy's to know; a router that does not run says nothing.
    let (believed_out, believed) = watch::channel(Table::default());
    // And a router begins to announce when the service proxy serves.
    let ((served_out, served), clients) = (watch::channel(config.proxy.is_none()), client_look(&config));
    let (channels_of_firewall, judged) = channels_of_firewall(&config, starting, oversized);
    let (mut running, mut answerers) = (Vec::new(), Answerers::new());
    if let Some(settings) = config.proxy {
        let inputs = common.inputs(PROXY, for_proxy, &mut answerers)?;
        let (tunnel_ends_out, tunnel_ends) = watch::channel(Arc::default());
        let out = PodTunnelsOut { problems: problems_out.of_pods.clone(), tunnel_ends: tunnel_ends_out };
        running.extend(common.start_pod_tunnels(pod_tunnels, announced, out)?);
        let channels = ProxyChannels { believed, served: served_out, problems: problems_out, judged, tunnel_ends };
        running.push(common.start_proxy(settings, inputs, channels, &mut answerers).await?);
    }
    if let Some(settings) = config.firewall {
        let inputs = common.inputs(FIREWALL, for_firewall, &mut answerers)?;
        running.push(common.start_firewall(settings, inputs, channels_of_firewall, &mut answerers).await?);
    }
    let guarded = guarded_ports(config.socket.as_deref(), config.source_guard);
    running.extend(common.start_source_guard(guarded, guard_calls, for_guard, &mut answerers).await?);
    common.start_source_dest_check(config.router.as_ref(), events.clone());
    if let Some(settings) = config.router {
        let inputs = common.inputs(ROUTER, for_router, &mut answerers)?;
        let (access, speaker) = watch::channel(None);
        let (places, ports) = gobgp_places(&settings, config.socket.as_deref());
        let channels = RouterChannels { report, access, served, believed: believed_out, clients };
        let inquiries = answer_for_router(speaker.clone(), common.world.clone(), &mut answerers);
        let context = router_context(&common, channels, &outages, inquiries)?;
        running.push(common.start_router(settings, inputs, context, pod_ranges).await?);
        gobgp::serve::spawn(Service::new(speaker), places, ports);
    }
    running.extend(common.start_load_balancer(config.load_balancer, &config.source, events)?);
    asked.answer(&common, &mut answerers);
    answer_questions(config.socket.as_deref(), answerers);
    main.ready(true);
    Ok(Started { stop, world_task, running })
}

/// The firewall's channels, and the number of the last World that it has judged. Tunnels of the service proxy wait for that where both run.
fn channels_of_firewall(
    config: &Config,
    starting: mpsc::Receiver<StartingPod>,
    oversized: watch::Sender<PolicyProblems>,
) -> (FirewallChannels, Option<watch::Receiver<u64>>) {
    let (judged_out, judged) = watch::channel(0);
    let channels = FirewallChannels { starting, judged: judged_out, oversized };
    (channels, config.firewall.as_ref().filter(|firewall| firewall.tunnel_mode).map(|_| judged))
}

/// Publishes the facts of this host.
async fn published_host(
    config: &Config,
    changes: &watch::Receiver<Changes>,
) -> anyhow::Result<watch::Receiver<Arc<Host>>> {
    let sources_to = |targets| sources_to(targets, PROTOCOL);
    let reading = world::Reading { addresses: host_addresses, sources_to };
    let detection = config.node_address.clone().map(|method| world::Detection::new(method, config.families));
    let host = world::publish_host(config.node_name.clone(), reading, detection, changes.clone()).await;
    host.map_err(anyhow::Error::msg).context("the addresses of this host cannot be read")
}

/// Makes one clock for each subsystem, whether it runs or not.
fn event_clocks() -> [Arc<EventClock>; 4] {
    [(); 4].map(|()| Arc::new(EventClock::new(Instant::now())))
}

/// Channels of the router, from and to the rest of the program.
struct RouterChannels {
    /// How pod networking stands on this node, for the cluster.
    report: watch::Sender<Report>,
    /// How clients of GoBGP reach the speaker.
    access: watch::Sender<Option<bgp::driver::Access>>,
    /// Whether the service proxy's first sync is done.
    served: watch::Receiver<bool>,
    /// The service addresses that neighbours may still believe in, for the service proxy.
    believed: watch::Sender<Table<IpAddr, ()>>,
    /// Looks for clients outside of the cluster.
    clients: Option<ClientLook>,
}

/// Returns how clients outside of the cluster are looked for while this node drains; `None` without a service proxy here.
fn client_look(config: &Config) -> Option<ClientLook> {
    let look = ClientLook::new(|| {
        let mut connections = ClientConnections::default();
        Box::new(move |is_outside| connections.look(is_outside))
    });
    config.proxy.is_some().then_some(look)
}

/// Returns what the router has besides the inputs of every subsystem. `outages` tell what cannot be read.
fn router_context(
    common: &Common,
    channels: RouterChannels,
    outages: &Outages,
    inquiries: mpsc::Receiver<Inquiry>,
) -> anyhow::Result<router::driver::RouterContext> {
    let RouterChannels { report, access, served, believed, clients } = channels;
    Ok(router::driver::RouterContext {
        speaker_pulse: speaker_pulse(common),
        report,
        metrics: router::metrics::Metrics::register(&common.registry)?,
        notes: common.health.note("router"),
        access,
        served,
        nodes_are_read: outages.nodes_are_read(),
        services_refused_at: outages.services_refused_at(),
        believed,
        clients,
        inquiries,
    })
}

/// Returns the pulse of the BGP speaker. One that is not wanted yet is not stuck.
fn speaker_pulse(common: &Common) -> Pulse {
    let pulse = common.pulse("BGP speaker");
    pulse.ready(true);
    pulse
}

/// Lets everything finish what it does, and waits for that.
async fn end(
    stop: watch::Sender<bool>,
    world_task: tokio::task::JoinHandle<()>,
    running: Vec<Running>,
) -> anyhow::Result<()> {
    info!("Stopping; kernel state stays in place");
    stop.send_replace(true);
    world_task.await.context("the World's task broke off")?;
    for Running { name, thread } in running {
        thread.join().map_err(|_| anyhow!("the {name} broke off"))?;
    }
    Ok(())
}

/// Where clients of GoBGP find the speaker, and whether they may change anything on a port.
fn gobgp_places(config: &RouterConfig, socket: Option<&Path>) -> (Vec<Place>, Ports) {
    let beside = socket.map(|socket| Place::Socket(socket.with_file_name(GOBGP_SOCKET)));
    let ports = if config.admin_writes { Ports::Writable } else { Ports::ReadOnly };
    (config.admin.iter().copied().map(Place::Port).chain(beside).collect(), ports)
}

/// Binds the listeners and answers on them. Returns the pulse of this thread, which is to become ready when everything
/// that may be unready has been started: before that a probe would be told that nothing speaks against being ready.
async fn listen(config: &ObserveConfig, health: &Health, registry: &Registry) -> anyhow::Result<Pulse> {
    let mut sites = Vec::new();
    if let Some(address) = config.health {
        let listener = http::bind("health", address).await.map_err(anyhow::Error::msg)?;
        sites.push((listener, Site::Health(health.clone())));
    }
    if let Some(metrics) = &config.metrics {
        let listener = http::bind("metrics", metrics.address).await.map_err(anyhow::Error::msg)?;
        sites.push((listener, Site::Metrics { path: metrics.path.clone(), registry: registry.clone() }));
    }
    // They answer from a thread of their own, so whether this one still turns is theirs to say.
    let main = health.register("main thread", DEADLINE, Instant::now());
    let beating = main.clone();
    tokio::spawn(async move {
        loop {
            beating.beat(Instant::now());
            tokio::time::sleep(DEADLINE / 4).await;
        }
    });
    if !sites.is_empty() {
        // A kubelet may wait for the answer to its probe no longer than a second. Who collects metrics has more time.
        let usual = processor::nice();
        let prepare = || processor::set_nice(processor::PROMPT);
        http::spawn(sites, prepare, move || processor::set_nice(usual)).context("the listeners have no thread")?;
    }
    Ok(main)
}

/// Starts the monitor of what each subsystem needs to know of the kernel. The router tells it the pod CIDRs of other nodes, to which
/// others' routes concern it.
fn start_monitor(config: &Config) -> Result<(watch::Sender<Prefixes>, watch::Receiver<Changes>), Error> {
    let (pod_ranges, prefixes) = watch::channel(Prefixes::default());
    let routes = config.router.as_ref().map(|_| router::linux::learned_routes().to_vec()).unwrap_or_default();
    let bridges = config.proxy.as_ref().map(|_| vec![LinkName(BRIDGE.into())]).unwrap_or_default();
    let tables = config.proxy.as_ref().map(|_| vec![DSR_TABLE.table]).unwrap_or_default();
    let of_proxy = config.proxy.as_ref().map(|_| [DSR_TABLE, EMPTY_TABLE].map(|place| place.table));
    let of_router = config.router.as_ref().map(|_| router::names::TUNNEL_TABLE);
    let led_to = of_proxy.into_iter().flatten().chain(of_router).collect();
    let ours = vec![LinkName(DEVICE.into())];
    let watched = Watched { ours, routes, tables, led_to, bridges, prefixes: Some(prefixes) };
    Ok((pod_ranges, monitor::start(watched)?))
}

/// Makes the ways of problems of Services, from those who find them to who tells the cluster: from the World's parsing, from the service proxy, and
/// from the tunnels in pods.
fn service_problems() -> ((watch::Sender<ServiceProblems>, ProblemsOut), Vec<watch::Receiver<ServiceProblems>>) {
    let [(parsed, of_parsing), (planned, of_plan), (listening, of_listeners), (of_pods, of_tunnels)] =
        [(); 4].map(|()| watch::channel(ServiceProblems::default()));
    let of_objects = of_parsing.clone();
    let out = ProblemsOut { planned, listening, of_pods, of_objects };
    ((parsed, out), vec![of_parsing, of_plan, of_listeners, of_tunnels])
}

/// Returns where outages of the source of the cluster are recorded.
fn outages(config: &Config, registry: &Registry, health: &Health) -> anyhow::Result<Outages> {
    let source = if matches!(config.source, Source::Api { .. }) { "API server" } else { "manifests" };
    Ok(Outages::register(source, wanted(config).iter().map(Wanted::kind), registry, health)?)
}

/// Starts the source of the cluster. Where that is an API server, it is also told how this node stands, and what is wrong with Services. Returns
/// its outages, what it says, and who sends Events then.
async fn start_source(
    config: &Config,
    registry: &Registry,
    health: &Health,
    told: ToldToCluster,
) -> anyhow::Result<(Outages, mpsc::Receiver<Message>, Option<Events>)> {
    let outages = outages(config, registry, health)?;
    let (out, messages) = mpsc::channel::<Message>(MESSAGES);
    let mut events_out = None;
    match &config.source {
        Source::Manifests(directory) => {
            let out = addresses_in_memory::on_the_way(config, directory, registry, health, out)?;
            manifests::spawn(directory.clone(), wanted(config), outages.clone(), out)?;
        }
        Source::Api { kubeconfig, master } => {
            let access = Access { kubeconfig: kubeconfig.clone(), master: master.clone() };
            let client = client::client(&access).await?;
            tokio::spawn(watch_api::run(client.clone(), wanted(config), outages.clone(), out));
            let events = Events::spawn(client.clone(), config.node_name.clone(), events::TIMING);
            let ToldToCluster { reports, problems, oversized, world } = told;
            if config.router.is_some() {
                tokio::spawn(own_annotations::run(client.clone(), config.node_name.clone(), reports.clone()));
                tokio::spawn(report::run(client, events.clone(), config.node_name.clone(), reports));
            }
            if config.proxy.is_some() {
                let node = config.node_name.clone();
                let knows_nodes = wanted(config).contains(&Wanted::Nodes);
                let (of, world, settle) = (Subjects::Services, world.clone(), service_events::SETTLE);
                let inputs = service_events::Inputs { of, world, sources: problems, node, knows_nodes, settle };
                tokio::spawn(service_events::run(inputs, events.clone()));
            }
            if config.firewall.is_some() {
                let (of, node, settle) = (Subjects::Policies, config.node_name.clone(), service_events::SETTLE);
                let sources = vec![service_events::of_policies(world.clone()), oversized];
                let inputs = service_events::Inputs { of, world, sources, node, knows_nodes: true, settle };
                tokio::spawn(service_events::run(inputs, events.clone()));
            }
            events_out = Some(events);
        }
    }
    Ok((outages, messages, events_out))
}

/// Returns the file of the guarded ports, where ports are guarded. Else what an earlier run guarded goes: the ends of its pods are told to
/// nobody.
fn guarded_ports(socket: Option<&Path>, is_on: bool) -> Option<PortsFile> {
    let file = socket.map(PortsFile::beside);
    if is_on {
        return file;
    }
    if let Some(error) = source_guard::linux::remove() {
        warn!(%error, "Removing the source guard of an earlier run failed; its pods go on being guarded");
    }
    if let Some(Err(error)) = file.map(|file| file.remove()) {
        warn!(%error, "Removing the guarded ports of an earlier run failed");
    }
    None
}

/// Starts the socket of the CNI plugin, with `--netpol-cni`. Returns what it says to the World and to the firewall. Without the flag
/// no CNI file names the plugin from now on.
fn start_cni(
    config: &Config,
    registry: &Registry,
    health: &Health,
    guard: mpsc::Sender<GuardCall>,
    pods: mpsc::Sender<Announced>,
) -> anyhow::Result<(Option<Attaching>, mpsc::Receiver<StartingPod>)> {
    let (starting, to_firewall) = mpsc::channel(STARTING);
    let Some(socket) = config.cni_socket.as_deref() else {
        forget_announced(config);
        let files = CniFiles::new(config.cni_directory.clone());
        // Beside an agent without the firewall another one may have it.
        let files = if config.firewall.is_some() { files } else { files.sparing_others() };
        tokio::spawn(keep_without_plugin(files, health.clone()));
        return Ok((None, to_firewall));
    };
    if socket.parent().is_some_and(is_of_container) {
        cni::serve::tell_hidden(socket, health);
    }
    let (changes, to_world) = mpsc::channel(STARTING);
    let guard = config.source_guard.then_some(guard);
    let pods = pod_tunnels::settings(config).map(|_| pods);
    let calls = Calls { changes, starting, guard, pods, metrics: cni::metrics::Metrics::register(registry)? };
    // It waits for calls for as long as nobody makes any.
    let pulse = health.register("CNI socket", Duration::MAX, Instant::now());
    tokio::spawn(cni::serve::run(socket.to_owned(), calls, pulse));
    Ok((Some(Attaching { changes: to_world, file: AttachmentsFile::beside(socket) }), to_firewall))
}

/// Removes the announced pods of an earlier run: this one is told of no pod's end, so a later one would take them for running.
fn forget_announced(config: &Config) {
    let Some(announced) = config.socket.as_deref().map(AttachmentsFile::beside) else { return };
    let path = announced.path().display();
    match announced.remove() {
        Ok(true) => info!(%path, "Announced pods of an earlier run with --netpol-cni removed"),
        Ok(false) => {}
        Err(error) => warn!(%path, %error, "Removing announced pods of an earlier run with --netpol-cni failed"),
    }
}

/// Starts the task that joins the cluster with the host into the World.
fn start_world(
    inputs: world::Inputs,
    out: watch::Sender<World>,
    mut stop: watch::Receiver<bool>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(world::run(inputs, out, async move {
        // An error means that the sender is gone, which is an end too.
        let _ = stop.wait_for(|stop| *stop).await;
    }))
}

#[cfg(test)]
mod tests;
