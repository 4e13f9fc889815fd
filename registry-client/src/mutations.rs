//! Texts that are almost right, for tests of parsers: where random text ends at the first check, these go deep.
//!
//! Invariant: the same texts in each run.

/// Makes `count` texts from valid ones: pieces cut, doubled, swapped with another text's, or replaced by what parsers
/// stumble over.
pub(crate) fn mutations(seeds: &[&str], count: usize) -> impl Iterator<Item = String> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let seeds: Vec<Vec<char>> = seeds.iter().map(|seed| seed.chars().collect()).collect();
    (0..count).map(move |_| {
        let mut text = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(5) {
            let (start, end) = random.range(text.len());
            match random.below(4) {
                0 => drop(text.drain(start..end)),
                1 => {
                    let piece = text[start..end].to_vec();
                    text.splice(start..start, piece);
                }
                2 => {
                    let other = &seeds[random.below(seeds.len())];
                    let (from, to) = random.range(other.len());
                    text.splice(start..end, other[from..to].iter().copied());
                }
                _ => {
                    let odd = ODD[random.below(ODD.len())];
                    let end = (start + 1).min(text.len());
                    text.splice(start..end, odd.chars());
                }
            }
        }
        text.into_iter().collect()
    })
}

const ODD: [&str; 20] = [
    "\0",
    "\"",
    "\\",
    "\\\"",
    ",",
    "=",
    "<",
    ">",
    ";",
    "-",
    "..",
    "/",
    "\r\n",
    "\u{e9}",
    "\u{1f600}",
    "%2f",
    "{",
    "[",
    "-1",
    "18446744073709551616",
];

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn range(&mut self, length: usize) -> (usize, usize) {
        let (a, b) = (self.below(length + 1), self.below(length + 1));
        (a.min(b), a.max(b))
    }
}
