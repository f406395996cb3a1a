//! The threads that kernels share their tasks with.
//!
//! A forward is hundreds of short parallel steps, so what counts is the price of one step. Idle workers watch
//! one word for a while before they sleep: a step then starts within a cache miss, where waking a sleeping
//! thread takes as long as a whole step of a short input.
//!
//! The word, `Pool::word`, is `step number | workers inside | open`. A step is opened by its owner, joined by
//! adding a worker while it is open, and closed by its owner, who then waits for the workers inside and for
//! nobody else: a worker that comes late, or that the system does not run, finds the step closed.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

const OPEN: u64 = 1;
const INSIDE: u64 = 2; // one worker inside
const INSIDE_MASK: u64 = (1 << 24) - 2;
const STEP: u64 = 1 << 24; // one step

/// Looks at the word before a worker sleeps: about 100 microseconds.
const LOOKS: u32 = 3000;

/// Workers that help whoever calls [`Pool::for_each`].
pub(crate) struct Pool {
    shared: Arc<Shared>,
    owner: Mutex<()>, // held by the thread whose step is running
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    word: AtomicU64,
    next: AtomicUsize, // the next task of the open step
    job: Mutex<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: Mutex<usize>,
    sleeping: AtomicUsize, // a copy of `sleepers` that can be read without the lock
    wake: Condvar,
    stop: AtomicU64,
}

/// What a step does, and how often.
#[derive(Clone, Copy)]
struct Job {
    work: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
}

impl Pool {
    /// A pool with `workers` threads of its own.
    pub fn new(workers: usize) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            word: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: Mutex::new(None),
            panic: Mutex::new(None),
            sleepers: Mutex::new(0),
            sleeping: AtomicUsize::new(0),
            wake: Condvar::new(),
            stop: AtomicU64::new(0),
        });
        let mut pool = Pool { shared, owner: Mutex::new(()), workers: Vec::new() };
        for i in 0..workers {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("qberta-{}", i + 1));
            pool.workers.push(thread.spawn(move || shared.help())?); // dropping the pool stops those there are
        }
        Ok(pool)
    }

    /// Number of threads that a step can run on, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(task)` once for each task in `0..tasks`, in any order, and returns when all are done.
    ///
    /// While another thread has a step running, the caller does all its tasks itself. A panic of a task is
    /// passed on after the step.
    pub fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        let Ok(owner) = self.owner.try_lock() else {
            return (0..tasks).for_each(work);
        };
        // SAFETY: only the lifetime is changed. The reference is used by threads inside the step alone, and
        // `close`, which the guard below calls on every way out of this function, waits until none is inside.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        let job = Job { work, tasks };
        let step = Step { shared: &self.shared };
        step.shared.open(job);
        step.shared.run(job);
        drop(step);
        if let Some(panic) = lock(&self.shared.panic).take() {
            drop(owner); // not poisoned by the panic of a task
            resume_unwind(panic);
        }
    }
}

/// An open step; closed when dropped.
struct Step<'a> {
    shared: &'a Shared,
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn open(&self, job: Job) {
        *lock(&self.job) = Some(job);
        self.next.store(0, Ordering::Relaxed);
        // The step before is closed and empty, so the word is its number alone.
        self.word.fetch_add(STEP + OPEN, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            let _sleepers = lock(&self.sleepers);
            self.wake.notify_all();
        }
    }

    fn close(&self) {
        self.word.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while self.word.load(Ordering::Acquire) & INSIDE_MASK != 0 {
            pause(&mut looks);
        }
        *lock(&self.job) = None;
    }

    /// Tasks of `job` until there are no more.
    fn run(&self, job: Job) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= job.tasks {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.work)(task))) {
                *lock(&self.panic) = Some(panic);
            }
        }
    }

    /// The life of a worker.
    fn help(&self) {
        let mut seen = 0; // number of the last step looked at
        loop {
            let word = self.wait(seen);
            if self.stop.load(Ordering::SeqCst) != 0 {
                return;
            }
            seen = word / STEP;
            if word & OPEN == 0 {
                continue;
            }
            // Fails when others join or leave at the same time, or when the step is over.
            let joined = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                (now & OPEN != 0 && now / STEP == seen).then_some(now + INSIDE)
            });
            if joined.is_ok() {
                let job = *lock(&self.job);
                if let Some(job) = job {
                    self.run(job);
                }
                self.word.fetch_sub(INSIDE, Ordering::Release);
            }
        }
    }

    /// Returns the word once its step is not `seen`, or when the pool stops.
    fn wait(&self, seen: u64) -> u64 {
        let changed = || {
            let word = self.word.load(Ordering::SeqCst);
            (word / STEP != seen || self.stop.load(Ordering::SeqCst) != 0).then_some(word)
        };
        for _ in 0..LOOKS {
            if let Some(word) = changed() {
                return word;
            }
            std::hint::spin_loop();
        }
        let mut sleepers = lock(&self.sleepers);
        *sleepers += 1;
        self.sleeping.store(*sleepers, Ordering::SeqCst);
        // Whoever opens a step writes the word before it reads `sleeping`, and this thread the other way round:
        // one of the two sees the other.
        let word = loop {
            if let Some(word) = changed() {
                break word;
            }
            sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
        };
        *sleepers -= 1;
        self.sleeping.store(*sleepers, Ordering::SeqCst);
        word
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(1, Ordering::SeqCst);
        {
            let _sleepers = lock(&self.shared.sleepers);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // a worker catches the panics of its tasks
        }
    }
}

/// One turn of a wait that is short unless the system runs somebody else.
fn pause(looks: &mut u32) {
    *looks += 1;
    if *looks < LOOKS { std::hint::spin_loop() } else { std::thread::yield_now() }
}

/// No lock here guards anything that a panic could leave half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    fn count(pool: &Pool, tasks: usize) {
        let done: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
        pool.for_each(tasks, &|task| {
            done[task].fetch_add(1, Ordering::Relaxed);
        });
        assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn every_task_is_done_once() {
        for workers in 0..4 {
            let pool = Pool::new(workers).unwrap();
            assert_eq!(pool.threads(), workers + 1);
            for round in 0..if cfg!(miri) { 5 } else { 2000 } {
                count(&pool, round % 37);
            }
            std::thread::sleep(Duration::from_millis(5)); // the workers are asleep now
            count(&pool, 100);
        }
    }

    #[test]
    fn a_worker_takes_part() {
        let pool = Pool::new(1).unwrap();
        let both = std::sync::Barrier::new(2); // passed only when two threads run a task at the same time
        pool.for_each(2, &|_| {
            both.wait();
        });
    }

    #[test]
    fn steps_of_many_owners_and_steps_inside_steps_finish() {
        let pool = Pool::new(2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..if cfg!(miri) { 3 } else { 300 }).for_each(|i| count(&pool, i % 19)));
            }
        });
        pool.for_each(4, &|_| count(&pool, 5));
    }

    #[test]
    fn a_panic_is_passed_on_after_the_step_and_the_pool_lives() {
        let pool = Pool::new(2).unwrap();
        for bad in 0..6 {
            let done = AtomicU32::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(6, &|task| {
                    assert!(task != bad, "task {bad}");
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }));
            assert_eq!(result.unwrap_err().downcast_ref::<String>().unwrap(), &format!("task {bad}"));
            assert_eq!(done.into_inner(), 5);
        }
        count(&pool, 50);
    }
}
