//! The declarations of libchdb.so that Weir uses, written by hand.
//!
//! The npm package ships the library without its header, and a plain build of Weir must need neither libclang
//! nor the library itself; so these are the C signatures as the engine's own `chdb.h` (26.7) states them, resolved
//! by name when the program starts. Nothing here is called, and nothing here may be added that `engine.rs`
//! does not call: each line is one more thing that an engine of another version can lack.

use std::ffi::{c_char, c_int, c_void};

/// `chdb_connection`: the engine's own handle of one connection.
pub(super) type Handle = *mut c_void;
/// `chdb_connection *`: what `chdb_connect` gives back and `chdb_close_conn` takes.
pub(super) type Slot = *mut Handle;
/// `chdb_result *`.
pub(super) type Answer = *mut c_void;
/// `chdb_insert_stream`.
pub(super) type InsertStream = *mut c_void;
/// `chdb_state`: 0 is success.
pub(super) type State = c_int;

/// `chdb_query_analysis_v1`; the caller sets `struct_size`.
#[repr(C)]
#[derive(Default)]
pub(super) struct Analysis {
    pub(super) struct_size: u32,
    pub(super) statement_count: u32,
    pub(super) flags: u32,
    pub(super) query_class: u32,
}

const _: () = assert!(size_of::<Analysis>() == 16);

/// (connection, text, its length, format, its length, names, name lengths, values, value lengths, count)
pub(super) type WithParams<T> = unsafe extern "C" fn(
    Handle,
    *const c_char,
    usize,
    *const c_char,
    usize,
    *const *const c_char,
    *const usize,
    *const *const c_char,
    *const usize,
    usize,
) -> T;

/// The engine's functions, resolved.
pub(super) struct Abi {
    pub(super) version: unsafe extern "C" fn() -> *const c_char,
    pub(super) set_signal_handlers_enabled: unsafe extern "C" fn(c_int),
    pub(super) connect: unsafe extern "C" fn(c_int, *mut *mut c_char) -> Slot,
    pub(super) close_conn: unsafe extern "C" fn(Slot),
    pub(super) query: WithParams<Answer>,
    pub(super) classify:
        unsafe extern "C" fn(Handle, *const c_char, usize, *const c_char, usize, *mut Analysis) -> State,
    pub(super) insert: WithParams<InsertStream>,
    pub(super) insert_append: unsafe extern "C" fn(InsertStream, *const c_void, usize) -> State,
    pub(super) insert_done: unsafe extern "C" fn(InsertStream) -> Answer,
    pub(super) insert_error: unsafe extern "C" fn(InsertStream) -> *const c_char,
    pub(super) insert_destroy: unsafe extern "C" fn(InsertStream),
    pub(super) answer_buffer: unsafe extern "C" fn(Answer) -> *mut c_char,
    pub(super) answer_length: unsafe extern "C" fn(Answer) -> usize,
    pub(super) answer_error: unsafe extern "C" fn(Answer) -> *const c_char,
    pub(super) answer_rows: unsafe extern "C" fn(Answer) -> u64,
    pub(super) answer_storage_rows: unsafe extern "C" fn(Answer) -> u64,
    pub(super) answer_storage_bytes: unsafe extern "C" fn(Answer) -> u64,
    pub(super) answer_rows_written: unsafe extern "C" fn(Answer) -> u64,
    pub(super) answer_bytes_written: unsafe extern "C" fn(Answer) -> u64,
    pub(super) answer_destroy: unsafe extern "C" fn(Answer),
}
