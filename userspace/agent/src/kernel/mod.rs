//! The programs in the kernel, and the maps that tell them about a job.
//!
//! [`Kernel::load`] loads the programs once, for any number of jobs. [`Tries::slot`] makes a place for
//! a job in the maps. [`Kernel::fence`] attaches the programs to a job's cgroup and pins the links, in
//! an order in which nothing is ever open: an attached program denies everything until it knows its
//! slot, and the job in the slot may do nothing until [`Kernel::write`] says what.
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
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use aya::{
    Btf, BtfError, Ebpf, EbpfError, EbpfLoader, Pod,
    maps::{
        Array, ArrayOfMaps, HashMap as BpfHashMap, LpmTrie, Map, MapData, MapError, RingBuf,
        SkStorage, cgroup_storage::CgroupStorageKey, lpm_trie::Key,
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
    NAME_KEY_LEN, NameKey, PortRange, Socket, UploadKey,
};
use jobfence_policy::HostPattern;
use thiserror::Error as ThisError;
use zerocopy::FromZeros as _;

use crate::sys;

#[expect(
    deprecated,
    reason = "the map type that gives a program the cgroup it is attached to; see ebpf/src/maps.rs"
)]
use aya::maps::CgroupStorage;

mod destroy;
mod events;
mod guard;
mod pins;

pub use destroy::Connections;
pub use events::{Events, EventsError};
pub(crate) use guard::Guard;
pub use pins::{Abandoned, abandoned, clear_others, is_bpffs, lock as lock_pins, unpin};
use pins::{Keeper, Pins};

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
const COUNTERS_BYTES: usize = size_of::<Counters>();
const SOCKET_BYTES: usize = size_of::<Socket>();
const UPLOAD_KEY_BYTES: usize = size_of::<UploadKey>();

/// The program that counts what jobs send whose policy limits that.
const UPLOAD: &str = "upload";

