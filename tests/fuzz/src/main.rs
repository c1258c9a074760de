//! `cargo run -p weir-fuzz -- TARGET FILE...`: runs a target over files, as to see again what a guided run has found.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use weir_fuzz::TARGETS;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let name = arguments.next().unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("usage: cargo run -p weir-fuzz -- TARGET FILE...\nThe targets are {}.", names.join(", "));
        return ExitCode::from(2);
    };
    for file in arguments {
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) => {
                eprintln!("error: reading {}: {error}", file.display());
                return ExitCode::from(2);
            }
        };
        println!("{}: {:?}", file.display(), bytes.escape_ascii().to_string());
        (target.run)(&bytes);
        println!("{}: holds", file.display());
    }
    ExitCode::SUCCESS
}
