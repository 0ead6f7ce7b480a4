#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
use super::*;
use crate::typed;
use pileus_api::server_group::GroupPolicy;
use pileus_api::{
    FlavorSpec, ImageSpec, KeyPairSpec, NetworkSpec, PortSpec, SecurityGroupRuleSpec,
    SecurityGroupSpec, ServerGroupSpec, ServerSpec, SubnetSpec, validation,
};

/// Maps a resource after its type's schema, as the controller does.
fn made(kind: &str, properties: &Value) -> Result<MappedObjects> {
    made_with(kind, properties, &Value::Null)
}

fn made_with(kind: &str, properties: &Value, metadata: &Value) -> Result<MappedObjects> {
    let schema = registry::find(kind).unwrap();
    let given = properties.as_object().unwrap();
    let typed = typed::coerce(&schema.properties, given)?;
    let found = find(kind).unwrap();
    check::refuse(found, &typed)?;
    let Mapping::Objects { map, .. } = found.mapping else {
        panic!("{kind} makes no object");
    };
    let configs = BTreeMap::from([("config-1".to_owned(), "#!/bin/sh".to_owned())]);
    map(&MappingInput {
        name: "stack-it-0123456789",
        namespace: "demo",
        properties: &typed,
        metadata,
        suspended: false,
        configs: &configs,
        find: &|kind, name| {
            (kind == "Subnet" && name == "sub").then(|| json!({"spec": {"network": "net"}}))
        },
        seed: &[],
    })
}

fn settled(kind: &str, properties: &Value, seed: &[u8]) -> Result<MappedValue> {
    let schema = registry::find(kind).unwrap();
    let typed = typed::coerce(&schema.properties, properties.as_object().unwrap())?;
    let Mapping::Values(map) = find(kind).unwrap().mapping else {
        panic!("{kind} makes objects");
    };
    map(&MappingInput {
        name: "stack-it-0123456789",
        namespace: "demo",
        properties: &typed,
        metadata: &Value::Null,
        suspended: false,
        configs: &BTreeMap::from([("config-1".to_owned(), "#!/bin/sh\ntrue".to_owned())]),
        find: &|_, _| None,
        seed,
    })
}

fn spec<T: serde::de::DeserializeOwned>(makes: &MappedObjects) -> T {
    serde_json::from_value(makes.objects.last().unwrap()["spec"].clone().into()).unwrap()
}

#[test]
fn every_supported_type_is_in_the_registry_with_its_properties() {
    for supported in all() {
        let schema = registry::find(supported.name).unwrap_or_else(|| panic!("{}", supported.name));
        for property in supported
            .properties
            .iter()
            .chain(supported.ignored)
            .chain(supported.replaced_on_change)
        {
            assert!(
                schema.properties.contains_key(*property),
                "{}: {property}",
                supported.name
            );
        }
    }
    assert!(find("OS::Quantum::Net").is_some());
    assert!(find("OS::Neutron::Router").is_none());
}

#[test]
fn a_server_keeps_its_user_data_in_a_secret() {
    let makes = made(
        "OS::Nova::Server",
        &json!({
            "image": "shared/debian", "flavor": "m1.small", "key_name": "k", "name": "Web 1",
            "networks": [{"port": "p"}, {"uuid": "net", "fixed_ip": "10.0.0.5"}],
            "security_groups": ["web"], "user_data": "config-1", "metadata": {"a": 1},
            "scheduler_hints": {"group": "g", "different_host": "other"},
        }),
    )
    .unwrap();
    assert_eq!(makes.objects.len(), 2);
    assert_eq!(makes.objects[0]["kind"], "Secret");
    assert_eq!(makes.objects[0]["data"]["userData"], "IyEvYmluL3No");
    assert_eq!(makes.claims, BTreeSet::from(["Port/p".to_owned()]));
    let server: ServerSpec = spec(&makes);
    validation::server(&server).unwrap();
    assert_eq!(server.image.namespace.as_deref(), Some("shared"));
    assert_eq!(server.hostname.as_deref(), Some("web-1"));
    assert_eq!(
        server.networks[1].security_groups,
        Some(vec!["web".to_owned()])
    );
    assert_eq!(server.networks[0].security_groups, None);
    assert_eq!(server.shutdown_timeout_seconds, 60);
    assert_eq!(
        server.user_data_from.unwrap().name,
        "stack-it-0123456789-user-data"
    );
    let constraints = server.placement.unwrap();
    assert_eq!(
        (
            constraints.server_group.as_deref(),
            &constraints.different_host[..]
        ),
        (Some("g"), &["other".to_owned()][..])
    );
    let object = makes.objects.last().unwrap();
    assert_eq!(display_name(object), "Web 1");
}