/// The maps that are pinned for a daemon: all there are.
const MAPS: [&str; 11] = [
    "SLOTS",
    "JOBS",
    "ADDRESSES",
    "NAMES",
    "COUNTERS",
    "CLIENTS",
    "GUARDED",
    "UPLOADS",
    "EVENTS",
    "SOCKETS",
    "STREAMS",
];

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
    /// A job's maps could not be made, or put where the programs look for them.
    #[error("the kernel made no map for a job's {map}: {source}. {LOAD_HINT}")]
    Create {
        /// The map that was to hold it.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
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
    /// What is pinned cannot be read.
    #[error("could not read what is pinned below {BPFFS}: {0}")]
    Left(#[source] io::Error),
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

/// The loaded programs, and the maps that tell them about jobs.
pub struct Kernel {
    ebpf: Ebpf,
    keeper: Keeper,
    /// Says that pinned maps have an agent.
    lock: Option<File>,
    /// Whether the program on `socket_create` is loaded.
    lsm: bool,
    #[expect(deprecated, reason = "see the import")]
    slots: CgroupStorage<MapData, u32>,
    jobs: Array<MapData, [u8; JOB_BYTES]>,
    counters: Array<MapData, [u8; COUNTERS_BYTES]>,
    sockets: SkStorage<MapData, [u8; SOCKET_BYTES]>,
    tries: Tries,
    clients: Arc<Mutex<ClientMap>>,
    guarded: guard::Guarded,
    uploads: BpfHashMap<MapData, [u8; UPLOAD_KEY_BYTES], u64>,
}

/// Whether the kernel was started with BPF among its security modules, as securityfs tells it.
/// Where that is not mounted nobody can tell, and this says no.
#[must_use]
pub fn lsm_listed() -> bool {
    let list = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    list.trim().split(',').any(|module| module == "bpf")
}

/// What the kernel has to know of a job beside what it may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobSpec {
    /// Closed, enforce or audit.
    pub state: JobState,
    /// Port of the job's resolver on `127.0.0.1`.
    pub resolver_v4: u16,
    /// Port of the job's resolver on `::1`; 0 for none.
    pub resolver_v6: u16,
    /// Attempts a second that are recorded, see [`Job::rate`].
    pub rate: u32,
    /// Bytes that it may send to one address; `None` for no limit.
    pub upload: Option<u64>,
}

impl JobSpec {
    /// Nothing leaves.
    pub const CLOSED: Self = Self {
        state: JobState::CLOSED,
        resolver_v4: 0,
        resolver_v6: 0,
        rate: 0,
        upload: None,
    };
}

impl Kernel {
    /// Loads the programs and makes maps that go with this value and the fences that it makes.
    ///
    /// # Errors
    ///
    /// [`KernelError::Load`] and [`KernelError::Program`] when the kernel refuses.
    pub fn load() -> Result<Self, KernelError> {
        Self::load_with(Keeper::Run, &mut EbpfLoader::new())
    }

    /// Loads the programs for maps that stay when this process is gone: those that are pinned
    /// already, with the jobs that are in them, or new ones.
    ///
    /// # Errors
    ///
    /// As [`Kernel::load`], and [`KernelError::Pins`].
    pub fn load_pinned() -> Result<Self, KernelError> {
        let (folder, lock) =
            pins::maps().map_err(|(path, source)| KernelError::Pins { path, source })?;
        let mut loader = EbpfLoader::new();
        for name in MAPS {
            loader.map_pin_path(name, folder.join(name));
        }
        let mut kernel = Self::load_with(Keeper::Agent, &mut loader)?;
        kernel.lock = Some(lock);
        Ok(kernel)
    }

    fn load_with(keeper: Keeper, loader: &mut EbpfLoader<'_>) -> Result<Self, KernelError> {
        // One program, where it can be had, needs the number that the kernel's own type information
        // gives its hook. That is megabytes, so they are read while the kernel is busy verifying.
        let types = lsm_listed().then(|| thread::spawn(Btf::from_sys_fs));
        // The object touches no kernel structure, so nothing else needs them.
        let mut ebpf = loader.btf(None).load(OBJECT).map_err(Box::new)?;
        // What is outside of jobs is the daemon's affair alone.
        let guards = match keeper {
            Keeper::Run => &[][..],
            Keeper::Agent => &guard::PROGRAMS[..],
        };
        let of_jobs = PROGRAMS.iter().map(|(name, _)| name).chain([&UPLOAD]);
        let wanted: Vec<_> = of_jobs.chain(guards).collect();
        // Verifying takes most of the start, and the kernel verifies for several threads at once.
        thread::scope(|scope| {
            let threads: Vec<_> = ebpf
                .programs_mut()
                .filter_map(|(name, program)| {
                    let name = wanted.iter().find(|known| ***known == name)?;
                    Some(scope.spawn(move || load_program(name, program)))
                })
                .collect();
            if threads.len() != wanted.len() {
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
        Ok(Self {
            keeper,
            lock: None,
            lsm,
            slots: take(&mut ebpf, "SLOTS")?,
            jobs: take(&mut ebpf, "JOBS")?,
            counters: take(&mut ebpf, "COUNTERS")?,
            sockets: take(&mut ebpf, "SOCKETS")?,
            tries: Tries {
                address_tries: Arc::new(descriptor(&ebpf, "ADDRESSES")?),
                name_tries: Arc::new(descriptor(&ebpf, "NAMES")?),
                addresses: Arc::new(take(&mut ebpf, "ADDRESSES")?),
                names: Arc::new(take(&mut ebpf, "NAMES")?),
            },
            clients: Arc::new(Mutex::new(take(&mut ebpf, "CLIENTS")?)),
            guarded: take(&mut ebpf, "GUARDED")?,
            uploads: take(&mut ebpf, "UPLOADS")?,
            ebpf,
        })
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

    /// Who asks the resolver of the job in `slot`.
    #[must_use]
    pub fn clients(&self, slot: u32) -> Clients {
        Clients {
            map: Arc::clone(&self.clients),
            slot,
        }
    }

    /// What makes slots.
    #[must_use]
    pub fn tries(&self) -> Tries {
        self.tries.clone()
    }

    /// Fences the cgroup at `cgroup` as the job `id` in `slot`, and pins the links.
    ///
    /// When this returns, nothing of what is or will be in the cgroup may leave it, until
    /// [`Kernel::write`] says otherwise. When it fails, what was attached is detached again; the
    /// caller has not put anything into the cgroup yet.
    ///
    /// # Errors
    ///
    /// Every [`KernelError`] but [`KernelError::Load`] and [`KernelError::Program`].
    pub fn fence(&mut self, cgroup: &Path, id: &str, slot: &Slot) -> Result<Fence, KernelError> {
        let folder = File::open(cgroup).map_err(|source| io_error(cgroup, source))?;
        let cgroup_id = folder
            .metadata()
            .map_err(|source| io_error(cgroup, source))?
            .ino();
        let pins = Pins::make(self.keeper, id)?;
        let fence = Fence {
            pins,
            cgroup: cgroup.to_owned(),
            cgroup_id,
            slot: slot.number,
        };
        match self.fill(&fence, &folder, cgroup) {
            Ok(()) => Ok(fence),
            Err(error) => {
                if let Err(error) = fence.discard() {
                    tracing::warn!(%error, "a fence around an empty cgroup is left behind");
                }
                Err(error)
            }
        }
    }

    fn fill(&mut self, fence: &Fence, folder: &File, cgroup: &Path) -> Result<(), KernelError> {
        for (name, _) in self.attached() {
            let link = self.attach(name, folder, cgroup)?;
            let path = fence.pins().join(name);
            link.pin(&path).map_err(|source| KernelError::Pin {
                program: name,
                path,
                source: Box::new(source),
            })?;
        }

        self.count_anew(fence.slot)?;
        self.put(
            fence.slot,
            &Job {
                id: job_number(fence.cgroup_id),
                key: RandomState::new().hash_one(fence.cgroup_id),
                ..Job::new_zeroed()
            },
        )?;
        for (_, attach_type) in self.attached() {
            let key = CgroupStorageKey::new(fence.cgroup_id, attach_type);
            self.slots
                .insert(key, fence.slot, 0)
                .map_err(map("SLOTS"))?;
        }
        Ok(())
    }

    /// The fences that a daemon before this one has left, whatever is known of their jobs.
    ///
    /// # Errors
    ///
    /// [`KernelError::Left`] and [`KernelError::Map`].
    pub fn left(&self) -> Result<Vec<Left>, KernelError> {
        let (_, attach_type) = PROGRAMS[0];
        let left = pins::left().map_err(KernelError::Left)?;
        let of_cgroup = |(id, cgroup_id)| {
            let slot = match self
                .slots
                .get(CgroupStorageKey::new(cgroup_id, attach_type), 0)
            {
                Ok(slot) => slot,
                // It is attached to nothing, or was never told its slot.
                Err(MapError::KeyNotFound) => 0,
                Err(error) => return Err(map("SLOTS")(error)),
            };
            Ok(Left {
                id,
                cgroup_id,
                slot,
            })
        };
        left.into_iter().map(of_cgroup).collect()
    }

    /// Takes up the fence of the job `id`, which a daemon before this one made.
    ///
    /// # Errors
    ///
    /// [`KernelError::Pins`] when its links are not pinned, or are another's to look after.
    pub fn take_up(
        &self,
        id: &str,
        cgroup: &Path,
        cgroup_id: u64,
        slot: u32,
    ) -> Result<Fence, KernelError> {
        Ok(Fence {
            pins: Pins::take_up(id)?,
            cgroup: cgroup.to_owned(),
            cgroup_id,
            slot,
        })
    }

    /// Says what becomes of what the fenced job sends from now on. What was decided before is decided
    /// anew.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`].
    pub fn write(&mut self, fence: &Fence, spec: &JobSpec) -> Result<(), KernelError> {
        if spec.upload.is_some() {
            self.count_uploads(fence)?;
        }
        let before = self.job(fence.slot)?;
        self.put(
            fence.slot,
            &Job {
                state: spec.state,
                generation: before.generation.wrapping_add(1),
                resolver_v4: spec.resolver_v4,
                resolver_v6: spec.resolver_v6,
                rate: spec.rate,
                // 0 says that there is no limit.
                upload: spec.upload.map_or(0, |bytes| bytes.max(1)),
                ..before
            },
        )
    }

    /// Lets nothing new leave a job that has ended. What its connections still have to send goes on.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`].
    pub fn close(&mut self, fence: &Fence) -> Result<(), KernelError> {
        let before = self.job(fence.slot)?;
        // Of the same generation: what was decided before is not decided anew.
        self.put(
            fence.slot,
            &Job {
                state: JobState::CLOSED,
                ..before
            },
        )
    }

    /// Attaches the program that counts what the job sends, unless it is there.
    fn count_uploads(&mut self, fence: &Fence) -> Result<(), KernelError> {
        let path = fence.pins().join(UPLOAD);
        if path.exists() {
            return Ok(());
        }
        let cgroup = &fence.cgroup;
        let folder = File::open(cgroup).map_err(|source| io_error(cgroup, source))?;
        let link = self.attach(UPLOAD, &folder, cgroup)?;
        let pinned = link.pin(&path).map_err(|source| KernelError::Pin {
            program: UPLOAD,
            path,
            source: Box::new(source),
        });
        pinned.map(drop)
    }

    /// Forgets what the job has sent. Nothing of it may be sending any more.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`].
    pub fn forget_uploads(&mut self, fence: &Fence) -> Result<(), KernelError> {
        if !fence.pins().join(UPLOAD).exists() {
            return Ok(());
        }
        let job = job_number(fence.cgroup_id);
        let keys: Vec<_> = self
            .uploads
            .keys()
            .collect::<Result<_, _>>()
            .map_err(map("UPLOADS"))?;
        for key in keys {
            let read: UploadKey = zerocopy::transmute!(key);
            if read.job == job {
                self.uploads.remove(&key).map_err(map("UPLOADS"))?;
            }
        }
        Ok(())
    }

    /// Lets the job's new resolver be asked in place of the one that it had; nothing else changes.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`].
    pub fn redirect(&mut self, fence: &Fence, v4: u16, v6: u16) -> Result<(), KernelError> {
        let before = self.job(fence.slot)?;
        self.put(
            fence.slot,
            &Job {
                resolver_v4: v4,
                resolver_v6: v6,
                ..before
            },
        )
    }

    /// Whether the job may do nothing.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`].
    pub fn is_closed(&self, fence: &Fence) -> Result<bool, KernelError> {
        Ok(self.job(fence.slot)?.state == JobState::CLOSED)
    }

    fn job(&self, slot: u32) -> Result<Job, KernelError> {
        let bytes = self.jobs.get(&slot, 0).map_err(map("JOBS"))?;
        Ok(zerocopy::transmute!(bytes))
    }

    fn put(&mut self, slot: u32, job: &Job) -> Result<(), KernelError> {
        let bytes: [u8; JOB_BYTES] = zerocopy::transmute!(*job);
        self.jobs.set(slot, bytes, 0).map_err(map("JOBS"))
    }

    /// Gives `socket`, a listener of the agent's, the mark of the job, by which the programs know the
    /// job's resolver. Connections that it accepts have it too.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`].
    pub fn mark(&mut self, fence: &Fence, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        let marked = Socket {
            job: job_number(fence.cgroup_id),
            ..Socket::NONE
        };
        let bytes: [u8; SOCKET_BYTES] = zerocopy::transmute!(marked);
        self.sockets
            .insert(&socket, bytes, 0)
            .map_err(map("SOCKETS"))
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
            "egress" | UPLOAD => {
                let program = <&mut CgroupSkb>::try_from(program).map_err(failed)?;
                let link = program
                    .attach(folder, CgroupSkbAttachType::Egress, mode)
                    .and_then(|id| program.take_link(id))
                    .map_err(failed)?;
                link.try_into().map_err(unpinnable)
            }
            "sock_create" | "guard_create" => {
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

    /// What the programs have counted for the job in `slot`.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`].
    pub fn counters(&self, slot: u32) -> Result<Counters, KernelError> {
        let bytes = self.counters.get(&slot, 0).map_err(map("COUNTERS"))?;
        Ok(zerocopy::transmute!(bytes))
    }

    /// Sets what was counted for the job in `slot` to nothing.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`].
    pub fn count_anew(&mut self, slot: u32) -> Result<(), KernelError> {
        let zeros = [0; COUNTERS_BYTES];
        self.counters.set(slot, zeros, 0).map_err(map("COUNTERS"))
    }
}

fn load_program(name: &'static str, program: &mut Program) -> Result<(), KernelError> {
    let loaded = match name {
        "egress" | UPLOAD => <&mut CgroupSkb>::try_from(program).and_then(CgroupSkb::load),
        "sock_create" | "guard_create" => {
            <&mut CgroupSock>::try_from(program).and_then(CgroupSock::load)
        }
        _ => <&mut CgroupSockAddr>::try_from(program).and_then(CgroupSockAddr::load),
    };
    loaded.map_err(|source| KernelError::Program {
        program: name,
        source: Box::new(source),
    })
}

/// A fenced job. The fence outlives this value, so that no error path opens one: [`unpin`] ends it
/// when the kernel says that it fences nothing any more.
pub struct Fence {
    pins: Pins,
    cgroup: PathBuf,
    cgroup_id: u64,
    slot: u32,
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

/// A fence that a daemon has left, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The job's id.
    pub id: String,
    /// The number of the job's cgroup; 0 when nothing of the job is left in the kernel.
    pub cgroup_id: u64,
    /// The job's place in the maps; 0 when it has none, and may do nothing.
    pub slot: u32,
}

/// The tries of all jobs, by slot.
#[derive(Clone)]
pub struct Tries {
    addresses: Arc<ArrayOfMaps<MapData, Trie>>,
    names: Arc<ArrayOfMaps<MapData, NameTrie>>,
    address_tries: Arc<OwnedFd>,
    name_tries: Arc<OwnedFd>,
}

impl Tries {
    /// Makes slots ready for jobs, which can reach nothing in them yet. What other jobs had in them is
    /// gone.
    ///
    /// The kernel lets every program that might still use the maps before end (RCU), which takes
    /// some milliseconds: better done before a job waits for it, and for many slots at once.
    ///
    /// # Errors
    ///
    /// [`KernelError::Create`] and [`KernelError::Map`].
    pub fn slots(&self, numbers: &[u32]) -> Result<Vec<Slot>, KernelError> {
        let make = |map, key, entries| -> Result<Vec<OwnedFd>, KernelError> {
            let make = |_| sys::make_trie(key, GRANTS_BYTES, entries);
            let made = numbers.iter().map(make).collect::<Result<_, _>>();
            made.map_err(|source| KernelError::Create { map, source })
        };
        let addresses = make("ADDRESSES", size_of::<Key<[u8; 16]>>(), MAX_ADDRESSES)?;
        let names = make("NAMES", size_of::<Key<[u8; NAME_KEY_LEN]>>(), MAX_NAMES)?;
        let put = |map, array: &OwnedFd, maps: &[OwnedFd]| {
            sys::put_maps(array.as_fd(), numbers, maps)
                .map_err(|source| KernelError::Create { map, source })
        };
        // The two waits are one when they are at once.
        thread::scope(|scope| {
            let other = scope.spawn(|| put("NAMES", &self.name_tries, &names));
            put("ADDRESSES", &self.address_tries, &addresses)?;
            match other.join() {
                Ok(put) => put,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        let tries = addresses.into_iter().zip(names);
        let slot = |(&number, (addresses, names))| {
            Ok(Slot {
                number,
                addresses: Addresses::of(trie("ADDRESSES", addresses)?),
                names: trie("NAMES", names)?,
            })
        };
        numbers.iter().zip(tries).map(slot).collect()
    }

    /// Makes one slot ready, as [`Tries::slots`] does.
    ///
    /// # Errors
    ///
    /// As [`Tries::slots`].
    pub fn slot(&self, number: u32) -> Result<Slot, KernelError> {
        let made = self.slots(&[number])?;
        made.into_iter().next().ok_or(KernelError::Missing("slot"))
    }

    /// The slot `number` with what is in it.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`], also when it was never made ready.
    pub fn open(&self, number: u32) -> Result<Slot, KernelError> {
        let addresses = self.addresses.get(&number, 0);
        let names = self.names.get(&number, 0);
        Ok(Slot {
            number,
            addresses: Addresses::of(addresses.map_err(map("ADDRESSES"))?),
            names: names.map_err(map("NAMES"))?,
        })
    }
}

/// The trie that a descriptor stands for.
fn trie<K: Pod>(
    name: &'static str,
    fd: OwnedFd,
) -> Result<LpmTrie<MapData, K, [u8; GRANTS_BYTES]>, KernelError> {
    let data = MapData::from_fd(fd).map_err(map(name))?;
    LpmTrie::try_from(Map::LpmTrie(data)).map_err(map(name))
}

/// A place for one job in the kernel's maps, with what the job may reach.
pub struct Slot {
    number: u32,
    addresses: Addresses,
    names: NameTrie,
}

impl Slot {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The job's addresses.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Sets what a policy says of names: patterns for longest-prefix matching, from their end.
    ///
    /// # Errors
    ///
    /// [`KernelError::Ranges`], [`KernelError::Names`], and [`KernelError::Map`].
    pub fn set_names(
        &mut self,
        names: &[(&HostPattern, Vec<PortRange>)],
    ) -> Result<(), KernelError> {
        if names.len() > MAX_NAMES as usize {
            return Err(KernelError::Names(names.len()));
        }
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
            self.names
                .insert(&Key::new(key.bits, key.data), value, 0)
                .map_err(map("NAMES"))?;
        }
        Ok(())
    }
}

/// One job's addresses in the kernel.
#[derive(Clone)]
pub struct Addresses {
    trie: Arc<Mutex<Trie>>,
}

impl Addresses {
    fn of(trie: Trie) -> Self {
        Self {
            trie: Arc::new(Mutex::new(trie)),
        }
    }

    /// Sets what a policy grants by address: prefixes for longest-prefix matching.
    ///
    /// # Errors
    ///
    /// [`KernelError::Ranges`], and [`KernelError::Map`] when there are too many prefixes.
    pub fn set_all(&self, prefixes: &[(IpNet, Vec<PortRange>)]) -> Result<(), KernelError> {
        let mut trie = lock(&self.trie);
        for (net, ranges) in prefixes {
            let grants = Grants::new(ranges).ok_or(KernelError::Ranges(net.to_string()))?;
            let value: [u8; GRANTS_BYTES] = zerocopy::transmute!(grants);
            trie.insert(&key(*net), value, 0)
                .map_err(map("ADDRESSES"))?;
        }
        Ok(())
    }

    /// Takes back what was set for exactly these prefixes.
    ///
    /// # Errors
    ///
    /// [`KernelError::Map`], also for one that was not set.
    pub fn remove_all(&self, prefixes: &[(IpNet, Vec<PortRange>)]) -> Result<(), KernelError> {
        let mut trie = lock(&self.trie);
        prefixes
            .iter()
            .try_for_each(|(net, _)| trie.remove(&key(*net)).map_err(map("ADDRESSES")))
    }

    /// Lets the job reach `ranges` at `addr`, in place of what it could reach there before.
    ///
    /// # Errors
    ///
    /// [`KernelError::Ranges`], and [`KernelError::Map`] when the job's map is full.
    pub fn set(&self, addr: IpAddr, ranges: &[PortRange]) -> Result<(), KernelError> {
        let net = IpNet::from(addr);
        let grants = Grants::new(ranges).ok_or(KernelError::Ranges(net.to_string()))?;
        let value: [u8; GRANTS_BYTES] = zerocopy::transmute!(grants);
        lock(&self.trie)
            .insert(&key(net), value, 0)
            .map_err(map("ADDRESSES"))
    }
}

/// The key of a prefix. An IPv4 prefix lies behind the 96 bits of the mapped form.
fn key(net: IpNet) -> Key<[u8; 16]> {
    let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
    let addr: [u8; 16] = zerocopy::transmute!(Addr::from(net.addr()));
    Key::new(mapped + u32::from(net.prefix_len()), addr)
}

/// Map handles hold nothing that a panic elsewhere could leave half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        let bytes = lock(&self.map).get(&key, 0).ok()?;
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

/// A descriptor of an array of maps.
fn descriptor(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, KernelError> {
    let Some(Map::ArrayOfMaps(data)) = ebpf.map(name) else {
        return Err(KernelError::Missing(name));
    };
    let fd = data.fd().as_fd().try_clone_to_owned();
    fd.map_err(|source| KernelError::Create { map: name, source })
}

/// Takes a map out of the object.
fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, KernelError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let found = ebpf.take_map(name).ok_or(KernelError::Missing(name))?;
    M::try_from(found).map_err(map(name))
}
