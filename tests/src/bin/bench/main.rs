//! `cargo xtask bench`: what a fence costs.
//!
//! Each number is a ratio to the same work without the fence, or with what stands in for it, done
//! in the same run by turns. Budgets are said to be met or missed, and a missed one is no failure:
//! on a busy machine a time proves nothing.
//!
//! [`cases`] and [`agent`] are what is measured, [`client`] the work itself, [`measure`] how two of them are
//! compared. All of it happens in a private internet without a way out.
#![forbid(unsafe_code)]

mod agent;
mod cases;
mod client;
mod measure;

use std::{env, fs};

use anyhow::{Result, bail};
use cases::{Bench, Row};
use measure::Effort;
use serde_json::{Value, json};

const USAGE: &str = "usage: bench [--quick] [--json] [--only=TEXT]";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        // Its other roles: what it measures, inside the private internet.
        Some("__client") => return client::client(&arguments[1..]),
        Some("__serve") => return cases::serve(),
        Some("__stamp") => {
            client::stamp();
            return Ok(());
        }
        _ => {}
    }

    let (mut quick, mut json, mut only) = (false, false, String::new());
    for word in arguments {
        match word.as_str() {
            "--quick" => quick = true,
            "--json" => json = true,
            _ => match word.strip_prefix("--only=") {
                Some(text) => text.clone_into(&mut only),
                None => bail!("{word}: {USAGE}"),
            },
        }
    }
    let effort = match quick {
        true => Effort {
            rounds: 3,
            turns: 20,
        },
        false => Effort {
            rounds: 10,
            turns: 100,
        },
    };
    let machine = Machine::look();
    if !json {
        machine.print();
        Row::print_head();
    }
    let mut rows = Vec::new();
    Bench::new(effort)?.run(&only, &mut |row| {
        if !json {
            row.print();
        }
        rows.push(row);
    })?;
    if json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        let all = json!({"machine": machine.json(), "quick": quick, "results": rows});
        println!("{all:#}");
    } else {
        let budgets = rows.iter().filter_map(Row::met);
        let (met, missed): (Vec<bool>, Vec<bool>) = budgets.partition(|met| *met);
        println!("\n{} budgets met, {} missed", met.len(), missed.len());
    }
    Ok(())
}

/// What was measured on.
struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
    /// Processes that wanted a processor during the last minute, on average.
    load: f64,
}

impl Machine {
    fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let mut lines = cpuinfo.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.split_once(": "));
            value.map(|(_, value)| value.to_owned())
        };
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|word| word.parse().ok());
        Self {
            processor: field("model name").unwrap_or_else(|| env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            load: load.unwrap_or_default(),
        }
    }

    fn print(&self) {
        println!(
            "{}, {} cores, Linux {}",
            self.processor, self.cores, self.kernel
        );
        if self.load > 0.5 {
            println!(
                "Not idle (load {}): both sides are slower, and ratios less certain.",
                self.load
            );
        }
        println!();
    }

    fn json(&self) -> Value {
        json!({
            "processor": self.processor,
            "cores": self.cores,
            "kernel": self.kernel,
            "load": self.load,
        })
    }
}
