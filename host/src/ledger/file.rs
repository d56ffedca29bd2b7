//! The ledger's file: its schema, its identification, and how it is opened and locked.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use crate::files::io_reason;
use crate::platform::{AccessOptions, create_private_folder, file_identity};

/// How long a gateway waits for the lock of another, which may just have ended: a process that the
/// other started shares the lock until it runs its own program.
const LOCK_PATIENCE: Duration = Duration::from_millis(250);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// `TOLL`: the application id in the header of every ledger (SQLite's file format, section 1.3).
const APPLICATION_ID: i32 = 0x544f_4c4c;
const APPLICATION_ID_AT: usize = 68;
const HEADER_BYTES: usize = 100;
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";

/// The steps from each version of the schema to the next. Released steps are never changed.
const MIGRATIONS: [&str; 5] = [
    "CREATE TABLE usage (
        id INTEGER PRIMARY KEY,
        request_id TEXT NOT NULL UNIQUE,
        started_at INTEGER NOT NULL,
        finished_at INTEGER NOT NULL,
        user TEXT,
        credential TEXT,
        service TEXT NOT NULL,
        model TEXT,
        service_tier TEXT,
        transport TEXT NOT NULL,
        path TEXT NOT NULL,
        status INTEGER NOT NULL,
        end TEXT NOT NULL,
        attempts TEXT NOT NULL,
        session TEXT,
        response_id TEXT,
        input_tokens INTEGER,
        cached_tokens INTEGER,
        cache_write_tokens INTEGER,
        output_tokens INTEGER,
        reasoning_tokens INTEGER,
        context_window INTEGER,
        week_start_unix INTEGER,
        cost_nanousd INTEGER,
        unpriced_reason TEXT,
        priced_by TEXT,
        ttfb_ms INTEGER,
        duration_ms INTEGER NOT NULL
    ) STRICT;",
    "CREATE TABLE usage_view (
        path TEXT PRIMARY KEY,
        through INTEGER NOT NULL,
        digest TEXT,
        through_before INTEGER NOT NULL,
        digest_before TEXT
    ) STRICT;",
    // The user is empty if the service has no users: a key must not be NULL.
    "CREATE TABLE session_home (
        service TEXT NOT NULL,
        pool TEXT NOT NULL,
        user TEXT NOT NULL,
        session TEXT NOT NULL,
        credential TEXT NOT NULL,
        used_at INTEGER NOT NULL,
        PRIMARY KEY (service, pool, user, session)
    ) STRICT, WITHOUT ROWID;",
    "ALTER TABLE usage ADD COLUMN prewarm INTEGER NOT NULL DEFAULT 0;",
    "ALTER TABLE usage ADD COLUMN previous_response_id TEXT;",
];

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file system reports an error.
    #[error("cannot use {path}: {reason}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
    },
    /// The file is not a ledger.
    #[error("{path}: expected a Tollgate ledger, found {found}; the file was not changed")]
    Foreign {
        /// The path of the ledger.
        path: PathBuf,
        /// A description of it.
        found: &'static str,
    },
    /// A newer version of Tollgate created the file.
    #[error(
        "{path}: expected a schema of version {known} or older, found {found}; use the newer version of Tollgate that created it"
    )]
    Newer {
        /// The path of the ledger.
        path: PathBuf,
        /// The version of its schema.
        found: usize,
        /// The newest version that this build knows.
        known: usize,
    },
    /// Another process writes it.
    #[error("{path}: in use by another process; give each gateway its own data_dir")]
    InUse {
        /// The path of the folder that is in use.
        path: PathBuf,
    },
    /// SQLite reports an error.
    #[error("{path}: {source}")]
    Sqlite {
        /// The path of the ledger.
        path: PathBuf,
        /// The error that SQLite reports.
        source: rusqlite::Error,
    },
}

impl LedgerError {
    pub(super) fn io(path: &Path, error: &io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            reason: io_reason(error),
        }
    }

    pub(super) fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        move |source| Self::Sqlite {
            path: path.to_owned(),
            source,
        }
    }
}