#[test]
fn unsupported_properties_are_refused_by_name() {
    for (kind, properties, path) in [
        (
            "OS::Nova::Server",
            json!({"image": "i", "flavor": "f", "admin_pass": "x"}),
            "admin_pass",
        ),
        (
            "OS::Nova::Server",
            json!({"image": "i", "flavor": "f", "block_device_mapping_v2": [{"volume_id": "v"}]}),
            "block_device_mapping_v2",
        ),
        ("OS::Nova::Server", json!({"flavor": "f"}), "image"),
        (
            "OS::Nova::Server",
            json!({"image": "i", "flavor": "f", "networks": [{"network": "n", "floating_ip": "x"}]}),
            "networks[0].floating_ip",
        ),
        (
            "OS::Nova::Server",
            json!({"image": "i", "flavor": "f", "scheduler_hints": {"rack": "1"}}),
            "scheduler_hints.rack",
        ),
        ("OS::Nova::KeyPair", json!({"name": "k"}), "public_key"),
        (
            "OS::Nova::ServerGroup",
            json!({"policies": ["affinity", "anti-affinity"]}),
            "policies",
        ),
        (
            "OS::Nova::ServerGroup",
            json!({"policies": ["affinity"], "rules": {"max_server_per_host": 2}}),
            "rules.max_server_per_host",
        ),
        (
            "OS::Nova::ServerGroup",
            json!({"rules": {"max_server_per_host": 0}}),
            "rules.max_server_per_host",
        ),
        (
            "OS::Neutron::Net",
            json!({"admin_state_up": false}),
            "admin_state_up",
        ),
        (
            "OS::Neutron::Subnet",
            json!({"network": "n", "subnetpool": "p"}),
            "subnetpool",
        ),
        (
            "OS::Neutron::Port",
            json!({"network": "n", "qos_policy": "q"}),
            "qos_policy",
        ),
        (
            "OS::Glance::WebImage",
            json!({"location": "https://e.org/i", "container_format": "ovf", "disk_format": "raw"}),
            "container_format",
        ),
        (
            "AWS::EC2::NetworkInterface",
            json!({"SubnetId": "nope"}),
            "SubnetId",
        ),
        (
            "Kubernetes::Object",
            json!({"manifest": {"kind": "ConfigMap"}}),
            "manifest.apiVersion",
        ),
    ] {
        let error = made(kind, &properties).unwrap_err();
        assert_eq!(error.path, path, "{kind}: {error}");
    }
}

#[test]
fn networks_subnets_ports_and_groups_are_valid_objects() {
    let makes = made("OS::Neutron::Net", &json!({"name": "n", "shared": true})).unwrap();
    let net: NetworkSpec = spec(&makes);
    assert_eq!(net.shared_with.unwrap().namespaces, ["*"]);
    let makes = made(
        "OS::Neutron::Subnet",
        &json!({"network_id": "n", "cidr": "10.0.0.0/24", "gateway_ip": "", "enable_dhcp": false,
            "allocation_pools": [{"start": "10.0.0.10", "end": "10.0.0.20"}],
            "host_routes": [{"destination": "10.9.0.0/16", "nexthop": "10.0.0.3"}],
            "dns_nameservers": ["192.0.2.1"]}),
    )
    .unwrap();
    let subnet: SubnetSpec = spec(&makes);
    validation::subnet(&subnet).unwrap();
    assert_eq!(
        (subnet.network.as_str(), subnet.gateway_ip.as_deref()),
        ("n", Some(""))
    );
    let makes = made(
        "OS::Neutron::Port",
        &json!({"network": "other/n", "fixed_ips": [{"subnet_id": "s", "ip_address": "10.0.0.7"}],
            "allowed_address_pairs": [{"ip_address": "10.0.0.0/28"}], "security_groups": []}),
    )
    .unwrap();
    let port: PortSpec = spec(&makes);
    validation::port(&port).unwrap();
    assert_eq!(port.security_groups, Some(vec![]));
    assert_eq!(port.fixed_ips[0].subnet.as_deref(), Some("s"));
    assert_eq!(
        makes.claims,
        BTreeSet::from(["Address/other/n/10.0.0.7".to_owned()])
    );
    let makes = made(
        "OS::Neutron::SecurityGroup",
        &json!({"rules": [{"protocol": "tcp", "port_range_min": 22, "port_range_max": 22},
            {"remote_mode": "remote_group_id"}]}),
    )
    .unwrap();
    let group: SecurityGroupSpec = spec(&makes);
    // Everything may go out, as nothing is said of it.
    assert_eq!(group.rules.len(), 4);
    assert_eq!(
        group.rules[1].rule.remote_group.as_deref(),
        Some("stack-it-0123456789")
    );
    let makes = made(
        "OS::Neutron::SecurityGroupRule",
        &json!({"security_group": "g", "direction": "egress", "remote_ip_prefix": "10.0.0.0/8"}),
    )
    .unwrap();
    let rule: SecurityGroupRuleSpec = spec(&makes);
    assert_eq!(rule.rule.protocol.as_deref(), Some("tcp"));
}

