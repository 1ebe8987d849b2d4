use std::cmp::Ordering;

use sha2::{Digest, Sha256};

/// Bits of a hash that choose its register: 4,096 of them. One more bit would halve the variance and double the bytes.
const PRECISION: u32 = 12;

/// Registers of the dense form.
const REGISTERS: usize = 1 << PRECISION;

/// The highest rank: all of the 52 bits behind the register's are zero.
const RANK_MAX: u8 = 64 - PRECISION as u8 + 1;

/// Bits of a hash that choose its entry in the sparse form: two of 768 users share one of 2^26 once in 228 sketches.
const SPARSE_PRECISION: u32 = 26;

/// Bits of an entry that hold the rank of what stands behind those.
const SPARSE_RANK_BITS: u32 = 32 - SPARSE_PRECISION;

/// The highest rank of an entry: all of the 38 bits are zero.
const SPARSE_RANK_MAX: u32 = 64 - SPARSE_PRECISION + 1;

/// Bytes of the dense form's registers, six bits each.
const DENSE_BYTES: usize = REGISTERS / 4 * 3;

/// Entries of the sparse form: as many as take no more room than the registers, 768.
const ENTRIES_MAX: usize = DENSE_BYTES / 4;

/// Up to how many users are counted one by one.
pub const COUNTED_MAX: usize = ENTRIES_MAX;

/// The first byte says which form follows. A change of the hash or of a precision takes other bytes.
const SPARSE: u8 = 1;
const DENSE: u8 = 2;

/// The standard error of an estimate over 768 users, relative: 1.04 / √4096. Two estimates of three are nearer than this,
/// nineteen of twenty nearer than twice this. Up to 768 users are counted one by one.
pub const STANDARD_ERROR: f64 = 0.01625;

/// How many different users there were: a HyperLogLog sketch, the sketch of two sets of events being the merge of theirs.
///
/// It is a function of the set of users alone: neither order nor repetition nor how the set was cut and merged changes a
/// byte of it, so a recount can be compared with it. Users are hashed by the first 64 bits of their SHA-256, which is the
/// same everywhere and for ever, and nobody can pick users for their ranks at less than the price of as many hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sketch(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// Ascending, each place of 26 bits once, with the highest rank that was seen there.
    Sparse(Vec<u32>),
    /// The highest rank that was seen in each register.
    Dense(Box<[u8; REGISTERS]>),
}

/// Bytes that no sketch is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSketch(&'static str);

impl Default for Sketch {
    fn default() -> Self {
        Self(Form::Sparse(Vec::new()))
    }
}

impl Sketch {
    /// Adds a user.
    pub fn insert(&mut self, user: &[u8]) {
        let digest = Sha256::digest(user);
        let first = digest.first_chunk().expect("a SHA-256 has 32 bytes");
        self.insert_hash(u64::from_be_bytes(*first));
    }

    fn insert_hash(&mut self, hash: u64) {
        match &mut self.0 {
            Form::Sparse(entries) => {
                let entry = entry(hash);
                match entries.binary_search_by_key(&place(entry), |known| place(*known)) {
                    Ok(at) => entries[at] = entries[at].max(entry),
                    Err(at) => entries.insert(at, entry),
                }
                self.densify_if_large();
            }
            Form::Dense(registers) => {
                let register = usize::try_from(hash >> (64 - PRECISION)).expect("twelve bits");
                let rank = (hash << PRECISION).leading_zeros().min(64 - PRECISION) + 1;
                raise(&mut registers[register], u8::try_from(rank).expect("a rank is at most 53"));
            }
        }
    }

