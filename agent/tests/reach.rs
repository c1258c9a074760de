//! What the hooks reach, on the running kernel: each way in which a process can connect is really gone, in a cgroup and, where
//! needed, a network namespace of its own; and the kernel's counts are held against what the agent would have recorded.
//!
//! Needs root. Run by `cargo nextest run -p weir --test reach`.

#[path = "reach/around.rs"]
mod around;
#[path = "reach/churn.rs"]
mod churn;
#[path = "reach/datagrams.rs"]
mod datagrams;
#[path = "reach/destinations.rs"]
mod destinations;
#[path = "reach/hostile.rs"]
mod hostile;
#[path = "reach/names.rs"]
mod names;
#[path = "reach/scene.rs"]
mod scene;
#[path = "reach/selection.rs"]
mod selection;
// Shared with the tests of the hooks' basics, which use the rest of it.
#[path = "kernel/stage.rs"]
#[allow(dead_code)]
mod stage;
#[path = "reach/told.rs"]
mod told;
#[path = "reach/uring.rs"]
mod uring;
#[path = "reach/ways.rs"]
mod ways;
