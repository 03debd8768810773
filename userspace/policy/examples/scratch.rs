fn main() {
    for open in ["[", "{", "- ", "? ", "[{", "{a: ", "a:\n "] {
        for n in [8_000usize, 16_000, 32_000] {
            let t = std::time::Instant::now();
            let e = jobfence_policy::Policy::parse("p", open.repeat(n / open.len()).as_bytes())
                .unwrap_err();
            println!("{open:?} {n} {:?} {}", t.elapsed(), e.message());
        }
    }
}
