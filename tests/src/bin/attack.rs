//! Tries every attack, and prints what came of each as a table.
//!
//! `attack [--markdown] [TEXT]`: as a table for a README; only those whose name has the text.
//! `JOBFENCE_TEST_AGENT=1` has an agent hold the jobs.
//! Exits with 1 when an attack succeeded, or could not be shown to succeed without the fence.
#![forbid(unsafe_code)]

use std::{
    env,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use jobfence_tests::attack::{Attack, Outcome, Section, attacks};

fn main() -> ExitCode {
    let (options, names): (Vec<_>, Vec<_>) =
        env::args().skip(1).partition(|word| word.starts_with('-'));
    let markdown = options.iter().any(|option| option == "--markdown");
    let mut chosen = attacks();
    chosen.retain(|(_, attack)| names.iter().all(|name| attack.name.contains(name)));

    let results = try_all(&chosen);
    let mut table = Table {
        markdown,
        section: None,
    };
    let (mut left_out, mut failures) = (Vec::new(), Vec::new());
    let mut longest = Duration::ZERO;
    for ((section, attack), result) in chosen.iter().zip(results) {
        match &result {
            Ok(Outcome::Stopped { waited, .. }) if *section == Section::Shared => {
                longest = longest.max(waited.unwrap_or_default());
            }
            Ok(Outcome::Stopped { .. }) => {}
            Ok(Outcome::LeftOut(why)) => left_out.push(format!("{}: {why}", attack.name)),
            Err(error) => failures.push(format!("{}: {error:#}", attack.name)),
        }
        table.row(*section, attack, &result);
    }
    let stopped = chosen.len() - left_out.len() - failures.len();
    println!("\n{stopped} attacks stopped, {} not", failures.len());
    println!(
        "longest that a client went on after its connection was refused: {} ms",
        longest.as_millis()
    );
    if !left_out.is_empty() {
        println!("left out: {} that this host cannot try", left_out.len());
        left_out.iter().for_each(|line| println!("  {line}"));
    }
    for failure in &failures {
        eprintln!("\n{failure}");
    }
    ExitCode::from(u8::from(!failures.is_empty() || stopped == 0))
}

/// Tries all attacks, several at a time: most of their time is waiting.
fn try_all(attacks: &[(Section, Attack)]) -> Vec<Result<Outcome>> {
    let next = AtomicUsize::new(0);
    let results: Vec<_> = attacks.iter().map(|_| Mutex::new(None)).collect();
    let threads = thread::available_parallelism().map_or(1, usize::from) * 2;
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((_, attack)) = attacks.get(index) else {
                        return;
                    };
                    let result = attack.run();
                    eprint!(".");
                    *results[index]
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner) = Some(result);
                }
            });
        }
    });
    eprintln!();
    let done = |result: Mutex<Option<_>>| {
        let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
        result.expect("each has been tried")
    };
    results.into_iter().map(done).collect()
}

/// Prints rows, under a heading for each section.
struct Table {
    markdown: bool,
    section: Option<Section>,
}

impl Table {
    fn row(&mut self, section: Section, attack: &Attack, result: &Result<Outcome>) {
        let name = attack.name.replace('_', " ");
        let (verdict, fenced, unfenced) = match result {
            Ok(Outcome::Stopped { unfenced, .. }) => ("stopped", "0".into(), unfenced.to_string()),
            Ok(Outcome::LeftOut(_)) => ("left out", "-".into(), "-".to_owned()),
            Err(_) => ("FAILED", "?".to_owned(), "?".into()),
        };
        let (layer, expected) = (attack.layer.to_string(), attack.expected());
        if self.section != Some(section) {
            self.section = Some(section);
            if self.markdown {
                println!("\n**{section}**\n");
                println!("| attack | stopped by | event | result | arrived | without the fence |");
                println!("|---|---|---|---|--:|--:|");
            } else {
                println!(
                    "\n{section}: attack, stopped by, result, arrived (without the fence), event"
                );
            }
        }
        if self.markdown {
            println!("| {name} | {layer} | {expected} | {verdict} | {fenced} | {unfenced} |");
        } else {
            println!("  {name:<55} {layer:<16} {verdict:<9} {fenced} ({unfenced})  {expected}");
        }
    }
}