    /// Adds everybody whom another sketch has seen; says whether that changed anything.
    pub fn merge(&mut self, other: &Self) -> bool {
        match (&mut self.0, &other.0) {
            (Form::Sparse(ours), Form::Sparse(theirs)) => {
                let merged = union(ours, theirs);
                let changed = *ours != merged;
                *ours = merged;
                self.densify_if_large();
                changed
            }
            (Form::Sparse(ours), Form::Dense(theirs)) => {
                let mut registers = theirs.clone();
                add_entries(&mut registers, ours);
                self.0 = Form::Dense(registers);
                true
            }
            (Form::Dense(ours), Form::Sparse(theirs)) => add_entries(ours, theirs),
            (Form::Dense(ours), Form::Dense(theirs)) => {
                let changed = ours.iter().zip(theirs.iter()).any(|(ours, theirs)| theirs > ours);
                ours.iter_mut().zip(theirs.iter()).for_each(|(ours, theirs)| *ours = (*ours).max(*theirs));
                changed
            }
        }
    }

    /// How many entries there are depends on the set of users alone, and grows with it: so does the form.
    fn densify_if_large(&mut self) {
        if let Form::Sparse(entries) = &self.0
            && entries.len() > ENTRIES_MAX
        {
            let mut registers = Box::new([0; REGISTERS]);
            add_entries(&mut registers, entries);
            self.0 = Form::Dense(registers);
        }
    }

    /// Estimates how many different users were added, by the improved raw estimator of Otmar Ertl, "New cardinality
    /// estimation algorithms for HyperLogLog sketches" (arXiv:1702.01284), algorithm 6: unbiased for any number, without
    /// tables. It adds, multiplies, divides and takes square roots, which every machine rounds alike.
    #[must_use]
    pub fn estimate(&self) -> u64 {
        let registers = match &self.0 {
            Form::Sparse(entries) => return entries.len() as u64,
            Form::Dense(registers) => registers,
        };
        let mut histogram = [0_u32; RANK_MAX as usize + 1];
        registers.iter().for_each(|rank| histogram[usize::from(*rank)] += 1);
        let of_all = |rank: u8| f64::from(histogram[usize::from(rank)]) / REGISTERS as f64;
        let mut z = tau(1.0 - of_all(RANK_MAX));
        for rank in (1..RANK_MAX).rev() {
            z = 0.5 * (z + of_all(rank));
        }
        z += sigma(of_all(0));
        // Infinite when nothing was added; saturates where every register is full, as only forged bytes are.
        (REGISTERS as f64 / (2.0 * std::f64::consts::LN_2 * z)).round() as u64
    }

    /// Writes the sketch: one byte for the form, then at most 3,072.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.0 {
            Form::Sparse(entries) => {
                let entries = entries.iter().flat_map(|entry| entry.to_be_bytes());
                std::iter::once(SPARSE).chain(entries).collect()
            }
            Form::Dense(registers) => {
                let mut bytes = Vec::with_capacity(1 + DENSE_BYTES);
                bytes.push(DENSE);
                for four in registers.as_chunks::<4>().0 {
                    let [a, b, c, d] = four.map(u32::from);
                    bytes.extend_from_slice(&(a << 18 | b << 12 | c << 6 | d).to_be_bytes()[1..]);
                }
                bytes
            }
        }
    }

    /// Reads what [`Sketch::to_bytes`] wrote.
    ///
    /// # Errors
    /// For bytes that it never writes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidSketch> {
        match bytes {
            [SPARSE, entries @ ..] => read_entries(entries).map(|entries| Self(Form::Sparse(entries))),
            [DENSE, registers @ ..] => read_registers(registers).map(|dense| Self(Form::Dense(dense))),
            [] => Err(InvalidSketch("a sketch of no bytes")),
            _ => Err(InvalidSketch("a sketch of an unknown form")),
        }
    }
}

fn entry(hash: u64) -> u32 {
    let rank = (hash << SPARSE_PRECISION).leading_zeros().min(SPARSE_RANK_MAX - 1) + 1;
    let place = u32::try_from(hash >> (64 - SPARSE_PRECISION)).expect("26 bits");
    place << SPARSE_RANK_BITS | rank
}

