//! What is measured, and against which budget.

use std::{
    env, fmt::Write as _, fs, net::Ipv4Addr, path::PathBuf, process::Command, time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::sys::{Stats, enable_stats};
use jobfence_tests::{
    Fence, Internet,
    addresses::{ALLOWED, DNS},
    run,
};
use serde_json::{Value, json};

use crate::{
    client::{self, BLOCK},
    measure::{Effort, Loop, Pair, Server, Spread, alternate, cpu_seconds, resident},
};

/// Ports of the net side's servers.
const IPERF: u16 = 5201;
pub(crate) const CONNECT: u16 = 7001;
const BULK: u16 = 7002;
const DATAGRAMS: u16 = 7003;
const TLS: u16 = 9443;

/// A name that is allowed, and asked for again and again.
const NAME: &str = "allowed.test";

/// How long a command may take that is no loop.
const DEADLINE: Duration = Duration::from_secs(60);

/// What counts as no difference where the cost shall not depend on something.
pub(crate) const SAME: f64 = 0.05;

/// A policy that allows the servers and `others` more addresses.
pub(crate) fn policy(others: u32) -> String {
    let mut policy = format!(
        "\
version: 1
jobs:
  default:
    allow:
      - {{host: {NAME}, ports: [{TLS}]}}
      - {{cidr: {}/32, ports: [{IPERF}, {CONNECT}, {BULK}, {DATAGRAMS}/udp]}}
",
        ALLOWED.v4
    );
    // Addresses for measurements (RFC 2544), of which there are enough.
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 0));
    for other in 0..others {
        let address = Ipv4Addr::from(first + other);
        // Writing to a string does not fail.
        let _ = writeln!(policy, "      - cidr: {address}/32");
    }
    policy
}

/// One line of the result.
pub(crate) struct Row {
    pub(crate) what: String,
    /// What it is in the fence and without, for people.
    pub(crate) sides: [String; 2],
    pub(crate) result: Spread,
    pub(crate) unit: Unit,
    pub(crate) budget: Option<Budget>,
}

#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// In proportion to what it is without the fence.
    Ratio,
    Nanoseconds,
    Microseconds,
    Milliseconds,
    Mebibytes,
}

#[derive(Clone, Copy)]
pub(crate) enum Budget {
    AtLeast(f64),
    AtMost(f64),
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Ratio => "x",
            Self::Nanoseconds => "ns",
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.3}"),
            _ => format!("{value:.1} {}", self.name()),
        }
    }
}

impl Row {
    /// Whether the budget is met, if there is one.
    pub(crate) fn met(&self) -> Option<bool> {
        Some(match self.budget? {
            Budget::AtLeast(bound) => self.result.median >= bound,
            Budget::AtMost(bound) => self.result.median <= bound,
        })
    }

    pub(crate) fn print_head() {
        println!(
            "{:44} {:>13} {:>13} {:>9}  {:21} budget",
            "", "fence", "no fence", "median", "min .. max"
        );
    }

    pub(crate) fn print(&self) {
        let (unit, result) = (self.unit, self.result);
        let range = format!("{} .. {}", unit.show(result.min), unit.show(result.max));
        let budget = match self.budget {
            None => String::new(),
            Some(Budget::AtLeast(bound)) => format!("at least {}", unit.show(bound)),
            Some(Budget::AtMost(bound)) => format!("at most {}", unit.show(bound)),
        };
        let verdict = match self.met() {
            None => "",
            Some(true) => ", met",
            Some(false) => ", MISSED",
        };
        let [fence, bare] = &self.sides;
        println!(
            "{:44} {fence:>13} {bare:>13} {:>9}  {range:21} {budget}{verdict}",
            self.what,
            unit.show(result.median),
        );
    }

    pub(crate) fn json(&self) -> Value {
        let budget = self.budget.map(|budget| match budget {
            Budget::AtLeast(bound) => json!({"at_least": bound}),
            Budget::AtMost(bound) => json!({"at_most": bound}),
        });
        json!({
            "what": self.what,
            "fence": self.sides[0],
            "no_fence": self.sides[1],
            "unit": self.unit.name(),
            "median": self.result.median,
            "min": self.result.min,
            "max": self.result.max,
            "budget": budget,
            "met": self.met(),
        })
    }

