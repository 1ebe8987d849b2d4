//! The workers' own decisions, run by a seed under simulated faults and time. What a worker asks of store, bus and cache stops
//! twice, before it takes effect and before the answer is heard; in between anything may happen: another worker's step, a
//! crash, a wipe, a restored backup. The statements are those of the real log, the counters those of the real cache.

/// Random numbers that a printed seed replays.
#[path = "../../../tests/it/random.rs"]
mod random;

/// What the workers stand on, and the stops.
mod world;

/// Who sends, and the broker in between.
mod sending;

/// Processes, their crashes, and what happens next.
mod run;

/// What must be true.
mod judge;

use std::collections::BTreeMap;
use std::time::Instant;

use random::rounds;
use run::Simulation;

/// SIMULATION_SEEDS and SIMULATION_SEED choose others.
#[test]
fn no_order_of_faults_loses_or_doubles_an_event() {
    let (seeds, first) = (rounds("SIMULATION_SEEDS", 500), rounds("SIMULATION_SEED", 1));
    let began = Instant::now();
    let mut happened: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in first..first + seeds {
        let ended = Simulation::run(seed);
        if let Err(complaint) = ended.outcome {
            let tail = ended.trace.len().saturating_sub(60);
            let command = "cargo test -p eventbucket-collector --lib no_order_of_faults";
            panic!(
                "seed {seed}: {complaint}\nthe last of {} moves:\n{}\nreplay: SIMULATION_SEEDS=1 SIMULATION_SEED={seed} {command}",
                ended.trace.len(),
                ended.trace[tail..].join("\n"),
            );
        }
        for (what, times) in ended.happened {
            *happened.entry(what).or_default() += times;
        }
    }
    println!("{seeds} seeds from {first} in {:.1} s: {happened:?}", began.elapsed().as_secs_f64());
    // A fault that never strikes proves nothing.
    if seeds >= 500 {
        let rare: Vec<_> = happened.iter().filter(|(_, times)| **times == 0).collect();
        assert!(rare.is_empty() && happened.len() >= run::KINDS, "{rare:?} of {happened:?}");
    }
}

/// The order of steps that a seed found once in a thousand.
#[test]
fn a_step_told_after_a_restore_is_not_counted() {
    Simulation::step_told_after_a_restore().unwrap();
}

#[test]
fn a_cache_that_is_away_costs_the_store_no_totals() {
    Simulation::cache_away_for_a_minute().unwrap();
}

#[test]
fn a_seed_replays() {
    for seed in 1..5 {
        let (first, second) = (Simulation::run(seed), Simulation::run(seed));
        assert_eq!(first.trace, second.trace);
        assert!(first.trace.len() > 50, "{}", first.trace.len());
    }
    assert_ne!(Simulation::run(1).trace, Simulation::run(2).trace);
}
