//! How much a status can say: one that is too big is refused by the API server as a whole,
//! and the Stack would tell nothing any more.

use crate::api::stack::StackOutput;

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
