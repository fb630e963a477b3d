use super::*;

fn service(name: &str, address: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: {address}\n---\n")
}

/// One line for each change: `+` in force now, `-` gone, `!` a remark.
fn told(changed: FileChanges) -> Vec<String> {
    let mut lines: Vec<String> = changed
        .objects
        .iter()
        .map(|(object, _)| match object {
            Object::Service(name, Some(service)) => format!("+{} {}", name.name, service.cluster_ips[0]),
            other => format!("-{}", other.id().name.name),
        })
        .collect();
    lines.sort();
    lines.extend(changed.remarks.iter().map(|remark| match remark {
        ManifestRemark::Broken { line, .. } => format!("!broken {line}"),
        ManifestRemark::Mended => "!mended".to_owned(),
        ManifestRemark::Skipped { line, .. } => format!("!skipped {line}"),
        ManifestRemark::Twice { object, counts } => format!("!twice {} {counts}", object.name.name),
    }));
    lines
}

fn put(catalog: &mut Catalog, file: &str, text: &str) -> Vec<String> {
    told(catalog.put(file, Format::Yaml, text.as_bytes()))
}

const BROKEN: &str = "apiVersion: v1\nkind: Service\nmetadata: [\n---\n";

#[test]
fn an_edit_tells_only_what_it_changed() {
    let mut catalog = Catalog::default();
    let three = service("a", "10.96.0.1") + &service("b", "10.96.0.2") + &service("c", "10.96.0.3");
    assert_eq!(put(&mut catalog, "f.yaml", &three), ["+a 10.96.0.1", "+b 10.96.0.2", "+c 10.96.0.3"]);
    assert_eq!(put(&mut catalog, "f.yaml", &three), [""; 0]);
    assert_eq!(put(&mut catalog, "f.yaml", &three.replace("10.96.0.2", "10.96.0.9")), ["+b 10.96.0.9"]);
    assert_eq!(put(&mut catalog, "f.yaml", &(service("c", "10.96.0.3") + &service("a", "10.96.0.1"))), ["-b"]);
    assert_eq!(told(catalog.remove("f.yaml")), ["-a", "-c"]);
    assert_eq!(told(catalog.remove("f.yaml")), [""; 0]);
    assert!(catalog.places.is_empty());
}

#[test]
fn unchanged_documents_are_not_parsed_again() {
    let mut catalog = Catalog::default();
    let two = service("a", "10.96.0.1") + &service("b", "10.96.0.2");
    let before = catalog.put("f.yaml", Format::Yaml, two.as_bytes());
    catalog.put("f.yaml", Format::Yaml, (two + &service("c", "10.96.0.3")).as_bytes());
    let kept = &catalog.files["f.yaml"].kept(&before.objects[0].0.id()).expect("it is there").found().0;
    let (Object::Service(_, Some(first)), Object::Service(_, Some(second))) = (&before.objects[0].0, &kept) else {
        panic!("both are Services")
    };
    assert!(Arc::ptr_eq(first, second));
}

#[test]
fn while_a_document_is_broken_nothing_of_its_file_is_taken_back_and_the_rest_goes_on() {
    let mut catalog = Catalog::default();
    put(&mut catalog, "f.yaml", &(service("a", "10.96.0.1") + &service("b", "10.96.0.2")));
    let edited = service("b", "10.96.0.5") + BROKEN + &service("c", "10.96.0.3");
    assert_eq!(put(&mut catalog, "f.yaml", &edited), ["+b 10.96.0.5", "+c 10.96.0.3", "!broken 10"]);
    assert_eq!(put(&mut catalog, "f.yaml", &edited), [""; 0], "a broken document is said once");
    assert!(!catalog.is_partly_unknown());
    assert_eq!(put(&mut catalog, "f.yaml", &service("b", "10.96.0.5")), ["-a", "-c", "!mended"]);
}

#[test]
fn a_file_that_was_never_sound_makes_the_whole_partly_unknown_until_it_is() {
    let mut catalog = Catalog::default();
    assert_eq!(put(&mut catalog, "f.yaml", &(service("a", "10.96.0.1") + BROKEN)), ["+a 10.96.0.1", "!broken 10"]);
    assert!(catalog.is_partly_unknown());
    put(&mut catalog, "f.yaml", &(service("a", "10.96.0.2") + BROKEN));
    assert!(catalog.is_partly_unknown());
    put(&mut catalog, "f.yaml", &service("a", "10.96.0.2"));
    assert!(!catalog.is_partly_unknown());
    put(&mut catalog, "f.yaml", BROKEN);
    assert!(!catalog.is_partly_unknown());
    put(&mut catalog, "g.yaml", BROKEN);
    catalog.remove("g.yaml");
    assert!(!catalog.is_partly_unknown());
}

