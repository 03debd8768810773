//! How much a job may do of what its rules allow: `limits`.

use jobfence_abi::{MAX_ADDRESSES, MAX_NAMES};

use crate::error::{Fault, quote};

/// Keys of `limits`.
pub(crate) const KEYS: &[&str] = &["names", "name_bytes", "addresses", "events", "upload"];

/// Units of a size, with their bytes.
const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// What a job may not exceed, for its whole life unless said otherwise.
///
/// It keeps one job from filling what all jobs of a host share, and makes what leaves through an
/// allowed destination finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Distinct names below wildcards that the job may ask for. Names that a rule spells out are
    /// not counted.
    pub names: u32,
    /// Bytes that those names may have in all, without what the wildcards themselves say.
    pub name_bytes: u32,
    /// Distinct addresses that its names may lead to. Networks of `cidr` rules are not counted.
    pub addresses: u32,
    /// Attempts a second that are let through or recorded one by one.
    pub events: u32,
    /// Bytes that the job may send to one address, with the headers and what is sent again. `None`:
    /// no limit.
    pub upload: Option<u64>,
}

impl Default for Limits {
    /// Far from what builds do. Below wildcards they find the mirrors of a delivery network or the
    /// buckets of an account: some dozens of names, each with a handful of addresses.
    fn default() -> Self {
        Self {
            names: 256,
            name_bytes: 4096,
            addresses: 4096,
            events: 25_000,
            upload: None,
        }
    }
}

impl Limits {
    /// None that a job could notice.
    pub(crate) const HIGHEST: Self = Self {
        names: u32::MAX,
        name_bytes: u32::MAX,
        addresses: u32::MAX,
        events: u32::MAX,
        upload: None,
    };

    /// The lower one of each.
    pub(crate) fn lower(self, other: Self) -> Self {
        Self {
            names: self.names.min(other.names),
            name_bytes: self.name_bytes.min(other.name_bytes),
            addresses: self.addresses.min(other.addresses),
            events: self.events.min(other.events),
            upload: [self.upload, other.upload].into_iter().flatten().min(),
        }
    }
}

/// The limits that one `limits` sets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    names: Option<u32>,
    name_bytes: Option<u32>,
    addresses: Option<u32>,
    events: Option<u32>,
    /// The inner `None` is `none`: an inherited limit does not hold.
    upload: Option<Option<u64>>,
}

impl Settings {
    /// Takes the value of one of [`KEYS`].
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        match key {
            "names" => self.names = Some(number(value, 0, MAX_NAMES)?),
            "name_bytes" => self.name_bytes = Some(number(value, 0, 1 << 20)?),
            "addresses" => self.addresses = Some(number(value, 1, MAX_ADDRESSES)?),
            // The fence's own test of itself makes some attempts, and a job cannot start without.
            "events" => self.events = Some(number(value, 100, 1_000_000)?),
            _ if value == "none" => self.upload = Some(None),
            _ => self.upload = Some(Some(size(value)?)),
        }
        Ok(())
    }

    /// These, and those of `outer` that are not among them.
    pub(crate) fn or(self, outer: Self) -> Self {
        Self {
            names: self.names.or(outer.names),
            name_bytes: self.name_bytes.or(outer.name_bytes),
            addresses: self.addresses.or(outer.addresses),
            events: self.events.or(outer.events),
            upload: self.upload.or(outer.upload),
        }
    }

    /// These, and `defaults` for those that are not set.
    pub(crate) fn over(self, defaults: Limits) -> Limits {
        Limits {
            names: self.names.unwrap_or(defaults.names),
            name_bytes: self.name_bytes.unwrap_or(defaults.name_bytes),
            addresses: self.addresses.unwrap_or(defaults.addresses),
            events: self.events.unwrap_or(defaults.events),
            upload: self.upload.unwrap_or(defaults.upload),
        }
    }
}

fn number(text: &str, lowest: u32, highest: u32) -> Result<u32, Fault> {
    let hint = format!("it is a number from {lowest} to {highest}");
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Fault::new(format!("{} is not a whole number", quote(text))).hint(hint));
    }
    match text.parse() {
        Ok(number) if (lowest..=highest).contains(&number) => Ok(number),
        _ => Err(Fault::new(format!("{} is out of range", quote(text))).hint(hint)),
    }
}

/// Parses `1500`, `500MB`, `2 GiB`.
fn size(text: &str) -> Result<u64, Fault> {
    let fault = |what| {
        Fault::new(format!("{} {what}", quote(text)))
            .hint("sizes are bytes, or written as 500MB or 2GiB; `none` is no limit")
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digits);
    if digits.is_empty() {
        return Err(fault("is not a size"));
    }
    let unit = match unit.trim_start() {
        "" => 1,
        unit => {
            let known = UNITS.iter().find(|(name, _)| *name == unit);
            let near = || {
                let fault = fault("is not a size");
                // `500mb`, `500M`
                let near = UNITS.iter().find(|(name, _)| {
                    name.eq_ignore_ascii_case(unit)
                        || name.eq_ignore_ascii_case(&format!("{unit}B"))
                });
                match near {
                    Some((name, _)) => fault.hint(format!(
                        "did you mean {}{name}?",
                        quote(digits).trim_matches('`')
                    )),
                    None => fault,
                }
            };
            known.ok_or_else(near)?.1
        }
    };
    let bytes = digits.parse().ok().and_then(|n: u64| n.checked_mul(unit));
    if bytes == Some(0) {
        return Err(Fault::new(format!("{} is out of range", quote(text)))
            .hint("it is at least 1; `none` is no limit"));
    }
    // What the kernel counts in, with room to add to it.
    bytes
        .filter(|bytes| (1..=i64::MAX.unsigned_abs()).contains(bytes))
        .ok_or_else(|| fault("is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_with_or_without_a_unit() {
        for (text, bytes) in [
            ("1", 1),
            ("500MB", 500_000_000),
            ("2 GiB", 2 << 30),
            ("7B", 7),
            ("64KiB", 65_536),
            ("64kB", 64_000),
            ("9223372036854775807", i64::MAX.unsigned_abs()),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "0",
            "MB",
            "-1",
            "+1",
            "1.5GB",
            "1e9",
            "0x10",
            "5mb",
            "5Mb",
            "5 MB/s",
            "9223372036854775808",
            "8388608TiB",
            "99999999999999999999",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_lower_limit_is_kept_of_each() {
        let a = Limits {
            names: 1,
            upload: Some(10),
            ..Limits::default()
        };
        let b = Limits {
            names: 2,
            events: 100,
            ..Limits::default()
        };
        let lower = Limits {
            names: 1,
            events: 100,
            upload: Some(10),
            ..Limits::default()
        };
        assert_eq!((a.lower(b), b.lower(a)), (lower, lower));
    }
}
