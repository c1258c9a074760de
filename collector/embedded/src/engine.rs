//! The binding to ClickHouse's engine: the only file with `unsafe`.
//!
//! In: the path of libchdb.so, a data folder, SQL text and bytes to insert. Out: answers, counts, and errors as the
//! engine words them. It loads the library once and never unloads it (the engine's threads run in it until the
//! process ends). Every call blocks, for as long as its query takes: callers must be on a thread of their own,
//! never on a runtime thread. It knows nothing of HTTP, secrets or formats.

mod abi;

use std::ffi::{CStr, CString, c_char, c_int};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use self::abi::{Abi, Analysis, Answer, InsertStream, Slot};

/// The engine's version below which Weir does not run on it (the first with `chdb_classify_query_n`).
pub const OLDEST_ENGINE: (u32, u32) = (26, 7);

/// The engine holds at most this many slices of an insert's body that it has not parsed yet: 16 in its own queue.
const INSERT_SLICE_BYTES: usize = 1 << 20;

/// Arguments that each connection starts with. chDB's embedded defaults differ from a ClickHouse server's in the
/// first two; the others bound a query that says nothing itself.
const CONNECTION_ARGUMENTS: [&str; 5] = [
    "--implicit_select=0",
    "--allow_introspection_functions=0",
    "--max_result_bytes=134217728",
    "--result_overflow_mode=throw",
    "--max_execution_time=600",
];

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "cannot load the engine {path}: {reason}; give another with --engine, or let `cargo xtask demo` set one up"
    )]
    Load { path: PathBuf, reason: String },
    #[error(
        "the engine {path} is not a chDB library of version {}.{} or newer: it lacks `{symbol}`; give another with --engine, or let `cargo xtask demo` set one up",
        OLDEST_ENGINE.0, OLDEST_ENGINE.1
    )]
    Symbol { path: PathBuf, symbol: &'static str },
    #[error(
        "the engine {path} is version {version}, older than {}.{}; give another with --engine, or let `cargo xtask demo` set one up",
        OLDEST_ENGINE.0, OLDEST_ENGINE.1
    )]
    Old { path: PathBuf, version: String },
    #[error("the engine refuses to open {path} (its own reason, if it gave one, stands above on stderr)")]
    Open { path: PathBuf },
    #[error("the engine gave no connection")]
    Connect,
}

/// The loaded library with one data folder open.
pub struct Engine {
    abi: &'static Abi,
    version: String,
    arguments: Vec<CString>,
    /// The engine closes its data folder when the last connection goes; this one keeps it open between requests.
    keeper: Mutex<Option<Slot>>,
}

// SAFETY: the raw pointer in `keeper` is the engine's connection handle, which is used only to close it, once, under
// the mutex; the engine has no thread affinity for it (its API serialises connecting and closing itself). `abi` holds
// function pointers alone.
unsafe impl Send for Engine {}
// SAFETY: as above; shared access reaches the handle through the mutex alone.
unsafe impl Sync for Engine {}

impl Engine {
    /// Loads the library and opens `folder` with the engine's configuration file `config`.
    pub fn open(library: &Path, folder: &Path, config: &Path) -> Result<Self, EngineError> {
        let abi = load(library)?;
        let version = version_of(abi);
        if parse_version(&version).is_none_or(|found| found < OLDEST_ENGINE) {
            return Err(EngineError::Old { path: library.to_owned(), version });
        }
        // SAFETY: takes an int by value; must come before the first connection, which is below. Signals stay ours.
        unsafe { (abi.set_signal_handlers_enabled)(0) };

        let refused = || EngineError::Open { path: folder.to_owned() };
        let mut arguments = Vec::new();
        for (name, value) in [("--path=", folder), ("--config-file=", config)] {
            let text = [name.as_bytes(), value.as_os_str().as_encoded_bytes()].concat();
            arguments.push(CString::new(text).map_err(|_| refused())?);
        }
        for text in CONNECTION_ARGUMENTS {
            arguments.push(CString::new(text).map_err(|_| refused())?);
        }
        let keeper = connect(abi, &arguments).ok_or_else(refused)?;
        Ok(Self { abi, version, arguments, keeper: Mutex::new(Some(keeper)) })
    }

