//! How much a status can say and a record can hold: one that is too big is refused by the API
//! server as a whole, and the Stack would tell nothing any more.

use std::io;

use super::{StackRecord, Plan, Problem, Observed, State, give_up};
use pileus_api::Reason;
use pileus_api::stack::StackOutput;

/// Bytes that a record may have, in JSON. A Secret holds 1 MiB; the rest is for what is said of
/// resources while they go.
pub(super) const LARGEST_RECORD: usize = 1_000_000;

/// Bytes that one output may have, in JSON.
const LARGEST: usize = 64 * 1024;
/// Bytes that all of them may have together.
const LARGEST_ALL: usize = 256 * 1024;

/// Outputs that fit; in place of one that does not, what to do.
pub(super) fn limit(outputs: &mut [StackOutput]) {
    let mut left = LARGEST_ALL;
    for output in outputs {
        let size = output
            .value
            .as_ref()
            .map_or(0, |value| value.to_string().len());
        let why = if size > LARGEST {
            format!("has {size} bytes, and an output may have {LARGEST}")
        } else if size > left {
            format!("has {size} bytes, and all outputs together may have {LARGEST_ALL}")
        } else {
            left -= size;
            continue;
        };
        output.value = None;
        output.error = Some(format!("{why}; give out a part of it, or leave it out"));
    }
}

/// A record that no Secret can hold ends the action: what exists is recorded already, and
/// nothing is made that would not be. What the action does on its way back, and what goes, takes
/// no more room than there was.
pub(super) fn limit_record(observed: &Observed<'_>, plan: &mut Plan) {
    let before = observed.record.as_ref();
    let many = before.map_or(0, |record| record.entries.len());
    if before == Some(&plan.record) || plan.record.entries.is_empty() {
        return;
    }
    let (size, most) = (size(&plan.record), LARGEST_RECORD);
    if size <= most {
        return;
    }
    if plan.record.entries.len() <= many {
        // Why resources wait is told again by the next pass.
        for entry in plan.record.entries.values_mut() {
            entry.reason.clear();
        }
        return;
    }
    let resources = plan.record.entries.len();
    let message = format!(
        "spec.template: the record of {resources} resources has {size} bytes, and a Secret holds \
         {most}; nothing more is made. Make several Stacks of it, give resources and groups \
         shorter names, or fewer depends_on"
    );
    plan.record.entries = before
        .map(|record| record.entries.clone())
        .unwrap_or_default();
    let word = plan.record.action.unwrap_or_default().word();
    give_up(&mut plan.record.entries, "the record is full", observed.now);
    plan.record
        .end(State::Failed, format!("{word} failed: {message}"));
    plan.steps.clear();
    plan.again = Some(std::time::Duration::ZERO);
    plan.problem = Some(Problem {
        reason: Reason::RecordTooLarge,
        message,
    });
}

/// Bytes of the record as it is written.
fn size(record: &StackRecord) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, record) {
        Ok(()) => count.0,
        Err(_) => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn outputs_that_no_status_can_hold_say_so() {
        let output = |size: usize| StackOutput {
            value: Some("x".repeat(size).into()),
            ..StackOutput::default()
        };
        let mut outputs = vec![output(LARGEST), output(10)];
        outputs.extend((0..5).map(|_| output(LARGEST - 100)));
        limit(&mut outputs);
        let why = outputs[0].error.clone().unwrap();
        assert!(
            why.contains("65538 bytes") && outputs[0].value.is_none(),
            "{why}"
        );
        assert!(outputs[1].value.is_some() && outputs[5].value.is_some());
        let why = outputs[6].error.clone().unwrap();
        assert!(why.contains("all outputs together"), "{why}");
    }
}
