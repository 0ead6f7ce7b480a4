//! `OS::Glance`: Images.

use super::{
    FindObject, MappedObjects, Mapping, MappingInput, SupportedType, as_texts, display_name,
};
use crate::value::{Map, Value, json};
use crate::{Error, Result};
use pileus_api::image::{DiskFormat, Source};
use pileus_api::{ImageSpec, Sharing};

pub(super) const TYPES: &[SupportedType] = &[SupportedType {
    name: "OS::Glance::WebImage",
    mapping: Mapping::Objects {
        kind: "Image",
        map: image,
        attributes: image_attributes,
    },
    properties: &[
        "architecture",
        "container_format",
        "disk_format",
        "extra_properties",
        "location",
        "members",
        "min_disk",
        "min_ram",
        "name",
        "os_distro",
        "os_version",
        "visibility",
    ],
    ignored: &["owner", "tags"],
    replaced_on_change: &[],
    by_account: false,
}];

fn image(request: &MappingInput<'_>) -> Result<MappedObjects> {
    if request
        .text("container_format")
        .is_some_and(|format| format != "bare")
    {
        return Err(Error::at("container_format", "only bare can be had"));
    }
    let format = request.text("disk_format").unwrap_or_default();
    let disk_format = [
        DiskFormat::Qcow2,
        DiskFormat::Raw,
        DiskFormat::Vmdk,
        DiskFormat::Vhd,
        DiskFormat::Vhdx,
        DiskFormat::Vdi,
        DiskFormat::Iso,
    ]
    .into_iter()
    .find(|known| known.as_str() == format)
    .ok_or_else(|| Error::at("disk_format", format!("`{format}` cannot be used")))?;
    let mut properties = as_texts(request.get("extra_properties"));
    for name in ["architecture", "os_distro", "os_version"] {
        if let Some(value) = request.text(name) {
            properties.insert(name.to_owned(), value);
        }
    }
    // Where Glance keeps the digest of an image's bytes.
    let algorithm = properties.remove("os_hash_algo");
    let digest = properties.remove("os_hash_value");
    let checksum = digest.map(|digest| {
        let algorithm = algorithm.unwrap_or_else(|| "sha512".to_owned());
        format!("{algorithm}:{digest}")
    });
    let size = |name: &str, unit: &str| {
        let size = request.integer(name);
        (size > 0).then(|| format!("{size}{unit}"))
    };
    let mut namespaces = request.texts("members");
    if request
        .text("visibility")
        .is_some_and(|v| v == "public" || v == "community")
    {
        namespaces = vec!["*".to_owned()];
    }
    let spec = ImageSpec {
        source: Source {
            url: request.required("location")?,
            checksum,
        },
        disk_format,
        min_disk: size("min_disk", "Gi"),
        min_memory: size("min_ram", "Mi"),
        properties,
        shared_with: (!namespaces.is_empty()).then_some(Sharing { namespaces }),
        ..ImageSpec::default()
    };
    Ok(MappedObjects {
        objects: vec![request.object("Image", request.name, &spec)?],
        ..MappedObjects::default()
    })
}

fn image_attributes(image: &Value, _: FindObject<'_>) -> Map {
    let mut attributes = Map::new();
    let shown = json!({
        "id": image["metadata"]["name"],
        "name": display_name(image),
        "size": image["status"]["size"],
        "status": "active",
    });
    attributes.insert("show", shown);
    attributes
}
