//! What a log tells of its own time: events whose bytes are proven come in, in order; silences and clock steps go out.
//! Nothing here is a proof: the bytes were signed as they are.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::finding::Kind;

/// How much earlier than the one before it an event may be without a word of the agent's: clocks are slewed.
const BACK_US: i64 = 1_000_000;
/// How many events behind a jump of the clock the agent may tell of it.
const TOLD_WITHIN: u64 = 1_000;
/// A silence is so many times as long as the heartbeats are apart.
const MISSED: i64 = 3;

/// A jump between two events that nothing has explained yet.
#[derive(Debug, Clone, Copy)]
struct Jump {
    seq: u64,
    delta_us: i64,
}

/// One log's time.
#[derive(Debug, Clone)]
pub(super) struct Told {
    silence_us: i64,
    /// The last event: its number and time, and whether it says that the agent stopped.
    last: Option<(u64, i64, bool)>,
    jump: Option<Jump>,
}

/// What one event told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tale {
    pub kind: Kind,
    pub first_seq: u64,
    pub last_seq: u64,
    pub detail: String,
}

/// An agent's event, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(super) struct AgentEvent {
    pub name: String,
    #[serde(default)]
    pub detail: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Envelope {
    body: AgentEvent,
}

/// Canonical bytes of an agent's event begin so: of all bodies it alone has `detail` for its first member.
const AGENT_EVENT: &[u8] = b"{\"body\":{\"detail\":";

/// The agent's event in these proven bytes, if they are one.
pub(super) fn agent_event(canonical: &[u8]) -> Option<AgentEvent> {
    if !canonical.starts_with(AGENT_EVENT) {
        return None;
    }
    serde_json::from_slice::<Envelope>(canonical).ok().map(|envelope| envelope.body)
}

/// The time in proven canonical bytes: the envelope's members are sorted, so they end in `"time_us":N,"v":1}`.
pub(super) fn time_of(canonical: &[u8]) -> Option<i64> {
    let end = canonical.iter().rposition(|byte| *byte == b',')?;
    let (before, _) = canonical.split_at_checked(end)?;
    let digits = before.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (key, digits) = before.split_at_checked(before.len() - digits)?;
    if !key.ends_with(b"\"time_us\":") || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0_i64, |n, digit| n.checked_mul(10)?.checked_add(i64::from(digit - b'0')))
}

impl Told {
    pub(super) fn new(heartbeat_s: u64) -> Self {
        let heartbeat_us = i64::try_from(heartbeat_s.saturating_mul(1_000_000)).unwrap_or(i64::MAX / MISSED);
        Self { silence_us: heartbeat_us.saturating_mul(MISSED), last: None, jump: None }
    }

    /// The next proven event of the log.
    pub(super) fn event(
        &mut self,
        seq: u64,
        canonical: &[u8],
        agent: Option<&AgentEvent>,
        out: &mut Vec<Tale>,
    ) {
        let Some(time) = time_of(canonical) else {
            self.last = None;
            return;
        };
        if let Some((last_seq, last_time, stopped)) = self.last
            && last_seq.checked_add(1) == Some(seq)
        {
            let delta_us = time.saturating_sub(last_time);
            if delta_us < -BACK_US || (delta_us > self.silence_us && !stopped) {
                self.flush(out);
                self.jump = Some(Jump { seq, delta_us });
            }
        }
        if let Some(agent) = agent.filter(|agent| agent.name == "clock.step") {
            self.step(seq, agent, out);
        }
        if self.jump.is_some_and(|jump| seq.saturating_sub(jump.seq) > TOLD_WITHIN) {
            self.flush(out);
        }
        self.last = Some((seq, time, agent.is_some_and(|agent| agent.name == "agent.stopped")));
    }