    /// The library's version, such as `26.7.3`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A connection of its own: settings and the current database of one never touch another.
    pub fn session(&self) -> Result<Session<'_>, EngineError> {
        let slot = connect(self.abi, &self.arguments).ok_or(EngineError::Connect)?;
        Ok(Session { abi: self.abi, slot, engine: PhantomData })
    }

    /// Closes the data folder, once the last session is gone. The engine's idle threads end with the process, as its
    /// header allows; its own `chdb_shutdown`, which would join them, reports failure after any MergeTree was used.
    pub fn close(&self) {
        if let Some(slot) = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // SAFETY: `slot` came from `chdb_connect` and leaves the option here, so it is closed once.
            unsafe { (self.abi.close_conn)(slot) };
        }
    }
}

/// Ends the process at once, with `code`, while the engine still works: its exit handlers would tear down what its
/// threads are using. For the data this is a kill -9, which it is made for.
pub fn abandon(code: i32) -> ! {
    // SAFETY: takes an int by value and runs no handler of this process.
    unsafe { nix::libc::_exit(code) }
}

/// What the engine's parser says about a text, without running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// How many statements it holds; 0 when it does not parse.
    pub statements: u32,
    /// Whether it changes nothing that outlives it.
    pub read_only: bool,
}

/// What a query or an insert did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub result_rows: u64,
    pub read_rows: u64,
    pub read_bytes: u64,
    pub written_rows: u64,
    pub written_bytes: u64,
}

/// One connection. It stays on the thread that opened it.
pub struct Session<'e> {
    abi: &'static Abi,
    slot: Slot,
    engine: PhantomData<&'e Engine>,
}

impl Session<'_> {
    /// What the text would do.
    pub fn read(&mut self, sql: &[u8]) -> Option<Reading> {
        let mut analysis = Analysis { struct_size: size_of::<Analysis>() as u32, ..Analysis::default() };
        // SAFETY: the connection is open as long as `self` lives; the text is given with its length; no database is
        // named (null, 0); `analysis` is a valid structure of the declared size, which the engine fills.
        let state = unsafe {
            (self.abi.classify)(*self.slot, sql.as_ptr().cast(), sql.len(), ptr::null(), 0, &mut analysis)
        };
        (state == 0)
            .then_some(Reading { statements: analysis.statement_count, read_only: analysis.query_class == 0 })
    }

    /// Runs one text. `format` is used where the text names none; `params` are bound to `{name:Type}` by name.
    pub fn query(&mut self, sql: &[u8], format: &str, params: &[(String, String)]) -> Result<Output, String> {
        let params = Params::new(params);
        // SAFETY: the connection is open; every pointer is given with its length, and lives past the call.
        let answer = unsafe { params.call(self.abi.query, *self.slot, sql, format) };
        Output::new(self.abi, answer)
    }

    /// Runs one INSERT whose rows are `data` in `format`; `head` is its text without a FORMAT clause and data. The
    /// counts come back after the engine has committed, and only then.
    pub fn insert(
        &mut self,
        head: &[u8],
        format: &str,
        params: &[(String, String)],
        data: &[u8],
    ) -> Result<Counts, String> {
        let params = Params::new(params);
        // SAFETY: as in `query`; the handle is never null by the engine's contract, and `Stream` checks it.
        let handle = unsafe { params.call(self.abi.insert, *self.slot, head, format) };
        let stream = Stream { abi: self.abi, handle };
        stream.fault()?;
        let taken = data.chunks(INSERT_SLICE_BYTES).all(|slice| {
            // SAFETY: the stream is open; the engine copies the slice before it returns.
            unsafe { (self.abi.insert_append)(stream.handle, slice.as_ptr().cast(), slice.len()) == 0 }
        });
        // SAFETY: the stream is open; `done` joins the engine's worker, finishes the stream once, and gives an answer
        // that `Output` owns. It is called even when a slice was not taken: then it holds the reason.
        let answer = unsafe { (self.abi.insert_done)(stream.handle) };
        let output = Output::new(self.abi, answer)?;
        stream.fault()?;
        if !taken {
            return Err(
                "Code: 117. DB::Exception: the data goes on after its format's end. (INCORRECT_DATA)"
                    .to_owned(),
            );
        }
        Ok(output.counts())
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // SAFETY: `slot` came from `chdb_connect`; it is closed here, once.
        unsafe { (self.abi.close_conn)(self.slot) };
    }
}