    /// How much longer a step takes in the fence.
    fn time(what: &str, pair: &Pair, budget: f64) -> Self {
        let side = |spread: Spread| format!("{:.1} us", spread.median * 1e6);
        Self {
            what: what.to_owned(),
            sides: [pair.first, pair.second].map(side),
            result: pair.ratio,
            unit: Unit::Ratio,
            budget: Some(Budget::AtMost(budget)),
        }
    }

    /// How many steps a second are done in the fence, in proportion; `show` makes a rate readable.
    fn rate(what: &str, pair: &Pair, budget: f64, show: impl Fn(f64) -> String) -> Self {
        let side = |spread: Spread| show(1.0 / spread.median);
        Self {
            what: what.to_owned(),
            sides: [pair.first, pair.second].map(side),
            result: pair.ratio.map(|ratio| 1.0 / ratio),
            unit: Unit::Ratio,
            budget: Some(Budget::AtLeast(budget)),
        }
    }

    /// A number of the fence alone.
    pub(crate) fn plain(what: &str, result: Spread, unit: Unit, budget: Option<Budget>) -> Self {
        Self {
            what: what.to_owned(),
            sides: [String::new(), String::new()],
            result,
            unit,
            budget,
        }
    }
}

fn thousands(rate: f64) -> String {
    format!("{:.0} k/s", rate / 1e3)
}

fn gigabits(blocks: f64) -> String {
    format!("{:.1} Gbit/s", blocks * BLOCK as f64 * 8.0 / 1e9)
}

/// The servers on the net side.
pub(crate) fn serve() -> Result<()> {
    client::serve(CONNECT, &[BULK, TLS], DATAGRAMS)
}

/// Where everything is measured.
pub(crate) struct Bench {
    pub(crate) effort: Effort,
    // Ended before the internet that they are in.
    _servers: [Server; 3],
    pub(crate) internet: Internet,
    /// This program, where every user can execute it.
    program: PathBuf,
}

type Case = fn(&Bench) -> Result<Vec<Row>>;

/// Each measurement, by a name for `--only`.
const CASES: [(&str, Case); 10] = [
    ("bulk", Bench::bulk),
    ("tls", Bench::tls),
    ("connect", Bench::connect),
    ("datagrams", Bench::datagrams),
    ("packet", Bench::packet),
    ("names", Bench::names),
    ("rules", Bench::rules),
    ("start", Bench::start),
    ("processes", Bench::processes),
    ("agent", Bench::agent),
];

impl Bench {
    pub(crate) fn new(effort: Effort) -> Result<Self> {
        let internet = Internet::unrecorded()?;
        let program = internet.dir().join("bench");
        fs::copy(env::current_exe()?, &program).context("cannot copy this program")?;
        let mut serve = internet.net_command(&program.to_string_lossy());
        let mut iperf = internet.net_command("iperf3");
        iperf.args(["--server", "--forceflush", "--port", &IPERF.to_string()]);
        // The yardstick for names: a resolver that the job side asks without a fence.
        let mut dnsmasq = internet.command("sh");
        dnsmasq
            .args(["-c", "exec dnsmasq \"$@\" 2>&1", "sh"])
            .args(["--no-daemon", "--conf-file=/dev/null", "--user=root"])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces"])
            .args(["--no-resolv", "--no-hosts"])
            .arg(format!("--server={}", DNS.v4));
        Ok(Self {
            effort,
            _servers: [
                Server::start(serve.arg("__serve"), "ready")?,
                Server::start(&mut iperf, "Server listening")?,
                Server::start(&mut dnsmasq, "started")?,
            ],
            internet,
            program,
        })
    }

