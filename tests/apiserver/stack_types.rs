//! Resource types on a real API server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams};
use pileus_api::{Flavor, Image, Network, Port, SecurityGroup, Server, ServerGroup, Stack, Subnet};
use pileus_tests::stacks::{Cloud, object_name, output, resources};
use serde_json::json;

const CFN: &str = "AWSTemplateFormatVersion: '2010-09-09'
Resources:
  vpc: {Type: 'AWS::EC2::VPC', Properties: {CidrBlock: 10.30.0.0/16}}
  subnet: {Type: 'AWS::EC2::Subnet', Properties: {VpcId: {Ref: vpc}, CidrBlock: 10.30.1.0/24}}
  group:
    Type: AWS::EC2::SecurityGroup
    Properties:
      GroupDescription: web
      VpcId: {Ref: vpc}
      SecurityGroupIngress:
        - {IpProtocol: tcp, FromPort: '80', ToPort: '80', CidrIp: 0.0.0.0/0}
        - {IpProtocol: '-1', CidrIp: 10.30.0.0/16}
  nic:
    Type: AWS::EC2::NetworkInterface
    Properties: {SubnetId: {Ref: subnet}, GroupSet: [{Ref: group}], PrivateIpAddress: 10.30.1.7}
  web:
    Type: AWS::EC2::Instance
    Properties:
      ImageId: tiny
      InstanceType: small
      NetworkInterfaces: [{Ref: nic}]
      UserData: {'Fn::Base64': {'Fn::Join': ['; ', ['#!/bin/sh', 'echo hello']]}}
      Tags: [{Key: role, Value: web}]
  inside:
    Type: AWS::EC2::Instance
    Properties: {ImageId: tiny, InstanceType: small, SubnetId: {Ref: subnet}, SecurityGroupIds: [{Ref: group}]}
Outputs:
  address: {Value: {'Fn::GetAtt': [web, PrivateIp]}}
  nic: {Value: {'Fn::GetAtt': [nic, PrivateIpAddress]}}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_cloudformation_template_creates_servers_and_networks() {
    let cloud = Cloud::start().await;
    cloud.stack("cfn", json!({"template": CFN})).await;
    let made = cloud.becomes("cfn", "CREATE_COMPLETE").await;
    assert_eq!(output(&made, "address"), Some(json!("10.20.0.9")));
    assert_eq!(output(&made, "nic"), Some(json!("10.30.1.7")));
    let rows = resources(&made);
    let name = |resource: &str| object_name(&rows[resource]);

    let subnet = cloud.api::<Subnet>().get(&name("subnet")).await.unwrap();
    assert_eq!(subnet.spec.network, name("vpc"));
    assert_eq!(subnet.spec.cidr, "10.30.1.0/24");
    let group = cloud
        .api::<SecurityGroup>()
        .get(&name("group"))
        .await
        .unwrap();
    let group = serde_json::to_value(&group).unwrap();
    assert_eq!(group["spec"]["rules"][0]["portRangeMin"], 80, "{group:#}");
    assert!(group["spec"]["rules"][1]["protocol"].is_null(), "{group:#}");
    let port = cloud.api::<Port>().get(&name("nic")).await.unwrap();
    assert_eq!(port.spec.network.name, name("vpc"));
    assert_eq!(port.spec.security_groups, Some(vec![name("group")]));
    let web = cloud.api::<Server>().get(&name("web")).await.unwrap();
    assert_eq!(web.spec.networks[0].port, Some(name("nic")));
    assert_eq!(web.spec.metadata["role"], "web");
    let data = web.spec.user_data_from.unwrap();
    let secret = cloud.api::<Secret>().get(&data.name).await.unwrap();
    assert_eq!(secret.data.unwrap()["userData"].0, b"#!/bin/sh; echo hello");
    let inside = cloud.api::<Server>().get(&name("inside")).await.unwrap();
    let network = inside.spec.networks[0].network.clone().unwrap();
    assert_eq!(network.name, name("vpc"));
    assert_eq!(cloud.count::<Network>().await, 1);
    cloud.delete("cfn").await;
}

const MIME: &str = "heat_template_version: 2021-04-16
resources:
  image:
    type: OS::Glance::WebImage
    properties:
      name: web image
      location: https://images.example/web.qcow2
      disk_format: qcow2
      container_format: bare
      min_ram: 64
      extra_properties: {hw_disk_bus: virtio}
  boot: {type: OS::Heat::CloudConfig, properties: {cloud_config: {packages: [nginx]}}}
  script: {type: OS::Heat::SoftwareConfig, properties: {config: '#!/bin/sh'}}
  all:
    type: OS::Heat::MultipartMime
    properties: {parts: [{config: {get_resource: boot}}, {config: {get_resource: script}}]}
  server:
    type: OS::Nova::Server
    properties:
      image: {get_resource: image}
      flavor: small
      user_data_format: RAW
      user_data: {get_resource: all}
";

