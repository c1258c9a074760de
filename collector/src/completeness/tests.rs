use super::*;

use ConnectVerdict::{Passed, Redirected};
/// Before everything is settled.
const NOW_US: i64 = 1_000_000_000;

use GapReason::{AgentEnded, NoRoom, RingFull, RowsDeleted, Surplus, TableFull, Unexplained};

fn sums(redirected: u64, passed: u64) -> ConnectSums {
    ConnectSums { redirected, passed, ..ConnectSums::default() }
}

fn statement(seq: u64, closed: bool, kernel: ConnectSums, in_flight: u64) -> Statement {
    Statement {
        origin: "a".into(),
        seq,
        time_us: 1_000_000 * i64::try_from(seq).unwrap(),
        stored_us: if closed { 0 } else { NOW_US },
        host: "h".into(),
        name: "/job".into(),
        closed,
        kernel,
        lost: ConnectSums::default(),
        in_flight,
    }
}

/// A job with rows of each event once.
fn account(statements: Vec<Statement>, redirected: u64, passed: u64) -> Account {
    let rows = |n| Recorded { rows: n, events: n };
    Account {
        statements,
        later: 0,
        recorded: [(Redirected, rows(redirected)), (Passed, rows(passed))].into(),
        gaps: BTreeMap::new(),
        origins: ["a".to_owned()].into(),
    }
}

fn logs(missing: u64) -> Logs {
    [("a".to_owned(), Log { missing, ..Log::default() })].into()
}

/// Standing, and what was found: verdict, reason, number.
fn judged(account: &Account, logs: &mut Logs) -> (Standing, Vec<(ConnectVerdict, GapReason, i64)>) {
    at(account, logs, NOW_US)
}

fn at(account: &Account, logs: &mut Logs, now_us: i64) -> (Standing, Vec<(ConnectVerdict, GapReason, i64)>) {
    let judged = judge(account, logs, now_us);
    let found = judged.findings().map(|(line, one)| (line.verdict, one.reason, one.missing)).collect();
    (judged.standing, found)
}

#[test]
fn a_closed_jobs_sums_are_equal_or_named() {
    let closed = |kernel| vec![statement(9, true, kernel, 0)];
    for (redirected, passed, missing, found) in [
        (5, 2, 0, vec![]),
        (3, 2, 2, vec![(Redirected, RowsDeleted, 2)]),
        (3, 0, 4, vec![(Redirected, RowsDeleted, 2), (Passed, RowsDeleted, 2)]),
        (3, 2, 0, vec![(Redirected, Unexplained, 2)]),
        (1, 2, 3, vec![(Redirected, RowsDeleted, 3), (Redirected, Unexplained, 1)]),
        (6, 2, 0, vec![(Redirected, Surplus, -1)]),
        (0, 9, 0, vec![(Redirected, Unexplained, 5), (Passed, Surplus, -7)]),
    ] {
        let account = account(closed(sums(5, 2)), redirected, passed);
        assert_eq!(judged(&account, &mut logs(missing)), (Standing::Closed, found));
    }
    let idle = account(closed(sums(0, 0)), 0, 0);
    assert_eq!(judge(&idle, &mut logs(0), NOW_US).lines, []);
}

#[test]
fn what_a_closed_job_has_in_flight_excuses_nothing() {
    let account = account(vec![statement(9, true, sums(5, 0), 2)], 3, 0);
    assert_eq!(judged(&account, &mut logs(0)).1, [(Redirected, Unexplained, 2)]);
}

#[test]
fn a_gap_explains_its_number_if_the_agent_may_give_its_reason() {
    let closed = || account(vec![statement(9, true, sums(5, 4), 0)], 3, 1);
    let mut explained = closed();
    explained.gaps.insert(Redirected, [(AgentEnded, 1), (NoRoom, 1)].into());
    explained.gaps.insert(Passed, [(RingFull, 1), (TableFull, 2)].into());
    assert_eq!(judged(&explained, &mut logs(7)), (Standing::Closed, vec![]));
    let mut more = explained.clone();
    more.gaps.insert(Redirected, [(AgentEnded, 3)].into());
    assert_eq!(judged(&more, &mut logs(7)).1, [(Redirected, Surplus, -1)]);
    for reason in [RowsDeleted, Unexplained, Surplus] {
        let mut claimed = closed();
        claimed.gaps.insert(Redirected, [(reason, 2)].into());
        claimed.gaps.insert(Passed, [(reason, 3)].into());
        let found = vec![(Redirected, Unexplained, 2), (Passed, Unexplained, 3)];
        assert_eq!(judged(&claimed, &mut logs(0)).1, found, "{reason:?}");
    }
}

#[test]
fn what_the_ring_lost_is_named_so_if_no_gap_tells_of_it() {
    let mut lost = account(vec![statement(9, true, sums(0, 10), 0)], 0, 4);
    lost.statements[0].lost = sums(0, 5);
    assert_eq!(judged(&lost, &mut logs(9)).1, [(Passed, RingFull, 5), (Passed, RowsDeleted, 1)]);
    lost.gaps.insert(Passed, [(RingFull, 5)].into());
    assert_eq!(judged(&lost, &mut logs(9)).1, [(Passed, RowsDeleted, 1)]);
}

