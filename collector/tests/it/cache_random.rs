//! Live counters under interleaved workers and a Redis that is emptied, killed, paused or restored older at any moment, from a
//! printed seed. Whatever is read must be exactly what the log held at that state.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventbucket_collector::cache::{Cache, Counters, CountersState};
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::{Applied, CountTotals, ViewState};
use eventbucket_servers::Redis;
use uuid::Uuid;

use crate::cache_fixture::{Asked as _, counters_state};
use crate::random::{Random, rounds};
use crate::store_fixture::eventually;

const SHOP: ProjectId = ProjectId(3);

type Counts = BTreeMap<String, u64>;

/// What the store's side of the counts comes to: a log of names, a view over it, and what every state held.
#[derive(Default)]
struct Model {
    epoch: u128,
    generation: u64,
    applied_to: u64,
    log: Vec<String>,
    counts: Counts,
    held: HashMap<(u128, u64, u64), Counts>,
}

impl Model {
    fn new() -> Self {
        let mut model = Self { epoch: 1, generation: 1, ..Self::default() };
        model.note();
        model
    }

    fn note(&mut self) {
        self.held.insert((self.epoch, self.generation, self.applied_to), self.counts.clone());
    }

    fn append(&mut self, random: &mut Random) {
        for _ in 0..=random.below(20) {
            self.log.push(format!("name-{}", random.below(8)));
        }
    }

    /// As `Store::apply_counts`.
    fn apply(&mut self, random: &mut Random) -> (Uuid, Applied) {
        let from = self.applied_to;
        let through = (from + 1 + random.below(30)).min(self.log.len() as u64);
        let mut per_name = Counts::new();
        for name in &self.log[from as usize..through as usize] {
            *per_name.entry(name.clone()).or_default() += 1;
        }
        for (name, count) in &per_name {
            *self.counts.entry(name.clone()).or_default() += count;
        }
        self.applied_to = through;
        self.note();
        let per_name = per_name.into_iter().collect();
        (
            Uuid::from_u128(self.epoch),
            Applied { generation: self.generation, from, through, per_name, ..Applied::default() },
        )
    }

    /// As `Store::count_totals`.
    fn totals(&self) -> (Uuid, CountTotals) {
        let state = ViewState { generation: self.generation, applied_to: self.applied_to };
        let totals = CountTotals { state, per_name: self.counts.clone(), complete: true };
        (Uuid::from_u128(self.epoch), totals)
    }

    /// Other counts under a new generation, so that mixing two of them shows.
    fn rebuild(&mut self) {
        self.generation += 1;
        *self.counts.entry("rebuilt".to_owned()).or_default() += self.generation * 1_000;
        self.note();
    }

    /// The log goes back: only the epoch says so.
    fn restore(&mut self, random: &mut Random) {
        self.epoch += 1;
        let kept = random.below(self.log.len() as u64 + 1);
        self.log.truncate(kept as usize);
        self.applied_to = 0;
        self.counts = Counts::new();
        self.note();
    }

    fn state(&self) -> CountersState {
        let epoch = Uuid::from_u128(self.epoch);
        CountersState { epoch, generation: self.generation, applied_to: self.applied_to }
    }
}

/// What an insight worker does, as often as told.
async fn work(cache: Cache, model: Arc<Mutex<Model>>, mut random: Random, steps: u64) {
    for _ in 0..steps {
        let chance = random.below(100);
        if chance < 3 {
            model.lock().unwrap().rebuild();
        } else if chance < 5 {
            model.lock().unwrap().restore(&mut random);
        }
        let (epoch, applied) = {
            let mut model = model.lock().unwrap();
            model.append(&mut random);
            model.apply(&mut random)
        };
        for _ in 0..random.below(4) {
            tokio::task::yield_now().await;
        }
        if chance >= 95 {
            // Killed between the store and the cache.
            continue;
        }
        if cache.count_up(SHOP, epoch, &applied).await != Ok(true) {
            let (epoch, totals) = model.lock().unwrap().totals();
            let _ = cache.reset(SHOP, epoch, totals).await;
        }
        if random.percent(10) {
            // Delivered twice.
            let _ = cache.count_up(SHOP, epoch, &applied).await;
        }
        if let Some(counters) = cache.counters(SHOP).await {
            right(&counters, &model.lock().unwrap());
        }
    }
}

fn right(counters: &Counters, model: &Model) {
    let state = (counters.epoch.as_u128(), counters.generation, counters.applied_to);
    assert_eq!(Some(&counters.per_name), model.held.get(&state), "{state:?}");
}

/// As the worker's look at the heads, until nothing is different.
async fn settles(cache: &Cache, model: &Mutex<Model>) {
    eventually("the counters are the log's", async || {
        let state = model.lock().unwrap().state();
        if counters_state(cache, SHOP).await == Some(state) {
            let Some(counters) = cache.counters(SHOP).await else { return false };
            right(&counters, &model.lock().unwrap());
            return counters.state() == state;
        }
        let (epoch, totals) = model.lock().unwrap().totals();
        let _ = cache.reset(SHOP, epoch, totals).await;
        false
    })
    .await;
}

#[tokio::test]
async fn counters_in_memory_are_always_those_of_a_state_of_the_log() {
    for seed in 0..rounds("EVENTBUCKET_CACHE_ROUNDS", 20) {
        println!("seed {seed}");
        let (cache, model) = (Cache::memory(), Arc::new(Mutex::new(Model::new())));
        let worker = |number| {
            let random = Random::new(seed * 2 + number);
            tokio::spawn(work(cache.clone(), Arc::clone(&model), random, 200))
        };
        for worker in [worker(0), worker(1)] {
            worker.await.unwrap();
        }
        settles(&cache, &model).await;
    }
}

/// One thing that happens to Redis.
async fn fault(redis: &mut Redis, random: &mut Random) {
    match random.below(5) {
        0 => redis.run::<()>(&["FLUSHALL"]),
        1 => redis.run::<()>(&["SAVE"]),
        2 => {
            redis.kill().unwrap();
            redis.restart().unwrap();
        }
        3 => {
            redis.pause().unwrap();
            tokio::time::sleep(Duration::from_millis(random.below(600))).await;
            redis.resume().unwrap();
        }
        _ => redis.run::<()>(&["CLIENT", "KILL", "TYPE", "normal"]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_in_redis_are_always_those_of_a_state_of_the_log() {
    for seed in 0..rounds("EVENTBUCKET_CACHE_ROUNDS", 4) {
        println!("seed {seed}");
        let mut redis = Redis::start().unwrap();
        let model = Arc::new(Mutex::new(Model::new()));
        let mut workers = Vec::new();
        for number in 0..2 {
            let random = Random::new(seed * 2 + number);
            workers.push(tokio::spawn(work(redis.cache().await, Arc::clone(&model), random, 1_500)));
        }
        let mut random = Random::new(seed.wrapping_add(1 << 40));
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_millis(random.below(60))).await;
            fault(&mut redis, &mut random).await;
        }
        for worker in workers {
            worker.await.unwrap();
        }
        settles(&redis.cache().await, &model).await;
    }
}
