//! The program that decides about packets, loaded and run on packets that nobody sends
//! (`BPF_PROG_TEST_RUN`).
//!
//! Such a run has a cgroup storage of zeros, which names slot 0. No job ever has that slot, so a
//! test can put one there. Its socket is new for each run, so nothing is known of a packet's
//! connection but what it says itself.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, LpmTrie, MapData, RingBuf, lpm_trie::Key},
    programs::{CgroupSkb, TestRun as _, TestRunOptions},
};
use jobfence_abi::{
    Addr, Event, Flow, Grants, Job, JobState, MAX_ADDRESSES, MAX_NAMES, NAME_KEY_LEN, NameKey,
    NamedEvent,
};

/// `BPF_F_NO_PREALLOC` of `linux/bpf.h`, which the kernel demands of tries.
const NO_PREALLOC: u32 = 1;

/// Length of the link layer's header, which the kernel takes off before the program sees the packet.
const LINK: usize = 14;

/// Begins a connection: a flag in a TCP header's 14th byte (RFC 9293 section 3.1).
pub const SYN: u8 = 2;

/// The longest packet that can be run, in bytes: it has to lie in one page, with what the kernel
/// puts around it (`bpf_test_init` of net/bpf/test_run.c).
pub const LONGEST: usize = 3500;

type Value = [u8; size_of::<Grants>()];
type Addresses = LpmTrie<MapData, [u8; 16], Value>;
type Names = LpmTrie<MapData, [u8; NAME_KEY_LEN], Value>;

/// A prefix of a job's addresses, by the length of the mapped form, with what it grants.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// Any address of it.
    pub addr: Addr,
    /// How many bits count, of 128.
    pub bits: u32,
    /// What may be reached there.
    pub grants: Grants,
}

/// What a run reports: an attempt, and the longer form of it if it has one.
pub type Report = (Event, Option<NamedEvent>);

/// The loaded program.
pub struct Program {
    ebpf: Ebpf,
    events: RingBuf<MapData>,
}

impl Program {
    /// Loads the program from where `cargo xtask build` puts it.
    pub fn load() -> Result<Self> {
        let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/jobfence.bpf.o");
        let bytes = fs::read(&object).context("run `cargo xtask build` first")?;
        let mut ebpf = EbpfLoader::new()
            .load(&bytes)
            .context("load the kernel object: run the tests as root")?;
        let events = ebpf.take_map("EVENTS").context("no map EVENTS")?;
        egress(&mut ebpf)?.load()?;
        Ok(Self {
            events: RingBuf::try_from(events)?,
            ebpf,
        })
    }

    /// Sets the job, with the addresses that it may reach.
    pub fn set(&mut self, job: Job, prefixes: &[Prefix]) -> Result<()> {
        let mut trie = Addresses::create(MAX_ADDRESSES, NO_PREALLOC)?;
        for prefix in prefixes {
            let key = Key::new(prefix.bits, zerocopy::transmute!(prefix.addr));
            let grants: Value = zerocopy::transmute!(prefix.grants);
            trie.insert(&key, grants, 0)?;
        }
        let tries = self.map("ADDRESSES")?;
        let mut tries: ArrayOfMaps<&mut MapData, Addresses> = tries.try_into()?;
        tries.set(0, &trie, 0)?;
        let mut jobs: Array<&mut MapData, [u8; size_of::<Job>()]> = self.map("JOBS")?.try_into()?;
        let job: [u8; size_of::<Job>()] = zerocopy::transmute!(job);
        jobs.set(0, job, 0)?;
        Ok(())
    }

    /// Sets the names that the job's connections may be for.
    pub fn set_names(&mut self, names: &[(NameKey, Grants)]) -> Result<()> {
        let mut trie = Names::create(MAX_NAMES, NO_PREALLOC)?;
        for (name, grants) in names {
            let grants: Value = zerocopy::transmute!(*grants);
            trie.insert(&Key::new(name.bits, name.data), grants, 0)?;
        }
        let mut tries: ArrayOfMaps<&mut MapData, Names> = self.map("NAMES")?.try_into()?;
        tries.set(0, &trie, 0)?;
        Ok(())
    }

    /// Runs the program on a packet, from its IP header on and of at most [`LONGEST`] bytes; says
    /// whether it passed, and what was reported.
    pub fn run(&mut self, packet: &[u8]) -> Result<(bool, Vec<Report>)> {
        let frame = [&[0; LINK], packet].concat();
        let options = TestRunOptions {
            data_in: Some(&frame),
            ..TestRunOptions::new()
        };
        let result = egress(&mut self.ebpf)?.test_run(options)?;
        let mut reports = Vec::new();
        while let Some(record) = self.events.next() {
            reports.push(jobfence_abi::decode(&record).context("a record of unknown length")?);
        }
        Ok((result.return_value == 1, reports))
    }

    fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name}"))
    }
}

fn egress(ebpf: &mut Ebpf) -> Result<&mut CgroupSkb> {
    let program = ebpf.program_mut("egress").context("no program egress")?;
    Ok(program.try_into()?)
}

/// The headers of a packet of `flow`, well-formed: of TCP the first of a connection, with a header
/// of 20 bytes.
#[must_use]
pub fn packet(flow: &Flow) -> Vec<u8> {
    let mut packet = match IpAddr::from(flow.dst) {
        IpAddr::V4(dst) => {
            let mut header = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, flow.proto, 0, 0];
            header.extend(Ipv4Addr::new(192, 0, 2, 2).octets());
            header.extend(dst.octets());
            header
        }
        IpAddr::V6(dst) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 20, flow.proto, 64];
            header.extend(Ipv6Addr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, 2]).octets());
            header.extend(dst.octets());
            header
        }
    };
    packet.extend(40_000_u16.to_be_bytes());
    packet.extend(flow.port.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([0x50, SYN, 0, 0, 0, 0, 0, 0]);
    packet
}

/// A job of slot 0.
#[must_use]
pub const fn job(state: JobState) -> Job {
    Job {
        state,
        generation: 1,
        resolver_v4: 5300,
        resolver_v6: 5301,
        id: 7,
        key: 1,
        rate: 0,
        pad: 0,
        upload: 0,
    }
}
