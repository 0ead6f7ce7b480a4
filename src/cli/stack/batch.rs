//! Files of cases: one result per line, in the order of the lines, computed by one thread per
//! processor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, ErrorKind, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::failed;
use pileus_stack::Error;

/// Writes the result of a line; an error when the line is not JSON.
pub(super) type LineHandler = fn(&[u8], &mut Vec<u8>) -> serde_json::Result<()>;

/// How much is read at a time, in bytes: a few lines of usual size.
const BLOCK: usize = 32 << 10;
/// How many finished blocks may wait until earlier ones are written.
const MAX_WAITING_BLOCKS: usize = 64;

/// One result for each line; for a line that is not JSON, the error.
///
/// # Errors
/// When the file cannot be read, or the results not be written.
pub(super) fn each_line(path: &Path, handler: LineHandler) -> std::io::Result<ExitCode> {
    if path == Path::new("-") {
        let mut out = std::io::stdout().lock();
        // Interactive: write each result at once.
        for line in std::io::stdin().lock().split(b'\n') {
            let mut text = Vec::new();
            one_line(&line?, handler, &mut text)?;
            out.write_all(&text)?;
            out.flush()?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    in_order(File::open(path)?, handler, std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the results of a file's lines to `out`.
fn in_order(file: File, handler: LineHandler, out: impl Write + Send) -> std::io::Result<()> {
    let source = Source {
        file,
        taken: 0,
        rest: Vec::new(),
    };
    let batch = Batch {
        source: Mutex::new(source),
        handler,
        results: Mutex::default(),
        written: Condvar::new(),
        out: Mutex::new(out),
    };
    std::thread::scope(|scope| {
        let others = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
        let others: Vec<_> = (0..others).map(|_| scope.spawn(|| batch.work())).collect();
        let own = batch.work();
        // A panic was printed by its thread.
        let others = others.into_iter().map(|other| {
            (other.join())
                .unwrap_or_else(|_| Err(std::io::Error::other("a case could not be done")))
        });
        others.fold(own, std::io::Result::and)
    })
}

fn one_line(line: &[u8], handler: LineHandler, out: &mut Vec<u8>) -> std::io::Result<()> {
    if let Err(error) = handler(line, out) {
        let error = failed(&Error::new(format!("not JSON: {error}")));
        serde_json::to_writer(&mut *out, &error)?;
    }
    out.push(b'\n');
    Ok(())
}

/// Lines of a file, distributed to threads in blocks.
struct Batch<W> {
    source: Mutex<Source>,
    handler: LineHandler,
    results: Mutex<Results>,
    /// Notified when results were written.
    written: Condvar,
    out: Mutex<W>,
}

struct Source {
    file: File,
    /// How many blocks were taken.
    taken: usize,
    /// The beginning of a line that is not read to its end.
    rest: Vec<u8>,
}

/// Results of blocks whose predecessors are not written yet.
#[derive(Default)]
struct Results {
    written: usize,
    early: BTreeMap<usize, Vec<u8>>,
    /// Buffers of written results, for reuse.
    spare: Vec<Vec<u8>>,
    /// A thread is writing, and will write later results, too.
    writing: bool,
    /// A write has failed: no more results can be written.
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
                one_line(&lines[start..end], self.handler, &mut text)?;
                start = end + 1;
            }
            self.put(number, text)?;
        }
    }

    /// Writes the results of a block and of the blocks after it that waited. If another thread is
    /// writing, that thread writes them.
    fn put(&self, number: usize, text: Vec<u8>) -> std::io::Result<()> {
        let mut results = lock(&self.results);
        results.early.insert(number, text);
        while results.writing && results.early.len() > MAX_WAITING_BLOCKS {
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
            // After an error nothing more is written: results must have no gap.
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
    /// Reads the next lines (none at the end), and returns the number of the block.
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

    /// The length of a number.
    fn length(line: &[u8], out: &mut Vec<u8>) -> serde_json::Result<()> {
        let number: serde_json::Number = serde_json::from_slice(line)?;
        serde_json::to_writer(out, &number.to_string().len())
    }

    #[test]
    fn results_have_the_order_of_lines() {
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
    fn no_case_runs_after_a_failed_write() {
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
