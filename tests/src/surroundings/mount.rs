//! A small file system in memory, if this process may mount one: a disk that is full, or read-only.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A file system in memory, mounted until this is dropped.
#[derive(Debug)]
pub struct Mounted {
    folder: PathBuf,
}

impl Mounted {
    /// Creates `folder` and mounts one of at most `bytes` there. Returns `None` if that is not
    /// permitted: then the test cannot run.
    ///
    /// # Panics
    /// Panics if the folder cannot be created.
    pub fn new(folder: &Path, bytes: usize) -> Option<Self> {
        fs::create_dir_all(folder).expect("a folder can be made");
        if mount(folder, 0, &format!("size={bytes},mode=0700")) {
            return Some(Self {
                folder: folder.to_owned(),
            });
        }
        println!(
            "skipped: nothing can be mounted here: {}",
            std::io::Error::last_os_error()
        );
        None
    }

    /// Makes it read-only.
    ///
    /// # Panics
    /// Panics if a file is being written.
    pub fn make_read_only(&self) {
        assert!(
            mount(&self.folder, libc::MS_REMOUNT | libc::MS_RDONLY, ""),
            "{}",
            std::io::Error::last_os_error()
        );
    }

    /// Makes it writable again.
    ///
    /// # Panics
    /// Panics if that is refused.
    pub fn make_writable(&self) {
        assert!(
            mount(&self.folder, libc::MS_REMOUNT, ""),
            "{}",
            std::io::Error::last_os_error()
        );
    }

    /// Fills it to the last byte. Returns the file that does, to be removed.
    ///
    /// # Panics
    /// Panics if a write fails for another reason than a full disk.
    pub fn fill(&self) -> PathBuf {
        use std::io::Write;

        let path = self.folder.join("filler");
        let mut file = fs::File::create(&path).expect("a file can be made");
        let (mut size, block) = (4096, [7; 4096]);
        while size > 0 {
            match file.write(&block[..size]) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => size /= 2,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let folder = c_string(&self.folder);
        // SAFETY: the path is a C string that lives longer than the call.
        unsafe { libc::umount2(folder.as_ptr(), libc::MNT_DETACH) };
    }
}

fn mount(folder: &Path, flags: libc::c_ulong, options: &str) -> bool {
    let (folder, options) = (
        c_string(folder),
        CString::new(options).expect("no NUL in it"),
    );
    // SAFETY: all of them are C strings that live longer than the call.
    unsafe {
        libc::mount(
            c"tmpfs".as_ptr(),
            folder.as_ptr(),
            c"tmpfs".as_ptr(),
            flags,
            options.as_ptr().cast(),
        ) == 0
    }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in it")
}