/// Creates the folder and locks it for this process. `shared` is the lock that another process
/// holds, if that is to be shared.
pub(super) fn lock(data_dir: &Path, shared: Option<File>) -> Result<File, LedgerError> {
    let failed = |error: io::Error| LedgerError::io(data_dir, &error);
    create_private_folder(data_dir).map_err(failed)?;
    let path = data_dir.join("ledger.lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .private()
        .open(path)
        .map_err(failed)?;
    if let Some(shared) = shared
        && is_same_file(&shared, &lock).map_err(failed)?
    {
        return Ok(shared);
    }
    let begun = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_PATIENCE => {
                sleep(LOCK_RETRY_INTERVAL);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(LedgerError::InUse {
                    path: data_dir.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

fn is_same_file(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok(file_identity(&one) == file_identity(&other))
}

/// Opens the ledger at `path` for writing. Creates or migrates it if necessary.
pub(super) fn open(path: &Path, bytes_max: u64) -> Result<Connection, LedgerError> {
    check(path)?;
    let failed = LedgerError::sqlite(path);
    let io_failed = |error: io::Error| LedgerError::io(path, &error);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .private()
        .open(path)
        .map_err(io_failed)?;
    let is_new = file.metadata().map_err(io_failed)?.len() == 0;
    // Before SQLite locks the file: closing any descriptor of a file drops the process's locks on it
    // (fcntl(2)), and the other process of an upgrade would take the ledger for unused.
    drop(file);
    let mut connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(&failed)?;
    prepare(&connection).map_err(&failed)?;
    if is_new {
        // Before SQLite writes to its log: whenever the process is killed, the header identifies
        // the file.
        connection
            .pragma_update(None, "application_id", APPLICATION_ID)
            .map_err(&failed)?;
    }
    connection
        .pragma_update(None, "journal_mode", "wal")
        .map_err(&failed)?;
    connection
        .pragma_update(None, "synchronous", "normal")
        .map_err(&failed)?;
    migrate(path, &mut connection)?;
    limit(&connection, bytes_max).map_err(&failed)?;
    Ok(connection)
}

/// Opens the ledger at `path` for reading.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, LedgerError> {
    if let Err(error) = fs::metadata(path) {
        return Err(LedgerError::io(path, &error));
    }
    check(path)?;
    open_checked(path)
}

/// Opens a ledger for reading that this process may have open already: nothing but SQLite may open
/// and close the file then, because that would drop SQLite's locks.
pub(super) fn open_checked(path: &Path) -> Result<Connection, LedgerError> {
    let failed = LedgerError::sqlite(path);
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(&failed)?;
    prepare(&connection).map_err(&failed)?;
    let version: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(&failed)?;
    if version == 0 {
        return Err(LedgerError::Foreign {
            path: path.to_owned(),
            found: "an empty file that no gateway has opened",
        });
    }
    Ok(connection)
}

/// Sets what every connection needs. Sorting a large ledger uses temporary tables. SQLite would
/// write them to a folder such as `/tmp`, which a container may lack.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "temp_store", "memory")
}

/// Checks the file before SQLite opens it, so that a file that is not a ledger is not changed.
fn check(path: &Path) -> Result<(), LedgerError> {
    let foreign = |found: &'static str| {
        Err(LedgerError::Foreign {
            path: path.to_owned(),
            found,
        })
    };
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(LedgerError::io(path, &error)),
    };
    if !meta.is_file() {
        return foreign("something that is not a file");
    }
    if meta.len() == 0 {
        return Ok(());
    }
    let mut header = [0; HEADER_BYTES];
    let file = File::open(path).map_err(|error| LedgerError::io(path, &error))?;
    let read = file
        .take(HEADER_BYTES as u64)
        .read(&mut header)
        .map_err(|error| LedgerError::io(path, &error))?;
    if read < HEADER_BYTES || !header.starts_with(SQLITE_MAGIC) {
        return foreign("another kind of file");
    }
    if header[APPLICATION_ID_AT..][..4] != APPLICATION_ID.to_be_bytes() {
        return foreign("another SQLite database");
    }
    Ok(())
}

fn migrate(path: &Path, connection: &mut Connection) -> Result<(), LedgerError> {
    let failed = LedgerError::sqlite(path);
    let version: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(&failed)?;
    let version = version as usize;
    if version > MIGRATIONS.len() {
        return Err(LedgerError::Newer {
            path: path.to_owned(),
            found: version,
            known: MIGRATIONS.len(),
        });
    }
    let step = |connection: &mut Connection, target: usize| -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        transaction.execute_batch(MIGRATIONS[target - 1])?;
        transaction.pragma_update(None, "user_version", target as u32)?;
        transaction.commit()
    };
    for target in version + 1..=MIGRATIONS.len() {
        step(connection, target).map_err(&failed)?;
    }
    Ok(())
}

fn limit(connection: &Connection, bytes_max: u64) -> rusqlite::Result<()> {
    if bytes_max == 0 {
        return Ok(());
    }
    let page: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let pages = i64::try_from((bytes_max / u64::from(page.max(1))).max(1)).unwrap_or(i64::MAX);
    connection.pragma_update(None, "max_page_count", pages)
}

#[cfg(test)]
pub(super) const FIRST_SCHEMA: &str = MIGRATIONS[0];
#[cfg(test)]
pub(super) const ID: i32 = APPLICATION_ID;
