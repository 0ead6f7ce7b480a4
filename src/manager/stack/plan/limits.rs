//! Limits of status and record: the API server refuses an object that is too big as a whole, and
//! then the Stack could report nothing any more.

use std::io;

use super::{Observed, Plan, Problem, StackRecord, State, cancel_in_progress};
use pileus_api::Reason;
use pileus_api::stack::StackOutput;

/// Largest record in bytes of JSON. A Secret holds 1 MiB; the rest is for the reasons of resources
/// that are being deleted.
pub(super) const MAX_RECORD_BYTES: usize = 1_000_000;

/// Largest output in bytes of JSON.
const MAX_OUTPUT_BYTES: usize = 64 * 1024;
/// Largest size of all outputs together.
const MAX_ALL_OUTPUTS_BYTES: usize = 256 * 1024;

/// Replaces the values of outputs that are too big by an error that says what to do.
pub(super) fn limit_outputs(outputs: &mut [StackOutput]) {
    let mut left = MAX_ALL_OUTPUTS_BYTES;
    for output in outputs {
        let size = output
            .value
            .as_ref()
            .map_or(0, |value| value.to_string().len());
        let why = if size > MAX_OUTPUT_BYTES {
            format!("has {size} bytes, and an output may have {MAX_OUTPUT_BYTES}")
        } else if size > left {
            format!("has {size} bytes, and all outputs together may have {MAX_ALL_OUTPUTS_BYTES}")
        } else {
            left -= size;
            continue;
        };
        output.value = None;
        output.error = Some(format!("{why}; output a part of it, or remove it"));
    }
}

/// Fails the action if its record would not fit into a Secret: existing objects are recorded
/// already, and no object is created without being recorded. A rollback or deletion does not make
/// the record bigger.
pub(super) fn limit_record(observed: &Observed<'_>, plan: &mut Plan) {
    let before = observed.record.as_ref();
    let many = before.map_or(0, |record| record.entries.len());
    if before == Some(&plan.record) || plan.record.entries.is_empty() {
        return;
    }
    let (size, most) = (size(&plan.record), MAX_RECORD_BYTES);
    if size <= most {
        return;
    }
    if plan.record.entries.len() <= many {
        // The next pass reports again why resources wait.
        for entry in plan.record.entries.values_mut() {
            entry.reason.clear();
        }
        return;
    }
    let resources = plan.record.entries.len();
    let message = format!(
        "spec.template: the record of {resources} resources has {size} bytes, and a Secret holds \
         {most}; nothing more is created. Split it into several Stacks, give resources and groups \
         shorter names, or use fewer depends_on"
    );
    plan.record.entries = before
        .map(|record| record.entries.clone())
        .unwrap_or_default();
    let word = plan.record.action.unwrap_or_default().heat_name();
    cancel_in_progress(&mut plan.record.entries, "the record is full", observed.now);
    plan.record
        .end(State::Failed, format!("{word} failed: {message}"));
    plan.steps.clear();
    plan.requeue_after = Some(std::time::Duration::ZERO);
    plan.problem = Some(Problem {
        reason: Reason::RecordTooLarge,
        message,
    });
}

/// Size of the record in bytes of JSON.
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
    fn outputs_that_are_too_big_are_replaced_by_an_error() {
        let output = |size: usize| StackOutput {
            value: Some("x".repeat(size).into()),
            ..StackOutput::default()
        };
        let mut outputs = vec![output(MAX_OUTPUT_BYTES), output(10)];
        outputs.extend((0..5).map(|_| output(MAX_OUTPUT_BYTES - 100)));
        limit_outputs(&mut outputs);
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
