//! Properties of the planner, on a host simulated in memory.

use proptest::prelude::*;

use super::plan::{
    DomainState, ImageState, Observed, ObservedDomain, PlacementOwner, Plan, Progress, Shutdown,
    Step, plan,
};
use pileus_api::instance::{ImportedImage, InstanceSpec, OnDeletion};
use pileus_api::server::{OnGuestShutdown, RunState};

fn own() -> PlacementOwner {
    PlacementOwner {
        cluster: "c".into(),
        namespace: "default".into(),
        name: "web".into(),
        uid: "u1".into(),
        epoch: 2,
    }
}

fn spec(run_state: RunState) -> InstanceSpec {
    let mut spec = InstanceSpec {
        run_state,
        epoch: 2,
        ..InstanceSpec::default()
    };
    spec.image.disk.digest = Some("sha256:a".into());
    spec
}

fn imported() -> ImageState {
    ImageState::Cached(ImportedImage {
        digest: "sha256:a".into(),
        ..ImportedImage::default()
    })
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of the field it is for")]
fn domain(owner: PlacementOwner, state: DomainState) -> Option<ObservedDomain> {
    Some(ObservedDomain {
        owner: Some(owner),
        state,
    })
}

fn running(owner: PlacementOwner) -> Observed {
    Observed {
        highest_epoch: Some(owner.epoch),
        domain: domain(owner.clone(), DomainState::Running),
        directory: Some(owner),
        disk: true,
        config_drive: true,
        realized: true,
        image: imported(),
        ports_installed: Some(true),
        was_running: true,
        ..Observed::default()
    }
}

/// What a step does to the host.
fn apply(step: &Step, own: &PlacementOwner, observed: &mut Observed) {
    match step {
        Step::RecordEpoch => {
            observed.highest_epoch = Some(own.epoch);
            observed.epoch_closed = false;
        }
        Step::CloseEpoch => observed.epoch_closed = true,
        Step::Adopt => {
            if let Some(domain) = &mut observed.domain {
                domain.owner = Some(own.clone());
            }
            if observed.directory.is_some() {
                observed.directory = Some(own.clone());
            }
        }
        Step::FetchImage => observed.image = imported(),
        Step::MakeDisk => {
            observed.disk = true;
            observed.directory = Some(own.clone());
        }
        Step::WriteConfigDrive => observed.config_drive = true,
        Step::Define => observed.domain = domain(own.clone(), DomainState::Off),
        Step::StartPaused => set(observed, DomainState::Paused),
        Step::Resume => {
            set(observed, DomainState::Running);
            observed.asked_to_stop = false;
            observed.was_running = true;
        }
        Step::ShutDown => {
            set(observed, DomainState::ShutDown);
            observed.asked_to_stop = true;
            observed.was_running = false;
        }
        Step::PowerOff => set(observed, DomainState::Off),
        Step::Undefine => observed.domain = None,
        Step::RemoveFiles => {
            observed.directory = None;
            observed.disk = false;
            observed.config_drive = false;
        }
        Step::RemovePorts | Step::DropFinalizer => {}
    }
}

fn set(observed: &mut Observed, state: DomainState) {
    if let Some(domain) = &mut observed.domain {
        domain.state = state;
    }
}

/// Plans and acts until nothing is left to do.
fn settle(spec: &InstanceSpec, own: &PlacementOwner, observed: &mut Observed) -> Plan {
    for _ in 0..10 {
        let next = plan(spec, own, observed);
        if next.steps.is_empty() || next.steps.contains(&Step::DropFinalizer) {
            return next;
        }
        next.steps
            .iter()
            .for_each(|step| apply(step, own, observed));
    }
    panic!("the plan does not converge: {observed:?}");
}

#[test]
fn a_new_instance_is_built_paused_and_resumed_when_its_ports_are_ready() {
    let mut observed = Observed {
        image: imported(),
        ports_installed: Some(false),
        ..Observed::default()
    };
    let first = plan(&spec(RunState::Running), &own(), &observed);
    assert_eq!(
        first.steps,
        [
            Step::RecordEpoch,
            Step::MakeDisk,
            Step::WriteConfigDrive,
            Step::Define,
            Step::StartPaused
        ]
    );
    first
        .steps
        .iter()
        .for_each(|step| apply(step, &own(), &mut observed));
    let waiting = plan(&spec(RunState::Running), &own(), &observed);
    assert_eq!(
        (waiting.steps, waiting.progress),
        (vec![], Progress::AwaitingPorts)
    );
    observed.ports_installed = Some(true);
    assert_eq!(
        settle(&spec(RunState::Running), &own(), &mut observed).progress,
        Progress::Complete
    );
}

#[test]
fn only_a_new_instance_is_refused_for_lack_of_capacity() {
    let no_capacity = Some("it needs 2 vCPUs, 1 of 8 are left".to_owned());
    let mut observed = Observed {
        image: imported(),
        no_capacity: no_capacity.clone(),
        ..Observed::default()
    };
    for run_state in [RunState::Running, RunState::Stopped] {
        let decided = plan(&spec(run_state), &own(), &observed);
        assert_eq!(decided.steps, [Step::RecordEpoch], "nothing is made");
        assert!(matches!(decided.progress, Progress::NoCapacity(why) if why.contains("1 of 8")));
    }
    observed.no_capacity = None;
    let made = settle(&spec(RunState::Stopped), &own(), &mut observed);
    assert_eq!(made.progress, Progress::Complete);

    let crowded = Observed {
        no_capacity,
        ..running(own())
    };
    for state in [DomainState::Running, DomainState::Paused, DomainState::Off] {
        let mut observed = crowded.clone();
        set(&mut observed, state);
        let after = settle(&spec(RunState::Running), &own(), &mut observed);
        assert_eq!(after.progress, Progress::Complete);
    }
    let undefined = Observed {
        domain: None,
        ..crowded
    };
    let again = plan(&spec(RunState::Running), &own(), &undefined);
    assert!(again.steps.contains(&Step::Define));
}

#[test]
fn a_closed_epoch_that_is_used_again_is_recorded_again() {
    let mut observed = Observed {
        epoch_closed: true,
        ..running(own())
    };
    let mut spec = spec(RunState::Running);
    assert_eq!(plan(&spec, &own(), &observed).steps, [Step::RecordEpoch]);
    // Closed or not, it refuses an older one.
    spec.epoch = 1;
    let older = PlacementOwner { epoch: 1, ..own() };
    assert_eq!(
        plan(&spec, &older, &observed),
        Plan::nothing(Progress::Stale(2))
    );
    observed.deleting = true;
    let steps = plan(&spec, &older, &observed).steps;
    assert_eq!(steps, [Step::DropFinalizer], "the newer one's record stays");
}

#[test]
fn a_host_reboot_starts_it_again() {
    let mut observed = running(own());
    set(&mut observed, DomainState::Off);
    observed.rebooted = true;
    assert_eq!(
        plan(&spec(RunState::Running), &own(), &observed).steps,
        [Step::StartPaused]
    );
}

#[test]
fn the_guests_own_shutdown_follows_the_policy() {
    let mut observed = running(own());
    set(&mut observed, DomainState::ShutDown);
    let mut spec = spec(RunState::Running);
    assert_eq!(
        plan(&spec, &own(), &observed),
        Plan {
            steps: vec![],
            progress: Progress::GuestShutdown
        }
    );
    spec.on_guest_shutdown = OnGuestShutdown::Restart;
    assert_eq!(plan(&spec, &own(), &observed).steps, [Step::StartPaused]);
}

#[test]
fn stopping_on_request_is_no_guest_shutdown() {
    let mut observed = running(own());
    assert_eq!(
        settle(&spec(RunState::Stopped), &own(), &mut observed).progress,
        Progress::Complete
    );
    assert_eq!(
        plan(&spec(RunState::Running), &own(), &observed).steps,
        [Step::StartPaused]
    );
}

#[test]
fn a_preempted_guest_keeps_its_disk_and_starts_again_only_with_capacity() {
    let mut observed = running(own());
    let mut spec = spec(RunState::Running);
    spec.preempted = true;
    let stopping = plan(&spec, &own(), &observed);
    assert_eq!(stopping.steps, [Step::ShutDown]);
    assert_eq!(
        settle(&spec, &own(), &mut observed).progress,
        Progress::Complete,
        "off, and nothing is removed"
    );
    assert!(observed.disk && observed.domain.is_some());
    spec.preempted = false;
    observed.preempted = true;
    observed.no_capacity = Some("it needs 512 MiB".into());
    assert_eq!(
        plan(&spec, &own(), &observed),
        Plan::nothing(Progress::AwaitingCapacity("it needs 512 MiB".into()))
    );
    observed.no_capacity = None;
    assert_eq!(plan(&spec, &own(), &observed).steps, [Step::StartPaused]);
    // A guest that was not preempted is started whatever the figures are.
    observed.preempted = false;
    observed.no_capacity = Some("it needs 512 MiB".into());
    assert_eq!(plan(&spec, &own(), &observed).steps, [Step::StartPaused]);
}

#[test]
fn a_guest_that_does_not_shut_down_is_powered_off() {
    let mut observed = running(own());
    observed.shutdown = Some(Shutdown::Waiting);
    assert_eq!(
        plan(&spec(RunState::Stopped), &own(), &observed).progress,
        Progress::Stopping
    );
    observed.shutdown = Some(Shutdown::Overdue);
    assert_eq!(
        plan(&spec(RunState::Stopped), &own(), &observed).steps,
        [Step::PowerOff]
    );
}

#[test]
fn an_older_epoch_touches_nothing() {
    let mut observed = running(PlacementOwner { epoch: 3, ..own() });
    let stale = plan(&spec(RunState::Running), &own(), &observed);
    assert_eq!(
        stale,
        Plan {
            steps: vec![],
            progress: Progress::Stale(3)
        }
    );
    observed.deleting = true;
    let mut ordered = spec(RunState::Running);
    ordered.on_deletion = OnDeletion::Remove;
    assert_eq!(
        plan(&ordered, &own(), &observed).steps,
        [Step::DropFinalizer]
    );
}

#[test]
fn a_domain_of_the_same_name_is_adopted_and_goes_on() {
    let mut observed = running(PlacementOwner {
        uid: "before".into(),
        epoch: 1,
        ..own()
    });
    observed.highest_epoch = None;
    observed.realized = false;
    let adopted = plan(&spec(RunState::Running), &own(), &observed);
    assert_eq!(adopted.steps, [Step::RecordEpoch, Step::Adopt]);
    assert_eq!(adopted.progress, Progress::Complete);
}

#[test]
fn a_lost_disk_is_not_replaced() {
    let mut observed = running(own());
    observed.disk = false;
    observed.domain = None;
    let lost = plan(&spec(RunState::Running), &own(), &observed);
    assert_eq!(
        lost,
        Plan {
            steps: vec![],
            progress: Progress::DiskMissing
        }
    );
}

#[test]
fn unconfirmed_and_wrong_bytes_make_no_disk() {
    let observed = Observed {
        image: imported(),
        highest_epoch: Some(2),
        ..Observed::default()
    };
    let mut spec = spec(RunState::Running);
    spec.image.disk.digest = None;
    assert_eq!(
        plan(&spec, &own(), &observed).progress,
        Progress::AwaitingDigest
    );
    spec.image.disk.digest = Some("sha256:b".into());
    let wrong = plan(&spec, &own(), &observed);
    assert_eq!(
        (wrong.steps, wrong.progress),
        (vec![], Progress::WrongDigest("sha256:a".into()))
    );
}

#[test]
fn a_deletion_without_order_to_remove_touches_nothing() {
    let mut observed = running(own());
    observed.deleting = true;
    assert_eq!(
        plan(&spec(RunState::Running), &own(), &observed).steps,
        [Step::DropFinalizer]
    );
}

#[test]
fn a_deleted_instance_leaves_nothing() {
    let mut observed = running(own());
    observed.deleting = true;
    let mut ordered = spec(RunState::Running);
    ordered.on_deletion = OnDeletion::Remove;
    assert_eq!(
        plan(&ordered, &own(), &observed).steps,
        [
            Step::PowerOff,
            Step::Undefine,
            Step::RemovePorts,
            Step::RemoveFiles,
            Step::CloseEpoch,
            Step::DropFinalizer
        ]
    );
}

fn owners() -> impl Strategy<Value = PlacementOwner> {
    prop_oneof![
        Just(own()),
        Just(PlacementOwner { epoch: 1, ..own() }),
        Just(PlacementOwner { epoch: 3, ..own() }),
        Just(PlacementOwner {
            uid: "before".into(),
            epoch: 1,
            ..own()
        }),
        Just(PlacementOwner {
            name: "other".into(),
            ..own()
        }),
        Just(PlacementOwner {
            cluster: "other".into(),
            ..own()
        }),
    ]
}

prop_compose! {
    fn any_observed()(
        deleting: bool,
        highest_epoch in prop_oneof![Just(None), (1_i64..4).prop_map(Some)],
        domain in proptest::option::of((
            proptest::option::weighted(0.9, owners()),
            prop_oneof![
                Just(DomainState::Running), Just(DomainState::Paused), Just(DomainState::ShuttingDown),
                Just(DomainState::ShutDown), Just(DomainState::Off), Just(DomainState::Crashed)
            ],
        )),
        directory in proptest::option::of(owners()),
        disk: bool,
        config_drive: bool,
        realized: bool,
        guest_shutdown: bool,
        was_running: bool,
        rebooted: bool,
    ) -> Observed {
        Observed {
            deleting, highest_epoch, disk: disk && directory.is_some(),
            config_drive: config_drive && directory.is_some(), directory, realized,
            guest_shutdown, was_running, rebooted,
            domain: domain.map(|(owner, state)| ObservedDomain { owner, state }),
            image: imported(),
            ports_installed: Some(true),
            shutdown: Some(Shutdown::Overdue),
            ..Observed::default()
        }
    }
}

proptest! {
    #[test]
    fn from_any_state_acting_and_planning_again_ends(mut observed in any_observed(), stopped: bool) {
        if let Some(domain) = &observed.domain {
            prop_assume!(domain.state != DomainState::ShuttingDown);
        }
        let run_state = if stopped { RunState::Stopped } else { RunState::Running };
        let mut spec = spec(run_state);
        spec.on_deletion = OnDeletion::Remove;
        settle(&spec, &own(), &mut observed);
    }

    #[test]
    fn what_is_not_ours_is_never_touched(mut observed in any_observed(), newer: bool) {
        let foreign = if newer { PlacementOwner { epoch: 3, ..own() } } else { PlacementOwner { name: "other".into(), ..own() } };
        observed.domain = observed.domain.map(|d| ObservedDomain { owner: Some(foreign.clone()), ..d });
        observed.directory = Some(foreign);
        let mut ordered = spec(RunState::Running);
        ordered.on_deletion = OnDeletion::Remove;
        let steps = plan(&ordered, &own(), &observed).steps;
        let harmless = |s: &Step| matches!(s, Step::CloseEpoch | Step::DropFinalizer);
        prop_assert!(steps.iter().all(harmless), "{:?}", steps);
    }
}

#[test]
fn a_refused_start_is_reported_and_tried_again_after_its_pause() {
    let mut observed = running(own());
    observed.domain = domain(own(), DomainState::Off);
    observed.start_refused = true;
    observed.backing_off = true;
    let waiting = plan(&spec(RunState::Running), &own(), &observed);
    assert_eq!(
        waiting,
        Plan {
            steps: vec![],
            progress: Progress::StartRefused
        }
    );
    observed.backing_off = false;
    let again = plan(&spec(RunState::Running), &own(), &observed);
    assert_eq!(again.steps, [Step::StartPaused]);
    // A guest that need not run waits for nothing.
    observed.backing_off = true;
    let stopped = plan(&spec(RunState::Stopped), &own(), &observed);
    assert_eq!(stopped.progress, Progress::Complete);
}

#[test]
fn a_placement_that_has_ended_is_not_made_again() {
    let observed = Observed {
        highest_epoch: Some(own().epoch),
        epoch_closed: true,
        ..Observed::default()
    };
    let ended = plan(&spec(RunState::Running), &own(), &observed);
    assert_eq!(ended, Plan::nothing(Progress::Ended));
    // A new placement is made as usual, and the old one can be deleted.
    let newer = PlacementOwner {
        epoch: own().epoch + 1,
        ..own()
    };
    let next = plan(&spec(RunState::Running), &newer, &observed);
    assert_eq!(next.steps.first(), Some(&Step::RecordEpoch));
    let going = Observed {
        deleting: true,
        ..observed
    };
    let gone = plan(&spec(RunState::Running), &own(), &going);
    assert!(gone.steps.contains(&Step::DropFinalizer));
}
