use super::*;

fn endpoints(count: usize) -> Endpoints {
    Endpoints::new((0..count).map(|index| format!("http://{index}")))
}

fn index(turn: Option<Turn>) -> Option<u64> {
    turn.map(|turn| turn.number)
}

fn urls(endpoints: &Endpoints) -> Vec<&str> {
    endpoints.list.iter().map(|endpoint| endpoint.url.as_str()).collect()
}

fn named(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(|host| format!("http://{host}")).collect()
}

#[test]
fn learned_collectors_join_the_round_and_those_given_stay_whatever_is_named() {
    let mut endpoints = Endpoints::new(["HTTP://a:80/".to_owned()]);
    endpoints.learn(&named(&["a", "b", "c"]), 0);
    assert_eq!(urls(&endpoints), ["HTTP://a:80/", "http://b", "http://c"], "the one given isn't there twice");
    let picked: Vec<_> = (0..3).map(|_| index(endpoints.pick(0)).unwrap()).collect();
    assert_eq!(picked, [0, 1, 2]);
    endpoints.broken_off();
    endpoints.learn(&named(&["d"]), 0);
    assert_eq!(urls(&endpoints), ["HTTP://a:80/", "http://d"]);
}

#[test]
fn a_collector_that_is_no_longer_named_goes_when_nothing_is_under_way_to_it() {
    let mut endpoints = Endpoints::new(named(&["a"]));
    endpoints.learn(&named(&["b"]), 0);
    let (to_a, to_b) = (endpoints.pick(0).unwrap(), endpoints.pick(0).unwrap());
    endpoints.succeeded(to_a);
    endpoints.learn(&named(&["c"]), 0);
    let others: Vec<_> = std::iter::from_fn(|| index(endpoints.pick(0))).collect();
    assert!(!others.contains(&to_b.number), "it gets nothing more: {others:?}");
    assert_eq!(endpoints.url(to_b), "http://b");
    endpoints.failed(to_b, false, |_| 0);
    assert_eq!(endpoints.url(to_b), "http://b", "its outage can still be told");
    endpoints.broken_off();
    endpoints.pick(0).unwrap();
    assert_eq!(urls(&endpoints), ["http://a", "http://c"]);
}

#[test]
fn a_named_collector_that_comes_back_keeps_its_place_and_what_is_known_of_it() {
    let mut endpoints = Endpoints::new(named(&["a"]));
    endpoints.learn(&named(&["b"]), 0);
    let _to_a = endpoints.pick(0).unwrap();
    let to_b = endpoints.pick(0).unwrap();
    endpoints.learn(&[], 0);
    endpoints.learn(&named(&["b"]), 0);
    assert_eq!(endpoints.failed(to_b, false, |_| 10), Some(1));
    assert_eq!(endpoints.next_probe_ms(0), Some(10));
}

#[test]
fn a_named_collector_that_restarts_is_known_when_the_next_one_does() {
    let mut endpoints = Endpoints::new(named(&["a"]));
    endpoints.learn(&named(&["b"]), 0);
    let (to_a, to_b) = (endpoints.pick(0).unwrap(), endpoints.pick(0).unwrap());
    endpoints.heard(to_b, true, 0);
    endpoints.learn(&[], 1);
    endpoints.heard(to_a, true, 2);
    [to_a, to_b].into_iter().for_each(|turn| endpoints.succeeded(turn));
    assert_eq!(index(endpoints.pick(3)), Some(to_b.number), "it left first, so it is back first");
    endpoints.broken_off();
    endpoints.learn(&[], AWAY_MS);
    assert_eq!(urls(&endpoints), ["http://a"], "it isn't named when it should be back");
}

#[test]
fn however_many_are_named_the_list_is_bounded() {
    let hosts: Vec<String> = (0..1_000).map(|host| format!("http://h{host}")).collect();
    let mut endpoints = endpoints(2);
    endpoints.learn(&hosts, 0);
    endpoints.learn(&hosts, 0);
    assert_eq!(endpoints.list.len(), ENDPOINTS_MAX);
}