#[test]
fn rows_that_stand_there_twice_are_too_many_and_hide_none_that_are_missing() {
    let mut doubled = account(vec![statement(9, true, sums(10, 0), 0)], 7, 0);
    doubled.recorded.insert(Redirected, Recorded { rows: 10, events: 7 });
    let mut logs = logs(3);
    logs.get_mut("a").unwrap().doubled = 4;
    let judged = judged(&doubled, &mut logs);
    assert_eq!(judged.1, [(Redirected, RowsDeleted, 3), (Redirected, Surplus, -3)]);
    assert_eq!((logs["a"].missing, logs["a"].doubled), (0, 1), "what is left is nobody's");
}

#[test]
fn a_number_that_is_missing_in_a_log_explains_one_row_of_one_job() {
    let short = account(vec![statement(9, true, sums(5, 0), 0)], 3, 0);
    let mut logs = logs(3);
    assert_eq!(judged(&short, &mut logs).1, [(Redirected, RowsDeleted, 2)]);
    assert_eq!(judged(&short, &mut logs).1, [(Redirected, RowsDeleted, 1), (Redirected, Unexplained, 1)]);
    let mut elsewhere = short.clone();
    elsewhere.origins = ["b".to_owned()].into();
    let mut other: Logs = super::tests::logs(3);
    assert_eq!(judged(&elsewhere, &mut other).1, [(Redirected, Unexplained, 2)], "another log's numbers");
}

/// A job that runs, with each interleaving of what is counted, begun and recorded around two statements.
#[test]
fn a_running_job_is_never_found_short_by_what_is_on_its_way() {
    // Each connect: counted at, recorded at, as places in a log with statements at 4 and 8.
    for counted in 0..10u64 {
        for recorded in counted..12 {
            let at = |place: u64| {
                let kernel = u64::from(counted < place);
                let in_flight = u64::from(counted < place && recorded >= place);
                statement(place, false, sums(kernel, 0), in_flight)
            };
            for now in [9, 12] {
                let rows = u64::from(recorded < now);
                let job = account(vec![at(4), at(8)], rows, 0);
                let (standing, found) = judged(&job, &mut logs(0));
                assert_eq!((standing, found), (Standing::Open, vec![]), "{counted} {recorded} {now}");
            }
        }
    }
}

#[test]
fn a_running_jobs_shortage_is_found_once_a_statement_is_followed() {
    let first = statement(4, false, sums(5, 2), 1);
    let new = account(vec![first.clone()], 0, 0);
    assert_eq!(judged(&new, &mut logs(0)), (Standing::New, vec![]));
    let found = vec![(Redirected, Unexplained, 4), (Passed, Unexplained, 2)];
    assert_eq!(at(&new, &mut logs(0), NOW_US + SETTLED_US - 1).0, Standing::New);
    assert_eq!(at(&new, &mut logs(0), NOW_US + SETTLED_US), (Standing::Open, found.clone()));
    let followed = account(vec![statement(8, false, sums(9, 9), 9), first], 0, 0);
    assert_eq!(judged(&followed, &mut logs(0)), (Standing::Open, found));
}

#[test]
fn more_rows_than_a_closing_statement_knows_of_are_believed_once_none_can_correct_it() {
    let mut last = statement(9, true, sums(5, 0), 0);
    last.stored_us = NOW_US;
    let more = account(vec![last], 6, 0);
    let (early, later) =
        (judge(&more, &mut logs(0), NOW_US), judge(&more, &mut logs(0), NOW_US + SETTLED_US));
    assert!(early.is_early && early.findings().next().is_none());
    assert!(!later.is_early);
    assert_eq!(at(&more, &mut logs(0), NOW_US + SETTLED_US).1, [(Redirected, Surplus, -1)]);
}

/// The hook counts a connect as redirected, and then as failed instead; the first statement was read in between.
#[test]
fn a_connect_that_was_counted_anew_is_not_missing_where_it_was_counted_first() {
    let mut statements = vec![statement(4, false, sums(3, 0), 0), statement(8, false, sums(2, 0), 0)];
    statements[1].kernel.failed = 1;
    let mut job = account(statements, 2, 0);
    job.recorded.insert(ConnectVerdict::Failed, Recorded { rows: 1, events: 1 });
    assert_eq!(judged(&job, &mut logs(0)), (Standing::Open, vec![]));
}

#[test]
fn more_rows_than_a_running_jobs_statement_knows_of_are_no_surplus_unless_doubled() {
    let mut job = account(vec![statement(4, false, sums(5, 0), 0), statement(8, false, sums(6, 0), 0)], 9, 0);
    assert_eq!(judged(&job, &mut logs(0)).1, []);
    job.recorded.insert(Redirected, Recorded { rows: 11, events: 9 });
    assert_eq!(judged(&job, &mut logs(0)).1, [(Redirected, Surplus, -2)]);
}

#[test]
fn the_last_statement_is_the_one_that_counts_most_in_whichever_log() {
    let mut elsewhere = statement(0, true, sums(7, 0), 0);
    (elsewhere.origin, elsewhere.time_us) = ("b".into(), 0);
    let job = account(vec![statement(90, false, sums(6, 0), 0), elsewhere.clone()], 7, 0);
    assert_eq!(judged(&job, &mut logs(0)), (Standing::Closed, vec![]));
    let rows_alone = account(vec![], 7, 0);
    assert_eq!(judged(&rows_alone, &mut logs(0)), (Standing::Unstated, vec![]));
    // Closed, and begun again, which is stated later.
    let mut begun = job.clone();
    begun.later = 3;
    assert_eq!(judged(&begun, &mut logs(0)), (Standing::Reopened, vec![]));
    let again = statement(95, false, sums(8, 0), 0);
    let job = account(vec![elsewhere, again], 8, 0);
    assert_eq!(judged(&job, &mut logs(0)), (Standing::Open, vec![]));
}