    /// Measures everything whose name holds `only`.
    pub(crate) fn run(&self, only: &str, out: &mut dyn FnMut(Row)) -> Result<()> {
        let wanted = CASES.iter().filter(|(name, _)| name.contains(only));
        let wanted: Vec<_> = wanted.collect();
        let names = CASES.map(|(name, _)| name).join(", ");
        ensure!(
            !wanted.is_empty(),
            "nothing is called {only}: there are {names}"
        );
        for (name, case) in wanted {
            let rows = case(self).with_context(|| format!("could not measure {name}"))?;
            rows.into_iter().for_each(&mut *out);
        }
        Ok(())
    }

    fn fenced(&self, policy: &str, work: &[&str]) -> Result<Loop> {
        Loop::fenced(Fence::new(&self.internet, policy)?, &self.program, work)
    }

    pub(crate) fn bare(&self, work: &[&str]) -> Result<Loop> {
        let command = self.internet.command(&self.program.to_string_lossy());
        Loop::bare(command, work)
    }

    /// The same work in the fence and without, by turns.
    fn compare(&self, steps: usize, work: &[&str]) -> Result<Pair> {
        let (mut fenced, mut bare) = (self.fenced(&policy(0), work)?, self.bare(work)?);
        let pair = alternate(self.effort, steps, &mut fenced, &mut bare)?;
        fenced.end()?;
        bare.end()?;
        Ok(pair)
    }

    fn bulk(&self) -> Result<Vec<Row>> {
        let (server, port) = (ALLOWED.v4.to_string(), IPERF.to_string());
        let command = [
            "iperf3", "--json", "--client", &server, "--port", &port, "--bytes", "512M",
        ];
        let throughput = |output: &str| -> Result<f64> {
            let report: Value = serde_json::from_str(output)?;
            let bits = &report["end"]["sum_received"]["bits_per_second"];
            bits.as_f64().with_context(|| format!("iperf3: {report}"))
        };
        let fenced = || -> Result<f64> {
            let fenced = Fence::new(&self.internet, &policy(0))?.run(&command)?;
            ensure!(fenced.code == Some(0), "{fenced:#?}");
            throughput(&fenced.output.stdout)
        };
        let bare = || -> Result<f64> {
            let mut bare = self.internet.command(command[0]);
            throughput(&run(bare.args(&command[1..]), DEADLINE)?.stdout)
        };
        let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
        for round in 0..self.effort.rounds * 2 {
            if round % 2 == 0 {
                firsts.push(fenced()?);
                seconds.push(bare()?);
            } else {
                seconds.push(bare()?);
                firsts.push(fenced()?);
            }
        }
        let ratios = firsts.iter().zip(&seconds).map(|(a, b)| a / b);
        let result = Spread::of(ratios);
        let side = |values| format!("{:.1} Gbit/s", Spread::of(values).median / 1e9);
        Ok(vec![Row {
            what: "bulk, iperf3".to_owned(),
            result,
            sides: [firsts, seconds].map(side),
            unit: Unit::Ratio,
            budget: Some(Budget::AtLeast(0.98)),
        }])
    }

    fn tls(&self) -> Result<Vec<Row>> {
        let plain = self.compare(32, &["bulk", &to(BULK)])?;
        let tls = self.compare(32, &["tls-bulk", NAME, &TLS.to_string()])?;
        Ok(vec![
            Row::rate("bulk, by turns", &plain, 0.98, gigabits),
            Row::rate("bulk after a ClientHello, by turns", &tls, 0.98, gigabits),
        ])
    }

    fn connect(&self) -> Result<Vec<Row>> {
        let pair = self.compare(50, &["connect", &to(CONNECT)])?;
        Ok(vec![Row::time("TCP connect and close", &pair, 1.05)])
    }

    fn datagrams(&self) -> Result<Vec<Row>> {
        let pair = self.compare(1000, &["datagrams", &to(DATAGRAMS)])?;
        let connected = self.compare(1000, &["connected-datagrams", &to(DATAGRAMS)])?;
        Ok(vec![
            Row::rate("UDP sends to an address", &pair, 0.93, thousands),
            Row::rate("UDP sends, connected", &connected, 0.93, thousands),
        ])
    }

