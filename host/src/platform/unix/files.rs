//! Who may use a file, and how it is opened.

use std::fs::{self, DirBuilder, File, FileType, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown,
};
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::process::geteuid;

use crate::platform::terms::FixedFile;

/// The mode of a file that only its owner may use.
const PRIVATE_FILE: u32 = 0o600;

/// The mode of a folder that only its owner may use.
const PRIVATE_FOLDER: u32 = 0o700;

/// The mode bit of a folder in which each user may replace only their own files.
const STICKY_BIT: u32 = 0o1000;

/// The mode bits with which the group or everybody may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// How a file is opened.
pub(crate) trait AccessOptions {
    /// Lets only the owner use a file that is created.
    fn private(&mut self) -> &mut Self;

    /// Does not wait for the other end of a FIFO.
    fn without_waiting(&mut self) -> &mut Self;

    /// Does not wait, and does not follow a symbolic link.
    fn without_waiting_or_links(&mut self) -> &mut Self;
}

impl AccessOptions for OpenOptions {
    fn private(&mut self) -> &mut Self {
        self.mode(PRIVATE_FILE)
    }

    fn without_waiting(&mut self) -> &mut Self {
        self.custom_flags(libc::O_NONBLOCK)
    }

    fn without_waiting_or_links(&mut self) -> &mut Self {
        self.custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
    }
}

/// Creates the folder at `path`, and those above it, for its owner alone. An existing folder stays
/// as it is.
///
/// # Errors
/// It cannot be created.
pub(crate) fn create_private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_FOLDER)
        .create(path)
}

/// Returns the device of a file and its number there.
pub(crate) fn file_identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Returns whether a file is a socket.
pub(crate) fn is_socket(kind: FileType) -> bool {
    kind.is_socket()
}

/// Returns whether a file belongs to this user, who alone may write to it.
pub(crate) fn is_writable_by_us_only(meta: &Metadata) -> bool {
    meta.uid() == geteuid().as_raw() && meta.mode() & WRITABLE_BY_OTHERS == 0
}

/// Gives a new `file` the owner and the mode of the `old` one.
///
/// # Errors
/// The owner cannot be kept.
pub(crate) fn keep_access(file: &File, old: &Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    if own.uid() != old.uid() {
        fchown(file, Some(old.uid()), None)?;
    }
    let same_group = own.gid() == old.gid() || fchown(file, None, Some(old.gid())).is_ok();
    // With another group, the old mode's group bits would let that group read it.
    let mode = old.mode() & if same_group { 0o777 } else { 0o700 };
    file.set_permissions(Permissions::from_mode(mode))
}

/// Sets who may use a file.
///
/// # Errors
/// The file belongs to another user.
pub(crate) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Returns whether this user may replace the file `old` in `folder`: in a sticky folder, only its
/// owner may.
pub(crate) fn may_replace(folder: &Metadata, old: &Metadata) -> bool {
    let user = geteuid().as_raw();
    let is_sticky = folder.mode() & STICKY_BIT != 0;
    !is_sticky || user == 0 || user == folder.uid() || user == old.uid()
}

/// Checks whether anything but its mode and its folder keeps the file at `path` in its place.
///
/// # Errors
/// Something does.
#[cfg(target_os = "linux")]
pub(crate) fn check_attributes(path: &Path) -> Result<(), FixedFile> {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

    let Ok(found) = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS) else {
        return Ok(());
    };
    let attributes = found.stx_attributes & found.stx_attributes_mask;
    if attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(FixedFile::Mounted);
    }
    if attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND) {
        return Err(FixedFile::Immutable);
    }
    Ok(())
}

/// Not known on this system: an attempt to replace the file fails.
#[cfg(not(target_os = "linux"))]
pub(crate) fn check_attributes(_: &Path) -> Result<(), FixedFile> {
    Ok(())
}

/// Returns whether this user may create files in `folder`.
pub(crate) fn is_writable_folder(folder: &Path) -> bool {
    let needed = Access::WRITE_OK | Access::EXEC_OK;
    folder.is_dir() && access(folder, needed).is_ok()
}

/// Makes the names in `folder` durable.
///
/// # Errors
/// The folder cannot be opened or written.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
