//! Condition types and reasons, all in one place. Conditions are `metav1.Condition`s;
//! each type has one writer.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use pileus_values::printable;

/// Most characters of a condition's message.
const MAX_MESSAGE: usize = 4096;

macro_rules! string_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// The text as it stands in the API.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),+ }
            }

            /// Reads a text of the API.
            #[must_use]
            pub fn parse(word: &str) -> Option<Self> {
                match word {
                    $(stringify!($variant) => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

string_enum! {
    /// Types of conditions.
    ConditionType {
        /// The object is what its spec asks for. For a Server: it is in the run state asked
        /// for and all it needs is attached, Stopped included.
        Ready,
        /// Only a person can help; the message says how.
        Stalled,
        /// Server: a host has been chosen. Written by the scheduler.
        Scheduled,
        /// Server: what runs is what the spec says; False names the changes that wait for a
        /// rebuild or a restart.
        UpToDate,
        /// Image: its bytes have been fetched and checked at least once.
        Verified,
        /// Host: the host's libvirt answers.
        HypervisorAvailable,
        /// Host: the host's Open vSwitch and ovn-controller answer.
        NetworkAvailable,
        /// Host: there is room for images and disks.
        DiskAvailable,
        /// Host: what is reserved leaves something for Servers.
        CapacityAvailable,
        /// Host: libvirt confines each guest to its own files (sVirt).
        GuestsConfined,
        /// Host: nothing but the agent starts or stops VMs (`libvirt-guests` is off).
        ExclusiveControl,
    }
}

string_enum! {
    /// Reasons of conditions and events.
    Reason {
        /// No controller has reconciled the object yet.
        Pending,
        /// The object is ready.
        Ready,
        /// The Server is ready and runs.
        Active,
        /// The Server is ready and stopped, as its spec asks.
        Stopped,
        /// What the object needs is being made.
        Building,
        /// A running guest is asked to stop.
        Stopping,
        /// A stopped guest is being started.
        Starting,
        /// Being deleted.
        Deleting,
        /// Deletion waits for objects that still use this one.
        InUse,
        /// A field has a value that cannot be used.
        InvalidSpec,
        /// A flavor does not exist.
        FlavorNotFound,
        /// An image does not exist.
        ImageNotFound,
        /// An image exists but cannot be used from here.
        ImageNotShared,
        /// An image is not usable; see its own conditions.
        ImageNotReady,
        /// A network does not exist.
        NetworkNotFound,
        /// A network exists but cannot be used from here.
        NetworkNotShared,
        /// Something is asked for that only the owner of what it refers to may choose.
        Forbidden,
        /// A network has no subnet to take addresses from.
        NoSubnet,
        /// A port does not exist.
        PortNotFound,
        /// A port belongs to another server.
        PortInUse,
        /// A port has no address yet.
        PortNotReady,
        /// A key pair does not exist.
        KeyPairNotFound,
        /// A Secret does not exist.
        SecretNotFound,
        /// A Secret has no such key.
        SecretKeyNotFound,
        /// A Secret is one whose content no guest is given.
        SecretNotAllowed,
        /// User data has more than 64 KiB.
        UserDataTooLarge,
        /// A security group does not exist.
        SecurityGroupNotFound,
        /// The image's bytes do not have the checksum of the spec.
        ChecksumMismatch,
        /// The image's bytes differ from those imported first.
        DigestMismatch,
        /// The server of the URL answers 404 or 410.
        NotFound,
        /// The URL leads to an address that the fetch policy forbids.
        ForbiddenAddress,
        /// The URL itself is not allowed: scheme, missing checksum, directory.
        ForbiddenUrl,
        /// The download ended early.
        Truncated,
        /// The download failed.
        DownloadFailed,
        /// The bytes are no disk image of the format in the spec.
        NotAnImage,
        /// The image names a backing file or a data file.
        HasBackingFile,
        /// The image's format cannot be used yet.
        UnsupportedFormat,
        /// The image is bigger than the root disk.
        ImageTooLarge,
        /// The image, or the disk in it, is bigger than its host takes.
        ImageOverLimit,
        /// The flavor is below what the image asks for.
        FlavorTooSmall,
        /// An image is being downloaded.
        Downloading,
        /// The image has been fetched and checked.
        Verified,
        /// No host has fetched it yet.
        NotFetched,
        /// The host's disk is full.
        NoSpace,
        /// What a Host reserves leaves nothing for Servers.
        NothingLeft,
        /// libvirt on the host does not answer.
        HypervisorUnavailable,
        /// OVN does not answer.
        NetworkUnavailable,
        /// OVN's database refuses what the object becomes there.
        RefusedByOVN,
        /// The ports' flows have not been reported in time.
        NetworkNotReady,
        /// libvirt refused.
        HypervisorFailed,
        /// The guest crashed or could not be started again and again.
        CrashLoop,
        /// The guest shut itself down and stays so by policy.
        GuestShutdown,
        /// The disk that the Instance had is gone.
        DiskMissing,
        /// Another disk lies where the Instance's goes.
        WrongDisk,
        /// The host's heartbeat has stopped.
        HostUnreachable,
        /// The host has less free than the Instance needs.
        HostRefused,
        /// The Instance's epoch is older than one that the host has seen; nothing was changed.
        StaleEpoch,
        /// Scheduled to a host.
        Scheduled,
        /// No host fits.
        NoHostFits,
        /// A server group does not exist.
        ServerGroupNotFound,
        /// A priority class does not exist.
        PriorityClassNotFound,
        /// A server group is placed all or nothing, and cannot be yet.
        GroupIncomplete,
        /// A host is in two availability zones.
        ZoneConflict,
        /// Another object of the kind is used instead of this one.
        NotUsed,
        /// Server: no host fits, and others are being stopped to make room for it.
        Preempting,
        /// Server: stopped, because one of higher priority has its place.
        Preempted,
        /// Event: a Server that was stopped for another is started again.
        Resumed,
        /// Event: a host was looked for and none fits; Kubernetes' own word for it.
        FailedScheduling,
        /// What runs is what the spec says.
        UpToDate,
        /// A change cannot be done in place.
        RebuildRequired,
        /// A change comes into force at the next start.
        RestartRequired,
        /// No address is left.
        SubnetExhausted,
        /// An address lies outside the subnet.
        AddressOutsideSubnet,
        /// An address is taken.
        AddressInUse,
        /// An Ethernet address is taken in this network.
        MacInUse,
        /// Two subnets of a network overlap.
        SubnetOverlap,
        /// An object that this one depends on is not ready.
        DependencyNotReady,
        /// Event: the object has a value that this version cannot read.
        CannotBeRead,
        /// The host is up and answers.
        Heartbeat,
        /// No heartbeat for too long.
        HeartbeatLost,
        /// The component works.
        Ok,
        /// libvirt confines no guest: all run as one user and nothing else keeps them apart.
        NotConfined,
        /// `libvirt-guests` is enabled.
        LibvirtGuestsEnabled,
        /// A running VM belongs to the object again, whose owner had been lost.
        Adopted,
        /// The API server rejects a status that was to be written.
        StatusRejected,
        /// Something failed that is expected to pass; it is tried again.
        Retrying,
        /// Stack: an action is under way.
        InProgress,
        /// Stack: the last action was done.
        Complete,
        /// Stack: the last action failed.
        Failed,
        /// Stack: its Servers are stopped as asked.
        Suspended,
        /// Stack: the template cannot become a stack.
        InvalidTemplate,
        /// Stack: a ConfigMap or Secret, or a key of one, does not exist.
        SourceNotFound,
        /// Stack: the record of what it has made is gone.
        RecordMissing,
        /// Stack: the record of what it is to make is bigger than a Secret holds.
        RecordTooLarge,
        /// Stack: its service account may not see what it has made.
        AccountDenied,
        /// Stack, Server: its namespace does not let Pileus do what this needs in it.
        NotOptedIn,
        /// Stack: only shows what would be done.
        Previewed,
    }
}

/// A condition about to be reported; the time is set by [`merge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What is observed.
    pub type_: ConditionType,
    /// `Some(true)`, `Some(false)`, or unknown.
    pub status: Option<bool>,
    /// Why, for machines.
    pub reason: Reason,
    /// Why, for people: names the field, the value, the culprit and the way out.
    pub message: String,
}

impl Observation {
    /// An observation that holds.
    #[must_use]
    pub fn yes(type_: ConditionType, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            type_,
            status: Some(true),
            reason,
            message: message.into(),
        }
    }

    /// An observation that does not hold.
    #[must_use]
    pub fn no(type_: ConditionType, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            type_,
            status: Some(false),
            reason,
            message: message.into(),
        }
    }

    /// An observation that could not be made.
    #[must_use]
    pub fn unknown(type_: ConditionType, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            type_,
            status: None,
            reason,
            message: message.into(),
        }
    }
}

