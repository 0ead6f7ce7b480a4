//! What can be said of a spec without looking at other objects, in words for people.
//! Repeats the CEL of the types, because old API servers have none.

use super::{FlavorSpec, ImageSpec};
use crate::model::Bytes;

/// Checks a Flavor.
///
/// # Errors
/// A message that names the field and the value.
pub fn flavor(spec: &FlavorSpec) -> Result<(), String> {
    quantity("spec.memory", &spec.memory)?;
    quantity("spec.disk", &spec.disk)
}

/// Checks an Image.
///
/// # Errors
/// A message that names the field and the value.
pub fn image(spec: &ImageSpec) -> Result<(), String> {
    for (field, value) in [
        ("spec.minDisk", &spec.min_disk),
        ("spec.minMemory", &spec.min_memory),
    ] {
        if let Some(value) = value {
            quantity(field, value)?;
        }
    }
    let sources = [
        ("spec.source", Some(&spec.source)),
        ("spec.kernel", spec.kernel.as_ref()),
        ("spec.initrd", spec.initrd.as_ref()),
    ];
    for (field, source) in sources {
        let Some(source) = source else { continue };
        if source.url.starts_with("http://") && source.checksum.is_none() {
            return Err(format!(
                "{field}.url with http:// needs {field}.checksum beside it"
            ));
        }
    }
    if spec.kernel.is_none() && (spec.initrd.is_some() || spec.kernel_command_line.is_some()) {
        return Err("spec.initrd and spec.kernelCommandLine need spec.kernel beside them".into());
    }
    Ok(())
}

fn quantity(field: &str, value: &str) -> Result<(), String> {
    Bytes::parse(value)
        .map(drop)
        .map_err(|e| format!("{field}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_field_and_the_value() {
        let spec = FlavorSpec {
            memory: "1 GB".into(),
            disk: "0".into(),
            ..FlavorSpec::default()
        };
        let message = flavor(&spec).unwrap_err();
        assert!(
            message.contains("spec.memory") && message.contains("1 GB"),
            "{message}"
        );
    }
}