#[tokio::test(flavor = "multi_thread")]
async fn an_image_and_multipart_user_data_are_created() {
    let cloud = Cloud::start().await;
    cloud.stack("mime", json!({"template": MIME})).await;
    let made = cloud.becomes("mime", "CREATE_COMPLETE").await;
    let rows = resources(&made);
    let image = cloud.api::<Image>().get(&object_name(&rows["image"])).await;
    let image = image.unwrap();
    assert_eq!(image.spec.source.url, "https://images.example/web.qcow2");
    assert_eq!(image.spec.min_memory.as_deref(), Some("64Mi"));
    assert_eq!(image.spec.properties["hw_disk_bus"], "virtio");
    let server = cloud
        .api::<Server>()
        .get(&object_name(&rows["server"]))
        .await;
    let server = server.unwrap();
    assert_eq!(server.spec.image.name, object_name(&rows["image"]));
    let data = server.spec.user_data_from.unwrap();
    let secret = cloud.api::<Secret>().get(&data.name).await.unwrap();
    let bytes = secret.data.unwrap()["userData"].0.clone();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("Content-Type: multipart/mixed"), "{text}");
    assert!(text.contains("text/cloud-config"), "{text}");
    assert!(text.contains("text/x-shellscript"), "{text}");
    cloud.delete("mime").await;
    assert_eq!(cloud.count::<Image>().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flavor_is_created_only_with_the_accounts_rights() {
    let cloud = Cloud::start().await;
    cloud.account("maker", "", &["configmaps"]).await;
    let template = "heat_template_version: 2021-04-16
resources:
  size: {type: OS::Nova::Flavor, properties: {name: tailored, ram: 96, vcpus: 1, disk: 2}}
  server: {type: OS::Nova::Server, properties: {image: tiny, flavor: {get_resource: size}}}
";
    let spec = json!({"template": template, "serviceAccountName": "maker"});
    cloud.stack("sized", spec).await;
    let failed = cloud.becomes("sized", "CREATE_FAILED").await;
    let why = resources(&failed)["size"].reason.clone().unwrap();
    assert!(why.contains("system:serviceaccount:demo:maker"), "{why}");
    assert!(why.contains("flavors"), "{why}");
    let flavors: Api<Flavor> = Api::all(cloud.server.client());
    assert!(flavors.get_opt("tailored").await.unwrap().is_none());
    assert_eq!(cloud.count::<Server>().await, 0);

    cloud.account("sizer", "pileus.dev", &["flavors"]).await;
    let again = json!({"serviceAccountName": "sizer", "healRequestedAt": "1"});
    cloud.change("sized", again).await;
    let made: Stack = cloud.becomes("sized", "UPDATE_COMPLETE").await;
    let flavor = flavors.get("tailored").await.unwrap();
    assert_eq!(flavor.spec.memory, "96Mi");
    assert_eq!(resources(&made)["size"].physical_id, flavor.metadata.uid);
    cloud.delete("sized").await;
    assert!(flavors.get_opt("tailored").await.unwrap().is_none());
}

/// Every kind that the role makes with its own rights is created, updated and deleted with the
/// rights in `config/rbac/stacks.yaml`, in a namespace that has opted in.
#[tokio::test(flavor = "multi_thread")]
async fn the_roles_own_rights_are_enough_to_create_update_and_delete() {
    let cloud = Cloud::start_with_the_roles_rights().await;
    cloud.opt_in().await;
    let template = |members: u8, name: &str| {
        format!(
            "heat_template_version: 2021-04-16
resources:
  key: {{type: OS::Nova::KeyPair, properties: {{name: ops, public_key: ssh-ed25519 AAAA}}}}
  net: {{type: OS::Neutron::Net, properties: {{name: {name}}}}}
  sub: {{type: OS::Neutron::Subnet, properties: {{name: {name}, network: {{get_resource: net}}, cidr: 10.0.0.0/24}}}}
  walls: {{type: OS::Neutron::SecurityGroup, properties: {{name: {name}}}}}
  port: {{type: OS::Neutron::Port, properties: {{name: {name}, network: {{get_resource: net}}}}}}
  group:
    type: OS::Nova::ServerGroup
    metadata: {{min_members: {members}}}
    properties: {{policies: [affinity]}}
  server:
    type: OS::Nova::Server
    properties:
      name: {name}
      image: tiny
      flavor: small
      networks: [{{port: {{get_resource: port}}}}]
      user_data: hello
      scheduler_hints: {{group: {{get_resource: group}}}}
"
        )
    };
    cloud
        .stack("own", json!({"template": template(2, "one")}))
        .await;
    let made = cloud.becomes("own", "CREATE_COMPLETE").await;
    let group = object_name(&resources(&made)["group"]);
    let groups = cloud.api::<ServerGroup>();
    let before = groups.get(&group).await.unwrap();
    assert_eq!(before.spec.min_members, Some(2));

    let change = json!({"template": template(3, "two")});
    cloud.change("own", change).await;
    let changed = cloud.becomes("own", "UPDATE_COMPLETE").await;
    assert_eq!(object_name(&resources(&changed)["group"]), group);
    let after = groups.get(&group).await.unwrap();
    assert_eq!(after.metadata.uid, before.metadata.uid);
    assert_eq!(after.spec.min_members, Some(3));
    cloud.delete("own").await;
    let left = groups.list(&ListParams::default()).await.unwrap();
    assert!(left.items.is_empty());
}