    fn step(&mut self, seq: u64, agent: &AgentEvent, out: &mut Vec<Tale>) {
        let step_us =
            agent.detail.get("step_us").and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a step of more than 2^63 us is cut at the type's end"
        )]
        let step = step_us as i64;
        // A step to a later time looks like a silence; the agent's own word explains it.
        if self
            .jump
            .is_some_and(|jump| jump.delta_us.saturating_sub(step).saturating_abs() <= self.silence_us)
        {
            self.jump = None;
        }
        let detail = format!("the host's clock was set by {step} us, as the agent saw");
        out.push(Tale { kind: Kind::ClockStep, first_seq: seq, last_seq: seq, detail });
    }

    /// A jump that was not explained in time.
    fn flush(&mut self, out: &mut Vec<Tale>) {
        let Some(Jump { seq, delta_us }) = self.jump.take() else { return };
        out.push(if delta_us < 0 {
            let detail = format!("{} us earlier than the event before it", -delta_us);
            Tale { kind: Kind::ClockStep, first_seq: seq, last_seq: seq, detail }
        } else {
            let detail = format!("no event for {} s, and the agent had not stopped", delta_us / 1_000_000);
            Tale { kind: Kind::Silence, first_seq: seq.saturating_sub(1), last_seq: seq, detail }
        });
    }

    /// The log's end; at `until_us` it should have gone on, unless the agent stopped. `alive_us` is the time of its last
    /// checkpoint.
    pub(super) fn end(&mut self, until_us: Option<i64>, alive_us: Option<i64>, out: &mut Vec<Tale>) {
        self.flush(out);
        let (Some(until), Some((seq, time, false))) = (until_us, self.last) else { return };
        let silent = until.saturating_sub(alive_us.map_or(time, |alive| alive.max(time)));
        if silent > self.silence_us {
            let detail =
                format!("nothing for {} s behind it, and the agent had not stopped", silent / 1_000_000);
            out.push(Tale { kind: Kind::Silence, first_seq: seq, last_seq: seq, detail });
        }
    }

    /// The time of the last event.
    pub(super) fn last_us(&self) -> Option<i64> {
        self.last.map(|(_, time, _)| time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(detail: &str, name: &str, time_us: i64) -> Vec<u8> {
        format!("{{\"body\":{{\"detail\":{detail},\"kind\":\"agent\",\"name\":\"{name}\"}},\"time_us\":{time_us},\"v\":1}}")
            .into_bytes()
    }

    fn tales(events: &[(&str, &str, i64)], until_us: Option<i64>) -> Vec<(Kind, u64)> {
        let (mut told, mut out) = (Told::new(60), Vec::new());
        for (seq, (detail, name, time)) in events.iter().enumerate() {
            let bytes = event(detail, name, *time);
            let agent = agent_event(&bytes);
            told.event(seq as u64, &bytes, agent.as_ref(), &mut out);
        }
        told.end(until_us, None, &mut out);
        out.into_iter().map(|tale| (tale.kind, tale.first_seq)).collect()
    }

    const S: i64 = 1_000_000;

    #[test]
    fn a_missing_heartbeat_is_a_silence_and_a_stopped_agent_is_none() {
        assert_eq!(tales(&[("{}", "a", 0), ("{}", "heartbeat", 180 * S)], None), []);
        assert_eq!(tales(&[("{}", "a", 0), ("{}", "b", 181 * S)], None), [(Kind::Silence, 0)]);
        assert_eq!(tales(&[("{}", "agent.stopped", 0), ("{}", "b", 999 * S)], None), []);
        assert_eq!(tales(&[("{}", "a", 0)], Some(181 * S)), [(Kind::Silence, 0)]);
        assert_eq!(tales(&[("{}", "agent.stopped", 0)], Some(181 * S)), []);
    }

    #[test]
    fn a_step_that_the_agent_told_is_named_once() {
        let hour = 3600 * S;
        let step = format!("{{\"step_us\":\"{hour}\",\"wall_us\":\"1\"}}");
        let told = tales(&[("{}", "a", 0), ("{}", "b", hour + S), (&step, "clock.step", hour + S)], None);
        assert_eq!(told, [(Kind::ClockStep, 2)]);
        let huge = [("{}", "a", hour), ("{\"step_us\":\"1e300\"}", "clock.step", 0)];
        assert_eq!(tales(&huge, None), [(Kind::ClockStep, 1), (Kind::ClockStep, 1)]);
        assert_eq!(tales(&[("{}", "a", hour), ("{}", "b", 0)], None), [(Kind::ClockStep, 1)]);
        assert_eq!(tales(&[("{}", "a", hour), ("{}", "b", hour - S)], None), []);
    }

    #[test]
    fn the_time_is_read_from_the_end_of_canonical_bytes_alone() {
        assert_eq!(time_of(br#"{"body":{"x":"\"time_us\":5,"},"time_us":17,"v":1}"#), Some(17));
        for bad in [&b""[..], b",", b"{\"time_us\":1}", b"\"time_us\":99999999999999999,", b"time_us\":1,"] {
            assert_eq!(time_of(bad), None);
        }
    }
}
