//! A SQLite VFS over the real one that knows which writes a sync has made durable, and can lose the rest.
//!
//! Reads and writes reach real files as usual. Beside each file the disk keeps its durable image: what every
//! `xSync` so far has covered. [`Disk::cut`] ends all I/O; [`Disk::aftermath`] writes what a machine could find after
//! the power came back: the durable image plus any subset, in 512-byte sectors, of the writes not yet synced. A sync
//! that fails makes its writes doomed: kernels drop such pages, so no later sync brings them back.
//!
//! Deletions and renames count as durable at once, and a file of length zero as good as missing.

#![expect(unsafe_code, reason = "a VFS is a table of C functions")]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use rusqlite::ffi;

/// What a file system hands out as one piece.
const SECTOR: usize = 512;

/// One change of a file that no sync has covered yet.
enum Change {
    Write { at: usize, data: Vec<u8> },
    Truncate { len: usize },
}

#[derive(Default)]
struct Image {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

impl Image {
    fn settle(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }
}

impl Change {
    fn apply(self, image: &mut Vec<u8>) {
        match self {
            Self::Truncate { len } => image.truncate(len),
            Self::Write { at, data } => {
                if image.len() < at + data.len() {
                    image.resize(at + data.len(), 0);
                }
                image[at..at + data.len()].copy_from_slice(&data);
            }
        }
    }

    /// Cuts a write into sectors, each of which survives or not by itself.
    fn sectors(self) -> Vec<Self> {
        match self {
            Self::Truncate { .. } => vec![self],
            Self::Write { at, data } => data
                .chunks(SECTOR)
                .enumerate()
                .map(|(i, chunk)| Self::Write { at: at + i * SECTOR, data: chunk.to_vec() })
                .collect(),
        }
    }
}

/// A fault to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The next writes find no room.
    NoSpace,
    /// The next writes fail.
    WriteError,
    /// The next syncs fail, and what they should have saved is lost.
    SyncError,
}

#[derive(Default)]
struct State {
    files: HashMap<PathBuf, Image>,
    /// Writes and syncs so far.
    operations: u64,
    cut_at: Option<u64>,
    off: bool,
    fault: Option<(Fault, u32)>,
}

impl State {
    /// Counts an operation; the power goes off at the one that was chosen.
    fn operate(&mut self) -> bool {
        self.operations += 1;
        if self.cut_at.is_some_and(|at| self.operations >= at) {
            self.off = true;
        }
        !self.off
    }

    fn faulty(&mut self, wanted: &[Fault]) -> Option<Fault> {
        let (fault, left) = self.fault.filter(|(fault, left)| wanted.contains(fault) && *left > 0)?;
        self.fault = Some((fault, left - 1));
        Some(fault)
    }
}

/// A disk of its own, registered with SQLite under [`Disk::name`].
pub(super) struct Disk {
    vfs: *mut ffi::sqlite3_vfs,
    name: CString,
    shared: *mut Shared,
}

struct Shared {
    real: *mut ffi::sqlite3_vfs,
    state: Mutex<State>,
}

// SAFETY: the pointers lead to memory that lives for ever; the state is behind a mutex and SQLite's VFS is thread-safe.
unsafe impl Send for Disk {}
// SAFETY: as above.
unsafe impl Sync for Disk {}