/// The rows of a query, in the engine's memory; freed when dropped.
pub struct Output {
    abi: &'static Abi,
    answer: Answer,
}

// SAFETY: an answer is a plain heap object of the engine, detached from its connection and from any thread: the engine
// only reads it (length, buffer) and frees it. It is never mutated after the query has returned.
unsafe impl Send for Output {}
// SAFETY: shared access only reads the length and the buffer, which nothing writes.
unsafe impl Sync for Output {}

impl Output {
    fn new(abi: &'static Abi, answer: Answer) -> Result<Self, String> {
        if answer.is_null() {
            return Err("the engine gave neither a result nor an error".to_owned());
        }
        let output = Self { abi, answer };
        // SAFETY: `answer` is a valid result; its error text, if any, lives as long as it.
        match unsafe { text((abi.answer_error)(answer)) } {
            Some(error) => Err(error),
            None => Ok(output),
        }
    }

    pub fn counts(&self) -> Counts {
        // SAFETY: each takes a valid result and returns a number.
        unsafe {
            Counts {
                result_rows: (self.abi.answer_rows)(self.answer),
                read_rows: (self.abi.answer_storage_rows)(self.answer),
                read_bytes: (self.abi.answer_storage_bytes)(self.answer),
                written_rows: (self.abi.answer_rows_written)(self.answer),
                written_bytes: (self.abi.answer_bytes_written)(self.answer),
            }
        }
    }
}

impl AsRef<[u8]> for Output {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: a valid result; both calls only read it.
        let (start, length) =
            unsafe { ((self.abi.answer_buffer)(self.answer), (self.abi.answer_length)(self.answer)) };
        if start.is_null() || length == 0 {
            return &[];
        }
        // SAFETY: the engine states that `length` bytes from `start` belong to this result, unchanged until it is
        // destroyed, which happens when `self` is dropped.
        unsafe { std::slice::from_raw_parts(start.cast(), length) }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: owned by `self`, destroyed once.
        unsafe { (self.abi.answer_destroy)(self.answer) };
    }
}

struct Stream {
    abi: &'static Abi,
    handle: InsertStream,
}

impl Stream {
    fn fault(&self) -> Result<(), String> {
        if self.handle.is_null() {
            return Err("the engine opened no insert".to_owned());
        }
        // SAFETY: a valid handle; the text lives as long as it. Called before any data is sent or after `done` has
        // joined the engine's worker, so nothing writes the text meanwhile.
        unsafe { text((self.abi.insert_error)(self.handle)) }.map_or(Ok(()), Err)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: owned by `self`; destroying is required on every path and cancels what is not done.
            unsafe { (self.abi.insert_destroy)(self.handle) };
        }
    }
}

/// Query parameters as the C functions take them: four arrays of the same length.
struct Params<'p> {
    names: Vec<*const c_char>,
    name_lengths: Vec<usize>,
    values: Vec<*const c_char>,
    value_lengths: Vec<usize>,
    source: PhantomData<&'p [(String, String)]>,
}

impl<'p> Params<'p> {
    fn new(pairs: &'p [(String, String)]) -> Self {
        Self {
            names: pairs.iter().map(|(name, _)| name.as_ptr().cast()).collect(),
            name_lengths: pairs.iter().map(|(name, _)| name.len()).collect(),
            values: pairs.iter().map(|(_, value)| value.as_ptr().cast()).collect(),
            value_lengths: pairs.iter().map(|(_, value)| value.len()).collect(),
            source: PhantomData,
        }
    }

    /// # Safety
    /// `connection` is open and used by no other thread, and `function` has the meaning that its type documents.
    unsafe fn call<T>(
        &self,
        function: abi::WithParams<T>,
        connection: abi::Handle,
        sql: &[u8],
        format: &str,
    ) -> T {
        // SAFETY: the caller vouches for the connection; the texts and the four arrays are alive and as long as stated.
        unsafe {
            function(
                connection,
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                self.names.as_ptr(),
                self.name_lengths.as_ptr(),
                self.values.as_ptr(),
                self.value_lengths.as_ptr(),
                self.names.len(),
            )
        }
    }
}