    /// The time of the egress program for one packet of `work`.
    fn packet_time(&self, policy: &str, steps: usize, work: &[&str]) -> Result<Spread> {
        let mut fenced = self.fenced(policy, work)?;
        fenced.go(steps)?;
        let egress = fenced.egress()?;
        // On for the whole host, until this is dropped.
        let _statistics = enable_stats(Stats::RunTime).context("cannot turn on statistics")?;
        let mut rounds = Vec::new();
        for _ in 0..self.effort.rounds {
            let mut times = Vec::new();
            for _ in 0..self.effort.turns.min(20) {
                let (time, count) = egress.runs()?;
                fenced.go(steps)?;
                let (time_after, count_after) = egress.runs()?;
                ensure!(count_after > count, "the egress program did not run");
                times.push((time_after - time) / (count_after - count));
            }
            rounds.push(Spread::of(times).median);
        }
        fenced.end()?;
        Ok(Spread::of(rounds))
    }

    fn packet(&self) -> Result<Vec<Row>> {
        let budget = Some(Budget::AtMost(60.0));
        let row = |what, steps, work: &[&str]| -> Result<Row> {
            let time = self.packet_time(&policy(0), steps, work)?;
            Ok(Row::plain(what, time, Unit::Nanoseconds, budget))
        };
        Ok(vec![
            row("program, a segment", 1000, &["segments", &to(BULK)])?,
            row("program, a datagram", 1000, &["datagrams", &to(DATAGRAMS)])?,
        ])
    }

    /// In place of "no fence": dnsmasq, which has the name in its cache too.
    fn names(&self) -> Result<Vec<Row>> {
        let fenced_server = format!("{}:53", DNS.v4);
        let compare = |work: &str, steps| -> Result<Pair> {
            let mut fenced = self.fenced(&policy(0), &[work, &fenced_server, NAME])?;
            let mut dnsmasq = self.bare(&[work, "127.0.0.1:53", NAME])?;
            let pair = alternate(self.effort, steps, &mut fenced, &mut dnsmasq)?;
            fenced.end()?;
            dnsmasq.end()?;
            Ok(pair)
        };
        Ok(vec![
            Row::time(
                "a cached name (no fence: dnsmasq)",
                &compare("name", 50)?,
                1.0,
            ),
            Row::rate(
                "cached names, 16 at once (dnsmasq)",
                &compare("name-rate", 200)?,
                1.0,
                thousands,
            ),
        ])
    }

    /// 10,000 rules in place of "fence", 10 in place of "no fence".
    fn rules(&self) -> Result<Vec<Row>> {
        let (many, few) = (policy(10_000), policy(10));
        let compare = |steps, work: &[&str]| -> Result<Pair> {
            let (mut many, mut few) = (self.fenced(&many, work)?, self.fenced(&few, work)?);
            let pair = alternate(self.effort, steps, &mut many, &mut few)?;
            many.end()?;
            few.end()?;
            Ok(pair)
        };
        Ok(vec![
            Row::time(
                "TCP connect, 10,000 rules (10)",
                &compare(50, &["connect", &to(CONNECT)])?,
                1.0 + SAME,
            ),
            Row::rate(
                "UDP sends, 10,000 rules (10)",
                &compare(1000, &["datagrams", &to(DATAGRAMS)])?,
                1.0 - SAME,
                thousands,
            ),
            Row::plain(
                "program, a datagram, 10,000 rules",
                self.packet_time(&many, 1000, &["datagrams", &to(DATAGRAMS)])?,
                Unit::Nanoseconds,
                Some(Budget::AtMost(60.0)),
            ),
        ])
    }