impl Disk {
    /// Registers a disk. Its memory is never freed: a forgotten connection may still call it.
    pub(super) fn new() -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = CString::new(format!("power-{number}")).unwrap();
        // SAFETY: SQLite always has a default VFS; a copy of its table is a valid table whose functions ignore their
        // first argument, but for xOpen, which is replaced below.
        let (vfs, shared) = unsafe {
            let real = ffi::sqlite3_vfs_find(std::ptr::null());
            assert!(!real.is_null());
            let shared = Box::into_raw(Box::new(Shared { real, state: Mutex::default() }));
            let mut table = *real;
            table.zName = name.as_ptr();
            table.pNext = std::ptr::null_mut();
            table.pAppData = shared.cast::<c_void>();
            table.szOsFile = c_int::try_from(size_of::<File>()).unwrap();
            table.xOpen = Some(open);
            table.xDelete = Some(delete);
            let vfs = Box::into_raw(Box::new(table));
            assert_eq!(ffi::sqlite3_vfs_register(vfs, 0), ffi::SQLITE_OK);
            (vfs, shared)
        };
        Self { vfs, name, shared }
    }

    /// The name to open a database with.
    pub(super) fn name(&self) -> &str {
        self.name.to_str().unwrap()
    }

    /// Cuts the power when so many more operations were done.
    pub(super) fn cut_after(&self, operations: u64) {
        let mut state = self.state();
        state.cut_at = Some(state.operations + operations);
    }

    /// Cuts the power now.
    pub(super) fn cut(&self) {
        self.state().off = true;
    }

    /// Makes the next `times` matching operations fail.
    pub(super) fn fail(&self, fault: Fault, times: u32) {
        self.state().fault = Some((fault, times));
    }

    /// Ends an injected fault.
    pub(super) fn heal(&self) {
        self.state().fault = None;
    }

    /// Writes into `folder` what the machine finds afterwards: the durable images, and of the rest whatever `survives`
    /// says. All of it lost and all of it kept are both possible.
    pub(super) fn aftermath(&self, folder: &Path, mut survives: impl FnMut() -> bool) {
        let mut state = self.state();
        assert!(state.off, "cut the power first");
        for (path, image) in state.files.drain() {
            let Image { mut durable, pending } = image;
            for change in pending.into_iter().flat_map(Change::sectors) {
                if survives() {
                    change.apply(&mut durable);
                }
            }
            std::fs::write(folder.join(path.file_name().unwrap()), durable).unwrap();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // SAFETY: never freed.
        unsafe { (*self.shared).state.lock().unwrap() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // SAFETY: registered in `new`; the table itself stays for connections that were forgotten.
        unsafe { ffi::sqlite3_vfs_unregister(self.vfs) };
    }
}

/// What SQLite allocates for an open file; the real one follows behind a pointer.
#[repr(C)]
struct File {
    methods: *const ffi::sqlite3_io_methods,
    real: *mut ffi::sqlite3_file,
    shared: *const Shared,
    /// `None` for temporary files, which nobody expects to survive.
    path: *mut Option<PathBuf>,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // Version 2 has shared memory, which WAL needs, and no mmap, which would write past us.
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite hands over its own valid pointers; `file` has room for `File` as szOsFile said.
    unsafe {
        let shared = (*vfs).pAppData.cast::<Shared>();
        let real_vfs = (*shared).real;
        let words = usize::try_from((*real_vfs).szOsFile).unwrap().div_ceil(8);
        let real = Box::leak(vec![0_u64; words].into_boxed_slice()).as_mut_ptr().cast::<ffi::sqlite3_file>();
        let file = file.cast::<File>();
        (*file).methods = std::ptr::null();
        if (*shared).state.lock().unwrap().off {
            return ffi::SQLITE_CANTOPEN;
        }
        let opened = (*real_vfs).xOpen.unwrap()(real_vfs, name, real, flags, out_flags);
        if opened != ffi::SQLITE_OK {
            return opened;
        }
        let kept =
            flags & (ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL) != 0;
        let path = (kept && !name.is_null())
            .then(|| PathBuf::from(CStr::from_ptr(name).to_str().expect("test paths are UTF-8")));
        if let Some(path) = &path {
            let mut state = (*shared).state.lock().unwrap();
            let durable = || Image { durable: std::fs::read(path).unwrap_or_default(), pending: Vec::new() };
            state.files.entry(path.clone()).or_insert_with(durable);
        }
        *file = File { methods: &raw const METHODS, real, shared, path: Box::into_raw(Box::new(path)) };
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_folder: c_int) -> c_int {
    // SAFETY: as in `open`.
    unsafe {
        let shared = (*vfs).pAppData.cast::<Shared>();
        let mut state = (*shared).state.lock().unwrap();
        if !state.operate() {
            return ffi::SQLITE_IOERR_DELETE;
        }
        state.files.remove(Path::new(CStr::from_ptr(name).to_str().expect("test paths are UTF-8")));
        (*(*shared).real).xDelete.unwrap()((*shared).real, name, sync_folder)
    }
}

/// Calls the real file's method of the same name.
macro_rules! forward {
    ($file:ident . $method:ident ( $($argument:expr),* )) => {{
        // SAFETY: `open` set the pointers and only `close` ends them.
        unsafe {
            let real = (*$file.cast::<File>()).real;
            (*(*real).pMethods).$method.unwrap()(real $(, $argument)*)
        }
    }};
}

/// The file's path and the disk's state; `None` for temporary files.
unsafe fn tracked<'a>(file: *mut ffi::sqlite3_file) -> Option<(&'a PathBuf, MutexGuard<'a, State>)> {
    // SAFETY: as in `forward!`.
    unsafe {
        let file = file.cast::<File>();
        let path = (*(*file).path).as_ref()?;
        Some((path, (*(*file).shared).state.lock().unwrap()))
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let closed = forward!(file.xClose());
    // SAFETY: made by `open` and used by nobody after xClose; the real file's memory was leaked there on purpose.
    unsafe { drop(Box::from_raw((*file.cast::<File>()).path)) };
    closed
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, bytes: c_int, at: i64) -> c_int {
    // SAFETY: as in `tracked`.
    if unsafe { tracked(file) }.is_some_and(|(_, state)| state.off) {
        return ffi::SQLITE_IOERR_READ;
    }
    forward!(file.xRead(to, bytes, at))
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    bytes: c_int,
    at: i64,
) -> c_int {
    // SAFETY: as in `tracked`; SQLite hands over `bytes` readable bytes.
    if let Some((path, mut state)) = unsafe { tracked(file) } {
        if !state.operate() {
            return ffi::SQLITE_IOERR_WRITE;
        }
        match state.faulty(&[Fault::NoSpace, Fault::WriteError]) {
            Some(Fault::NoSpace) => return ffi::SQLITE_FULL,
            Some(_) => return ffi::SQLITE_IOERR_WRITE,
            None => {}
        }
        // SAFETY: as above.
        let data = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), usize::try_from(bytes).unwrap()) };
        let change = Change::Write { at: usize::try_from(at).unwrap(), data: data.to_vec() };
        state.files.entry(path.clone()).or_default().pending.push(change);
    }
    forward!(file.xWrite(from, bytes, at))
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, len: i64) -> c_int {
    // SAFETY: as in `tracked`.
    if let Some((path, mut state)) = unsafe { tracked(file) } {
        if !state.operate() {
            return ffi::SQLITE_IOERR_TRUNCATE;
        }
        let change = Change::Truncate { len: usize::try_from(len).unwrap() };
        state.files.entry(path.clone()).or_default().pending.push(change);
    }
    forward!(file.xTruncate(len))
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    // The real fsync is left out: durability here is what the image says, and thousands of cuts run faster.
    // SAFETY: as in `tracked`.
    if let Some((path, mut state)) = unsafe { tracked(file) } {
        if !state.operate() {
            return ffi::SQLITE_IOERR_FSYNC;
        }
        let failed = state.faulty(&[Fault::SyncError]).is_some();
        let image = state.files.entry(path.clone()).or_default();
        if failed {
            image.pending.clear();
            return ffi::SQLITE_IOERR_FSYNC;
        }
        image.settle();
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, bytes: *mut i64) -> c_int {
    forward!(file.xFileSize(bytes))
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    forward!(file.xLock(level))
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    forward!(file.xUnlock(level))
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, result: *mut c_int) -> c_int {
    forward!(file.xCheckReservedLock(result))
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, op: c_int, argument: *mut c_void) -> c_int {
    // Preallocating would change the length behind the image's back.
    if op == ffi::SQLITE_FCNTL_SIZE_HINT {
        return ffi::SQLITE_NOTFOUND;
    }
    forward!(file.xFileControl(op, argument))
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    forward!(file.xSectorSize())
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    forward!(file.xDeviceCharacteristics())
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    page: c_int,
    bytes: c_int,
    extend: c_int,
    to: *mut *mut c_void,
) -> c_int {
    forward!(file.xShmMap(page, bytes, extend, to))
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    forward!(file.xShmLock(offset, n, flags))
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    forward!(file.xShmBarrier());
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete_flag: c_int) -> c_int {
    forward!(file.xShmUnmap(delete_flag))
}