fn place(entry: u32) -> u32 {
    entry >> SPARSE_RANK_BITS
}

/// The register that an entry's hash belongs to, and its rank there.
fn register(entry: u32) -> (usize, u8) {
    const BETWEEN: u32 = SPARSE_PRECISION - PRECISION;
    let register = (place(entry) >> BETWEEN) as usize;
    let behind = place(entry) & ((1 << BETWEEN) - 1);
    let rank = match behind {
        0 => BETWEEN + (entry & ((1 << SPARSE_RANK_BITS) - 1)),
        _ => behind.leading_zeros() - (32 - BETWEEN) + 1,
    };
    (register, u8::try_from(rank).expect("a rank is at most 53"))
}

fn raise(register: &mut u8, rank: u8) -> bool {
    let raises = *register < rank;
    *register = (*register).max(rank);
    raises
}

fn add_entries(registers: &mut [u8; REGISTERS], entries: &[u32]) -> bool {
    let mut changed = false;
    for entry in entries {
        let (register, rank) = register(*entry);
        changed |= raise(&mut registers[register], rank);
    }
    changed
}

/// Merges ascending entries; of two at one place the higher rank stays.
fn union(ours: &[u32], theirs: &[u32]) -> Vec<u32> {
    let mut merged = Vec::with_capacity(ours.len() + theirs.len());
    let (mut ours, mut theirs) = (ours.iter().copied().peekable(), theirs.iter().copied().peekable());
    loop {
        let order = match (ours.peek(), theirs.peek()) {
            (Some(one), Some(other)) => place(*one).cmp(&place(*other)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return merged,
        };
        let one = if order.is_le() { ours.next() } else { None };
        let other = if order.is_ge() { theirs.next() } else { None };
        merged.extend(one.max(other));
    }
}

fn read_entries(bytes: &[u8]) -> Result<Vec<u32>, InvalidSketch> {
    let (entries, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || entries.len() > ENTRIES_MAX {
        return Err(InvalidSketch("a sketch of a length that none has"));
    }
    let entries: Vec<u32> = entries.iter().map(|entry| u32::from_be_bytes(*entry)).collect();
    let ranks = entries.iter().map(|entry| entry & ((1 << SPARSE_RANK_BITS) - 1));
    if !entries.is_sorted_by(|one, next| place(*one) < place(*next)) {
        return Err(InvalidSketch("a sketch whose entries are out of order"));
    }
    if !ranks.into_iter().all(|rank| (1..=SPARSE_RANK_MAX).contains(&rank)) {
        return Err(InvalidSketch("a sketch with a rank that no user has"));
    }
    Ok(entries)
}

fn read_registers(bytes: &[u8]) -> Result<Box<[u8; REGISTERS]>, InvalidSketch> {
    if bytes.len() != DENSE_BYTES {
        return Err(InvalidSketch("a sketch of a length that none has"));
    }
    let mut registers = Box::new([0; REGISTERS]);
    for (four, three) in registers.as_chunks_mut::<4>().0.iter_mut().zip(bytes.as_chunks::<3>().0) {
        let [a, b, c] = three.map(u32::from);
        let packed = a << 16 | b << 8 | c;
        *four = [18, 12, 6, 0].map(|shift| (packed >> shift & 63) as u8);
    }
    if registers.iter().any(|rank| *rank > RANK_MAX) {
        return Err(InvalidSketch("a sketch with a rank that no user has"));
    }
    Ok(registers)
}

/// x + Σ x^(2^k) · 2^(k−1) over k ≥ 1: what registers that saw nobody stand for.
fn sigma(mut x: f64) -> f64 {
    if x >= 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z <= before {
            return z;
        }
    }
}

/// (1 − x − Σ (1 − x^(2^−k))² · 2^−k) / 3 over k ≥ 1: what full registers stand for.
fn tau(mut x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z >= before {
            return z / 3.0;
        }
    }
}

#[cfg(test)]
mod tests;
