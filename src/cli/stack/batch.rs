//! Files of cases: one result a line, in the order of lines, by as many threads as there are
//! processors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, ErrorKind, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::failed;
use pileus_stack::Error;

/// Writes what comes of a line; nothing when that is no JSON.
pub(super) type Answer = fn(&[u8], &mut Vec<u8>) -> serde_json::Result<()>;

/// How much is read at a time, in bytes: some lines of a usual size.
const BLOCK: usize = 32 << 10;
/// How many blocks may wait for whoever reads the results.
const WAITING: usize = 64;

/// One result for each line; a line that is no JSON gives an error in its place.
///
/// # Errors
/// When the file cannot be read, or the results not be written.
pub(super) fn each_line(path: &Path, answer: Answer) -> std::io::Result<ExitCode> {
    if path == Path::new("-") {
        let mut out = std::io::stdout().lock();
        // Who writes a line may wait for its result.
        for line in std::io::stdin().lock().split(b'\n') {
            let mut text = Vec::new();
            one_line(&line?, answer, &mut text)?;
            out.write_all(&text)?;
            out.flush()?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    in_order(File::open(path)?, answer, std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the results of a file's lines to `out`.
fn in_order(file: File, answer: Answer, out: impl Write + Send) -> std::io::Result<()> {
    let source = Source {
        file,
        taken: 0,
        rest: Vec::new(),
    };
    let batch = Batch {
        source: Mutex::new(source),
        answer,
        results: Mutex::default(),
        written: Condvar::new(),
        out: Mutex::new(out),
    };
    std::thread::scope(|scope| {
        let others = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
        let others: Vec<_> = (0..others).map(|_| scope.spawn(|| batch.work())).collect();
        let own = batch.work();
        // A panic has been told of by whoever had it.
        let others = others.into_iter().map(|other| {
            (other.join())
                .unwrap_or_else(|_| Err(std::io::Error::other("a case could not be done")))
        });
        others.fold(own, std::io::Result::and)
    })
}

fn one_line(line: &[u8], answer: Answer, out: &mut Vec<u8>) -> std::io::Result<()> {
    if let Err(error) = answer(line, out) {
        let error = failed(&Error::new(format!("not JSON: {error}")));
        serde_json::to_writer(&mut *out, &error)?;
    }
    out.push(b'\n');
    Ok(())
}

/// Lines of a file, a few at a time by whoever is free.
struct Batch<W> {
    source: Mutex<Source>,
    answer: Answer,
    results: Mutex<Results>,
    /// Some results were written.
    written: Condvar,
    out: Mutex<W>,
}

struct Source {
    file: File,
    /// How many blocks were taken.
    taken: usize,
    /// What was read of a line whose end was not.
    rest: Vec<u8>,
}

/// What was done before its turn to be written.
#[derive(Default)]
struct Results {
    written: usize,
    early: BTreeMap<usize, Vec<u8>>,
    /// Room of results that are written.
    spare: Vec<Vec<u8>>,
    /// Somebody writes, and will write what comes meanwhile.
    writing: bool,
    /// What comes can no longer be written.
    broken: bool,
}

impl<W: Write> Batch<W> {
    fn work(&self) -> std::io::Result<()> {
        let mut block = Vec::new();
        loop {
            let number = lock(&self.source).take(&mut block)?;
            if block.is_empty() {
                return Ok(());
            }
            let lines = block.strip_suffix(b"\n").unwrap_or(&block);
            let mut text = {
                let mut results = lock(&self.results);
                if results.broken {
                    return Ok(());
                }
                results.spare.pop().unwrap_or_default()
            };
            let mut start = 0;
            for end in memchr::memchr_iter(b'\n', lines).chain([lines.len()]) {
                one_line(&lines[start..end], self.answer, &mut text)?;
                start = end + 1;
            }
            self.put(number, text)?;
        }
    }

    /// Writes a block's results, and those that waited for them; leaves them to whoever is
    /// about it.
    fn put(&self, number: usize, text: Vec<u8>) -> std::io::Result<()> {
        let mut results = lock(&self.results);
        results.early.insert(number, text);
        while results.writing && results.early.len() > WAITING {
            results = (self.written.wait(results)).unwrap_or_else(PoisonError::into_inner);
        }
        if results.writing {
            return Ok(());
        }
        loop {
            let next = results.written;
            let Some(mut text) = results.early.remove(&next) else {
                return Ok(());
            };
            results.writing = true;
            drop(results);
            let done = lock(&self.out).write_all(&text);
            results = lock(&self.results);
            results.writing = false;
            results.broken = done.is_err();
            self.written.notify_all();
            // Nothing is written behind a gap.
            done?;
            results.written += 1;
            text.clear();
            results.spare.push(text);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Source {
    /// Reads the next lines, none at the end; gives the number of the block.
    fn take(&mut self, block: &mut Vec<u8>) -> std::io::Result<usize> {
        block.clear();
        block.append(&mut self.rest);
        loop {
            let before = block.len();
            block.resize(before + BLOCK, 0);
            let read = match self.file.read(&mut block[before..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Ok(0) => {
                    block.truncate(before);
                    break;
                }
                read => read?,
            };
            block.truncate(before + read);
            if let Some(at) = memchr::memrchr(b'\n', &block[before..]) {
                self.rest.extend_from_slice(&block[before + at + 1..]);
                block.truncate(before + at + 1);
                break;
            }
        }
        self.taken += 1;
        Ok(self.taken - 1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    /// How long a number is.
    fn length(line: &[u8], out: &mut Vec<u8>) -> serde_json::Result<()> {
        let number: serde_json::Number = serde_json::from_slice(line)?;
        serde_json::to_writer(out, &number.to_string().len())
    }

    #[test]
    fn every_line_has_its_result_in_its_place() {
        let mut lines: Vec<Vec<u8>> = (0..4000_usize).map(|n| vec![b' '; n % 90]).collect();
        lines[7] = vec![b' '; 3 * BLOCK];
        for (n, line) in lines.iter_mut().enumerate() {
            line.extend(format!("1{:0>1$}", "", n % 17).bytes());
        }
        lines[1234] = b"\xff".to_vec();
        lines[2345].clear();
        for last in ["", "\n"] {
            let mut text = lines.join(&b'\n');
            text.extend(last.bytes());
            let mut out = Vec::new();
            in_order(file_of(&text), length, &mut out).unwrap();
            let out = String::from_utf8(out).unwrap();
            let results: Vec<&str> = out.lines().collect();
            assert_eq!(results.len(), lines.len());
            for (n, result) in results.into_iter().enumerate() {
                match n {
                    1234 | 2345 => assert!(result.contains("not JSON"), "{result}"),
                    n => assert_eq!(result, (n % 17 + 1).to_string()),
                }
            }
        }
        let mut out = Vec::new();
        in_order(file_of(b""), length, &mut out).unwrap();
        assert!(out.is_empty());
    }

    /// How many lines [`counted`] was asked for.
    static ASKED: AtomicUsize = AtomicUsize::new(0);

    fn counted(line: &[u8], out: &mut Vec<u8>) -> serde_json::Result<()> {
        ASKED.fetch_add(1, Ordering::Relaxed);
        serde_json::to_writer(out, &serde_json::from_slice::<u64>(line)?)
    }

    #[test]
    fn nothing_is_done_behind_what_could_not_be_written() {
        struct Full(Vec<u8>, usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.1 += 1;
                if self.1 == 3 {
                    return Err(ErrorKind::StorageFull.into());
                }
                self.0.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines: Vec<String> = (0..20_000).map(|n| format!("{n:>1024}")).collect();
        let file = file_of(lines.join("\n").as_bytes());
        let mut full = Full(Vec::new(), 0);
        let error = in_order(file, counted, &mut full).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        let written = String::from_utf8(full.0).unwrap();
        assert!(!written.is_empty());
        for (n, result) in written.lines().enumerate() {
            assert_eq!(result, n.to_string());
        }
        let asked = ASKED.load(Ordering::Relaxed);
        assert!(asked < lines.len() / 2, "{asked} lines");
    }
}
