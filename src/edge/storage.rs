//! An object's own SQLite.
//!
//! Invariant: everything here is synchronous. What is done between entering and leaving a handler without an `await` is
//! one transaction (src/entry.js opens it), and a failure leaves nothing of it.

use worker::{Date, SqlStorage, SqlStorageValue, Storage, console_error};

type Result<T, E = worker::Error> = std::result::Result<T, E>;

use crate::domain::job::Job;
use crate::domain::time::UnixMillis;
use crate::wire::json::{self, Invalid, Row};

/// The tables of an object, written again at every start.
const SCHEMA: &str = include_str!("../../schema/tenant/0001_tenant.sql");

/// After how long a job that was begun and never ended is begun again.
const WATCH_MS: u64 = 60_000;

/// The SQLite of one object, and its alarm.
pub(crate) struct Tables {
    sql: SqlStorage,
}

impl Tables {
    /// Opens the object's database; makes its tables where they are missing.
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn open(storage: &Storage) -> Result<Self> {
        let tables = Self { sql: storage.sql() };
        tables.run(SCHEMA, vec![])?;
        Ok(tables)
    }

    /// The rows of a query.
    ///
    /// # Errors
    /// When the statement fails.
    pub(crate) fn rows(&self, sql: &'static str, params: Vec<SqlStorageValue>) -> Result<Vec<Row>> {
        let rows = self.sql.exec(sql, params)?.collect::<Result<js_sys::Array>>()?;
        json::rows(&String::from(js_sys::JSON::stringify(&rows)?)).map_err(|invalid| unreadable(&invalid))
    }

    /// Runs a statement for its effect.
    ///
    /// # Errors
    /// When the statement fails.
    pub(crate) fn run(&self, sql: &'static str, params: Vec<SqlStorageValue>) -> Result<()> {
        self.sql.exec(sql, Some(params)).map(|_| ())
    }

    /// Makes `job` due at `at`, or earlier where it already was. Its failures are forgotten.
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn schedule(&self, job: Job, at: UnixMillis) -> Result<()> {
        self.run(
            "INSERT INTO job (name, due_ms) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET due_ms = min(due_ms, excluded.due_ms)",
            vec![job.name().into(), millis(at)],
        )
    }

    /// Begins `job`: it stays on the list, far enough off not to be begun again meanwhile. Where the object dies before it
    /// is done, it is begun again then; what schedules it meanwhile brings it back near.
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn begin(&self, job: Job, now: UnixMillis) -> Result<()> {
        self.run(
            "UPDATE job SET due_ms = ?2, begun_ms = ?2 WHERE name = ?1",
            vec![job.name().into(), millis(now.plus(WATCH_MS))],
        )
    }

    /// Ends `job`: off the list, unless it was scheduled anew meanwhile; and on it at `next`, if there is one.
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn finish(&self, job: Job, next: Option<UnixMillis>) -> Result<()> {
        self.run("DELETE FROM job WHERE name = ?1 AND due_ms = begun_ms", vec![job.name().into()])?;
        self.run("UPDATE job SET failures = 0 WHERE name = ?1", vec![job.name().into()])?;
        next.map_or(Ok(()), |at| self.schedule(job, at))
    }

    /// Takes `job` off the list, within the transaction that does it.
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn finish_at_once(&self, job: Job) -> Result<()> {
        self.run("DELETE FROM job WHERE name = ?1", vec![job.name().into()])
    }

    /// Puts `job` off after a failure.
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn put_off(&self, job: Job, now: UnixMillis, random: u32) -> Result<()> {
        let rows = self.rows("SELECT failures FROM job WHERE name = ?1", vec![job.name().into()])?;
        let failures = rows.first().and_then(|row| row.integer("failures").ok()).unwrap_or_default();
        let failures = u32::try_from(failures).unwrap_or(u32::MAX).saturating_add(1);
        self.run(
            "INSERT INTO job (name, due_ms, failures) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET due_ms = excluded.due_ms, failures = excluded.failures",
            vec![job.name().into(), millis(job.retry(failures, now, random)), i64::from(failures).into()],
        )
    }

    /// Which jobs are due at `now`, in the order to do them.
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn due(&self, now: UnixMillis) -> Result<Vec<Job>> {
        let rows = self.rows("SELECT name FROM job WHERE due_ms <= ?1", vec![millis(now)])?;
        Ok(Job::ALL.into_iter().filter(|job| rows.iter().any(|row| row.text("name") == Ok(job.name()))).collect())
    }

    /// Does the jobs that are due, one after the other, by `work`, which says when to do the job again. What fails is put
    /// off: nothing escapes, or the platform would give the alarm up.
    pub(crate) async fn serve(&self, work: impl AsyncFn(Job, UnixMillis) -> Result<Option<UnixMillis>, String>) {
        let clock = || UnixMillis(Date::now().as_millis());
        for job in self.due(clock()).unwrap_or_default() {
            let done = match self.begin(job, clock()) {
                Ok(()) => work(job, clock()).await,
                Err(error) => Err(error.to_string()),
            };
            let noted = match done {
                Ok(next) => self.finish(job, next),
                Err(message) => {
                    console_error!("{}: {message}", job.name());
                    #[expect(clippy::cast_possible_truncation, reason = "any 32 of its bits will do")]
                    self.put_off(job, clock(), super::isolate::random().unwrap_or_default() as u32)
                }
            };
            if let Err(error) = noted {
                console_error!("{}: {error}", job.name());
            }
        }
    }

    /// When the alarm must ring next.
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn next_alarm(&self) -> Result<Option<UnixMillis>> {
        let rows = self.rows("SELECT min(due_ms) AS due_ms FROM job", vec![])?;
        Ok(rows.first().and_then(|row| row.optional_integer("due_ms").ok()).flatten().map(UnixMillis))
    }
}

/// A row that this version does not understand.
pub(crate) fn unreadable(invalid: &Invalid) -> worker::Error {
    worker::Error::RustError(invalid.to_string())
}

/// A time as SQLite keeps it. Times stay below 2^53.
pub(crate) fn millis(at: UnixMillis) -> SqlStorageValue {
    integer(at.0)
}

/// A number as SQLite keeps it; what exceeds 2^53-1 is kept as that.
pub(crate) fn integer(value: u64) -> SqlStorageValue {
    SqlStorageValue::Integer(i64::try_from(value).unwrap_or(i64::MAX).min((1 << 53) - 1))
}
