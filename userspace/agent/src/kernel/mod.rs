//! The programs in the kernel, and the maps that tell them about a job.
//!
//! [`Kernel::load`] loads the programs once. [`Kernel::fence`] attaches them to a job's cgroup
//! and pins the links, in an order in which nothing is ever open: an attached program denies
//! everything until its slot is written, and the slot is written last.
//!
//! A pinned link holds after this process has died, until it is unpinned or its cgroup is
//! removed (kernel: `bpf_cgroup_link_auto_detach`).

use std::{
    collections::hash_map::RandomState,
    error::Error,
    fs::{self, File},
    hash::BuildHasher as _,
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use aya::{
    Btf, BtfError, Ebpf, EbpfError, EbpfLoader,
    maps::{
        Array, ArrayOfMaps, HashMap as BpfHashMap, LpmTrie, Map, MapData, MapError, RingBuf,
        cgroup_storage::CgroupStorageKey, lpm_trie::Key,
    },
    pin::PinError,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, LsmCgroup,
        Program, ProgramError,
        links::{FdLink, LinkError},
    },
};
use ipnet::IpNet;
use jobfence_abi::{
    Addr, Client, ClientKey, Counters, Grants, Job, JobState, MAX_ADDRESSES, MAX_NAMES, MAX_RANGES,
    NAME_KEY_LEN, NameKey, PortRange,
};
use jobfence_policy::HostPattern;
use thiserror::Error as ThisError;

#[expect(
    deprecated,
    reason = "the map type that gives a program the cgroup it is attached to; see ebpf/src/maps.rs"
)]
use aya::maps::CgroupStorage;

mod destroy;
mod pins;

pub use destroy::Connections;
use pins::Pins;
pub use pins::{Abandoned, abandoned, is_bpffs, lock, unpin};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/jobfence.bpf.o"));

/// The programs, each with the number of its attach type (`enum bpf_attach_type` of
/// `linux/bpf.h`), under which the kernel keys the cgroup storage of each.
const PROGRAMS: [(&str, u32); 10] = [
    ("egress", 1),
    ("sock_create", 2),
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
];

/// The program on `socket_create`, which is there only where the kernel has the hook, and its
/// attach type.
const LSM: (&str, u32) = ("socket_create", 43);

const GRANTS_BYTES: usize = size_of::<Grants>();
const JOB_BYTES: usize = size_of::<Job>();

/// A job's addresses as the kernel sees them: prefix to grants.
type Trie = LpmTrie<MapData, [u8; 16], [u8; GRANTS_BYTES]>;

/// The names that its connections may be for: the bytes of a [`NameKey`] to grants.
type NameTrie = LpmTrie<MapData, [u8; NAME_KEY_LEN], [u8; GRANTS_BYTES]>;