#[test]
fn a_file_that_cannot_be_read_keeps_what_it_said() {
    let mut catalog = Catalog::default();
    put(&mut catalog, "f.yaml", &service("a", "10.96.0.1"));
    assert_eq!(told(catalog.put("f.yaml", Format::Yaml, b"x\n\xff")), ["!broken 2"]);
    assert_eq!(told(catalog.put_unreadable("f.yaml", 1, "permission denied")), ["!broken 1"]);
    assert_eq!(put(&mut catalog, "f.yaml", &service("a", "10.96.0.1")), ["!mended"]);
    assert_eq!(told(catalog.put_unreadable("g.yaml", 1, "permission denied")), ["!broken 1"]);
    assert!(catalog.is_partly_unknown());
}

#[test]
fn of_many_remarks_about_a_file_some_are_told_and_the_others_counted_and_what_is_broken_is_among_them() {
    let mut catalog = Catalog::default();
    let skipped: String = (0..MOST_FAULTY + 100).map(|number| format!("{{\"number\": {number}}}\n")).collect();
    let nameless = |number| format!("{{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"number\": {number}}}\n");
    let text = skipped + &(0..30).map(nameless).collect::<String>();
    let changed = catalog.put("f.json", Format::Json, text.as_bytes());
    assert_eq!((changed.remarks.len(), changed.untold), (2 * MOST_REMARKS, MOST_FAULTY + 100 + 30 - 2 * MOST_REMARKS));
    let is_broken = |remark: &&ManifestRemark| matches!(remark, ManifestRemark::Broken { .. });
    assert_eq!(changed.remarks.iter().filter(is_broken).count(), MOST_REMARKS);
    let file = &catalog.files["f.json"];
    assert_eq!((file.faults().others.len(), file.faults().broken.len()), (MOST_FAULTY, MOST_REMARKS));
    // Those whose content is kept are not told again, and none that is broken.
    let changed = catalog.put("f.json", Format::Json, text.as_bytes());
    assert_eq!((changed.remarks.len(), changed.untold), (MOST_REMARKS, 100 - MOST_REMARKS));
}

#[test]
fn of_two_places_the_first_counts_whatever_was_read_first() {
    let mut one = Catalog::default();
    put(&mut one, "a.yaml", &service("x", "10.96.0.1"));
    assert_eq!(put(&mut one, "b.yaml", &service("x", "10.96.0.2")), ["!twice x a.yaml"]);
    let mut other = Catalog::default();
    put(&mut other, "b.yaml", &service("x", "10.96.0.2"));
    assert_eq!(put(&mut other, "a.yaml", &service("x", "10.96.0.1")), ["+x 10.96.0.1", "!twice x a.yaml"]);
    for mut catalog in [one, other] {
        assert_eq!(put(&mut catalog, "b.yaml", &service("x", "10.96.0.3")), [""; 0]);
        assert_eq!(put(&mut catalog, "a.yaml", &service("x", "10.96.0.4")), ["+x 10.96.0.4"]);
        assert_eq!(told(catalog.remove("a.yaml")), ["+x 10.96.0.3"]);
        assert_eq!(told(catalog.remove("b.yaml")), ["-x"]);
        assert!(catalog.places.is_empty());
    }
    let twice_in_one = service("x", "10.96.0.1") + &service("x", "10.96.0.2");
    let mut catalog = Catalog::default();
    assert_eq!(put(&mut catalog, "f.yaml", &twice_in_one), ["+x 10.96.0.1", "!twice x f.yaml"]);
    assert_eq!(put(&mut catalog, "f.yaml", &(twice_in_one + &service("y", "10.96.0.3"))), ["+y 10.96.0.3"]);
}