#[test]
fn groups_of_servers_are_valid_objects() {
    let group = |properties| -> ServerGroupSpec {
        let makes = made("OS::Nova::ServerGroup", &properties).unwrap();
        spec(&makes)
    };
    assert_eq!(group(json!({})).policy, GroupPolicy::AntiAffinity);
    let soft = group(json!({"name": "n", "policies": ["soft-affinity"]}));
    assert_eq!(soft.policy, GroupPolicy::SoftAffinity);
    let two = group(json!({"rules": {"max_server_per_host": 2}}));
    assert_eq!(two.max_servers_per_host, Some(2));
    // All or nothing, in a word that Heat leaves alone.
    let together = |least: Value| {
        let metadata = json!({"min_members": least});
        made_with("OS::Nova::ServerGroup", &json!({}), &metadata)
    };
    let least = spec::<ServerGroupSpec>(&together(json!(3)).unwrap()).min_members;
    assert_eq!(least, Some(3));
    for wrong in [json!(1), json!("3"), json!(1001), json!(2.5)] {
        let error = together(wrong).unwrap_err().to_string();
        assert!(error.contains("metadata.min_members"), "{error}");
    }
}

#[test]
fn keys_flavors_and_images_are_valid_objects() {
    let makes = made(
        "OS::Nova::KeyPair",
        &json!({"name": "My_Key", "public_key": "ssh-ed25519 A"}),
    )
    .unwrap();
    assert_eq!(makes.objects[0]["metadata"]["name"], "my-key");
    assert_eq!(spec::<KeyPairSpec>(&makes).public_key, "ssh-ed25519 A");
    let makes = made(
        "OS::Nova::Flavor",
        &json!({"ram": 512, "vcpus": 2, "disk": 10, "is_public": false, "extra_specs": {"hw:x": true}}),
    )
    .unwrap();
    let flavor: FlavorSpec = spec(&makes);
    validation::flavor(&flavor).unwrap();
    assert_eq!(
        (flavor.memory.as_str(), flavor.disk.as_str()),
        ("512Mi", "10Gi")
    );
    assert_eq!(flavor.access.unwrap().namespaces, ["demo"]);
    let makes = made(
        "OS::Glance::WebImage",
        &json!({"location": "http://e.org/i.qcow2", "container_format": "bare", "disk_format": "qcow2",
            "min_disk": 2, "architecture": "x86_64", "visibility": "public",
            "extra_properties": {"os_hash_algo": "sha256", "os_hash_value": "a".repeat(64)}}),
    )
    .unwrap();
    let image: ImageSpec = spec(&makes);
    validation::image(&image).unwrap();
    assert_eq!(image.source.checksum.unwrap().len(), 71);
    assert_eq!(
        image.properties,
        BTreeMap::from([("architecture".into(), "x86_64".into())])
    );
}