/// What went wrong between the agent and the kernel.
#[derive(Debug, ThisError)]
pub enum KernelError {
    /// The kernel refused the object: BPF is missing, forbidden, or the verifier objects.
    #[error("the kernel did not accept jobfence's programs: {}. {LOAD_HINT}", causes(.0))]
    Load(#[from] Box<EbpfError>),
    /// One program was refused.
    #[error(
        "the kernel did not load the program {program}: {}. {LOAD_HINT}",
        causes(source)
    )]
    Program {
        /// Its name in the object.
        program: &'static str,
        /// What the kernel, or its verifier, said.
        source: Box<ProgramError>,
    },
    /// A program could not be attached to the job's cgroup, most often because a program that
    /// allows no other is attached to a cgroup above.
    #[error(
        "could not attach {program} to {cgroup}: {}. If another program holds the cgroup alone \
         (see `bpftool cgroup tree`), detach it or run jobfence outside that cgroup",
        causes(source)
    )]
    Attach {
        /// Its name in the object.
        program: &'static str,
        /// The cgroup's folder.
        cgroup: PathBuf,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// A link could not be pinned.
    #[error(
        "could not pin {program} at {path}: {}. Is {BPFFS} a bpf file system?",
        causes(source)
    )]
    Pin {
        /// The program's name.
        program: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: Box<PinError>,
    },
    /// A link is none that can be pinned.
    #[error("the link of {program} cannot be pinned: {source}. The kernel is older than 5.7")]
    Link {
        /// The program's name.
        program: &'static str,
        /// What aya said.
        source: LinkError,
    },
    /// The kernel made no map.
    #[error("the kernel made no map {map}: {}. {LOAD_HINT}", causes(source))]
    Create {
        /// Its name in the object.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// The folder for the job's pinned links.
    #[error(
        "could not make {path}, where the fence is pinned: {source}. {BPFFS} must be a bpf file \
         system that root can write to"
    )]
    Pins {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("could not use the map {map}: {}", causes(source))]
    Map {
        /// Its name in the object.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// The object lacks a part: it and the agent were built from different sources.
    #[error("the eBPF object has no {0}: build again with `cargo xtask build`")]
    Missing(&'static str),
    /// More ranges for one prefix or name than [`MAX_RANGES`].
    #[error("{0} would get more than {MAX_RANGES} port ranges: use fewer, wider ranges")]
    Ranges(String),
    /// More names than [`MAX_NAMES`].
    #[error(
        "the policy has {0} names for the job, at most {MAX_NAMES} are possible; use wildcards"
    )]
    Names(usize),
    /// A file system call failed.
    #[error("{path}: {source}")]
    Io {
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

const LOAD_HINT: &str = "jobfence needs root and Linux 5.17 or newer with CONFIG_CGROUP_BPF; in a \
                         container it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON";

/// An error with its causes, each once: some of aya's errors tell theirs themselves.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Where the bpf file system is, by custom.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The loaded programs.
pub struct Kernel {
    ebpf: Ebpf,
    /// Whether the program on `socket_create` is loaded.
    lsm: bool,
}

/// Whether the kernel was started with BPF among its security modules, as securityfs tells it.
/// Where that is not mounted nobody can tell, and this says no.
#[must_use]
pub fn lsm_listed() -> bool {
    let list = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    list.trim().split(',').any(|module| module == "bpf")
}

/// What the kernel has to know of a job.
pub struct JobSpec {
    /// Enforce or audit.
    pub state: JobState,
    /// Port of the job's resolver on `127.0.0.1`.
    pub resolver_v4: u16,
    /// Port of the job's resolver on `::1`; 0 for none.
    pub resolver_v6: u16,
    /// What it may reach.
    pub addresses: Addresses,
    /// The names that its connections may be for.
    pub names: Names,
}

impl Kernel {
    /// Loads the programs and makes the maps.
    ///
    /// # Errors
    ///
    /// [`KernelError::Load`] and [`KernelError::Program`] when the kernel refuses.
    pub fn load() -> Result<Self, KernelError> {
        // One program, where it can be had, needs the number that the kernel's own type information
        // gives its hook. That is megabytes, so they are read while the kernel is busy verifying.
        let types = lsm_listed().then(|| thread::spawn(Btf::from_sys_fs));
        // The object touches no kernel structure, so nothing else needs them.
        let mut ebpf = EbpfLoader::new().btf(None).load(OBJECT).map_err(Box::new)?;
        // Verifying takes most of the start, and the kernel verifies for several threads at once.
        thread::scope(|scope| {
            let threads: Vec<_> = ebpf
                .programs_mut()
                .filter_map(|(name, program)| {
                    let (name, _) = *PROGRAMS.iter().find(|(known, _)| *known == name)?;
                    Some(scope.spawn(move || load_program(name, program)))
                })
                .collect();
            if threads.len() != PROGRAMS.len() {
                return Err(KernelError::Missing("program"));
            }
            threads
                .into_iter()
                .try_for_each(|thread| match thread.join() {
                    Ok(loaded) => loaded,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
        })?;
        let lsm = match types {
            Some(types) => load_lsm(&mut ebpf, types)?,
            None => false,
        };
        Ok(Self { ebpf, lsm })
    }

    /// The programs that a job is fenced with.
    pub fn programs(&self) -> impl Iterator<Item = &'static str> {
        self.attached().map(|(name, _)| name)
    }

    /// Whether a program on `socket_create` is among them. The kernel says that it calls it.
    #[must_use]
    pub fn has_lsm(&self) -> bool {
        self.lsm
    }

    /// The programs, each with the number of its attach type.
    pub(crate) fn attached(&self) -> impl Iterator<Item = (&'static str, u32)> + use<> {
        PROGRAMS.into_iter().chain(self.lsm.then_some(LSM))
    }

    /// The ring buffer of attempts. Can be taken once.
    ///
    /// # Errors
    ///
    /// [`KernelError::Missing`] the second time.
    pub fn take_events(&mut self) -> Result<RingBuf<MapData>, KernelError> {
        take(&mut self.ebpf, "EVENTS")
    }

    /// Who asks the resolver of the job in `slot`. Can be taken once.
    ///
    /// # Errors
    ///
    /// [`KernelError::Missing`] the second time.
    pub fn take_clients(&mut self, slot: u32) -> Result<Clients, KernelError> {
        let map = take(&mut self.ebpf, "CLIENTS")?;
        Ok(Clients {
            map: Arc::new(Mutex::new(map)),
            slot,
        })
    }

    /// Fences the cgroup at `cgroup` as the job `id` in `slot`, and pins the links.
    ///
    /// When this returns, whatever is or will be in the cgroup is fenced by `spec`. When it
    /// fails, what was attached is detached again; the caller has not put anything into the
    /// cgroup yet.
    ///
    /// # Errors
    ///
    /// Every [`KernelError`] but [`KernelError::Load`] and [`KernelError::Program`].
    pub fn fence(
        &mut self,
        cgroup: &Path,
        id: &str,
        slot: u32,
        spec: &JobSpec,
    ) -> Result<Fence, KernelError> {
        let folder = File::open(cgroup).map_err(|source| io_error(cgroup, source))?;
        let cgroup_id = folder
            .metadata()
            .map_err(|source| io_error(cgroup, source))?
            .ino();
        let pins = Pins::make(id)?;
        let fence = Fence { pins, cgroup_id };
        match self.fill(&fence, &folder, cgroup, slot, spec) {
            Ok(()) => Ok(fence),
            Err(error) => {
                if let Err(error) = fence.discard() {
                    tracing::warn!(%error, "a fence around an empty cgroup is left behind");
                }
                Err(error)
            }
        }
    }

    fn fill(
        &mut self,
        fence: &Fence,
        folder: &File,
        cgroup: &Path,
        slot: u32,
        spec: &JobSpec,
    ) -> Result<(), KernelError> {
        for (name, _) in self.attached() {
            let link = self.attach(name, folder, cgroup)?;
            let path = fence.pins().join(name);
            link.pin(&path).map_err(|source| KernelError::Pin {
                program: name,
                path,
                source: Box::new(source),
            })?;
        }

        self.write(fence, slot, spec, 1)?;
        let slots_of = self.attached();
        #[expect(deprecated, reason = "see the import")]
        let mut slots: CgroupStorage<&mut MapData, u32> = borrow(&mut self.ebpf, "SLOTS")?;
        for (_, attach_type) in slots_of {
            slots
                .insert(CgroupStorageKey::new(fence.cgroup_id, attach_type), slot, 0)
                .map_err(map("SLOTS"))?;
        }
        Ok(())
    }

    /// Gives the fenced job another specification than the one it was fenced with, and begins its
    /// counters anew. Nothing may be running in the cgroup that could use both.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`] and [`KernelError::Missing`].
    pub fn replace(&mut self, fence: &Fence, slot: u32, spec: &JobSpec) -> Result<(), KernelError> {
        self.write(fence, slot, spec, 2)
    }

    fn write(
        &mut self,
        fence: &Fence,
        slot: u32,
        spec: &JobSpec,
        generation: u32,
    ) -> Result<(), KernelError> {
        let mut tries: ArrayOfMaps<&mut MapData, Trie> = borrow(&mut self.ebpf, "ADDRESSES")?;
        tries
            .set(slot, &spec.addresses.trie(), 0)
            .map_err(map("ADDRESSES"))?;

        let mut tries: ArrayOfMaps<&mut MapData, NameTrie> = borrow(&mut self.ebpf, "NAMES")?;
        tries.set(slot, &spec.names.trie, 0).map_err(map("NAMES"))?;

        let mut counters: Array<&mut MapData, [u8; 16]> = borrow(&mut self.ebpf, "COUNTERS")?;
        counters.set(slot, [0; 16], 0).map_err(map("COUNTERS"))?;

        let job = Job {
            state: spec.state,
            generation,
            resolver_v4: spec.resolver_v4,
            resolver_v6: spec.resolver_v6,
            id: job_number(fence.cgroup_id),
            key: RandomState::new().hash_one(fence.cgroup_id),
        };
        let mut jobs: Array<&mut MapData, [u8; JOB_BYTES]> = borrow(&mut self.ebpf, "JOBS")?;
        let bytes: [u8; JOB_BYTES] = zerocopy::transmute!(job);
        jobs.set(slot, bytes, 0).map_err(map("JOBS"))
    }

    fn attach(
        &mut self,
        name: &'static str,
        folder: &File,
        cgroup: &Path,
    ) -> Result<FdLink, KernelError> {
        let failed = |source| KernelError::Attach {
            program: name,
            cgroup: cgroup.to_owned(),
            source: Box::new(source),
        };
        let unpinnable = |source| KernelError::Link {
            program: name,
            source,
        };
        // The only mode that works as a link; links behave as BPF_F_ALLOW_MULTI whatever it says
        // (https://github.com/aya-rs/aya/issues/1078).
        let mode = CgroupAttachMode::Single;
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or(KernelError::Missing(name))?;
        match name {
            "egress" => {
                let program = <&mut CgroupSkb>::try_from(program).map_err(failed)?;
                let link = program
                    .attach(folder, CgroupSkbAttachType::Egress, mode)
                    .and_then(|id| program.take_link(id))
                    .map_err(failed)?;
                link.try_into().map_err(unpinnable)
            }
            "sock_create" => {
                let program = <&mut CgroupSock>::try_from(program).map_err(failed)?;
                let link = program
                    .attach(folder, mode)
                    .and_then(|id| program.take_link(id))
                    .map_err(failed)?;
                link.try_into().map_err(unpinnable)
            }
            "socket_create" => {
                let program = <&mut LsmCgroup>::try_from(program).map_err(failed)?;
                let link = program
                    .attach(folder)
                    .and_then(|id| program.take_link(id))
                    .map_err(failed)?;
                Ok(link.into())
            }
            _ => {
                let program = <&mut CgroupSockAddr>::try_from(program).map_err(failed)?;
                let link = program
                    .attach(folder, mode)
                    .and_then(|id| program.take_link(id))
                    .map_err(failed)?;
                link.try_into().map_err(unpinnable)
            }
        }
    }

    /// What the programs counted for the job in `slot`.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`].
    pub fn counters(&mut self, slot: u32) -> Result<Counters, KernelError> {
        let counters: Array<&mut MapData, [u8; 16]> = borrow(&mut self.ebpf, "COUNTERS")?;
        let bytes = counters.get(&slot, 0).map_err(map("COUNTERS"))?;
        Ok(zerocopy::transmute!(bytes))
    }
}

fn load_program(name: &'static str, program: &mut Program) -> Result<(), KernelError> {
    let loaded = match name {
        "egress" => <&mut CgroupSkb>::try_from(program).and_then(CgroupSkb::load),
        "sock_create" => <&mut CgroupSock>::try_from(program).and_then(CgroupSock::load),
        _ => <&mut CgroupSockAddr>::try_from(program).and_then(CgroupSockAddr::load),
    };
    loaded.map_err(|source| KernelError::Program {
        program: name,
        source: Box::new(source),
    })
}

/// `BPF_F_NO_PREALLOC`, which the kernel demands of tries.
const NO_PREALLOC: u32 = 1;

/// A fenced job. The fence outlives this value, so that no error path opens one: [`unpin`] ends it
/// when the kernel says that it fences nothing any more.
pub struct Fence {
    pins: Pins,
    cgroup_id: u64,
}

impl Fence {
    /// Takes down a fence around a cgroup that nothing was ever in.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn discard(self) -> io::Result<()> {
        pins::discard(&self.pins.folder)
    }

    /// The folder in which the links are pinned.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins.folder
    }
}