    fn start(&self) -> Result<Vec<Row>> {
        let program = self.program.to_string_lossy();
        let stamp = [&*program, "__stamp"];
        let since = |start: u64, said: &str| -> Result<f64> {
            let stamp: u64 = said.trim().parse().context("no time")?;
            Ok(Duration::from_nanos(stamp - start).as_secs_f64() * 1e3)
        };
        let fenced = |policy: &str, command: &[&str]| -> Result<(f64, String)> {
            let (mut command, _) = Fence::new(&self.internet, policy)?.command(command)?;
            timed(&mut command)
        };
        let (mut first, mut whole, mut long) = (Vec::new(), Vec::new(), Vec::new());
        let (mut bare_first, mut bare_whole) = (Vec::new(), Vec::new());
        let many = policy(10_000);
        for _ in 0..self.effort.rounds {
            let start = client::now();
            first.push(since(start, &fenced(&policy(0), &stamp)?.1)?);
            let start = client::now();
            let mut bare = self.internet.command(stamp[0]);
            bare_first.push(since(start, &timed(bare.arg(stamp[1]))?.1)?);
            whole.push(fenced(&policy(0), &["true"])?.0);
            bare_whole.push(timed(&mut self.internet.command("true"))?.0);
            let start = client::now();
            long.push(since(start, &fenced(&many, &stamp)?.1)?);
        }
        let row = |what: &str, fence: Vec<f64>, bare: &[f64]| {
            let bare = Spread::of(bare.iter().copied()).median;
            let result = Spread::of(fence.into_iter().map(|time| time - bare));
            let sides = [result.median + bare, bare];
            Row {
                what: what.to_owned(),
                sides: sides.map(|time| Unit::Milliseconds.show(time)),
                result,
                unit: Unit::Milliseconds,
                budget: None,
            }
        };
        Ok(vec![
            row("start, to the first instruction", first, &bare_first),
            row("the same with 10,000 rules", long, &bare_first),
            row("`true` from start to end", whole, &bare_whole),
        ])
    }

    fn processes(&self) -> Result<Vec<Row>> {
        /// Programs that are executed for one ratio.
        const STEPS: usize = 250;
        // Not by turns: the agent hears of every process of the host, fenced or not.
        let (mut fenced_times, mut bare_times) = (Vec::new(), Vec::new());
        let (mut work, mut memory) = (Vec::new(), Vec::new());
        let steps = STEPS * self.effort.turns.min(8);
        for _ in 0..self.effort.rounds {
            let mut fenced = self.fenced(&policy(0), &["execute"])?;
            fenced.go(10)?;
            let before = cpu_seconds(fenced.pid())?;
            fenced_times.push(fenced.go(steps)?);
            let used = cpu_seconds(fenced.pid())? - before;
            work.push(used / steps as f64 * 1e6);
            memory.push(resident(fenced.pid())?);
            fenced.end()?;
            let mut bare = self.bare(&["execute"])?;
            bare.go(10)?;
            bare_times.push(bare.go(steps)?);
            bare.end()?;
        }
        let ratios = fenced_times.iter().zip(&bare_times).map(|(a, b)| a / b);
        let result = Spread::of(ratios);
        let side = |times: Vec<f64>| {
            let median = Spread::of(times).median;
            format!("{:.1} us", median / steps as f64 * 1e6)
        };
        Ok(vec![
            Row {
                what: "short processes, one after the other".to_owned(),
                result,
                sides: [fenced_times, bare_times].map(side),
                unit: Unit::Ratio,
                budget: None,
            },
            Row::plain(
                "agent's processor time for each of them",
                Spread::of(work),
                Unit::Microseconds,
                None,
            ),
            Row::plain(
                "agent's resident memory, one job",
                Spread::of(memory),
                Unit::Mebibytes,
                None,
            ),
        ])
    }
}

/// A port of the server that is allowed by address.
pub(crate) fn to(port: u16) -> String {
    format!("{}:{port}", ALLOWED.v4)
}

/// Runs `command`; returns the milliseconds that it took, and its output.
fn timed(command: &mut Command) -> Result<(f64, String)> {
    let output = run(command, DEADLINE)?;
    ensure!(output.status.success(), "{output:#?}");
    Ok((output.elapsed.as_secs_f64() * 1e3, output.stdout))
}
