#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| assert!(weir_fuzz::run("evidence", bytes)));
