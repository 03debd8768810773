//! The maps, and the few ways in which the programs reach into them.

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::{BPF_MAP_TYPE_LPM_TRIE, BPF_MAP_TYPE_SK_STORAGE},
        bpf_sock,
    },
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, RingBuf, lpm_trie::Key},
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::btf_map,
};
use jobfence_abi::{
    Addr, Client, ClientKey, Counters, Grants, Job, MAX_ADDRESSES, MAX_GUARDED, MAX_JOBS,
    MAX_NAMES, MAX_UPLOADS, NAME_KEY_LEN, RING_BYTES, Socket, Stream, UploadKey,
};

#[expect(
    deprecated,
    reason = "its successor, BPF_MAP_TYPE_CGRP_STORAGE, needs kernel 6.2 and a task's cgroup; this \
              one gives the cgroup that the program is attached to, whoever sends"
)]
use aya_ebpf::btf_maps::CgroupStorage;

/// The slot of the job whose cgroup the program is attached to. The kernel makes an entry with
/// slot 0, which names no job, at every attach: until the agent writes it, all is denied.
#[btf_map]
#[expect(deprecated, reason = "see the import")]
pub(crate) static SLOTS: CgroupStorage<u32> = CgroupStorage::new();

/// Jobs by slot.
#[btf_map]
pub(crate) static JOBS: Array<Job, { MAX_JOBS as usize }> = Array::new();

/// What each job may reach, by slot: a trie that the agent makes for the job and that goes with
/// it, so that no job can fill another's and none leaves entries behind.
#[btf_map]
pub(crate) static ADDRESSES: ArrayOfMaps<
    Trie<{ size_of::<Key<Addr>>() }, { MAX_ADDRESSES as usize }>,
    { MAX_JOBS as usize },
> = ArrayOfMaps::new();

/// The names that connections of each job may be for, by slot, with the ports for each. Keyed by
/// the name's bytes from its end, see [`jobfence_abi::NameKey`].
#[btf_map]
pub(crate) static NAMES: ArrayOfMaps<
    Trie<{ size_of::<Key<[u8; NAME_KEY_LEN]>>() }, { MAX_NAMES as usize }>,
    { MAX_JOBS as usize },
> = ArrayOfMaps::new();

/// What each job's programs count, by slot.
#[btf_map]
pub(crate) static COUNTERS: Array<Counters, { MAX_JOBS as usize }> = Array::new();

/// Users whose sockets belong into jobs: by ids in the initial user namespace, as prefixes in network
/// byte order, the user that has them.
#[btf_map]
pub(crate) static GUARDED: LpmTrie<[u8; 4], u32, { MAX_GUARDED as usize }> = LpmTrie::new();

/// Bytes that jobs with a limit have sent, by address. The agent removes a job's entries when it has
/// ended. Entries are made as they are needed, since most hosts need none.
#[btf_map]
pub(crate) static UPLOADS: HashMap<UploadKey, u64, { MAX_UPLOADS as usize }, NO_PREALLOC> =
    HashMap::new();

/// Who sent a question to a resolver. Written before the question's packet is delivered; the
/// least recently used go first, and a resolver looks up at once.
#[btf_map]
pub(crate) static CLIENTS: LruHashMap<ClientKey, Client, 16384> = LruHashMap::new();

/// Attempts ([`jobfence_abi::Event`]), on their way to the agent. The map has no value type:
/// libbpf refuses a ring buffer that names one.
#[btf_map]
pub(crate) static EVENTS: RingBuf<(), { RING_BYTES as usize }> = RingBuf::new();

/// What is kept with each socket.
#[btf_map]
pub(crate) static SOCKETS: SkStorage<Socket, { NO_PREALLOC | BPF_F_CLONE }> = SkStorage::new();

/// How far the connections have been read that have to show a name.
#[btf_map]
pub(crate) static STREAMS: SkStorage<Stream, NO_PREALLOC> = SkStorage::new();

/// `BPF_F_CLONE` of `linux/bpf.h`: a connection that a listener accepts inherits the listener's
/// entry. aya's `SkStorage` has fixed flags, and a typed API for one kind of program only.
const BPF_F_CLONE: usize = 1 << 9;
/// Which the kernel demands of socket storage.
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// A trie of [`Grants`] within another map, with keys of `KEY` bytes.
///
/// It declares the sizes of its keys and values and not their types, as aya's `LpmTrie` does: before
/// Linux 6.2 the kernel takes only such tries in its place as have BTF if it has
/// (`bpf_map_meta_equal`, by `timer_off`), and those that the agent makes have none.
#[repr(C)]
pub(crate) struct Trie<const KEY: usize, const ENTRIES: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_LPM_TRIE as usize],
    key_size: *const [i32; KEY],
    value_size: *const [i32; size_of::<Grants>()],
    max_entries: *const [i32; ENTRIES],
    map_flags: *const [i32; NO_PREALLOC],
}

impl<const KEY: usize, const ENTRIES: usize> Trie<KEY, ENTRIES> {
    /// The grants of the longest prefix that holds `key`.
    #[inline(always)]
    pub(crate) fn get<K>(&self, key: &Key<K>) -> Option<&Grants> {
        const { assert!(size_of::<Key<K>>() == KEY, "another map's key") };
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: `self` is the inner map that a look-up returned, and the key has its size. The
        // agent replaces values as a whole, by new nodes, so none changes while it is read.
        unsafe {
            bpf_map_lookup_elem(map, (&raw const *key).cast())
                .cast::<Grants>()
                .as_ref()
        }
    }
}

/// A socket storage. Laid out as libbpf's BTF map definitions are: each field's type says what the kernel is asked for.
#[repr(C)]
pub(crate) struct SkStorage<T, const FLAGS: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the pointers are never followed; they only carry types to the loader.
unsafe impl<T, const FLAGS: usize> Sync for SkStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SkStorage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The socket's entry, or null.
    ///
    /// # Safety
    ///
    /// `sk` must be a socket that the verifier accepts here: a program's own, or one that a
    /// look-up returned and that has not been released.
    #[inline(always)]
    pub(crate) unsafe fn find(&self, sk: *mut bpf_sock) -> *mut T {
        // SAFETY: the map is this static, which the loader made; `sk` by the contract above.
        unsafe { bpf_sk_storage_get(self.as_ptr(), sk.cast(), core::ptr::null_mut(), 0).cast() }
    }

    /// The socket's entry, made and zeroed if there was none; null when the kernel has no memory
    /// for it.
    ///
    /// # Safety
    ///
    /// As for [`Self::find`].
    #[inline(always)]
    pub(crate) unsafe fn find_or_make(&self, sk: *mut bpf_sock) -> *mut T {
        let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: as above; a null value means a zeroed entry.
        unsafe { bpf_sk_storage_get(self.as_ptr(), sk.cast(), core::ptr::null_mut(), flags).cast() }
    }

    /// Removes the socket's entry.
    ///
    /// # Safety
    ///
    /// As for [`Self::find`]; nothing may use the entry any more.
    #[inline(always)]
    pub(crate) unsafe fn remove(&self, sk: *mut bpf_sock) {
        // SAFETY: as above. It fails only when there is no entry.
        unsafe { bpf_sk_storage_delete(self.as_ptr(), sk.cast()) };
    }

    #[inline(always)]
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// The job whose cgroup the running program is attached to, and its slot.
#[inline(always)]
pub(crate) fn job() -> Option<(u32, &'static Job)> {
    // SAFETY: the helper never returns null, and the entry lives as long as the attachment.
    let slot = unsafe { *SLOTS.get_ptr_mut() };
    Some((slot, JOBS.get(slot)?))
}