fn load(path: &Path) -> Result<&'static Abi, EngineError> {
    // SAFETY: loading runs the library's initialisers. The operator named this file as the engine; chDB's only set
    // up its own state. It is never unloaded (leaked below), so no terminator runs while its threads live.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|error| EngineError::Load { path: path.to_owned(), reason: error.to_string() })?;
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    let lacks = |symbol| EngineError::Symbol { path: path.to_owned(), symbol };

    /// # Safety
    /// `T` is the C function pointer type of `name`.
    unsafe fn symbol<T: Copy>(library: &libloading::Library, name: &'static str) -> Result<T, &'static str> {
        // SAFETY: the caller vouches for the type; a missing symbol is an error, not a null pointer.
        unsafe { library.get::<T>(name) }.map(|found| *found).map_err(|_| name)
    }

    // SAFETY: the types in `abi` are those of chDB's own header for these names, and the oldest version that has
    // them all is checked by the caller.
    let abi = unsafe {
        (|| {
            Ok(Abi {
                version: symbol(library, "chdb_version")?,
                set_signal_handlers_enabled: symbol(library, "chdb_set_signal_handlers_enabled")?,
                connect: symbol(library, "chdb_connect")?,
                close_conn: symbol(library, "chdb_close_conn")?,
                query: symbol(library, "chdb_query_with_params_n")?,
                classify: symbol(library, "chdb_classify_query_n")?,
                insert: symbol(library, "chdb_stream_insert_with_params_n")?,
                insert_append: symbol(library, "chdb_stream_append")?,
                insert_done: symbol(library, "chdb_stream_done")?,
                insert_error: symbol(library, "chdb_stream_insert_error")?,
                insert_destroy: symbol(library, "chdb_destroy_insert_stream")?,
                answer_buffer: symbol(library, "chdb_result_buffer")?,
                answer_length: symbol(library, "chdb_result_length")?,
                answer_error: symbol(library, "chdb_result_error")?,
                answer_rows: symbol(library, "chdb_result_rows_read")?,
                answer_storage_rows: symbol(library, "chdb_result_storage_rows_read")?,
                answer_storage_bytes: symbol(library, "chdb_result_storage_bytes_read")?,
                answer_rows_written: symbol(library, "chdb_result_rows_written")?,
                answer_bytes_written: symbol(library, "chdb_result_bytes_written")?,
                answer_destroy: symbol(library, "chdb_destroy_query_result")?,
            })
        })()
    }
    .map_err(lacks)?;
    Ok(Box::leak(Box::new(abi)))
}

fn connect(abi: &Abi, arguments: &[CString]) -> Option<Slot> {
    let mut argv: Vec<*mut c_char> = Vec::with_capacity(arguments.len() + 1);
    argv.push(c"weir-store".as_ptr().cast_mut());
    argv.extend(arguments.iter().map(|argument| argument.as_ptr().cast_mut()));
    // SAFETY: `argv` holds as many NUL-terminated texts as stated, alive past the call; the engine copies what it
    // keeps and writes to none of them.
    let slot = unsafe { (abi.connect)(argv.len() as c_int, argv.as_mut_ptr()) };
    // SAFETY: a slot that is not null points to the engine's handle, which stays valid until `chdb_close_conn`.
    (!slot.is_null() && unsafe { !(*slot).is_null() }).then_some(slot)
}

fn version_of(abi: &Abi) -> String {
    // SAFETY: no arguments; the engine gives a static NUL-terminated text.
    unsafe { text((abi.version)()) }.unwrap_or_default()
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// # Safety
/// `start` is null or a NUL-terminated text that nothing changes during the call.
unsafe fn text(start: *const c_char) -> Option<String> {
    if start.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for it.
    Some(unsafe { CStr::from_ptr(start) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert_eq!(parse_version("26.7.3"), Some((26, 7)));
        assert!(parse_version("26.10.1") > Some(OLDEST_ENGINE));
        assert!(parse_version("25.12.1") < Some(OLDEST_ENGINE));
        assert_eq!(parse_version("chdb"), None);
    }

    #[test]
    fn a_library_that_is_no_engine_is_refused_by_the_symbol_it_lacks() {
        let found = load(Path::new("libm.so.6"));
        assert!(matches!(found, Err(EngineError::Symbol { symbol: "chdb_version", .. })));
    }
}
