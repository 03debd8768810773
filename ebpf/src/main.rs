//! The programs that fence a job, attached to its cgroup.
//!
//! This file only wires hooks; each concern has a file:
//!
//! - [`socket`]: which sockets a job may have
//! - [`lsm`]: the same for families that the hook for that does not see
//! - [`connect`]: the destination that a process names, and the way to the job's resolver
//! - [`packet`]: the destination that a packet really has, which is what counts
//! - [`header`]: how it is read
//! - [`payload`]: the name that a connection's payload gives
//! - [`upload`]: how much a job sends
//! - [`guard`]: sockets outside every job
//! - [`rules`]: how [`jobfence_abi::decide`], the decision itself, asks the kernel
//! - [`report`]: the record of every attempt
//! - [`maps`], [`process`]: what the programs keep, and who is running
//!
//! Where each hook fires, and where it does not, is in the heads of those files. The newest helper
//! used here is `bpf_loop`, of Linux 5.17.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod guard;
mod header;
mod lsm;
mod maps;
mod packet;
mod payload;
mod process;
mod report;
mod rules;
mod socket;
mod upload;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, lsm_cgroup},
    programs::{LsmContext, SkBuffContext, SockAddrContext, SockContext},
};

use connect::Family;

/// Packets.
#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    packet::egress(&ctx)
}

/// `socket()`.
#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    socket::create(&ctx)
}

/// `socket()` of every family, where the kernel has the hook and runs it.
#[lsm_cgroup(hook = "socket_create")]
pub fn socket_create(ctx: LsmContext) -> i32 {
    lsm::create(&ctx)
}

/// `connect()` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::outgoing(&ctx, Family::V4, false)
}

/// `connect()` of an IPv6 socket, also to an IPv4-mapped address.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect::outgoing(&ctx, Family::V6, false)
}

/// An unconnected UDP send to an IPv4 address, also from an IPv6 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    connect::outgoing(&ctx, Family::V4, true)
}

/// An unconnected UDP send to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    connect::outgoing(&ctx, Family::V6, true)
}

/// The source of a datagram that an IPv4 socket received.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    connect::restore(&ctx, Family::V4)
}

/// The source of a datagram that an IPv6 socket received.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    connect::restore(&ctx, Family::V6)
}

/// `getpeername()` of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    connect::restore(&ctx, Family::V4)
}

/// `getpeername()` of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    connect::restore(&ctx, Family::V6)
}

/// Packets of a job that may send so much and no more.
#[cgroup_skb(egress)]
pub fn upload(ctx: SkBuffContext) -> i32 {
    upload::egress(&ctx)
}

/// `socket()` outside every job.
#[cgroup_sock(sock_create)]
pub fn guard_create(ctx: SockContext) -> i32 {
    guard::create(&ctx)
}

/// `connect()` of an IPv4 socket outside every job.
#[cgroup_sock_addr(connect4)]
pub fn guard_connect4(ctx: SockAddrContext) -> i32 {
    guard::outgoing(&ctx, Family::V4)
}

/// `connect()` of an IPv6 socket outside every job.
#[cgroup_sock_addr(connect6)]
pub fn guard_connect6(ctx: SockAddrContext) -> i32 {
    guard::outgoing(&ctx, Family::V6)
}

/// An unconnected UDP send to an IPv4 address outside every job.
#[cgroup_sock_addr(sendmsg4)]
pub fn guard_sendmsg4(ctx: SockAddrContext) -> i32 {
    guard::outgoing(&ctx, Family::V4)
}

/// An unconnected UDP send to an IPv6 address outside every job.
#[cgroup_sock_addr(sendmsg6)]
pub fn guard_sendmsg6(ctx: SockAddrContext) -> i32 {
    guard::outgoing(&ctx, Family::V6)
}

/// The licence of the object, by which the kernel grants helpers that are GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