/// One job's addresses in the kernel.
#[derive(Clone)]
pub struct Addresses {
    trie: Arc<Mutex<Trie>>,
}

impl Addresses {
    /// What a policy grants by address: prefixes for longest-prefix matching.
    ///
    /// # Errors
    ///
    /// [`KernelError::Ranges`], and [`KernelError::Map`] when there are too many prefixes or the
    /// kernel makes no map.
    pub fn new(prefixes: &[(IpNet, Vec<PortRange>)]) -> Result<Self, KernelError> {
        let mut trie =
            Trie::create(MAX_ADDRESSES, NO_PREALLOC).map_err(|source| KernelError::Create {
                map: "ADDRESSES",
                source,
            })?;
        for (net, ranges) in prefixes {
            let grants = Grants::new(ranges).ok_or(KernelError::Ranges(net.to_string()))?;
            insert(&mut trie, *net, &grants)?;
        }
        Ok(Self {
            trie: Arc::new(Mutex::new(trie)),
        })
    }

    /// Lets the job reach `ranges` at `addr`, in place of what it could reach there before.
    ///
    /// # Errors
    ///
    /// [`KernelError::Ranges`], and [`KernelError::Map`] when the job's map is full.
    pub fn set(&self, addr: IpAddr, ranges: &[PortRange]) -> Result<(), KernelError> {
        let net = IpNet::from(addr);
        let grants = Grants::new(ranges).ok_or(KernelError::Ranges(net.to_string()))?;
        insert(&mut self.trie(), net, &grants)
    }

