//! The config drive: a FAT file system labelled `config-2`, which cloud-init's `ConfigDrive`
//! source reads as well as an ISO; Nova's `config_drive_format = vfat`.

use std::io::{Cursor, Write};

use fatfs::{FatType, FormatVolumeOptions, FsOptions};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::data::{Error, GuestData};
use super::fat::{FIXED_TIME, move_dot_entries_first};
use super::metadata::meta_data;
use super::network_data::network_data;

/// Versions of the layout; cloud-init takes the newest that it knows, others `latest`.
const VERSIONS: [&str; 2] = ["2018-08-27", "latest"];

/// The drive's bytes: the same for the same data.
///
/// # Errors
/// When there is too much user data.
pub fn config_drive(data: &GuestData) -> Result<Vec<u8>, Error> {
    data.validate()?;
    let meta = document("meta_data.json", &meta_data(data))?;
    let network = document("network_data.json", &network_data(data))?;
    let vendor = document("vendor_data.json", &json!({}))?;
    let mut files: Vec<(&str, &[u8])> = vec![
        ("meta_data.json", &meta),
        ("network_data.json", &network),
        ("vendor_data.json", &vendor),
        ("vendor_data2.json", &vendor),
    ];
    if let Some(user_data) = &data.user_data {
        files.push(("user_data", user_data));
    }
    image(&files).map_err(Error::Drive)
}

fn document(name: &'static str, value: &Value) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|e| Error::Document(name, e))
}

