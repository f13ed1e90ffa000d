//! An object's own SQLite.
//!
//! Invariant: everything here is synchronous. What is done between entering and leaving a handler without an `await` is
//! one transaction (src/entry.js opens it), and a failure leaves nothing of it.

use std::cell::Cell;

use worker::{Date, SqlStorage, SqlStorageValue, Storage, console_error};

type Result<T, E = worker::Error> = std::result::Result<T, E>;

use crate::domain::job::{Due, Job, Jobs};
use crate::domain::time::UnixMillis;
use crate::wire::json::{self, Invalid, Row};

/// The tables of an object, written again at every start.
const SCHEMA: &str = include_str!("../../schema/tenant/0001_tenant.sql");

/// The SQLite of one object, and its alarm.
pub(crate) struct Tables {
    sql: SqlStorage,
    /// What the table of jobs holds, once it was read.
    jobs: Cell<Option<Jobs>>,
}

/// A panic leaves no memory half changed: the list is copied out, and replaced whole once it is stored.
impl std::panic::RefUnwindSafe for Tables {}

impl Tables {
    /// Opens the object's database; makes its tables where they are missing.
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn open(storage: &Storage) -> Result<Self> {
        let tables = Self { sql: storage.sql(), jobs: Cell::new(None) };
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

    /// Forgets what is only a copy of rows: a transaction was rolled back.
    pub(crate) fn forget(&self) {
        self.jobs.set(None);
    }

    /// The list of jobs.
    fn jobs(&self) -> Result<Jobs> {
        if let Some(jobs) = self.jobs.get() {
            return Ok(jobs);
        }
        let rows = self.rows("SELECT name, due_ms, begun_ms, failures FROM job", vec![])?;
        let stored = rows.iter().filter_map(|row| stored_job(row).transpose()).collect::<Result<Vec<_>>>()?;
        let jobs = Jobs::restore(stored);
        self.jobs.set(Some(jobs));
        Ok(jobs)
    }

    /// Changes how `job` stands, with `change`, and stores what came of it.
    fn change_job(&self, job: Job, change: impl FnOnce(&mut Jobs)) -> Result<()> {
        let mut jobs = self.jobs()?;
        let before = jobs.get(job);
        change(&mut jobs);
        let after = jobs.get(job);
        if after == before {
            return Ok(());
        }
        match after {
            Some(due) => self.run(
                "INSERT INTO job (name, due_ms, begun_ms, failures) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE SET
                   due_ms = excluded.due_ms, begun_ms = excluded.begun_ms, failures = excluded.failures",
                vec![
                    job.name().into(),
                    millis(due.at),
                    due.begun.map_or(SqlStorageValue::Null, millis),
                    i64::from(due.failures).into(),
                ],
            )?,
            None => self.run("DELETE FROM job WHERE name = ?1", vec![job.name().into()])?,
        }
        self.jobs.set(Some(jobs));
        Ok(())
    }

    /// [`Jobs::schedule`].
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn schedule(&self, job: Job, at: UnixMillis) -> Result<()> {
        self.change_job(job, |jobs| jobs.schedule(job, at))
    }

    /// [`Jobs::remove`].
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn remove(&self, job: Job) -> Result<()> {
        self.change_job(job, |jobs| jobs.remove(job))
    }

    /// Whether `job` is due at `now`.
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn is_due(&self, job: Job, now: UnixMillis) -> Result<bool> {
        Ok(self.jobs()?.is_due(job, now))
    }

    /// When the alarm must ring next.
    ///
    /// # Errors
    /// When the storage refuses.
    pub(crate) fn next_alarm(&self) -> Result<Option<UnixMillis>> {
        Ok(self.jobs()?.next())
    }

    /// Does the jobs that are due, one after the other, by `work`, which says when to do the job again. What fails is put
    /// off: nothing escapes, or the platform would give the alarm up.
    pub(crate) async fn serve(&self, work: impl AsyncFn(Job, UnixMillis) -> Result<Option<UnixMillis>, String>) {
        let clock = || UnixMillis(Date::now().as_millis());
        for job in self.jobs().unwrap_or_default().due(clock()) {
            let now = clock();
            let done = match self.change_job(job, |jobs| jobs.begin(job, now)) {
                Ok(()) => work(job, now).await,
                Err(error) => Err(error.to_string()),
            };
            let noted = match done {
                Ok(next) => self.change_job(job, |jobs| jobs.finish(job, next)),
                Err(message) => {
                    console_error!("{}: {message}", job.name());
                    #[expect(clippy::cast_possible_truncation, reason = "any 32 of its bits will do")]
                    let random = super::isolate::random().unwrap_or_default() as u32;
                    self.change_job(job, |jobs| jobs.put_off(job, clock(), random))
                }
            };
            if let Err(error) = noted {
                console_error!("{}: {error}", job.name());
            }
        }
    }
}

/// A job as its table has it; none for one that this version does not know.
fn stored_job(row: &Row) -> Result<Option<(Job, Due)>> {
    let read = || {
        let name = row.text("name")?;
        let Some(job) = Job::ALL.into_iter().find(|job| job.name() == name) else { return Ok(None) };
        let failures = u32::try_from(row.integer("failures")?).unwrap_or(u32::MAX);
        let begun = row.optional_integer("begun_ms")?.map(UnixMillis);
        Ok(Some((job, Due { at: UnixMillis(row.integer("due_ms")?), begun, failures })))
    };
    read().map_err(|invalid| unreadable(&invalid))
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