#[test]
fn a_collector_that_stops_is_spared_while_another_serves() {
    let mut endpoints = endpoints(2);
    let turn = endpoints.pick(0).unwrap();
    endpoints.heard(turn, true, 0);
    endpoints.succeeded(turn);
    let other = endpoints.pick(1).unwrap();
    assert_eq!(other.number, 1);
    assert_eq!(
        endpoints.pick(1),
        None,
        "it waits for the other's answer rather than go where nobody is soon"
    );
    endpoints.succeeded(other);
    assert_eq!(index(endpoints.pick(AWAY_MS - 1)), Some(1));
    assert_eq!(index(endpoints.pick(AWAY_MS)), Some(0));
}

#[test]
fn when_all_said_that_they_stop_the_first_is_tried_and_is_back_with_its_answer() {
    let mut endpoints = endpoints(2);
    for now_ms in [0, 5] {
        let turn = endpoints.pick(now_ms).unwrap();
        endpoints.heard(turn, true, now_ms);
        endpoints.succeeded(turn);
    }
    let turn = endpoints.pick(6).unwrap();
    assert_eq!(turn.number, 0);
    endpoints.heard(turn, false, 6);
    endpoints.succeeded(turn);
    let picked: Vec<_> = std::iter::from_fn(|| index(endpoints.pick(7))).collect();
    assert_eq!(picked, [0, 0, 0, 0], "it serves, and the other is spared");
}

#[test]
fn what_a_collector_took_is_asked_of_another_while_it_is_away() {
    let mut endpoints = endpoints(2);
    assert_eq!(endpoints.instead_of("http://0", 0), "http://0");
    let turn = endpoints.pick(0).unwrap();
    endpoints.failed(turn, false, |_| 100);
    assert_eq!(endpoints.instead_of("http://0", 0), "http://1");
    let turn = endpoints.pick(0).unwrap();
    endpoints.failed(turn, false, |_| 100);
    assert_eq!(endpoints.instead_of("http://0", 0), "http://0", "nobody serves");
}

#[test]
fn collectors_take_turns() {
    let mut endpoints = endpoints(3);
    let picked: Vec<_> = (0..3).map(|_| index(endpoints.pick(0)).unwrap()).collect();
    assert_eq!(picked, [0, 1, 2]);
    assert_eq!(endpoints.pick(0), None, "each begins with one batch under way");
}

#[test]
fn a_failing_collector_is_left_out_and_probed_once_its_wait_is_over() {
    let mut endpoints = endpoints(2);
    let turn = endpoints.pick(0).unwrap();
    assert_eq!(endpoints.failed(turn, false, |_| 100), Some(1));
    let other = endpoints.pick(0).unwrap();
    assert_eq!(other.number, 1);
    endpoints.succeeded(other);
    assert_eq!(index(endpoints.pick(99)), Some(1));
    assert_eq!(endpoints.next_probe_ms(99), Some(100));
    assert_eq!(index(endpoints.pick(100)), Some(0));
    assert_eq!(index(endpoints.pick(100)), Some(1), "one probe is enough");
}

#[test]
fn replay_after_an_outage_is_paced() {
    let mut endpoints = endpoints(1);
    let turn = endpoints.pick(0).unwrap();
    endpoints.failed(turn, false, |_| 10);
    let mut under_way = Vec::new();
    for allowed in [1, 2, 4, 4] {
        while let Some(turn) = endpoints.pick(10) {
            under_way.push(turn);
        }
        assert_eq!(under_way.len(), allowed);
        endpoints.succeeded(under_way.pop().unwrap());
    }
}

#[test]
fn one_outage_counts_once_however_many_batches_it_hits() {
    let mut endpoints = endpoints(1);
    for _ in 0..2 {
        let turn = endpoints.pick(0).unwrap();
        endpoints.succeeded(turn);
    }
    let turns: Vec<_> = (0..4).map(|_| endpoints.pick(0).unwrap()).collect();
    let counted: Vec<_> = turns[..3].iter().map(|turn| endpoints.failed(*turn, false, |_| 10)).collect();
    assert_eq!(counted, [Some(1), None, None]);
    endpoints.succeeded(turns[3]);
    assert!(!endpoints.any_healthy(), "an answer from before the outage doesn't end it");
}

#[test]
fn a_flush_hurries_our_own_waits_alone() {
    for (asked, picked) in [(false, Some(0)), (true, None)] {
        let mut endpoints = endpoints(1);
        let turn = endpoints.pick(0).unwrap();
        endpoints.failed(turn, asked, |_| 100);
        endpoints.hurry();
        assert_eq!(index(endpoints.pick(1)), picked);
    }
}