#[test]
fn cloudformation_types_become_the_same_objects() {
    let makes = made(
        "AWS::EC2::Instance",
        &json!({"ImageId": "i", "InstanceType": "f", "SubnetId": "sub", "SecurityGroupIds": ["g"],
            "Tags": [{"Key": "a", "Value": "b"}], "UserData": "x"}),
    )
    .unwrap();
    let server: ServerSpec = spec(&makes);
    validation::server(&server).unwrap();
    assert_eq!(server.networks[0].network.as_ref().unwrap().name, "net");
    assert_eq!(server.metadata["a"], "b");
    let makes = made("AWS::EC2::NetworkInterface", &json!({"SubnetId": "sub"})).unwrap();
    assert_eq!(spec::<PortSpec>(&makes).network.name, "net");
    let makes = made(
        "AWS::EC2::Subnet",
        &json!({"VpcId": "vpc", "CidrBlock": "10.0.0.0/24"}),
    )
    .unwrap();
    assert_eq!(spec::<SubnetSpec>(&makes).network, "vpc");
    assert!(made("AWS::EC2::VPC", &json!({"CidrBlock": "10.0.0.0/16"})).is_ok());
    let makes = made(
        "AWS::EC2::SecurityGroup",
        &json!({"GroupDescription": "d", "SecurityGroupIngress": [
            {"IpProtocol": "-1", "FromPort": "-1", "ToPort": "-1", "CidrIp": "0.0.0.0/0"}]}),
    )
    .unwrap();
    let group: SecurityGroupSpec = spec(&makes);
    assert_eq!(group.rules[0].rule.protocol, None);
    assert_eq!(group.rules.len(), 3);
}

#[test]
fn a_manifest_is_not_changed() {
    let manifest =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}, "status": {}});
    let makes = made("Kubernetes::Object", &json!({"manifest": manifest})).unwrap();
    let object = &makes.objects[0];
    assert_eq!(object["metadata"]["name"], "stack-it-0123456789");
    assert_eq!(object["data"]["a"], "b");
    assert!(object.get("status").is_none());
    // What a Secret holds is no attribute: outputs are for all to see.
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "b"}});
    let known = known("Kubernetes::Object", &secret, &|_, _| None);
    assert!(!known.attributes.contains_key("data") && known.attributes.contains_key("metadata"));
}

#[test]
fn attributes_of_a_server_are_as_in_nova() {
    let server = json!({
        "metadata": {"name": "s-1"},
        "spec": {"networks": [{"name": "nic-0", "port": "p"}]},
        "status": {"instanceID": "id", "phase": "Active", "addresses": [
            {"name": "nic-0", "port": "p", "macAddress": "m", "ips": ["10.0.0.5", "fd00::5"]}]},
    });
    let port = |kind: &str, _: &str| {
        (kind == "Port").then(|| json!({"spec": {"network": {"name": "net"}}}))
    };
    let known = known("OS::Nova::Server", &server, &port);
    assert_eq!(known.refid, "s-1");
    assert_eq!(known.attributes["first_address"], "10.0.0.5");
    assert_eq!(
        known.attributes["networks"]["net"],
        json!(["10.0.0.5", "fd00::5"])
    );
    assert_eq!(known.attributes["addresses"]["net"][1]["version"], 6);
    // Every attribute of the type is there, known or not.
    assert_eq!(known.attributes["console_urls"], Value::Null);
}

#[test]
fn random_strings_depend_on_their_seed_and_follow_the_rules() {
    let properties = json!({"length": 20, "character_classes": [
        {"class": "digits", "min": 5}, {"class": "uppercase", "min": 5}],
        "character_sequences": [{"sequence": "%&", "min": 3}]});
    let value = |seed: &[u8]| {
        settled("OS::Heat::RandomString", &properties, seed)
            .unwrap()
            .refid
    };
    let text = value(b"a");
    let text = text.as_str().unwrap();
    assert_eq!(text.len(), 20);
    assert!(
        text.chars().filter(char::is_ascii_digit).count() >= 5,
        "{text}"
    );
    assert!(
        text.chars().filter(|c| "%&".contains(*c)).count() >= 3,
        "{text}"
    );
    assert_eq!(value(b"a"), value(b"a"));
    assert_ne!(value(b"a"), value(b"b"));
    let short = settled(
        "OS::Heat::RandomString",
        &json!({"length": 1, "character_classes": [{"class": "digits", "min": 2}]}),
        b"",
    );
    assert_eq!(short.unwrap_err().path, "length");
}