    fn trie(&self) -> MutexGuard<'_, Trie> {
        self.trie.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn insert(trie: &mut Trie, net: IpNet, grants: &Grants) -> Result<(), KernelError> {
    let addr: [u8; 16] = zerocopy::transmute!(Addr::from(net.addr()));
    // An IPv4 prefix lies behind the 96 bits of the mapped form.
    let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
    let key = Key::new(mapped + u32::from(net.prefix_len()), addr);
    let value: [u8; GRANTS_BYTES] = zerocopy::transmute!(*grants);
    trie.insert(&key, value, 0).map_err(map("ADDRESSES"))
}

/// The names of one job in the kernel. They do not change while it runs.
pub struct Names {
    trie: NameTrie,
}

impl Names {
    /// What a policy says of names: patterns for longest-prefix matching, from their end.
    ///
    /// # Errors
    ///
    /// [`KernelError::Ranges`], [`KernelError::Names`], and [`KernelError::Map`] when the kernel
    /// makes no map.
    pub fn new(names: &[(&HostPattern, Vec<PortRange>)]) -> Result<Self, KernelError> {
        if names.len() > MAX_NAMES as usize {
            return Err(KernelError::Names(names.len()));
        }
        let mut trie =
            NameTrie::create(MAX_NAMES, NO_PREALLOC).map_err(|source| KernelError::Create {
                map: "NAMES",
                source,
            })?;
        for (pattern, ranges) in names {
            let grants =
                Grants::new(ranges).ok_or_else(|| KernelError::Ranges(pattern.to_string()))?;
            let base = pattern.base().as_str();
            let key = if pattern.is_wildcard() {
                NameKey::below(base)
            } else {
                NameKey::exact(base)
            };
            let value: [u8; GRANTS_BYTES] = zerocopy::transmute!(grants);
            trie.insert(&Key::new(key.bits, key.data), value, 0)
                .map_err(map("NAMES"))?;
        }
        Ok(Self { trie })
    }
}

/// [`ClientKey`] to [`Client`].
type ClientMap = BpfHashMap<MapData, [u8; 8], [u8; 24]>;

/// Who sent which question to the resolver of one job.
#[derive(Clone)]
pub struct Clients {
    map: Arc<Mutex<ClientMap>>,
    slot: u32,
}

impl Clients {
    /// The process that sent a question from `port`, over `proto` and IPv4 or IPv6; `None` when
    /// no process of the job did.
    #[must_use]
    pub fn find(&self, port: u16, proto: u8, ipv6: bool) -> Option<Client> {
        let key = ClientKey {
            slot: self.slot,
            port,
            proto,
            family: if ipv6 { 6 } else { 4 },
        };
        let key: [u8; 8] = zerocopy::transmute!(key);
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = map.get(&key, 0).ok()?;
        Some(zerocopy::transmute!(bytes))
    }
}

/// Loads the program on `socket_create`; `false` where the kernel, for all its list of modules,
/// cannot have it: no type information (`CONFIG_DEBUG_INFO_BTF`), no such hook (before Linux 6.0),
/// no trampolines. What jobfence launches is held by seccomp all the same, and the job's first
/// event says that this layer is not there.
fn load_lsm(
    ebpf: &mut Ebpf,
    types: JoinHandle<Result<Btf, BtfError>>,
) -> Result<bool, KernelError> {
    let (name, _) = LSM;
    let program = ebpf.program_mut(name).ok_or(KernelError::Missing(name))?;
    let program = <&mut LsmCgroup>::try_from(program).map_err(|source| KernelError::Program {
        program: name,
        source: Box::new(source),
    })?;
    let Ok(types) = types.join() else {
        tracing::debug!("no program on socket_create: the kernel's types could not be read");
        return Ok(false);
    };
    let loaded = types
        .map_err(ProgramError::from)
        .and_then(|types| program.load(name, &types));
    if let Err(error) = &loaded {
        tracing::debug!(error = causes(error), "no program on socket_create");
    }
    Ok(loaded.is_ok())
}

/// A number for a job, by its cgroup's id. Those count up from boot, so two jobs with the same low
/// half do not meet in one slot; 0 would mean no job.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is wanted"
)]
fn job_number(cgroup_id: u64) -> u32 {
    (cgroup_id as u32).max(1)
}

fn map(name: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map { map: name, source }
}

fn io_error(path: &Path, source: io::Error) -> KernelError {
    KernelError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Borrows a map as its type.
fn borrow<'a, M>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<M, KernelError>
where
    M: TryFrom<&'a mut Map, Error = MapError>,
{
    let found = ebpf.map_mut(name).ok_or(KernelError::Missing(name))?;
    M::try_from(found).map_err(map(name))
}

/// Takes a map out of the object.
fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, KernelError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let found = ebpf.take_map(name).ok_or(KernelError::Missing(name))?;
    M::try_from(found).map_err(map(name))
}
