//! The status of an Instance that the agent has written, until its watch delivers it.

use std::sync::Arc;

use kube::ResourceExt;

use pileus_api::Instance;

/// The agent's own last write of an Instance. A pass that begins before the watch delivers it
/// must not start from the older object, or it writes the same again.
#[derive(Debug, Default)]
pub struct OwnWrites {
    /// Versions of the object that the write replaced.
    older: Vec<String>,
    newest: Option<Arc<Instance>>,
}

impl OwnWrites {
    /// The object, or the newer one that was written since this version.
    pub fn latest(&mut self, object: &Arc<Instance>) -> Arc<Instance> {
        let version = object.resource_version().unwrap_or_default();
        if let Some(newest) = &self.newest
            && self.older.contains(&version)
        {
            return newest.clone();
        }
        *self = Self::default();
        object.clone()
    }

    /// Records a write that was made from `object`.
    pub fn record(&mut self, object: &Instance, newest: Instance) {
        self.older.extend(object.resource_version());
        self.newest = Some(Arc::new(newest));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn version(version: &str) -> Arc<Instance> {
        let object = json!({"apiVersion": "pileus.dev/v1alpha1", "kind": "Instance",
            "metadata": {"name": "i", "resourceVersion": version},
            "spec": {"server": {"namespace": "ns", "name": "s", "uid": "u"}, "host": "h",
                "epoch": 1, "instanceID": "x",
                "claim": {"vcpus": 1, "memoryMiB": 1, "diskGiB": 1},
                "image": {"name": "i", "uid": "i", "diskFormat": "raw",
                    "disk": {"url": "https://x"}}}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn own_writes_count_before_the_watch_delivers_them() {
        let [first, second, third, other] = ["1", "2", "3", "4"].map(version);
        let mut writes = OwnWrites::default();
        assert_eq!(writes.latest(&first), first);
        writes.record(&first, (*second).clone());
        writes.record(&second, (*third).clone());
        for behind in [&first, &second] {
            assert_eq!(writes.latest(behind), third);
        }
        assert_eq!(writes.latest(&other), other);
        assert_eq!(writes.latest(&first), first, "what is known is forgotten");
    }
}
