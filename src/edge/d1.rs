//! D1, in one place: registered statements, batches that begin with guards, one error type.
//!
//! Invariant: `prepare` is called here alone, and only on [`Statement`]s, whose texts are literals; a value reaches a database
//! as a parameter or not at all. What is run together is one transaction.

use wasm_bindgen::prelude::*;

use super::config;
use crate::domain::name::ShardName;
use crate::wire::json::{self, Invalid, Row};
use crate::wire::sql::{Param, Statement};

#[wasm_bindgen]
extern "C" {
    type Binding;
    #[wasm_bindgen(method, catch)]
    fn prepare(this: &Binding, sql: &str) -> Result<Prepared, JsValue>;
    #[wasm_bindgen(method, catch)]
    async fn batch(this: &Binding, statements: Vec<Prepared>) -> Result<JsValue, JsValue>;

    type Prepared;
    #[wasm_bindgen(method, catch, variadic)]
    fn bind(this: &Prepared, params: Vec<JsValue>) -> Result<Prepared, JsValue>;

    /// What a statement gave.
    type Outcome;
    #[wasm_bindgen(method, getter)]
    fn results(this: &Outcome) -> JsValue;

    type Thrown;
    #[wasm_bindgen(method, getter)]
    fn message(this: &Thrown) -> Option<String>;
    #[wasm_bindgen(method, getter)]
    fn cause(this: &Thrown) -> Option<Thrown>;
}

/// Why a batch left nothing behind.
#[derive(Debug)]
pub(crate) enum Abort {
    /// One of its guards: what the caller saw is no longer so.
    Guard(String),
    /// A row that must be unique is there already, or a value the schema refuses.
    Constraint(String),
    /// The database did not answer; whether the batch was committed is not known.
    Unavailable(String),
}

impl std::fmt::Display for Abort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Guard(reason) => write!(f, "guard: {reason}"),
            Self::Constraint(message) => write!(f, "constraint: {message}"),
            Self::Unavailable(message) => write!(f, "unavailable: {message}"),
        }
    }
}

impl From<JsValue> for Abort {
    fn from(error: JsValue) -> Self {
        let cause: Thrown = error.unchecked_into();
        let message = cause.cause().and_then(|cause| cause.message()).or_else(|| cause.message()).unwrap_or_default();
        if let Some(reason) = after(&message, "guard: ") {
            let end = reason.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(reason.len());
            return Self::Guard(reason.get(..end).unwrap_or_default().to_owned());
        }
        if ["SQLITE_CONSTRAINT", "constraint failed"].iter().any(|mark| after(&message, mark).is_some()) {
            return Self::Constraint(message);
        }
        Self::Unavailable(message)
    }
}

/// What follows the first `mark` in a text. Nothing else here looks for a text in another, and the library's way, which is faster,
/// is two kilobytes.
pub(crate) fn after<'t>(text: &'t str, mark: &str) -> Option<&'t str> {
    text.char_indices().find_map(|(at, _)| text.get(at..)?.strip_prefix(mark))
}

impl From<Invalid> for Abort {
    fn from(invalid: Invalid) -> Self {
        Self::Unavailable(invalid.to_string())
    }
}

/// One D1 database.
pub(crate) struct Database(Binding);

impl Database {
    fn open(env: &worker::Env, binding: &str) -> Result<Self, Abort> {
        config::binding(env, binding).map(Self).map_err(Abort::Unavailable)
    }

    /// The control database.
    ///
    /// # Errors
    /// When it is not bound.
    pub(crate) fn control(env: &worker::Env) -> Result<Self, Abort> {
        Self::open(env, "CONTROL")
    }

    /// A shard: `eu-1` is bound as `SHARD_EU_1`.
    ///
    /// # Errors
    /// When nothing is bound under that name.
    pub(crate) fn shard(env: &worker::Env, shard: &ShardName) -> Result<Self, Abort> {
        Self::open(env, &format!("SHARD_{}", shard.as_str().to_ascii_uppercase().replace(['-', '.'], "_")))
    }

    /// Runs statements, all or none; the rows of each, in their order.
    ///
    /// # Errors
    /// Why nothing was written, as far as that is known.
    pub(crate) async fn run(&self, statements: Vec<Statement>) -> Result<Vec<Vec<Row>>, Abort> {
        if statements.is_empty() {
            return Ok(Vec::new());
        }
        let mut prepared = Vec::with_capacity(statements.len());
        for Statement { sql, params } in &statements {
            prepared.push(self.0.prepare(sql.text())?.bind(params.iter().map(bound).collect())?);
        }
        let outcomes: js_sys::Array = self.0.batch(prepared).await?.unchecked_into();
        let mut given = Vec::with_capacity(statements.len());
        for outcome in outcomes.iter() {
            let text = String::from(js_sys::JSON::stringify(&outcome.unchecked_into::<Outcome>().results())?);
            given.push(json::rows(&text)?);
        }
        Ok(given)
    }

    /// The rows of one query.
    ///
    /// # Errors
    /// When the database does not answer.
    pub(crate) async fn rows(&self, query: Statement) -> Result<Vec<Row>, Abort> {
        Ok(self.run(vec![query]).await?.pop().unwrap_or_default())
    }

    /// The first row of one query.
    ///
    /// # Errors
    /// When the database does not answer.
    pub(crate) async fn row(&self, query: Statement) -> Result<Option<Row>, Abort> {
        Ok(self.rows(query).await?.into_iter().next())
    }
}

fn bound(param: &Param) -> JsValue {
    match param {
        Param::Text(text) => JsValue::from_str(text),
        #[expect(clippy::cast_precision_loss, reason = "every integer that is stored is below 2^53")]
        Param::Integer(value) => JsValue::from_f64(*value as f64),
        Param::Null => JsValue::NULL,
    }
}
