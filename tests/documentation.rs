//! Pages that list what the program has are written from the program. `UPDATE=1` rewrites them.

use std::path::PathBuf;
use std::sync::Arc;
use std::{env, fs};

use sluice::firewall;
use sluice::k8s::outage::Outages;
use sluice::kernel::iptables::Families;
use sluice::model::Table;
use sluice::observe::health::Health;
use sluice::observe::metrics::Registry;
use sluice::proxy::metrics::Metrics;
use sluice::proxy::serve::Counters;
use sluice::reconcile::Account;
use sluice::router;
use tokio::sync::watch;

#[test]
fn the_page_of_metrics_lists_every_family_and_no_other() {
    let registry = Registry::new("1.0.0", "rustc");
    Metrics::register(&registry).expect("the names are free");
    let (_owners, receiver) = watch::channel(Table::default());
    registry.register(Box::new(Counters::new(receiver).expect("valid names"))).expect("the names are free");
    firewall::metrics::Metrics::register(&registry).expect("the names are free");
    let (_owners, receiver) = watch::channel(Arc::default());
    let refused =
        firewall::serve::Refused::new(firewall::iptables::serve::Counters::new(receiver, Families::default()))
            .expect("valid names");
    registry.register(Box::new(refused)).expect("the names are free");
    sluice::cni::metrics::Metrics::register(&registry).expect("the names are free");
    sluice::source_guard::metrics::Metrics::register(&registry).expect("the names are free");
    let dropped = sluice::source_guard::serve::DroppedFrames::new().expect("valid names");
    registry.register(Box::new(dropped)).expect("the names are free");
    router::metrics::Metrics::register(&registry).expect("the names are free");
    Outages::register("API server", [], &registry, &Health::default()).expect("the names are free");
    for subsystem in ["proxy", "firewall", "router", "source_guard"] {
        Account::register(&registry, &format!("sluice_{subsystem}")).expect("the names are free");
    }
    let rows: Vec<String> = registry.families().iter().map(ToString::to_string).collect();
    let begin = "| name | kind | labels | meaning |\n|---|---|---|---|\n";
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = fs::read_to_string(&page).expect("the page exists");
    let (head, table) = text.split_once(begin).expect("the page has its table");
    let (found, rest) =
        table.split_once("\n\n").map_or((table.trim_end(), String::new()), |(f, r)| (f, format!("\n{r}")));
    if env::var_os("UPDATE").is_some() {
        fs::write(&page, format!("{head}{begin}{}\n{rest}", rows.join("\n"))).expect("the page can be written");
        return;
    }
    let found: Vec<&str> = found.lines().collect();
    assert_eq!(found, rows, "docs/metrics.md, and what the program has; UPDATE=1 rewrites the page");
}
