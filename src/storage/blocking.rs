//! Work on files, away from the threads that all else runs on: a disk that hangs must stop
//! nothing but what needs the disk.

use std::panic::resume_unwind;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Threads that may wait for the host's disks at once.
const THREADS: usize = 16;

static TURNS: Semaphore = Semaphore::const_new(THREADS);

/// Runs `work`, which may wait for a disk, on a thread of its own. Work that has begun goes on to
/// its end, also when nobody waits for it any more.
pub async fn blocking<T, F>(work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    // Nobody closes it.
    let turn = TURNS.acquire().await.ok();
    let done = spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    match done.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Only when the whole process ends.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_disk_that_hangs_stops_nothing_else_and_takes_no_more_than_its_threads() {
        let mut hanging = Vec::new();
        for _ in 0..THREADS {
            let (release, released) = mpsc::channel::<()>();
            let waits = tokio::spawn(blocking(move || released.recv().is_err()));
            hanging.push((release, waits));
        }
        // This test has one thread: what blocked it would end it here.
        while TURNS.available_permits() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let next = tokio::spawn(blocking(|| 7));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!next.is_finished(), "it waits for a thread");
        for (release, waits) in hanging {
            drop(release);
            assert!(waits.await.unwrap());
        }
        assert_eq!(next.await.unwrap(), 7);
    }
}
