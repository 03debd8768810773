//! Answers that are given again as they are.
//!
//! A build asks for the same few names over and over, and clients write the same question the same
//! way. While the answer holds, a question that differs from an answered one in nothing but its
//! number gets the same bytes back: the policy does not change while a job runs, the name was
//! counted, and its addresses stay open. What each question needs for itself is left to
//! `decide.rs`: whether it is the job's, and its event.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::DnsEvent;

/// How long an answer is given again at most. TTLs count seconds, so what is this old is right.
const LONGEST: Duration = Duration::from_secs(1);

/// Answers that are kept. The job chooses the bytes, so they bound what it can have kept too.
const MAX_ANSWERS: usize = 64;

/// Bytes of the longest question whose answer is kept: most names, and EDNS.
const MAX_QUESTION: usize = 128;

/// Bytes of the longest answer that is kept.
const MAX_ANSWER: usize = 512;

/// The answers of one job.
#[derive(Debug, Default)]
pub(super) struct Ready(Mutex<HashMap<Box<[u8]>, Answer>>);

#[derive(Debug)]
struct Answer {
    until: Instant,
    bytes: Box<[u8]>,
    event: DnsEvent,
}

impl Ready {
    /// The answer to the message `asked`, and the event that goes with it, of another peer.
    pub(super) fn find(&self, asked: &[u8]) -> Option<(Vec<u8>, DnsEvent)> {
        let (id, rest) = asked.split_first_chunk::<2>()?;
        let answers = self.lock();
        let answer = answers.get(rest)?;
        if answer.until <= Instant::now() {
            return None;
        }
        let mut bytes = answer.bytes.to_vec();
        bytes.first_chunk_mut::<2>()?.copy_from_slice(id);
        Some((bytes, answer.event.clone()))
    }

    /// Keeps the answer `bytes` to the message `asked`, which holds for `ttl` seconds.
    pub(super) fn keep(&self, asked: &[u8], bytes: &[u8], event: DnsEvent, ttl: u32) {
        let lifetime = Duration::from_secs(ttl.into()).min(LONGEST);
        let Some((_, rest)) = asked.split_first_chunk::<2>() else {
            return;
        };
        if lifetime.is_zero() || asked.len() > MAX_QUESTION || bytes.len() > MAX_ANSWER {
            return;
        }
        let now = Instant::now();
        let mut answers = self.lock();
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, answer| answer.until > now);
        }
        if answers.len() < MAX_ANSWERS {
            let answer = Answer {
                until: now + lifetime,
                bytes: bytes.into(),
                event,
            };
            answers.insert(rest.into(), answer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Answer>> {
        // Every change is one call, after which the map is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use jobfence_abi::Reason;

    use super::super::{Transport, Verdict};
    use super::*;

    fn event() -> DnsEvent {
        DnsEvent {
            peer: (Ipv4Addr::LOCALHOST, 5353).into(),
            transport: Transport::Udp,
            qname: "a.test".to_owned(),
            qtype: "A".to_owned(),
            rcode: "NOERROR".to_owned(),
            verdict: Verdict::Allow,
            reason: Reason::ALLOWED,
            violation: false,
            rule: None,
            chain: Vec::new(),
            addresses: Vec::new(),
        }
    }

    #[test]
    fn an_answer_is_for_the_same_question_with_another_number() {
        let ready = Ready::default();
        ready.keep(b"12question", b"12answer", event(), 60);
        let (bytes, found) = ready.find(b"34question").unwrap();
        assert_eq!((bytes.as_slice(), found), (b"34answer".as_slice(), event()));
        for other in [b"34Question".as_slice(), b"34", b"3", b""] {
            assert!(ready.find(other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn what_holds_for_no_time_or_is_too_long_is_not_kept() {
        let ready = Ready::default();
        ready.keep(b"12question", b"12answer", event(), 0);
        ready.keep(b"12question", &[0; MAX_ANSWER + 1], event(), 60);
        ready.keep(&[0; MAX_QUESTION + 1], b"12answer", event(), 60);
        assert!(ready.lock().is_empty());
    }

    #[test]
    fn a_job_cannot_have_more_kept_than_the_limit() {
        let ready = Ready::default();
        for number in 0..2 * MAX_ANSWERS {
            ready.keep(format!("12{number}").as_bytes(), b"12", event(), 60);
        }
        assert_eq!(ready.lock().len(), MAX_ANSWERS);
        assert!(ready.find(b"120").is_some());
    }
}
