//! Disk images: an ext4 file system made from a folder, without mounting anything.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::sh;

/// The disk signature in a [`bootable`] image: by it the kernel finds the partition
/// (`root=PARTUUID=`) whichever disk it sees first.
pub(crate) const SIGNATURE: u32 = 0x6a66_766d;

const SECTOR: u64 = 512;
/// Where the partition begins, as partitioning tools have it.
const START: u64 = 2048 * SECTOR;
const MIB: u64 = 1024 * 1024;

/// Makes `image` with the contents of `folder` in a file system labelled `label`.
pub(crate) fn plain(folder: &Path, label: &str, image: &Path) -> Result<()> {
    let size = size(folder)?;
    make(folder, label, image, 0, size)
}

/// As [`plain`], in the only partition of the image, with `spare` bytes of room.
pub(crate) fn bootable(folder: &Path, label: &str, image: &Path, spare: u64) -> Result<()> {
    let size = size(folder)? + spare;
    make(folder, label, image, START, size)?;
    File::options()
        .write(true)
        .open(image)
        .and_then(|file| file.write_all_at(&boot_record(size), 0))
        .with_context(|| format!("write the partition table of {}", image.display()))
}

/// Makes the file system from byte `start` on, `size` bytes long, in a file with holes.
fn make(folder: &Path, label: &str, image: &Path, start: u64, size: u64) -> Result<()> {
    File::create(image)
        .and_then(|file| file.set_len(start + size))
        .with_context(|| format!("make {}", image.display()))?;
    let mut mkfs = Command::new(sh::which("mkfs.ext4").context("find mkfs.ext4")?);
    // No journal: an image is thrown away, never repaired.
    mkfs.args(["-q", "-F", "-O", "^has_journal", "-L", label])
        .arg("-E")
        .arg(format!("offset={start},lazy_itable_init=1,root_owner=0:0"))
        .arg("-d")
        .args([folder, image])
        .arg(format!("{}k", size / 1024));
    sh::run(&mut mkfs)
}

/// A master boot record with one Linux partition of `size` bytes from [`START`] on.
///
/// The layout is that of every PC: signature at 440, partitions from 446 on, 0x55 0xAA at the end.
fn boot_record(size: u64) -> [u8; 512] {
    let sectors = |bytes: u64| {
        u32::try_from(bytes / SECTOR)
            .unwrap_or(u32::MAX)
            .to_le_bytes()
    };
    let mut record = [0; 512];
    record[440..444].copy_from_slice(&SIGNATURE.to_le_bytes());
    // Linux, with no address in cylinders.
    record[446..454].copy_from_slice(&[0, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
    record[454..458].copy_from_slice(&sectors(START));
    record[458..462].copy_from_slice(&sectors(size));
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    record
}

/// Bytes that a file system for the files below `folder` needs, in whole megabytes.
fn size(folder: &Path) -> Result<u64> {
    fn files(folder: &Path) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            // A block at least, and an inode.
            bytes += meta.len().next_multiple_of(4096) + 512;
            if meta.is_dir() {
                bytes += files(&entry.path())?;
            }
        }
        Ok(bytes)
    }
    let bytes = files(folder).with_context(|| format!("look through {}", folder.display()))?;
    Ok((bytes + bytes / 8 + 16 * MIB).next_multiple_of(MIB))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_where_the_file_system_is() {
        let record = boot_record(64 * MIB);
        let word = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().unwrap());
        assert_eq!(word(440), SIGNATURE);
        assert_eq!(u64::from(word(454)) * SECTOR, START);
        assert_eq!(u64::from(word(458)) * SECTOR, 64 * MIB);
        assert_eq!(record[510..], [0x55, 0xaa]);
    }
}
