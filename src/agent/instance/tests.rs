//! Properties of the planner, on a host simulated in memory.

use proptest::prelude::*;

use super::plan::{
    DomainState, Mark, Plan, Seen, SeenDomain, SeenImage, Shutdown, Standing, Step, plan,
};
use pileus_api::instance::{ImportedImage, InstanceSpec, OnDeletion};
use pileus_api::server::{OnGuestShutdown, RunState};

fn own() -> Mark {
    Mark {
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

fn imported() -> SeenImage {
    SeenImage::Cached(ImportedImage {
        digest: "sha256:a".into(),
        ..ImportedImage::default()
    })
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of the field it is for")]
fn domain(mark: Mark, state: DomainState) -> Option<SeenDomain> {
    Some(SeenDomain {
        mark: Some(mark),
        state,
    })
}

fn running(mark: Mark) -> Seen {
    Seen {
        highest_epoch: Some(mark.epoch),
        domain: domain(mark.clone(), DomainState::Running),
        directory: Some(mark),
        disk: true,
        config_drive: true,
        realized: true,
        image: imported(),
        ports_installed: Some(true),
        was_running: true,
        ..Seen::default()
    }
}

/// What a step does to the host.
fn apply(step: &Step, own: &Mark, seen: &mut Seen) {
    match step {
        Step::RecordEpoch => {
            seen.highest_epoch = Some(own.epoch);
            seen.epoch_closed = false;
        }
        Step::CloseEpoch => seen.epoch_closed = true,
        Step::Adopt => {
            if let Some(domain) = &mut seen.domain {
                domain.mark = Some(own.clone());
            }
            if seen.directory.is_some() {
                seen.directory = Some(own.clone());
            }
        }
        Step::FetchImage => seen.image = imported(),
        Step::MakeDisk => {
            seen.disk = true;
            seen.directory = Some(own.clone());
        }
        Step::WriteConfigDrive => seen.config_drive = true,
        Step::Define => seen.domain = domain(own.clone(), DomainState::Off),
        Step::StartPaused => set(seen, DomainState::Paused),
        Step::Resume => {
            set(seen, DomainState::Running);
            seen.asked_to_stop = false;
            seen.was_running = true;
        }
        Step::ShutDown => {
            set(seen, DomainState::ShutDown);
            seen.asked_to_stop = true;
            seen.was_running = false;
        }
        Step::PowerOff => set(seen, DomainState::Off),
        Step::Undefine => seen.domain = None,
        Step::RemoveFiles => {
            seen.directory = None;
            seen.disk = false;
            seen.config_drive = false;
        }
        Step::RemovePorts | Step::DropFinalizer => {}
    }
}

fn set(seen: &mut Seen, state: DomainState) {
    if let Some(domain) = &mut seen.domain {
        domain.state = state;
    }
}

/// Plans and acts until nothing is left to do.
fn settle(spec: &InstanceSpec, own: &Mark, seen: &mut Seen) -> Plan {
    for _ in 0..10 {
        let next = plan(spec, own, seen);
        if next.steps.is_empty() || next.steps.contains(&Step::DropFinalizer) {
            return next;
        }
        next.steps.iter().for_each(|step| apply(step, own, seen));
    }
    panic!("the plan does not converge: {seen:?}");
}

#[test]
fn a_new_instance_is_built_paused_and_resumed_when_its_ports_are_ready() {
    let mut seen = Seen {
        image: imported(),
        ports_installed: Some(false),
        ..Seen::default()
    };
    let first = plan(&spec(RunState::Running), &own(), &seen);
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
        .for_each(|step| apply(step, &own(), &mut seen));
    let waiting = plan(&spec(RunState::Running), &own(), &seen);
    assert_eq!(
        (waiting.steps, waiting.standing),
        (vec![], Standing::AwaitingPorts)
    );
    seen.ports_installed = Some(true);
    assert_eq!(
        settle(&spec(RunState::Running), &own(), &mut seen).standing,
        Standing::AsAsked
    );
}

#[test]
fn only_what_is_new_is_turned_away_for_want_of_room() {
    let no_room = Some("it needs 2 vCPUs, 1 of 8 are left".to_owned());
    let mut seen = Seen {
        image: imported(),
        no_room: no_room.clone(),
        ..Seen::default()
    };
    for run_state in [RunState::Running, RunState::Stopped] {
        let decided = plan(&spec(run_state), &own(), &seen);
        assert_eq!(decided.steps, [Step::RecordEpoch], "nothing is made");
        assert!(matches!(decided.standing, Standing::NoRoom(why) if why.contains("1 of 8")));
    }
    seen.no_room = None;
    let made = settle(&spec(RunState::Stopped), &own(), &mut seen);
    assert_eq!(made.standing, Standing::AsAsked);

    let crowded = Seen {
        no_room,
        ..running(own())
    };
    for state in [DomainState::Running, DomainState::Paused, DomainState::Off] {
        let mut seen = crowded.clone();
        set(&mut seen, state);
        let after = settle(&spec(RunState::Running), &own(), &mut seen);
        assert_eq!(after.standing, Standing::AsAsked);
    }
    let undefined = Seen {
        domain: None,
        ..crowded
    };
    let again = plan(&spec(RunState::Running), &own(), &undefined);
    assert!(again.steps.contains(&Step::Define));
}

#[test]
fn an_epoch_that_came_back_is_recorded_anew() {
    let mut seen = Seen {
        epoch_closed: true,
        ..running(own())
    };
    let mut spec = spec(RunState::Running);
    assert_eq!(plan(&spec, &own(), &seen).steps, [Step::RecordEpoch]);
    // Closed or not, it stands against an older one.
    spec.epoch = 1;
    let older = Mark { epoch: 1, ..own() };
    assert_eq!(
        plan(&spec, &older, &seen),
        Plan::nothing(Standing::Stale(2))
    );
    seen.deleting = true;
    let steps = plan(&spec, &older, &seen).steps;
    assert_eq!(steps, [Step::DropFinalizer], "the newer one's record stays");
}

#[test]
fn a_host_reboot_starts_it_again() {
    let mut seen = running(own());
    set(&mut seen, DomainState::Off);
    seen.rebooted = true;
    assert_eq!(
        plan(&spec(RunState::Running), &own(), &seen).steps,
        [Step::StartPaused]
    );
}

#[test]
fn the_guests_own_shutdown_follows_the_policy() {
    let mut seen = running(own());
    set(&mut seen, DomainState::ShutDown);
    let mut spec = spec(RunState::Running);
    assert_eq!(
        plan(&spec, &own(), &seen),
        Plan {
            steps: vec![],
            standing: Standing::GuestShutdown
        }
    );
    spec.on_guest_shutdown = OnGuestShutdown::Restart;
    assert_eq!(plan(&spec, &own(), &seen).steps, [Step::StartPaused]);
}

#[test]
fn stopping_on_request_is_no_shutdown_of_the_guests_own() {
    let mut seen = running(own());
    assert_eq!(
        settle(&spec(RunState::Stopped), &own(), &mut seen).standing,
        Standing::AsAsked
    );
    assert_eq!(
        plan(&spec(RunState::Running), &own(), &seen).steps,
        [Step::StartPaused]
    );
}

#[test]
fn one_that_gives_way_stops_keeps_its_disk_and_starts_only_into_room() {
    let mut seen = running(own());
    let mut spec = spec(RunState::Running);
    spec.preempted = true;
    let stopping = plan(&spec, &own(), &seen);
    assert_eq!(stopping.steps, [Step::ShutDown]);
    assert_eq!(
        settle(&spec, &own(), &mut seen).standing,
        Standing::AsAsked,
        "off and all there"
    );
    assert!(seen.disk && seen.domain.is_some());
    spec.preempted = false;
    seen.preempted = true;
    seen.no_room = Some("it needs 512 MiB".into());
    assert_eq!(
        plan(&spec, &own(), &seen),
        Plan::nothing(Standing::AwaitingRoom("it needs 512 MiB".into()))
    );
    seen.no_room = None;
    assert_eq!(plan(&spec, &own(), &seen).steps, [Step::StartPaused]);
    // Who never gave way is started whatever the figures say now.
    seen.preempted = false;
    seen.no_room = Some("it needs 512 MiB".into());
    assert_eq!(plan(&spec, &own(), &seen).steps, [Step::StartPaused]);
}

#[test]
fn a_guest_that_does_not_stop_loses_its_power() {
    let mut seen = running(own());
    seen.shutdown = Some(Shutdown::Waiting);
    assert_eq!(
        plan(&spec(RunState::Stopped), &own(), &seen).standing,
        Standing::Stopping
    );
    seen.shutdown = Some(Shutdown::Overdue);
    assert_eq!(
        plan(&spec(RunState::Stopped), &own(), &seen).steps,
        [Step::PowerOff]
    );
}

#[test]
fn an_older_epoch_touches_nothing() {
    let mut seen = running(Mark { epoch: 3, ..own() });
    let stale = plan(&spec(RunState::Running), &own(), &seen);
    assert_eq!(
        stale,
        Plan {
            steps: vec![],
            standing: Standing::Stale(3)
        }
    );
    seen.deleting = true;
    let mut ordered = spec(RunState::Running);
    ordered.on_deletion = OnDeletion::Remove;
    assert_eq!(plan(&ordered, &own(), &seen).steps, [Step::DropFinalizer]);
}

#[test]
fn what_came_back_under_its_name_is_adopted_and_goes_on() {
    let mut seen = running(Mark {
        uid: "before".into(),
        epoch: 1,
        ..own()
    });
    seen.highest_epoch = None;
    seen.realized = false;
    let adopted = plan(&spec(RunState::Running), &own(), &seen);
    assert_eq!(adopted.steps, [Step::RecordEpoch, Step::Adopt]);
    assert_eq!(adopted.standing, Standing::AsAsked);
}

#[test]
fn a_lost_disk_is_not_made_up() {
    let mut seen = running(own());
    seen.disk = false;
    seen.domain = None;
    let lost = plan(&spec(RunState::Running), &own(), &seen);
    assert_eq!(
        lost,
        Plan {
            steps: vec![],
            standing: Standing::DiskMissing
        }
    );
}

#[test]
fn unconfirmed_and_wrong_bytes_make_no_disk() {
    let seen = Seen {
        image: imported(),
        highest_epoch: Some(2),
        ..Seen::default()
    };
    let mut spec = spec(RunState::Running);
    spec.image.disk.digest = None;
    assert_eq!(
        plan(&spec, &own(), &seen).standing,
        Standing::AwaitingDigest
    );
    spec.image.disk.digest = Some("sha256:b".into());
    let wrong = plan(&spec, &own(), &seen);
    assert_eq!(
        (wrong.steps, wrong.standing),
        (vec![], Standing::WrongDigest("sha256:a".into()))
    );
}

#[test]
fn a_deletion_that_nobody_ordered_touches_nothing() {
    let mut seen = running(own());
    seen.deleting = true;
    assert_eq!(
        plan(&spec(RunState::Running), &own(), &seen).steps,
        [Step::DropFinalizer]
    );
}

#[test]
fn a_deleted_instance_leaves_nothing() {
    let mut seen = running(own());
    seen.deleting = true;
    let mut ordered = spec(RunState::Running);
    ordered.on_deletion = OnDeletion::Remove;
    assert_eq!(
        plan(&ordered, &own(), &seen).steps,
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

fn marks() -> impl Strategy<Value = Mark> {
    prop_oneof![
        Just(own()),
        Just(Mark { epoch: 1, ..own() }),
        Just(Mark { epoch: 3, ..own() }),
        Just(Mark {
            uid: "before".into(),
            epoch: 1,
            ..own()
        }),
        Just(Mark {
            name: "other".into(),
            ..own()
        }),
        Just(Mark {
            cluster: "other".into(),
            ..own()
        }),
    ]
}

prop_compose! {
    fn any_seen()(
        deleting: bool,
        highest_epoch in prop_oneof![Just(None), (1_i64..4).prop_map(Some)],
        domain in proptest::option::of((
            proptest::option::weighted(0.9, marks()),
            prop_oneof![
                Just(DomainState::Running), Just(DomainState::Paused), Just(DomainState::ShuttingDown),
                Just(DomainState::ShutDown), Just(DomainState::Off), Just(DomainState::Crashed)
            ],
        )),
        directory in proptest::option::of(marks()),
        disk: bool,
        config_drive: bool,
        realized: bool,
        guest_shutdown: bool,
        was_running: bool,
        rebooted: bool,
    ) -> Seen {
        Seen {
            deleting, highest_epoch, disk: disk && directory.is_some(),
            config_drive: config_drive && directory.is_some(), directory, realized,
            guest_shutdown, was_running, rebooted,
            domain: domain.map(|(mark, state)| SeenDomain { mark, state }),
            image: imported(),
            ports_installed: Some(true),
            shutdown: Some(Shutdown::Overdue),
            ..Seen::default()
        }
    }
}

proptest! {
    #[test]
    fn from_any_state_acting_and_planning_again_ends(mut seen in any_seen(), stopped: bool) {
        if let Some(domain) = &seen.domain {
            prop_assume!(domain.state != DomainState::ShuttingDown);
        }
        let run_state = if stopped { RunState::Stopped } else { RunState::Running };
        let mut spec = spec(run_state);
        spec.on_deletion = OnDeletion::Remove;
        settle(&spec, &own(), &mut seen);
    }

    #[test]
    fn what_is_not_ours_is_never_touched(mut seen in any_seen(), newer: bool) {
        let foreign = if newer { Mark { epoch: 3, ..own() } } else { Mark { name: "other".into(), ..own() } };
        seen.domain = seen.domain.map(|d| SeenDomain { mark: Some(foreign.clone()), ..d });
        seen.directory = Some(foreign);
        let mut ordered = spec(RunState::Running);
        ordered.on_deletion = OnDeletion::Remove;
        let steps = plan(&ordered, &own(), &seen).steps;
        let harmless = |s: &Step| matches!(s, Step::CloseEpoch | Step::DropFinalizer);
        prop_assert!(steps.iter().all(harmless), "{:?}", steps);
    }
}

#[test]
fn a_refused_start_is_told_as_such_and_tried_again_after_its_pause() {
    let mut seen = running(own());
    seen.domain = domain(own(), DomainState::Off);
    seen.start_refused = true;
    seen.backing_off = true;
    let waiting = plan(&spec(RunState::Running), &own(), &seen);
    assert_eq!(
        waiting,
        Plan {
            steps: vec![],
            standing: Standing::StartRefused
        }
    );
    seen.backing_off = false;
    let again = plan(&spec(RunState::Running), &own(), &seen);
    assert_eq!(again.steps, [Step::StartPaused]);
    // A guest that need not run waits for nothing.
    seen.backing_off = true;
    let stopped = plan(&spec(RunState::Stopped), &own(), &seen);
    assert_eq!(stopped.standing, Standing::AsAsked);
}

#[test]
fn what_has_ended_here_is_not_made_again() {
    let seen = Seen {
        highest_epoch: Some(own().epoch),
        epoch_closed: true,
        ..Seen::default()
    };
    let ended = plan(&spec(RunState::Running), &own(), &seen);
    assert_eq!(ended, Plan::nothing(Standing::Ended));
    // A new placement is made as ever, and the old one can go.
    let newer = Mark {
        epoch: own().epoch + 1,
        ..own()
    };
    let next = plan(&spec(RunState::Running), &newer, &seen);
    assert_eq!(next.steps.first(), Some(&Step::RecordEpoch));
    let going = Seen {
        deleting: true,
        ..seen
    };
    let gone = plan(&spec(RunState::Running), &own(), &going);
    assert!(gone.steps.contains(&Step::DropFinalizer));
}
