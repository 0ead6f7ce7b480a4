//! `Image`: a disk image that Servers are made from, as in Glance.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::Sharing;

/// A disk image. Its bytes are fixed by the first import; every host must get the same.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "Image",
    plural = "images",
    shortname = "img",
    category = "pileus",
    namespaced,
    status = "ImageStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Format", type_ = "string", json_path = ".spec.diskFormat"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".status.size"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Verified",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Verified\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].message"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.source == oldSelf.source && self.diskFormat == oldSelf.diskFormat").message(Message::Message("source and diskFormat cannot be changed: make a new Image".into())))]
#[x_kube(validation = Rule::new("!has(self.initrd) || has(self.kernel)").message(Message::Message("initrd needs a kernel beside it".into())))]
#[x_kube(validation = Rule::new("!has(self.kernelCommandLine) || has(self.kernel)").message(Message::Message("kernelCommandLine needs a kernel beside it".into())))]
pub struct ImageSpec {
    /// Where the disk comes from.
    pub source: Source,
    /// Format of the disk.
    #[serde(default)]
    pub disk_format: DiskFormat,
    /// Kernel to boot directly, as Glance's `kernel_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Source>,
    /// Initial RAM disk for `kernel`, as Glance's `ramdisk_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Source>,
    /// Command line for `kernel`, as Glance's `os_command_line`; `root=/dev/vda
    /// console=ttyS0` when absent, as in Nova.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub kernel_command_line: Option<String>,
    /// Smallest root disk, a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_disk: Option<String>,
    /// Smallest memory, a quantity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_memory: Option<String>,
    /// Glance's properties: `architecture`, `hw_*`, `os_*`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// Other namespaces that may make Servers from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_with: Option<Sharing>,
}

/// Where bytes come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!self.url.startsWith('http://') || has(self.checksum)").message(Message::Message("a source with http:// needs a checksum".into())))]
pub struct Source {
    /// `https://`, `http://` (with a checksum) or `file://` (below the directory that the
    /// hosts' configuration allows).
    #[schemars(
        length(min = 8, max = 4096),
        regex(pattern = r"^(https|http|file)://[^\x00-\x1f\x7f]+$")
    )]
    pub url: String,
    /// `sha256:…` or `sha512:…` in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(sha256:[0-9a-fA-F]{64}|sha512:[0-9a-fA-F]{128})$"))]
    pub checksum: Option<String>,
}

/// Formats of disks that Glance knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// QEMU's format, version 2 or 3.
    #[default]
    Qcow2,
    /// Plain bytes.
    Raw,
    /// VMware's; refused until images are converted.
    Vmdk,
    /// Virtual PC's; refused until images are converted.
    Vhd,
    /// Hyper-V's; refused until images are converted.
    Vhdx,
    /// VirtualBox's; refused until images are converted.
    Vdi,
    /// Optical disks; refused until they can be attached.
    Iso,
}

impl DiskFormat {
    /// The word as it stands in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Iso => "iso",
        }
    }
}

/// What hosts found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `sha256:…` of the bytes, fixed by the checksum or by the first import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Where the bytes came from when the digest was fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Size of the file in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// Size of the disk in the image, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<i64>,
    /// Conditions: Ready, Verified.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
