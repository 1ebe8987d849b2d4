use proptest::prelude::*;

use super::*;

/// Numbers without a pattern, from a seed: Sebastiano Vigna's SplitMix64.
fn hashes(seed: u64) -> impl Iterator<Item = u64> {
    (1_u64..).map(move |i| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    })
}

fn of(hashes: impl IntoIterator<Item = u64>) -> Sketch {
    let mut sketch = Sketch::default();
    hashes.into_iter().for_each(|hash| sketch.insert_hash(hash));
    sketch
}

fn merged(one: &Sketch, other: &Sketch) -> Sketch {
    let mut both = one.clone();
    both.merge(other);
    both
}

/// Sets of both forms, small ones more often; few different hashes, so that sets overlap. Hashes of many zeros in a row are
/// rarer than any test would meet.
fn set() -> impl Strategy<Value = Vec<u64>> {
    let count = prop_oneof![3 => 0_usize..40, 1 => 700_usize..800, 1 => 2_000_usize..6_000];
    (count, 0_u64..4, 0_u32..64).prop_map(|(count, seed, shift)| {
        let few = count.min(30);
        let rare = hashes(seed + 100).take(few).map(move |hash| hash >> shift << (shift / 2));
        rare.chain(hashes(seed).take(count)).collect()
    })
}

proptest! {
    #[test]
    fn merging_is_associative_commutative_and_idempotent(a in set(), b in set(), c in set()) {
        let (a, b, c) = (of(a), of(b), of(c));
        prop_assert_eq!(merged(&a, &b).to_bytes(), merged(&b, &a).to_bytes());
        prop_assert_eq!(merged(&merged(&a, &b), &c).to_bytes(), merged(&a, &merged(&b, &c)).to_bytes());
        let mut twice = merged(&a, &b);
        prop_assert!(!twice.merge(&b), "it was in there already");
        prop_assert_eq!(twice, merged(&a, &b));
        prop_assert_eq!(merged(&a, &Sketch::default()), a);
    }

    #[test]
    fn the_merge_is_the_sketch_of_all(a in set(), b in set()) {
        let all = of(b.iter().rev().chain(&a).chain(&b).copied());
        prop_assert_eq!(merged(&of(a.clone()), &of(b.clone())).to_bytes(), all.to_bytes());
        let mut grown = of(a.clone());
        prop_assert_eq!(grown.merge(&of(b)), grown != of(a));
    }

    #[test]
    fn bytes_come_back(a in set()) {
        let sketch = of(a);
        let bytes = sketch.to_bytes();
        prop_assert!(bytes.len() <= 1 + 3_072);
        prop_assert_eq!(Sketch::from_bytes(&bytes), Ok(sketch));
    }

    #[test]
    fn hostile_bytes_are_refused_or_written_back_as_they_were(
        form in 0_u8..4,
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..100),
            prop::collection::vec(any::<u8>(), 3_070..3_075),
            prop::collection::vec(0_u8..3, 3_072),
        ],
    ) {
        let bytes: Vec<u8> = std::iter::once(form).chain(bytes).collect();
        if let Ok(mut sketch) = Sketch::from_bytes(&bytes) {
            prop_assert_eq!(sketch.to_bytes(), bytes);
            let before = sketch.estimate();
            sketch.merge(&of(hashes(1).take(5_000)));
            prop_assert!(sketch.estimate() >= before);
        }
    }

    #[test]
    fn a_damaged_sketch_never_panics(a in set(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 0_usize..6) {
        let mut bytes = of(a).to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        if let Ok(sketch) = Sketch::from_bytes(&bytes) {
            prop_assert!(sketch.estimate() > 0 || sketch == Sketch::default());
            prop_assert_eq!(sketch.to_bytes(), bytes);
        }
    }
}

#[test]
fn what_is_refused_is_named() {
    let refused = |bytes: &[u8]| Sketch::from_bytes(bytes).unwrap_err().to_string();
    assert_eq!(refused(&[]), "a sketch of no bytes");
    assert_eq!(refused(&[9, 0]), "a sketch of an unknown form");
    assert_eq!(refused(&[SPARSE, 0, 0, 0]), "a sketch of a length that none has");
    assert_eq!(refused(&[SPARSE, 0, 0, 0, 0]), "a sketch with a rank that no user has");
    assert_eq!(refused(&[SPARSE, 0, 0, 0, 40]), "a sketch with a rank that no user has");
    assert_eq!(refused(&[SPARSE, 0, 0, 0, 2, 0, 0, 0, 3]), "a sketch whose entries are out of order");
    assert_eq!(refused(&[vec![SPARSE], vec![0; 4 * 769]].concat()), "a sketch of a length that none has");
    assert_eq!(refused(&[vec![DENSE], vec![0; 3_071]].concat()), "a sketch of a length that none has");
    assert_eq!(refused(&[vec![DENSE], vec![255; 3_072]].concat()), "a sketch with a rank that no user has");
}

#[test]
fn up_to_768_users_are_counted_one_by_one() {
    for count in [0, 1, 10, 100, 500] {
        assert_eq!(of(hashes(7).take(count)).estimate(), count as u64);
    }
    assert!(matches!(of(hashes(7).take(768)).0, Form::Sparse(_)));
    assert!(matches!(of(hashes(7).take(769)).0, Form::Dense(_)));
}

/// The standard error is what is stated, no estimate is off by more than four of it, and there is no bias to speak of.
#[test]
fn estimates_are_within_the_stated_error() {
    for (count, seeds) in [(10_u32, 64), (100, 64), (1_000, 64), (10_000, 64), (100_000, 24), (1_000_000, 12)]
    {
        let error = |seed: u64| {
            let estimate = of(hashes(seed << 40).take(count as usize)).estimate();
            (estimate as f64 - f64::from(count)) / f64::from(count)
        };
        let errors: Vec<f64> = (0..seeds).map(error).collect();
        let worst = errors.iter().fold(0.0, |worst: f64, error| worst.max(error.abs()));
        let square = (errors.iter().map(|error| error * error).sum::<f64>() / errors.len() as f64).sqrt();
        let bias = errors.iter().sum::<f64>() / errors.len() as f64;
        println!("{count:>9} users, {seeds} seeds: error {square:.5}, bias {bias:+.5}, worst {worst:.5}");
        assert!(worst <= 4.0 * STANDARD_ERROR, "{count}: {worst}");
        // Of so few the figure itself is uncertain by 1 / √(2 · seeds).
        let uncertain = 1.0 + 2.0 / f64::from(2 * seeds as u32).sqrt();
        assert!(square <= STANDARD_ERROR * uncertain, "{count}: {square}");
        assert!(bias.abs() <= 3.0 * STANDARD_ERROR / f64::from(seeds as u32).sqrt(), "{count}: {bias}");
    }
}

/// What is in databases must be read the same by every later version, on every machine.
#[test]
fn the_bytes_of_known_users_never_change() {
    let mut sketch = Sketch::default();
    ["ada", "grace", "ada", "", "ünï"].iter().for_each(|user| sketch.insert(user.as_bytes()));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&sketch.to_bytes()), "01e010fd02e3b0c445e975a501fdee4303");
    assert_eq!(sketch.estimate(), 4);
    (0..5_000).for_each(|i| sketch.insert(format!("user-{i}").as_bytes()));
    assert_eq!(
        hex(&Sha256::digest(sketch.to_bytes())),
        "b80c38e557707368c8516ed11501a0f770eed1f501bdd76ccbed476beba174df"
    );
    assert_eq!(sketch.estimate(), 5_114, "of 5,004");
}
