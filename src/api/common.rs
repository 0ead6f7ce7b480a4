//! Shapes that several kinds share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use pileus_values::quantity::GIB;

/// Reference to an object that may live in another namespace; the provider's
/// `sharedWith` gives the right to use it from there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectName {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Namespace of the object; the referrer's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the Secret's data.
    #[serde(default = "default_user_data_key")]
    pub key: String,
}

fn default_user_data_key() -> String {
    "userData".to_owned()
}

/// Who else may use an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sharing {
    /// Namespaces by name; `*` stands for all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub namespaces: Vec<String>,
}

impl Sharing {
    /// Whether objects of `namespace` may use what is shared so.
    #[must_use]
    pub fn allows(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|n| n == "*" || n == namespace)
    }
}

/// What a Server takes of a host, as a user writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Virtual processors.
    #[schemars(range(min = 1, max = 512))]
    pub vcpus: i32,
    /// Memory of the guest, a quantity such as `512Mi`.
    pub memory: String,
    /// Size of the root disk, a quantity such as `20Gi`; when `0` that of the
    /// image's own disk, rounded up to whole GiB and counted as such.
    #[serde(default = "zero")]
    pub disk: String,
}

fn zero() -> String {
    "0".to_owned()
}

/// What a Server takes of a host, in whole units; what a placement claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Virtual processors.
    pub vcpus: i64,
    /// Memory of the guest in MiB, without QEMU's own overhead.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: i64,
    /// Size of the root disk in GiB.
    #[serde(rename = "diskGiB")]
    pub disk_gib: i64,
}

impl Claim {
    /// What is taken once the size of the image's disk is known, in bytes: a root disk of 0 is as
    /// big as that, in whole GiB.
    #[must_use]
    pub fn with_image(self, virtual_size: Option<i64>) -> Self {
        let of_image = virtual_size.unwrap_or(0).max(0);
        let gib = of_image / GIB + i64::from(of_image % GIB > 0);
        Self {
            disk_gib: if self.disk_gib > 0 {
                self.disk_gib
            } else {
                gib
            },
            ..self
        }
    }

    /// What a host that has this in all gives out.
    #[must_use]
    pub fn given(self, reserved: Self, ratios: Ratios) -> Self {
        Self {
            vcpus: given_out(self.vcpus, reserved.vcpus, ratios.cpu),
            memory_mib: given_out(self.memory_mib, reserved.memory_mib, ratios.memory),
            disk_gib: given_out(self.disk_gib, reserved.disk_gib, ratios.disk),
        }
    }

    /// Of which resources this, as the reservation of a host that has `capacity` in all, leaves
    /// nothing.
    #[must_use]
    pub fn exhausts(self, capacity: Self) -> Vec<Exhausted> {
        let parts = [
            ("vcpus", None, "vCPUs", self.vcpus, capacity.vcpus),
            (
                "memoryMiB",
                Some("--reserved-memory-mib"),
                "MiB memory",
                self.memory_mib,
                capacity.memory_mib,
            ),
            (
                "diskGiB",
                Some("--reserved-disk-gib"),
                "GiB disk",
                self.disk_gib,
                capacity.disk_gib,
            ),
        ];
        let exhausted = parts.into_iter().enumerate();
        let exhausted =
            exhausted.filter(|(_, (.., reserved, total))| *reserved > 0 && reserved >= total);
        exhausted
            .map(|(part, (field, option, unit, reserved, total))| Exhausted {
                part,
                field,
                option,
                unit,
                reserved,
                total,
            })
            .collect()
    }
}

/// A resource of a host of which its reservation leaves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// Processors (0), memory (1) or disk (2).
    pub part: usize,
    /// Its field of a [`Claim`].
    pub field: &'static str,
    /// The agent's option that reserves it, if there is one.
    pub option: Option<&'static str>,
    /// What is counted, to follow a figure.
    pub unit: &'static str,
    /// How much is reserved.
    pub reserved: i64,
    /// How much there is in all.
    pub total: i64,
}

impl std::fmt::Display for Exhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} {}", self.reserved, self.total, self.unit)
    }
}

/// How much of a resource is given out, by Placement's formula: (total − reserved) ×
/// allocation ratio, which is in thousandths.
#[must_use]
pub fn given_out(total: i64, reserved: i64, ratio: i64) -> i64 {
    let base = i128::from(total.saturating_sub(reserved).max(0));
    let given = base * i128::from(ratio.max(0)) / 1000;
    i64::try_from(given).unwrap_or(i64::MAX)
}

/// How often resources may be given out, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ratios {
    /// Processors.
    pub cpu: i64,
    /// Memory.
    pub memory: i64,
    /// Disk.
    pub disk: i64,
}

impl Default for Ratios {
    /// Nova's `cpu_allocation_ratio` of four, everything else once.
    fn default() -> Self {
        Self {
            cpu: 4000,
            memory: 1000,
            disk: 1000,
        }
    }
}

/// Free-form properties: extra specs of a flavor, properties of an image.
pub type Properties = BTreeMap<String, String>;

/// A reference whose target has been seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// Name of the target.
    pub name: String,
    /// uid of the target when it was resolved.
    pub uid: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_zero_takes_what_the_image_has() {
        let claim = |disk_gib| Claim {
            disk_gib,
            ..Claim::default()
        };
        for (disk, image, taken) in [
            (0, None, 0),
            (0, Some(1), 1),
            (0, Some(GIB), 1),
            (0, Some(GIB + 1), 2),
            (0, Some(10 << 40), 10_240),
            (0, Some(i64::MAX), 8_589_934_592),
            (0, Some(-1), 0),
            (20, Some(10 << 40), 20),
        ] {
            assert_eq!(claim(disk).with_image(image), claim(taken), "{image:?}");
        }
    }
}
