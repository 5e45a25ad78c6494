//! What libcgroups leaves undone of a container's resources (OCI runtime-spec 1.2, config-linux.md
//! "Memory"). Pure.

use oci_spec::runtime::LinuxResources;

/// The file of the cgroup that bounds swap.
const SWAP_MAX: &str = "memory.swap.max";

/// Adds to `unified`, which is written last, what has to be written besides.
///
/// `memory.swap` is memory and swap, so with `memory.limit` as much there is no swap. libcgroups takes
/// the difference of nothing for nothing to write, and leaves swap without a bound.
pub fn complete(resources: &mut LinuxResources) {
    let memory = resources.memory().as_ref();
    let limits = memory.and_then(|memory| Some((memory.limit()?, memory.swap()?)));
    if limits.is_some_and(|(limit, swap)| limit == swap && limit > 0) {
        let mut unified = resources.unified().clone().unwrap_or_default();
        let swap = unified.entry(SWAP_MAX.to_owned());
        swap.or_insert_with(|| "0".to_owned());
        resources.set_unified(Some(unified));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn swap_max(resources: Value) -> Option<String> {
        let mut resources = serde_json::from_value(resources).unwrap();
        complete(&mut resources);
        resources.unified().as_ref()?.get(SWAP_MAX).cloned()
    }

    #[test]
    fn as_much_memory_with_swap_as_without_is_no_swap() {
        let memory = |limit, swap| json!({ "memory": { "limit": limit, "swap": swap } });
        let said = json!({ "memory": { "limit": 7, "swap": 7 }, "unified": { SWAP_MAX: "3" } });

        assert_eq!(swap_max(memory(7, 7)).as_deref(), Some("0"));
        assert_eq!(swap_max(memory(7, 9)), None);
        assert_eq!(swap_max(memory(-1, -1)), None);
        assert_eq!(swap_max(json!({ "memory": { "limit": 7 } })), None);
        assert_eq!(swap_max(said).as_deref(), Some("3"));
    }
}
