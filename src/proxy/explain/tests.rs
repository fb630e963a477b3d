use super::*;

#[test]
fn a_question_is_for_all_for_a_name_or_for_an_address_of_either_family() {
    let parsed = |text: &str| Question::parse(text).map_err(|why| why.to_string());
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    assert_eq!(parsed(""), Ok(Question::All));
    assert_eq!(parsed("shop/web"), Ok(Question::Service(ObjectName::new("shop", "web"))));
    assert_eq!(parsed("10.96.0.9"), Ok(Question::Address(address("10.96.0.9"), None)));
    assert_eq!(parsed("10.96.0.9:80"), Ok(Question::Address(address("10.96.0.9"), Some(80))));
    for text in ["fd00:10:96::9", "[fd00:10:96::9]"] {
        assert_eq!(parsed(text), Ok(Question::Address(address("fd00:10:96::9"), None)), "{text}");
    }
    assert_eq!(parsed("[fd00:10:96::9]:80"), Ok(Question::Address(address("fd00:10:96::9"), Some(80))));
    for text in ["web", "shop/", "/web", "10.96.0.9:many", "10.96.0.9:"] {
        let why = parsed(text).expect_err("it names nothing");
        assert!(why.contains("NAMESPACE/NAME") && why.contains(text), "{why}");
    }
}