/// `True`, `False` or `Unknown`, as conditions spell it.
#[must_use]
pub fn status_text(status: Option<bool>) -> &'static str {
    match status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    }
}

/// The conditions to report: `observations`, each with the time of its last change taken
/// from `old` where its status is the same.
#[must_use]
pub fn merge(
    old: &[Condition],
    observations: impl IntoIterator<Item = Observation>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    observations
        .into_iter()
        .map(|seen| {
            let status = status_text(seen.status);
            let before = old
                .iter()
                .find(|c| c.type_ == seen.type_.as_str() && c.status == status);
            Condition {
                type_: seen.type_.as_str().to_owned(),
                status: status.to_owned(),
                reason: seen.reason.as_str().to_owned(),
                // What others have said may be in it: a guest, an image server, another program.
                message: printable(&seen.message, MAX_MESSAGE),
                observed_generation: generation,
                last_transition_time: before
                    .map_or_else(|| Time(now), |c| c.last_transition_time.clone()),
            }
        })
        .collect()
}

/// The condition of a type, if it has been reported.
#[must_use]
pub fn find(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == type_.as_str())
}

/// Whether the condition of a type is True.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: ConditionType) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_said_reaches_a_condition_bounded_and_without_control_characters() {
        let said = format!("qemu-img says: \u{1b}]0;x\u{7}{}", "y".repeat(1 << 20));
        let seen = Observation::no(ConditionType::Ready, Reason::NotAnImage, said);
        let told = merge(&[], [seen], None, Timestamp::UNIX_EPOCH)
            .remove(0)
            .message;
        assert!(
            told.starts_with("qemu-img says: \\u{1b}]0;x\\u{7}yyy"),
            "{}",
            &told[..40]
        );
        assert!(told.chars().count() < MAX_MESSAGE + 20, "{}", told.len());
    }

    #[test]
    fn the_time_moves_only_when_the_status_changes() {
        let t = |s| Timestamp::from_second(s).unwrap();
        let no = || Observation::no(ConditionType::Ready, Reason::Building, "x");
        let first = merge(&[], [no()], Some(1), t(1));
        let second = merge(&first, [no()], Some(2), t(2));
        assert_eq!(second[0].last_transition_time, Time(t(1)));
        assert_eq!(second[0].observed_generation, Some(2));
        let third = merge(
            &second,
            [Observation::yes(ConditionType::Ready, Reason::Active, "")],
            Some(2),
            t(3),
        );
        assert_eq!(third[0].last_transition_time, Time(t(3)));
        assert!(is_true(&third, ConditionType::Ready));
        assert_eq!(third[0].message, "");
    }
}