#[test]
fn values_have_the_given_type() {
    let value = |value: Value, kind: &str| {
        let properties = json!({"value": value, "type": kind});
        let mapped = settled("OS::Heat::Value", &properties, b"");
        mapped.map(|mapped| mapped.attributes["value"].clone())
    };
    let list = json!(["1", "2"]);
    assert_eq!(value(list.clone(), "comma_delimited_list").unwrap(), list);
    assert_eq!(value(json!({"a": 1}), "json").unwrap(), json!({"a": 1}));
    assert_eq!(value(json!("True"), "boolean").unwrap(), true);
    assert_eq!(value(json!("1.5"), "number").unwrap(), json!(1.5));
    assert_eq!(value(json!(3), "string").unwrap(), "3");
    // As in Heat, text is not taken apart: that is for parameters.
    for (text, kind) in [
        ("1,2", "comma_delimited_list"),
        ("{}", "json"),
        ("on", "boolean"),
    ] {
        assert_eq!(
            value(json!(text), kind).unwrap_err().path,
            "value",
            "{text}"
        );
    }
}

#[test]
fn software_configurations_become_texts() {
    let config =
        |kind: &str, properties: Value| settled(kind, &properties, b"").unwrap().config.unwrap();
    let text = config(
        "OS::Heat::CloudConfig",
        json!({"cloud_config": {"hostname": "a"}}),
    );
    assert!(text.starts_with("#cloud-config\nhostname: a"), "{text}");
    let text = config(
        "OS::Heat::MultipartMime",
        json!({"parts": [{"config": "config-1"}, {"config": "#cloud-config\n", "filename": "b"}]}),
    );
    assert!(
        text.starts_with("Content-Type: multipart/mixed; boundary="),
        "{text}"
    );
    assert!(
        text.contains("text/x-shellscript") && text.contains("text/cloud-config"),
        "{text}"
    );
    assert!(text.contains("IyEvYmluL3NoCnRydWU="), "{text}");
}

#[test]
fn delays_and_failures_of_test_resources_are_returned() {
    let mapped = settled("OS::Heat::Delay", &json!({"min_wait": 1.5}), b"").unwrap();
    assert_eq!(mapped.delay_ms, 1500);
    let mapped = settled(
        "OS::Heat::TestResource",
        &json!({"fail": true, "wait_secs": 1, "value": "v"}),
        b"",
    )
    .unwrap();
    assert!(mapped.failure.is_some());
    assert_eq!(
        (mapped.delay_ms, &mapped.attributes["output"]),
        (1000, &json!("v"))
    );
}

#[test]
fn generated_names_are_valid_and_unique() {
    let name = object_name("Shop_1", "uid", "group/0/server", 1);
    assert!(name.starts_with("shop-1-group-0-server-"), "{name}");
    assert_ne!(name, object_name("Shop_1", "uid", "group/0/server", 2));
    assert_ne!(name, object_name("Shop_1", "other", "group/0/server", 1));
    let long = object_name(&"a".repeat(200), "uid", &"b".repeat(200), 1);
    assert_eq!(long.len(), 63);
    assert!(object_name("1", "uid", "a", 1).starts_with("s-"));
}

#[test]
fn properties_that_our_kinds_cannot_update_need_a_replacement() {
    assert_eq!(change("OS::Nova::Server", "flavor"), Change::Replace);
    assert_eq!(change("OS::Nova::Server", "metadata"), Change::InPlace);
    assert_eq!(
        change("OS::Neutron::Port", "security_groups"),
        Change::InPlace
    );
    assert_eq!(change("Kubernetes::Object", "manifest"), Change::InPlace);
    assert_eq!(change("Kubernetes::Object", IDENTITY), Change::Replace);
}

#[test]
fn cloud_config_is_sorted_by_key_and_metadata_keeps_its_order() {
    let given = json!({"cloud_config": {"runcmd": ["x"], "bootcmd": [{"z": 1, "a": 2}]}});
    let config = settled("OS::Heat::CloudConfig", &given, &[])
        .unwrap()
        .config;
    let text = config.unwrap();
    assert!(text.find("bootcmd").unwrap() < text.find("runcmd").unwrap());
    assert!(text.find("a: 2").unwrap() < text.find("z: 1").unwrap());
    let metadata = json!({"m": {"z": 1, "a": [1, 2]}});
    let given = json!({"flavor": "f", "image": "i", "metadata": metadata});
    let server: ServerSpec = spec(&made("OS::Nova::Server", &given).unwrap());
    assert_eq!(server.metadata["m"], r#"{"z": 1, "a": [1, 2]}"#);
}
