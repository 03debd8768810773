//! The decision.

use crate::{Addr, DNS_PORT, Flow, Grants, Job, JobState, Reason, proto};

/// Who listens at a loopback destination. Plain numbers, since verifiers before Linux 6.7 can
/// lose a live branch of a `match` on an enum (<https://github.com/aya-rs/aya/issues/1584>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub u32);

impl Peer {
    /// The destination is not a loopback address, or nobody listens there.
    pub const NONE: Self = Self(0);
    /// A socket of the same job.
    pub const INSIDE: Self = Self(1);
    /// A socket of anybody else.
    pub const OUTSIDE: Self = Self(2);
}

/// What a decision asks of the world, so that the kernel and a test can each answer in their own
/// way.
pub trait Rules {
    /// The grants of the longest prefix that holds `dst`.
    fn grants(&self, dst: &Addr) -> Option<&Grants>;
    /// Who listens at `flow`, which goes to a loopback address.
    fn peer(&self, flow: &Flow) -> Peer;
}

/// Decides about `flow` of `job`.
///
/// The order is the meaning: what the fence itself needs, then what no rule can allow, then
/// loopback, then the rules. In audit mode the answer is the same; whether it is enforced is the
/// caller's affair.
#[inline(always)]
pub fn decide<R: Rules>(flow: &Flow, job: &Job, rules: &R) -> Reason {
    if job.state == JobState::CLOSED {
        return Reason::CLOSED;
    }
    let has_ports = flow.proto == proto::TCP || flow.proto == proto::UDP;
    if has_ports && job.is_resolver(flow) {
        return Reason::RESOLVER;
    }
    if has_ports && flow.port == DNS_PORT {
        return Reason::RESOLVER_BYPASS;
    }
    if has_ports && flow.dst.is_loopback() {
        let peer = rules.peer(flow);
        if peer != Peer::OUTSIDE {
            // Nobody: the kernel answers with a reset or an ICMP error that never leaves.
            return Reason::INSIDE;
        }
    }
    let Some(grants) = rules.grants(&flow.dst) else {
        return unnamed(flow, has_ports);
    };
    if grants.contains(flow.proto, flow.port) {
        return Reason::ALLOWED;
    }
    if grants.is_empty() {
        return unnamed(flow, has_ports);
    }
    if !has_ports || grants.contains_port(flow.port) {
        return Reason::PROTOCOL;
    }
    Reason::PORT
}

/// The reason for a destination that no rule names.
#[inline(always)]
fn unnamed(flow: &Flow, has_ports: bool) -> Reason {
    if flow.dst.is_metadata() {
        Reason::METADATA
    } else if flow.dst.is_multicast() {
        Reason::MULTICAST
    } else if flow.dst.is_loopback() {
        Reason::LOOPBACK
    } else if has_ports {
        Reason::NO_RULE
    } else {
        Reason::PROTOCOL
    }
}