fn image(files: &[(&str, &[u8])]) -> std::io::Result<Vec<u8>> {
    let content: usize = files.iter().map(|(_, bytes)| bytes.len() + 4096).sum();
    // Room for the tables and directories beside the content, in whole MiB.
    let size = (content * VERSIONS.len() + (512 << 10)).next_multiple_of(1 << 20);
    let mut hash = Sha256::new();
    for (_, bytes) in files {
        hash.update(bytes);
    }
    let hash = hash.finalize();
    let id = u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]]);
    let mut disk = Cursor::new(vec![0; size]);
    let options = FormatVolumeOptions::new()
        .volume_label(*b"config-2   ")
        .volume_id(id)
        .fat_type(if size < (8 << 20) {
            FatType::Fat12
        } else {
            FatType::Fat16
        });
    fatfs::format_volume(&mut disk, options)?;
    {
        let options = FsOptions::new()
            .update_accessed_date(false)
            .time_provider(&FIXED_TIME);
        let fs = fatfs::FileSystem::new(&mut disk, options)?;
        let openstack = fs.root_dir().create_dir("openstack")?;
        for version in VERSIONS {
            let dir = openstack.create_dir(version)?;
            for (name, bytes) in files {
                let mut file = dir.create_file(name)?;
                file.write_all(bytes)?;
                file.flush()?;
            }
        }
    }
    let mut bytes = disk.into_inner();
    move_dot_entries_first(&mut bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Link, LinkNetwork, MAX_USER_DATA};
    use std::io::Read;

    fn sample() -> GuestData {
        GuestData {
            name: "web-1".into(),
            namespace: "default".into(),
            ssh_keys: [("me".to_owned(), "ssh-ed25519 AAAA me\n".to_owned())].into(),
            user_data: Some(b"#!/bin/sh\necho hi\n".to_vec()),
            links: vec![Link {
                id: "0b0e9a3b-7069-4c65-8573-000000000001".into(),
                mac: "fa:16:3e:00:00:01".parse().unwrap(),
                mtu: 1442,
                networks: vec![LinkNetwork {
                    network_id: "n".into(),
                    address: "10.0.0.5".parse().unwrap(),
                    cidr: "10.0.0.0/24".parse().unwrap(),
                    dhcp: true,
                    gateway: None,
                    dns: vec!["10.0.0.2".parse().unwrap()],
                    routes: vec![],
                }],
            }],
            ..GuestData::default()
        }
    }

    fn read(bytes: Vec<u8>, path: &str) -> Vec<u8> {
        let fs = fatfs::FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label(), "config-2");
        let mut out = Vec::new();
        fs.root_dir()
            .open_file(path)
            .unwrap()
            .read_to_end(&mut out)
            .unwrap();
        out
    }

    #[test]
    fn the_drive_contains_metadata_network_and_user_data() {
        let bytes = config_drive(&sample()).unwrap();
        for version in VERSIONS {
            let meta: Value = serde_json::from_slice(&read(
                bytes.clone(),
                &format!("openstack/{version}/meta_data.json"),
            ))
            .unwrap();
            assert_eq!(meta["hostname"], "web-1");
            assert_eq!(meta["public_keys"]["me"], "ssh-ed25519 AAAA me");
            let network: Value = serde_json::from_slice(&read(
                bytes.clone(),
                &format!("openstack/{version}/network_data.json"),
            ))
            .unwrap();
            assert_eq!(network["links"][0]["mtu"], 1442);
            assert_eq!(network["networks"][0]["type"], "ipv4_dhcp");
            assert_eq!(
                read(bytes.clone(), &format!("openstack/{version}/user_data")),
                b"#!/bin/sh\necho hi\n"
            );
        }
    }

    #[test]
    fn the_same_data_makes_the_same_drive() {
        assert_eq!(
            config_drive(&sample()).unwrap(),
            config_drive(&sample()).unwrap()
        );
    }

    #[test]
    fn user_data_is_bounded_and_never_shown() {
        let mut data = sample();
        data.user_data = Some(vec![b'x'; MAX_USER_DATA]);
        let bytes = config_drive(&data).unwrap();
        assert_eq!(
            read(bytes, "openstack/latest/user_data").len(),
            MAX_USER_DATA
        );
        data.user_data = Some(vec![b'x'; MAX_USER_DATA + 1]);
        assert!(matches!(
            config_drive(&data),
            Err(Error::UserDataTooLarge(_))
        ));
        data.user_data = Some(b"hunter2".to_vec());
        assert!(!format!("{data:?}").contains("hunter2"));
    }

    fn fsck(bytes: &[u8]) -> (bool, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drive");
        std::fs::write(&path, bytes).unwrap();
        let out = std::process::Command::new("fsck.vfat")
            .arg("-n")
            .arg(&path)
            .output()
            .expect("fsck.vfat is needed: install `dosfstools`");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        (out.status.success(), text)
    }

    #[test]
    fn small_and_big_drives_pass_the_file_system_check() {
        let mut big = sample();
        big.user_data = Some(vec![b'x'; MAX_USER_DATA]);
        big.metadata = (0..1000)
            .map(|n| (format!("key-{n}"), "ü".repeat(500)))
            .collect();
        for data in [GuestData::default(), sample(), big] {
            let bytes = config_drive(&data).unwrap();
            let (clean, text) = fsck(&bytes);
            assert!(clean, "{text}");
        }
    }

    #[test]
    fn directories_begin_with_themselves_and_their_parent() {
        let mut bytes = config_drive(&sample()).unwrap();
        let before = bytes.clone();
        move_dot_entries_first(&mut bytes);
        assert_eq!(bytes, before, "once is enough");
        let fs = fatfs::FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        for path in ["openstack", "openstack/latest", "openstack/2018-08-27"] {
            let names: Vec<_> = fs
                .root_dir()
                .open_dir(path)
                .unwrap()
                .iter()
                .map(|e| e.unwrap().file_name())
                .collect();
            assert_eq!(names[..2], [".", ".."], "{path}");
            assert!(names.len() > 3, "{names:?}");
        }
    }

    #[test]
    fn what_looks_like_a_directory_in_a_file_stays_as_it_is() {
        let clean = config_drive(&GuestData::default()).unwrap();
        let mut entries = Vec::new();
        for (name, kind) in [(b"A.", 0x0f), (b". ", 0x10), (b"A.", 0x0f), (b"..", 0x10)] {
            let mut entry = [b' '; 32];
            entry[..2].copy_from_slice(name);
            entry[11] = kind;
            entries.extend(entry);
        }
        let mut data = sample();
        data.user_data = Some(entries.repeat(64));
        let bytes = config_drive(&data).unwrap();
        assert_eq!(
            read(bytes, "openstack/latest/user_data"),
            entries.repeat(64)
        );
        assert_eq!(clean, config_drive(&GuestData::default()).unwrap());
    }

    #[test]
    fn a_thousand_metadata_keys_and_a_hundred_links_fit() {
        let mut data = sample();
        data.name = "n".repeat(253);
        data.hostname = Some("h".repeat(63));
        data.metadata = (0..1000)
            .map(|n| (format!("key-{n}"), "\u{1f327} \"quoted\"\n".repeat(20)))
            .collect();
        data.links = vec![data.links[0].clone(); 100];
        let bytes = config_drive(&data).unwrap();
        let meta: Value =
            serde_json::from_slice(&read(bytes.clone(), "openstack/latest/meta_data.json"))
                .unwrap();
        assert_eq!(meta["hostname"], "h".repeat(63));
        assert_eq!(meta["name"].as_str().unwrap().len(), 253);
        assert_eq!(meta["meta"].as_object().unwrap().len(), 1000);
        let network: Value =
            serde_json::from_slice(&read(bytes, "openstack/latest/network_data.json")).unwrap();
        assert_eq!(network["networks"].as_array().unwrap().len(), 100);
        assert_eq!(network["services"].as_array().unwrap().len(), 1);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]
        #[test]
        fn any_metadata_survives(meta in proptest::collection::btree_map("\\PC{0,30}", "\\PC{0,200}", 0..20)) {
            let mut data = sample();
            data.metadata = meta.clone();
            let received: GuestData =
                serde_json::from_str(&serde_json::to_string(&data).unwrap()).unwrap();
            let bytes = config_drive(&received).unwrap();
            let written: Value =
                serde_json::from_slice(&read(bytes, "openstack/latest/meta_data.json")).unwrap();
            proptest::prop_assert_eq!(serde_json::from_value::<std::collections::BTreeMap<String, String>>(written["meta"].clone()).unwrap(), meta);
        }
    }
}