#[test]
fn of_two_in_one_file_the_second_counts_when_the_first_has_gone() {
    let mut catalog = Catalog::default();
    let (first, second) = (service("x", "10.96.0.1"), service("x", "10.96.0.2"));
    put(&mut catalog, "f.yaml", &(first.clone() + &second + &service("y", "10.96.0.3")));
    assert_eq!(put(&mut catalog, "f.yaml", &(second.clone() + &service("y", "10.96.0.3"))), ["+x 10.96.0.2"]);
    assert_eq!(put(&mut catalog, "f.yaml", &(second + &first)), ["-y", "!twice x f.yaml"]);
}

#[test]
fn what_stayed_because_of_a_broken_document_is_not_taken_for_one_of_another_text() {
    let mut catalog = Catalog::default();
    let list =
        |items: &[&str]| format!("{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{}]}}\n", items.join(","));
    let item = |name: &str, address: &str| {
        format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {{\"name\": {name:?}}}, \"spec\": {{\"clusterIP\": {address:?}}}}}"
        )
    };
    let mut say = |text: &str| told(catalog.put("f.json", Format::Json, text.as_bytes()));
    let both = list(&[&item("a", "10.96.0.1"), &item("b", "10.96.0.2")]);
    assert_eq!(say(&both), ["+a 10.96.0.1", "+b 10.96.0.2"]);
    // Another document takes `a` over while the list is broken.
    let taken = item("a", "10.96.0.9");
    assert_eq!(say(&format!("{taken}\n{{")), ["+a 10.96.0.9", "!broken 2"]);
    assert_eq!(say(&format!("{both}{taken}")), ["+a 10.96.0.1", "!mended", "!twice a f.json"]);
}

/// Any history of files ends in what reading the last state afresh gives.
#[test]
fn any_history_ends_where_a_fresh_reading_begins() {
    use proptest::prelude::*;
    let step = (0..3usize, proptest::collection::vec((0..4usize, 1..4usize), 0..4), any::<bool>());
    proptest!(|(steps in proptest::collection::vec(step, 1..12))| {
        let mut catalog = Catalog::default();
        let mut in_force: BTreeMap<ObjectId, Object> = BTreeMap::new();
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        for (file, services, remove) in steps {
            let name = format!("{file}.yaml");
            let text: String =
                services.iter().map(|(name, address)| service(&format!("s{name}"), &format!("10.96.0.{address}"))).collect();
            let changed = if remove {
                texts.remove(&name);
                catalog.remove(&name)
            } else {
                texts.insert(name.clone(), text.clone());
                catalog.put(&name, Format::Yaml, text.as_bytes())
            };
            for (object, _) in changed.objects {
                match &object {
                    Object::Service(_, Some(_)) => { in_force.insert(object.id(), object); }
                    _ => { prop_assert!(in_force.remove(&object.id()).is_some(), "only what was in force goes"); }
                }
            }
        }
        let mut fresh = Catalog::default();
        let mut expected: BTreeMap<ObjectId, Object> = BTreeMap::new();
        for (name, text) in texts.iter().rev() {
            for (object, _) in fresh.put(name, Format::Yaml, text.as_bytes()).objects {
                expected.insert(object.id(), object);
            }
        }
        prop_assert_eq!(in_force, expected);
    });
}

#[test]
fn manifests_that_are_damaged_break_nothing() {
    use proptest::prelude::*;
    let yaml = service("a", "10.96.0.1")
        + "apiVersion: v1\nkind: List\nitems: &all\n- {apiVersion: v1, kind: Node, metadata: {name: n}}\n- *all\n---\n"
        + "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: a}}\n"
        + "addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.244.1.5], conditions: {ready: true}}]\n";
    let json = include_str!("../../../../tests/support/wire/nodes.json");
    let damage = (any::<prop::sample::Index>(), any::<u8>());
    let piece = any::<(prop::sample::Index, prop::sample::Index)>();
    proptest!(|(is_json in any::<bool>(), wrong in prop::collection::vec(damage, 1..8), (from, to) in piece, twice in any::<bool>())| {
        let (format, text) = if is_json { (Format::Json, json) } else { (Format::Yaml, yaml.as_str()) };
        let mut bytes = text.as_bytes().to_vec();
        for (at, byte) in wrong {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
        let piece = bytes[from.min(to)..from.max(to)].to_vec();
        if twice {
            bytes.splice(to..to, piece);
        }
        let mut catalog = Catalog::default();
        catalog.put("a", format, &bytes);
        catalog.put("a", format, text.as_bytes());
        catalog.remove("a");
    });
}
