//! Template versions, and which functions each one has.

use super::{Error, Result};

/// A template's version, oldest first within its language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// `HeatTemplateFormatVersion: 2012-12-12`.
    Cfn2012,
    /// `AWSTemplateFormatVersion: 2010-09-09`, which adds conditions.
    Cfn2010,
    /// Icehouse.
    V2013,
    /// Juno.
    V2014,
    /// Kilo.
    Kilo,
    /// Liberty.
    Liberty,
    /// Mitaka.
    Mitaka,
    /// Newton.
    Newton,
    /// Ocata.
    Ocata,
    /// Pike.
    Pike,
    /// Queens.
    Queens,
    /// Rocky.
    Rocky,
    /// Wallaby.
    Wallaby,
}

/// Every accepted `heat_template_version`, by date and by name.
const HOT: [(&str, Version); 17] = [
    ("2013-05-23", Version::V2013),
    ("2014-10-16", Version::V2014),
    ("2015-04-30", Version::Kilo),
    ("2015-10-15", Version::Liberty),
    ("2016-04-08", Version::Mitaka),
    ("2016-10-14", Version::Newton),
    ("newton", Version::Newton),
    ("2017-02-24", Version::Ocata),
    ("ocata", Version::Ocata),
    ("2017-09-01", Version::Pike),
    ("pike", Version::Pike),
    ("2018-03-02", Version::Queens),
    ("queens", Version::Queens),
    ("2018-08-31", Version::Rocky),
    ("rocky", Version::Rocky),
    ("2021-04-16", Version::Wallaby),
    ("wallaby", Version::Wallaby),
];

/// The functions of CloudFormation templates of both versions.
const CFN: [&str; 11] = [
    "Ref",
    "Fn::GetAtt",
    "Fn::Select",
    "Fn::Join",
    "Fn::Split",
    "Fn::Replace",
    "Fn::Base64",
    "Fn::FindInMap",
    "Fn::GetAZs",
    "Fn::MemberListToMap",
    "Fn::ResourceFacade",
];

impl Version {
    /// The version that `key: value` names.
    ///
    /// # Errors
    /// When there is no such version; the message lists those there are.
    pub fn parse(key: &str, value: &str) -> Result<Self> {
        let known: &[(&str, Self)] = match key {
            "heat_template_version" => &HOT,
            "HeatTemplateFormatVersion" => &[("2012-12-12", Self::Cfn2012)],
            _ => &[("2010-09-09", Self::Cfn2010)],
        };
        known
            .iter()
            .find(|(name, _)| *name == value)
            .map(|(_, version)| *version)
            .ok_or_else(|| {
                let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
                Error::at(
                    key,
                    format!("`{value}` is no template version; use {}", names.join(", ")),
                )
            })
    }

    /// Whether this is a HOT version.
    #[must_use]
    pub fn is_hot(self) -> bool {
        self >= Self::V2013
    }

    /// Whether the template may have conditions.
    #[must_use]
    pub fn has_conditions(self) -> bool {
        self == Self::Cfn2010 || self >= Self::Newton
    }

    /// Whether `name` is a function in values.
    #[must_use]
    pub fn has_function(self, name: &str) -> bool {
        if !self.is_hot() {
            return CFN.contains(&name) || (name == "Fn::If" && self == Self::Cfn2010);
        }
        let since = match name {
            "get_param" | "get_resource" | "get_file" | "resource_facade" | "str_replace"
            | "list_join" | "get_attr" => Self::V2013,
            "digest" | "repeat" => Self::Kilo,
            "str_split" => Self::Liberty,
            "map_merge" => Self::Mitaka,
            "yaql" | "map_replace" | "if" => Self::Newton,
            "filter" | "str_replace_strict" => Self::Ocata,
            "make_url"
            | "list_concat"
            | "list_concat_unique"
            | "contains"
            | "str_replace_vstrict" => Self::Pike,
            // These were in the first HOT versions only.
            "Fn::Select" => return self <= Self::Kilo,
            "Ref"
            | "Fn::GetAZs"
            | "Fn::Join"
            | "Fn::Split"
            | "Fn::Replace"
            | "Fn::Base64"
            | "Fn::MemberListToMap"
            | "Fn::ResourceFacade" => return self == Self::V2013,
            _ => return false,
        };
        self >= since
    }

    /// Whether `name` was a function once and is refused in this version.
    #[must_use]
    pub fn has_removed(self, name: &str) -> bool {
        name.starts_with(['F', 'R'])
            && self.is_hot()
            && !self.has_function(name)
            && Self::V2013.has_function(name)
    }

    /// Whether `name` is a function in conditions.
    #[must_use]
    pub fn has_condition_function(self, name: &str) -> bool {
        match name {
            "equals" | "not" | "and" | "or" | "get_param" => self >= Self::Newton,
            "yaql" | "contains" => self >= Self::Pike,
            "Fn::Equals" | "Fn::Not" | "Fn::And" | "Fn::Or" | "Fn::FindInMap" | "Ref" => {
                self == Self::Cfn2010
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_name_and_its_date_are_one_version() {
        for (name, date) in [("newton", "2016-10-14"), ("wallaby", "2021-04-16")] {
            assert_eq!(
                Version::parse("heat_template_version", name).unwrap(),
                Version::parse("heat_template_version", date).unwrap()
            );
        }
        assert!(Version::parse("heat_template_version", "2012-12-12").is_err());
    }

    #[test]
    fn each_version_has_its_functions() {
        assert!(Version::V2013.has_function("Fn::Join"));
        assert!(Version::V2014.has_removed("Fn::Join"));
        assert!(Version::V2014.has_function("Fn::Select"));
        assert!(!Version::Ocata.has_function("make_url"));
        assert!(!Version::Cfn2012.has_function("Fn::If"));
    }
}
