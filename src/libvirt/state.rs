//! The state of a domain.

use std::path::Path;

use pileus_hypervisor::domain::State;
use pileus_hypervisor::shutdown_reason;
use pileus_hypervisor::xml::domain_name;
use virt::domain::{
    Domain, DomainShutoffReason, DomainShutoffReasonEnum, DomainState, DomainStateReason,
    DomainStateReasonEnum,
};
use virt::enumutil::Enum;
use virt::error::Error;

/// Whether the domain's processors run.
pub fn is_running(domain: &Domain) -> Result<bool, Error> {
    let (state, _) = read_state(domain)?;
    Ok(matches!(state, DomainState::Running | DomainState::Blocked))
}

/// `virt` 0.5 drops the error of a failed `virDomainGetState` and returns an unknown state:
/// without this check, a domain that cannot be read would be taken for one that is off.
fn read_state(domain: &Domain) -> Result<(DomainState, DomainStateReasonEnum), Error> {
    match domain.state()? {
        (Enum::Known(state), reason) => Ok((state, reason)),
        (Enum::Unknown(_), _) => Err(Error::last_error()),
    }
}

/// The state of a domain; `logs` is the directory of QEMU's logs.
pub fn state_of(domain: &Domain, logs: &Path) -> Result<State, Error> {
    let (state, reason) = read_state(domain)?;
    Ok(match state {
        DomainState::Running | DomainState::Blocked => State::Running,
        DomainState::Paused | DomainState::PMSuspended => State::Paused,
        DomainState::Shutdown => State::ShuttingDown,
        DomainState::Crashed => State::Crashed,
        DomainState::NoState => State::Off,
        DomainState::Shutoff => match reason {
            Enum::Known(DomainStateReason::Shutoff(reason))
                if was_shutdown(domain, reason, logs)? =>
            {
                State::ShutDown
            }
            _ => State::Off,
        },
    })
}

/// Whether a domain that is off was shut down by its guest.
fn was_shutdown(
    domain: &Domain,
    reason: DomainShutoffReasonEnum,
    logs: &Path,
) -> Result<bool, Error> {
    match reason.known() {
        Some(DomainShutoffReason::Shutdown) => Ok(true),
        // The daemon does not remember the reason over a restart.
        Some(DomainShutoffReason::Unknown) => {
            let log = logs.join(format!("{}.log", domain_name(domain.uuid()?)));
            Ok(shutdown_reason::was_shutdown(&log))
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use virt::error::ErrorNumber;

    use super::*;
    use crate::event_loop::testing;

    #[test]
    fn a_state_that_cannot_be_read_is_an_error() {
        let connect = testing::connect();
        let domain = testing::running(&connect, "state");
        assert_eq!(read_state(&domain).unwrap().0, DomainState::Running);
        let nowhere = Path::new("/nonexistent");
        assert_eq!(state_of(&domain, nowhere).unwrap(), State::Running);
        domain.destroy().unwrap();
        assert_eq!(state_of(&domain, nowhere).unwrap(), State::Off);
        domain.undefine().unwrap();
        let error = state_of(&domain, nowhere).unwrap_err();
        assert!(error.code().is(ErrorNumber::NoDomain), "{error}");
    }
}
