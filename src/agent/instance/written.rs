//! What the agent has written of an Instance, until its cache has that too.

use std::sync::Arc;

use kube::ResourceExt;

use pileus_api::Instance;

/// The agent's own last write of an Instance. A pass that comes before the watch has told
/// of it must not begin with the object as it was, or it writes the same again.
#[derive(Debug, Default)]
pub struct Written {
    /// Versions of the object that are older.
    older: Vec<String>,
    newest: Option<Arc<Instance>>,
}

impl Written {
    /// The object, or what was written since this version of it.
    pub fn or_newer(&mut self, object: &Arc<Instance>) -> Arc<Instance> {
        let version = object.resource_version().unwrap_or_default();
        if let Some(newest) = &self.newest
            && self.older.contains(&version)
        {
            return newest.clone();
        }
        *self = Self::default();
        object.clone()
    }

    /// Remembers a write that was made from `object`.
    pub fn note(&mut self, object: &Instance, newest: Instance) {
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
    fn own_writes_are_seen_before_the_watch_tells_of_them() {
        let [first, second, third, other] = ["1", "2", "3", "4"].map(version);
        let mut written = Written::default();
        assert_eq!(written.or_newer(&first), first);
        written.note(&first, (*second).clone());
        written.note(&second, (*third).clone());
        for behind in [&first, &second] {
            assert_eq!(written.or_newer(behind), third);
        }
        assert_eq!(written.or_newer(&other), other);
        assert_eq!(
            written.or_newer(&first),
            first,
            "what is known is forgotten"
        );
    }
}
