//! [`Rules`] as the kernel answers them.

use aya_ebpf::{
    bindings::bpf_sock_tuple,
    btf_maps::lpm_trie::Key,
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
};
use core::{ffi::c_void, mem::MaybeUninit};
use jobfence_abi::{Addr, Flow, Grants, Peer, Rules, proto};

use crate::maps::{ADDRESSES, SOCKETS};

/// Look up in the network namespace of the program's context (`BPF_F_CURRENT_NETNS`).
const CURRENT_NETNS: u64 = u64::MAX;

/// The rules of one job, seen from one program run.
pub(crate) struct KernelRules {
    /// The program's context, which the socket look-up helpers want.
    pub(crate) ctx: *mut c_void,
    pub(crate) slot: u32,
    /// The job's id.
    pub(crate) job: u32,
    /// Where the packet comes from, so that the look-up finds a connection and not only its
    /// listener; zeros before a connection has a source.
    pub(crate) source: Addr,
    /// Source port, network byte order.
    pub(crate) source_port: u16,
}

impl Rules for KernelRules {
    #[inline(always)]
    fn grants(&self, dst: &Addr) -> Option<&Grants> {
        ADDRESSES.get(self.slot)?.get(&Key::new(128, *dst))
    }

    /// A listener is the job's own when its socket carries the job's mark, which `sock_create`
    /// put there and which no process can forge.
    #[inline(always)]
    fn peer(&self, flow: &Flow) -> Peer {
        let ports = u32::from(self.source_port) | (u32::from(flow.port.to_be()) << 16);
        // `struct bpf_sock_tuple`: source and destination address, source and destination port.
        let [s0, s1, s2, s3] = self.source.words;
        let [d0, d1, d2, d3] = flow.dst.words;
        let mut tuple = MaybeUninit::<[u32; 9]>::uninit();
        let size = if flow.dst.is_v4() {
            fill(&mut tuple, [s3, d3, ports])
        } else {
            fill(&mut tuple, [s0, s1, s2, s3, d0, d1, d2, d3, ports])
        };
        let tuple = tuple.as_mut_ptr().cast::<bpf_sock_tuple>();
        // SAFETY: the tuple is `size` bytes on the stack; the verifier holds us to releasing what
        // the look-up returns.
        unsafe {
            let sk = if flow.proto == proto::TCP {
                bpf_sk_lookup_tcp(self.ctx, tuple, size, CURRENT_NETNS, 0)
            } else {
                bpf_sk_lookup_udp(self.ctx, tuple, size, CURRENT_NETNS, 0)
            };
            if sk.is_null() {
                return Peer::NONE;
            }
            let socket = SOCKETS.find(sk);
            let inside = !socket.is_null() && (*socket).job == self.job;
            bpf_sk_release(sk.cast());
            if inside { Peer::INSIDE } else { Peer::OUTSIDE }
        }
    }
}

/// Writes `words` to the front of `tuple` and returns their size in bytes. Volatile, since LLVM
/// would call `memset` for a row of zeros, and libbpf's verifier run refuses that function.
#[inline(always)]
fn fill<const N: usize>(tuple: &mut MaybeUninit<[u32; 9]>, words: [u32; N]) -> u32 {
    const { assert!(N <= 9) };
    let to = tuple.as_mut_ptr().cast::<u32>();
    for (index, word) in words.into_iter().enumerate() {
        // SAFETY: `index` is below 9.
        unsafe { to.add(index).write_volatile(word) };
    }
    size_of::<[u32; N]>() as u32
}
