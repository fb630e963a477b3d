//! Services of nodes that all have one InternalIP, as virtual machines behind address translation do, and route to each other by addresses on another link.

use std::process::{Child, Command, Stdio};

use crate::namespace::{attempt, in_new, run, shell};
use crate::native::router::Cluster;

/// Answers each connection with the address that it sees, on port 8080 of both families.
const SERVER: &str = "import socket
s = socket.create_server(('::', 8080), family=socket.AF_INET6, dualstack_ipv6=True, backlog=16)
while True:
    c, a = s.accept()
    c.sendall(a[0].removeprefix('::ffff:').encode())
    c.close()";

/// Connects for up to half a minute, and prints the answer.
const CLIENT: &str = "import socket, sys, time
for n in range(12):
    try:
        print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).recv(99).decode())
        break
    except OSError as e:
        print(e, file=sys.stderr); time.sleep(1)";

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  ipFamilies: [IPv4, IPv6]
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]
";

fn slice(kind: &str, address: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-{}, namespace: default, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: {kind}\nports: [{{name: http, port: 8080, protocol: TCP}}]\n\
         endpoints: [{{addresses: ['{address}'], nodeName: node-2, conditions: {{ready: true}}}}]\n",
        kind.to_lowercase()
    )
}

fn node(number: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Node\n\
         metadata: {{name: node-{number}, annotations: {{kube-router.io/node-address: '198.51.100.{number},2001:db8:1::{number}'}}}}\n\
         spec: {{podCIDRs: [10.244.{number}.0/24, 'fd00:10:244:{number}::/64']}}\n\
         status: {{addresses: [{{type: InternalIP, address: 10.0.2.15}}, {{type: InternalIP, address: 'fd00:2::15'}}]}}\n"
    )
}

/// Gives a node the InternalIP of all, on a link of its own, and an address on a link that they share.
fn connect(cluster: &Cluster, number: usize) {
    let name = cluster.name(number);
    run(&format!("ip link set port{number} nomaster up"));
    run(&format!("ip -n {name} address flush dev eth0 scope global"));
    run(&format!("ip link add back{number} type veth peer name eth1 netns {name}"));
    run(&format!("ip link set back{number} master back up"));
    // A node forwards, whoever has told it so.
    for setting in ["net.ipv6.conf.eth1.accept_dad=0", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        run(&format!("ip netns exec {name} sysctl -qw {setting}"));
    }
    run(&format!("ip -n {name} link set eth1 up"));
    for address in [
        "10.0.2.15/24 dev eth0".to_owned(),
        "fd00:2::15/64 dev eth0 nodad".to_owned(),
        format!("198.51.100.{number}/24 dev eth1"),
        format!("2001:db8:1::{number}/64 dev eth1 nodad"),
    ] {
        run(&format!("ip -n {name} address add {address}"));
    }
}

fn asked(namespace: Option<&str>, address: &str, port: &str) -> String {
    let inside = namespace.map(|name| format!("ip netns exec {name} ")).unwrap_or_default();
    shell(&format!("{inside}python3 -c \"{CLIENT}\" {address} {port}")).trim().to_owned()
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn with_nftables_hosts_and_node_ports_reach_endpoints_of_other_nodes_though_all_have_one_internal_ip() {
    serves_with("nftables");
}

#[test]
fn with_iptables_hosts_and_node_ports_reach_endpoints_of_other_nodes_though_all_have_one_internal_ip() {
    serves_with("iptables");
}

fn serves_with(filter: &str) {
    in_new(|| {
        let mut cluster = Cluster::new(2);
        run("ip link add back type bridge");
        run("ip link set back up");
        let flags = [
            "--run-service-proxy=true",
            "--node-ip-autodetect=interface=^eth1$",
            "--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/108",
            &format!("--netfilter={filter}"),
        ];
        for number in 1..=2 {
            connect(&cluster, number);
            cluster.flags.insert(number, flags.map(str::to_owned).into());
        }
        let slices = [slice("IPv4", "10.244.2.9"), slice("IPv6", "fd00:10:244:2::9")];
        cluster.write(&[[node(1), node(2), SERVICE.to_owned()].as_slice(), &slices].concat());
        (1..=2).for_each(|number| cluster.start(number));
        // Beside another guest the programs of iptables take minutes.
        cluster.until_said(1, "Routes to pods of other nodes programmed", 1);
        let ways = ["10.244.2.0/24 via 198.51.100.2", "fd00:10:244:2::/64 via 2001:db8:1::2"];
        cluster.until(1, &ways);
        let pod = cluster.attach_pod(2);
        let mut server = Command::new("ip");
        server.args(["netns", "exec", &pod, "python3", "-c", SERVER]).stdin(Stdio::null());
        let _server = Server(server.spawn().expect("python3"));

        let name = cluster.name(1);
        // A client on the link of the InternalIP.
        run("ip address add 10.0.2.2/24 dev port1");
        run("ip address add fd00:2::2/64 dev port1 nodad");
        for (client, [address, port], seen) in [
            (Some(&*name), ["10.96.0.10", "80"], "198.51.100.1"),
            (Some(&*name), ["fd00:10:96::10", "80"], "2001:db8:1::1"),
            (None, ["10.0.2.15", "30080"], "198.51.100.1"),
            (None, ["fd00:2::15", "30080"], "2001:db8:1::1"),
        ] {
            assert_eq!(asked(client, address, port), seen, "{filter}, {address}\n{}", cluster.log(1));
        }
        drop(attempt(&format!("ip netns delete {pod}")));
    });
}
