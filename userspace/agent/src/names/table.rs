//! Which names led a job to which addresses.
//!
//! Two uses: an event about an address can say the name behind it, and a PTR question is answered
//! from here instead of from whoever holds the reverse zone. Neither decides anything.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jobfence_abi::MAX_ADDRESSES;
use jobfence_policy::Name;

/// The names and addresses of one job. It only grows, up to as many pairs as the job's policy says
/// (`limits.addresses`): an address stays usable for the job's life.
#[derive(Debug)]
pub struct Table {
    limit: usize,
    pairs: Mutex<Pairs>,
}

impl Default for Table {
    /// With as many pairs as any job can have.
    fn default() -> Self {
        Self::new(MAX_ADDRESSES)
    }
}

#[derive(Debug, Default)]
struct Pairs {
    names: HashMap<Name, Entry>,
    addresses: HashMap<IpAddr, Vec<Name>>,
    count: usize,
}

#[derive(Debug, Default)]
struct Entry {
    addresses: HashSet<IpAddr>,
    chain: Arc<[Name]>,
}

impl Table {
    /// An empty table for at most `limit` pairs of a name and an address.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self {
            limit: limit as usize,
            pairs: Mutex::default(),
        }
    }

    /// The names that led to `ip`, the newest first: who connects has mostly just asked for it.
    #[must_use]
    pub fn names_of(&self, ip: IpAddr) -> Vec<Name> {
        let pairs = self.lock();
        let names = pairs.addresses.get(&ip).into_iter().flatten();
        names.rev().cloned().collect()
    }

    /// The addresses that `name` led to, in no order.
    #[must_use]
    pub fn addresses_of(&self, name: &Name) -> Vec<IpAddr> {
        self.lock()
            .names
            .get(name)
            .map_or_else(Vec::new, |entry| entry.addresses.iter().copied().collect())
    }

    /// The CNAME targets between `name` and its newest addresses.
    #[must_use]
    pub fn chain_of(&self, name: &Name) -> Arc<[Name]> {
        self.lock()
            .names
            .get(name)
            .map_or_else(Arc::default, |entry| Arc::clone(&entry.chain))
    }

    /// Notes that `name` led to `addresses` through the CNAME targets `chain`. The agent calls
    /// this for what it grants itself, such as the host's own `/etc/hosts`.
    ///
    /// # Errors
    ///
    /// When the table would hold more pairs than it may; then nothing is noted.
    pub fn insert(&self, name: &Name, chain: &[Name], addresses: &[IpAddr]) -> Result<(), Full> {
        let mut pairs = self.lock();
        let new = pairs.unknown(name, addresses);
        pairs.room_for(new.len(), self.limit)?;
        pairs.count += new.len();
        for ip in &new {
            pairs.addresses.entry(*ip).or_default().push(name.clone());
        }
        let entry = pairs.names.entry(name.clone()).or_default();
        entry.addresses.extend(new);
        if *entry.chain != *chain {
            entry.chain = chain.into();
        }
        Ok(())
    }

    /// Those of `addresses` to which `name` has not led yet, when there is room for them.
    pub(super) fn unknown(&self, name: &Name, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, Full> {
        let pairs = self.lock();
        let new = pairs.unknown(name, addresses);
        pairs.room_for(new.len(), self.limit)?;
        Ok(new)
    }

    fn lock(&self) -> MutexGuard<'_, Pairs> {
        // No panic can leave the maps half changed in a way that matters: they decide nothing.
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pairs {
    fn unknown(&self, name: &Name, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let entry = self.names.get(name);
        let mut new: Vec<IpAddr> = Vec::new();
        for ip in addresses {
            if entry.is_none_or(|entry| !entry.addresses.contains(ip)) && !new.contains(ip) {
                new.push(*ip);
            }
        }
        new
    }

    fn room_for(&self, more: usize, limit: usize) -> Result<(), Full> {
        if more > 0 && self.count + more > limit {
            return Err(Full);
        }
        Ok(())
    }
}

/// The job was led to as many addresses as it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the job's names have led it to as many addresses as `limits.addresses` allows")]
pub struct Full;

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn ip(last: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0xc633_0000 | last).into()
    }

    #[test]
    fn both_ways_and_the_chain_can_be_looked_up() {
        let table = Table::default();
        let (a, b, alias) = (name("a.test"), name("b.test"), name("alias.test"));
        table.insert(&a, &[], &[ip(1), ip(2), ip(1)]).unwrap();
        table
            .insert(&b, std::slice::from_ref(&alias), &[ip(2)])
            .unwrap();
        table
            .insert(&b, std::slice::from_ref(&alias), &[ip(2)])
            .unwrap();
        assert_eq!(table.names_of(ip(2)), [b.clone(), a.clone()]);
        assert_eq!(table.names_of(ip(3)), []);
        let mut addresses = table.addresses_of(&a);
        addresses.sort();
        assert_eq!(addresses, [ip(1), ip(2)]);
        assert_eq!(*table.chain_of(&b), [alias]);
        assert_eq!(table.unknown(&b, &[ip(2), ip(3), ip(3)]), Ok(vec![ip(3)]));
    }

    #[test]
    fn a_full_table_takes_nothing_more_but_still_knows_what_it_holds() {
        let table = Table::default();
        let many = name("many.test");
        let all: Vec<_> = (0..MAX_ADDRESSES).map(ip).collect();
        for chunk in all.chunks(64) {
            table.insert(&many, &[], chunk).unwrap();
        }
        assert_eq!(table.insert(&name("one.test"), &[], &[ip(1)]), Err(Full));
        assert_eq!(table.names_of(ip(1)), std::slice::from_ref(&many));
        assert_eq!(table.insert(&many, &[], &[ip(7)]), Ok(()));
        assert_eq!(table.unknown(&many, &[ip(7)]), Ok(vec![]));
    }
}
