use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Buf;
use tokio::time::timeout;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::types::{BorrowToSql, ToSql};
use tokio_postgres::{Client, CopyInSink, Error as Failed, Row, RowStream, Statement, ToStatement};
use tokio_util::task::AbortOnDropHandle;

use super::tls::Tls;
use crate::store::Error;

/// Statements that a connection keeps prepared: about 100 different ones are in use at a time, 2 to 10 of them about the
/// newest segment. What is about older ones goes when all are let go of, and those in use are prepared anew, in 10 ms.
const STATEMENTS_MAX: usize = 256;

/// How long answers that nobody waits for any more may take: on a busy server most come by then, and the connection is kept.
const SETTLING_MAX: Duration = Duration::from_millis(500);

/// After how long the server is told to cancel what a connection that is to end still runs, and then after twice as long each
/// time: soon enough that its place is free within a second, late enough that what has just ended costs no second connection.
const CANCEL_AFTER: Duration = Duration::from_millis(100);

/// How long a server may take for that, seven times told. One that hangs has no use for the place meanwhile.
const CANCELLING_MAX: Duration = Duration::from_secs(10);

type Params<'p> = &'p [&'p (dyn ToSql + Sync)];

/// A connection with the statements it has prepared. It knows whether all it was asked is answered: who asks may be gone
/// before. Its socket is closed when it is dropped.
pub(super) struct Connection {
    client: Client,
    driver: AbortOnDropHandle<()>,
    statements: HashMap<String, Statement>,
    unanswered: AtomicU32,
    in_transaction: bool,
}

/// Says whether the server ends the connection with this: it is told before the connection is closed.
fn is_the_end(error: &Failed) -> bool {
    let severity = error.as_db_error().and_then(DbError::parsed_severity);
    error.is_closed() || matches!(severity, Some(Severity::Fatal | Severity::Panic))
}

impl Connection {
    /// Takes a client, and the task that ends with its connection.
    pub(super) fn new(client: Client, driver: AbortOnDropHandle<()>) -> Self {
        let (statements, unanswered) = (HashMap::new(), AtomicU32::new(0));
        Self { client, driver, statements, unanswered, in_transaction: false }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Says whether the next who borrows it finds it as if nobody had before.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.in_transaction && self.unanswered.load(Ordering::Relaxed) == 0
    }

    /// Waits a moment for answers that nobody waits for any more, and says whether all came. After a transaction that didn't end
    /// it never does.
    pub(super) async fn settles(&self) -> bool {
        if self.in_transaction {
            return false;
        }
        // Questions are answered in their order.
        let settled = matches!(timeout(SETTLING_MAX, self.client.batch_execute("")).await, Ok(Ok(())));
        if settled {
            self.unanswered.store(0, Ordering::Relaxed);
        }
        settled
    }

    /// Notes a question until its answer. What is dropped in between stays noted for ever, and so does one whose answer is the
    /// last that comes.
    async fn answered<T>(&self, answer: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        let answer = answer.await;
        if !answer.as_ref().is_err_and(is_the_end) {
            self.unanswered.fetch_sub(1, Ordering::Relaxed);
        }
        answer
    }

    /// Prepares a statement once a connection.
    pub(super) async fn prepared(&mut self, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.answered(self.client.prepare(sql)).await?;
        if self.statements.len() >= STATEMENTS_MAX {
            // The server forgets each one once nobody here uses it any more.
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    pub(super) async fn query<S: ?Sized + ToStatement>(
        &self,
        statement: &S,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Failed> {
        self.answered(self.client.query(statement, params)).await
    }

    pub(super) async fn query_one<S: ?Sized + ToStatement>(
        &self,
        statement: &S,
        params: Params<'_>,
    ) -> Result<Row, Failed> {
        self.answered(self.client.query_one(statement, params)).await
    }

    pub(super) async fn query_opt<S: ?Sized + ToStatement>(
        &self,
        statement: &S,
        params: Params<'_>,
    ) -> Result<Option<Row>, Failed> {
        self.answered(self.client.query_opt(statement, params)).await
    }

    pub(super) async fn execute<S: ?Sized + ToStatement>(
        &self,
        statement: &S,
        params: Params<'_>,
    ) -> Result<u64, Failed> {
        self.answered(self.client.execute(statement, params)).await
    }

    pub(super) async fn batch_execute(&self, sql: &str) -> Result<(), Failed> {
        self.answered(self.client.batch_execute(sql)).await
    }

    /// Reads rows as they come. In a transaction only, whose end says that all of them came.
    pub(super) async fn query_raw<S, P, I>(&self, statement: &S, params: I) -> Result<RowStream, Failed>
    where
        S: ?Sized + ToStatement,
        P: BorrowToSql,
        I: IntoIterator<Item = P>,
        I::IntoIter: ExactSizeIterator,
    {
        debug_assert!(self.in_transaction, "rows that nobody reads to the end show by their transaction");
        self.answered(self.client.query_raw(statement, params)).await
    }

    /// Writes rows as they are made. In a transaction only, as [`Self::query_raw`].
    pub(super) async fn copy_in<U: Buf + Send + 'static>(
        &self,
        statement: &Statement,
    ) -> Result<CopyInSink<U>, Failed> {
        debug_assert!(self.in_transaction, "rows that nobody writes to the end show by their transaction");
        self.answered(self.client.copy_in(statement)).await
    }

    /// Notes that a transaction is about to begin, so that this connection is not used by others before its end.
    pub(super) fn will_begin(&mut self) {
        self.in_transaction = true;
    }

    pub(super) async fn begin(&mut self) -> Result<(), Error> {
        self.begin_as("BEGIN").await
    }

    pub(super) async fn begin_as(&mut self, sql: &str) -> Result<(), Error> {
        self.will_begin();
        Ok(self.batch_execute(sql).await?)
    }

    pub(super) async fn commit(&mut self) -> Result<(), Error> {
        self.batch_execute("COMMIT").await?;
        self.in_transaction = false;
        Ok(())
    }

    pub(super) async fn rollback(&mut self) -> Result<(), Error> {
        self.batch_execute("ROLLBACK").await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Ends it, and returns when it has: whatever it still does is cancelled. It is never used again, so a cancellation that
    /// comes late hits nobody else's statement.
    pub(super) async fn end(self, tls: Tls) {
        let Self { client, mut driver, .. } = self;
        let cancel = client.cancel_token();
        drop(client);
        let ending = async {
            let mut after = CANCEL_AFTER;
            while timeout(after, &mut driver).await.is_err() {
                // One that comes between two statements does nothing; the next one does.
                if let Err(error) = cancel.cancel_query(tls.clone()).await {
                    tracing::debug!(%error, "a statement that nobody waits for can't be cancelled");
                }
                after *= 2;
            }
        };
        // What takes longer ends with its socket.
        drop(timeout(CANCELLING_MAX, ending).await);
    }
}
