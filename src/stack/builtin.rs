//! Templates of three CloudFormation types that Heat builds from other types, reduced to the
//! necessary.

/// `AWS::CloudWatch::Alarm` is one alarm.
const ALARM: &str = "
HeatTemplateFormatVersion: '2012-12-12'
Resources:
  __alarm__:
    Type: OS::Aodh::Alarm
    Properties: {meter_name: meter, threshold: 0}
";

/// `AWS::RDS::DBInstance` is an instance that says when its database is there.
const DATABASE: &str = "
HeatTemplateFormatVersion: '2012-12-12'
Resources:
  ServerSecurityGroup:
    Type: AWS::EC2::SecurityGroup
    Properties: {GroupDescription: database}
  DatabaseInstance:
    Type: AWS::EC2::Instance
    Properties:
      ImageId: database
      InstanceType: m1.small
      SecurityGroups: [{Ref: ServerSecurityGroup}]
      UserData: {Ref: WaitHandle}
  WaitHandle:
    Type: AWS::CloudFormation::WaitConditionHandle
  WaitCondition:
    Type: AWS::CloudFormation::WaitCondition
    DependsOn: DatabaseInstance
    Properties: {Handle: {Ref: WaitHandle}, Timeout: '600'}
";

/// `AWS::ElasticLoadBalancing::LoadBalancer` is an instance that balances.
const BALANCER: &str = "
HeatTemplateFormatVersion: '2012-12-12'
Resources:
  latency_watcher:
    Type: AWS::CloudWatch::Alarm
  CfnLBUser:
    Type: AWS::IAM::User
  CfnLBAccessKey:
    Type: AWS::IAM::AccessKey
    Properties: {UserName: {Ref: CfnLBUser}}
  LB_instance:
    Type: AWS::EC2::Instance
    Properties:
      ImageId: balancer
      InstanceType: m1.small
      UserData: {'Fn::Join': ['', [{Ref: CfnLBAccessKey}, {Ref: WaitHandle}]]}
  WaitHandle:
    Type: AWS::CloudFormation::WaitConditionHandle
  WaitCondition:
    Type: AWS::CloudFormation::WaitCondition
    DependsOn: LB_instance
    Properties: {Handle: {Ref: WaitHandle}, Timeout: '600'}
";

/// The builtin template of a type, if it has one.
#[must_use]
pub fn template(resource_type: &str) -> Option<&'static str> {
    match resource_type {
        "AWS::CloudWatch::Alarm" => Some(ALARM),
        "AWS::RDS::DBInstance" => Some(DATABASE),
        "AWS::ElasticLoadBalancing::LoadBalancer" => Some(BALANCER),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::{expand, render, yaml};
    use super::*;

    #[test]
    fn each_builtin_template_is_valid() {
        for resource_type in [
            "AWS::RDS::DBInstance",
            "AWS::ElasticLoadBalancing::LoadBalancer",
        ] {
            let input = render::Input {
                template: yaml::parse(template(resource_type).unwrap())
                    .unwrap()
                    .into(),
                ..render::Input::default()
            };
            assert!(expand::expand(&input).unwrap().resources().len() >= 4);
        }
    }
}
