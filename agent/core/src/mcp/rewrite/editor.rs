//! What is changed in the messages of one answer.

use std::ops::Range;

use serde::Deserialize;
use serde_json::Value;

use super::text::{cuts, elements, member, members, splice};
use crate::mask::{Masker, Span};
use crate::mcp::jsonrpc::{self, Body as Messages, Message, REFUSED, RequestId};

/// Of a result, what is MCP's own and not content: a client hands it back to the letter, or goes by it.
const KEPT_OF_RESULT: [&str; 4] = ["nextCursor", "requestState", "resultType", "_meta"];
/// The same of a notification's or a request's params.
const KEPT_OF_PARAMS: [&str; 6] =
    ["progressToken", "requestId", "requestState", "elicitationId", "taskId", "_meta"];
/// So many names of hidden tools are told of one answer, and so many masked places.
const MAX_TOLD: usize = 256;
/// What stands for a message that must not go on.
const WITHHELD: &str =
    "withheld by Weir: the answer must be masked, and cannot be read (or is too large to be)";

type Hides = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// See the module.
#[derive(Default)]
pub struct Editor {
    /// The requests that are answered here, by which an error is told.
    asked: Vec<RequestId>,
    /// The answers that list tools, and which tools are to be taken out.
    lists: Lists,
    hides: Option<Hides>,
    masker: Option<Masker>,
    progress: Option<Progress>,
    told: Told,
}

/// Which answers are lists of tools.
#[derive(Debug)]
pub enum Lists {
    /// Those to these requests.
    Of(Vec<RequestId>),
    /// Any that looks like one: on a stream whose requests came elsewhere.
    Any,
}

impl Default for Lists {
    fn default() -> Self {
        Self::Of(Vec::new())
    }
}

/// What was changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// The tools that were taken out of lists.
    pub hidden: Vec<String>,
    pub masked: Vec<Span>,
    /// How many messages could not be masked, and did not go on.
    pub withheld: u64,
    pub renumbered: u64,
}

impl Told {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Progress that Weir itself told of a call while it was held. A token's values must rise, so that the server's own,
/// which come later, may need others.
#[derive(Debug, Clone)]
pub struct Progress {
    token: Value,
    /// The token to the letter.
    text: String,
    steps: u32,
}

impl Progress {
    /// The least step. Whatever a server counts, it is hardly ever over so little.
    const STEP: f64 = 1e-6;

    /// None was told yet. The token as JSON; `None` for what is none.
    pub fn of(text: &str) -> Option<Self> {
        let token: Value = serde_json::from_str(text).ok()?;
        let text = text.to_owned();
        (token.is_string() || token.is_number()).then_some(Self { token, text, steps: 0 })
    }

    /// The next notification of Weir's own.
    pub fn tell(&mut self, message: &str) -> String {
        let value = self.next();
        let (token, message) = (&self.text, Value::from(message));
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":{value},"message":{message}}}}}"#
        )
    }

    fn next(&mut self) -> String {
        self.steps = self.steps.saturating_add(1);
        format!("{:.6}", f64::from(self.steps) * Self::STEP)
    }

    /// Another value for the server's own, if it does not rise above what was told.
    fn renumbered(&mut self, token: &Value, value: f64) -> Option<String> {
        let told = f64::from(self.steps) * Self::STEP;
        (self.steps > 0 && *token == self.token && value <= told).then(|| self.next())
    }
}

impl Editor {
    /// Changes nothing yet. `asked` are the requests whose answer this is.
    pub fn new(asked: Vec<RequestId>) -> Self {
        Self { asked, ..Self::default() }
    }

    /// Takes the tools that `hides` names out of these answers.
    #[must_use]
    pub fn hiding(mut self, lists: Lists, hides: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.lists = lists;
        self.hides = Some(Box::new(hides));
        self
    }

    #[must_use]
    pub fn masking(mut self, masker: Masker) -> Self {
        self.masker = Some(masker);
        self
    }

    #[must_use]
    pub fn renumbering(mut self, progress: Progress) -> Self {
        self.renumber(progress);
        self
    }

    pub fn renumber(&mut self, progress: Progress) {
        self.progress = Some(progress);
    }

    /// Whether what cannot be read must not go on.
    pub fn must_mask(&self) -> bool {
        self.masker.is_some()
    }

    pub fn told(&self) -> &Told {
        &self.told
    }

    /// What stands for a message that must not go on; empty when there is nobody to tell.
    pub fn replaced(&mut self) -> String {
        self.told.withheld += 1;
        let error = |id: &RequestId| jsonrpc::error_reply(Some(id), REFUSED, WITHHELD, None);
        let errors: Vec<String> = self.asked.drain(..).map(|id| error(&id)).collect();
        match errors.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            _ => format!("[{}]", errors.join(",")),
        }
    }

    /// `None`: it stays to the letter.
    pub fn edit(&mut self, bytes: &[u8]) -> Option<String> {
        if bytes.trim_ascii().is_empty() {
            return None;
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            return self.must_mask().then(|| self.replaced());
        };
        let Ok(messages) = Messages::parse(bytes) else { return self.edit_other(text) };
        let places = match &messages {
            Messages::Single(_) => std::iter::once(0..text.len()).collect(),
            Messages::Batch(_) => elements(text)?,
        };
        let mut edits = Vec::new();
        for (message, place) in messages.messages().iter().zip(places) {
            let own = text.get(place.clone()).unwrap_or_default();
            match self.message(message, own) {
                Ok(changes) => {
                    edits.extend(changes.into_iter().map(|(range, new)| (shifted(&range, place.start), new)));
                }
                // It cannot be masked: no part of the text goes on.
                Err(Unmasked) => return Some(self.replaced()),
            }
        }
        (!edits.is_empty()).then(|| splice(text, &edits))
    }

    /// What is no message, and what two could read in two ways, is masked as the record would mask it.
    pub fn edit_other(&mut self, text: &str) -> Option<String> {
        let (text, spans) = self.masker.as_ref()?.json(text);
        if spans.is_empty() {
            return None;
        }
        self.told.masked.extend(spans);
        self.told.masked.truncate(MAX_TOLD);
        Some(text.as_str().to_owned())
    }

    fn message(&mut self, message: &Message, text: &str) -> Result<Vec<(Range<usize>, String)>, Unmasked> {
        let mut edits = Vec::new();
        let listed = match message {
            Message::Response { id: Some(id), .. } => {
                self.asked.retain(|own| !own.means(id));
                match &self.lists {
                    Lists::Of(requests) => requests.iter().any(|own| own.means(id)),
                    Lists::Any => true,
                }
            }
            _ => false,
        };
        let part = match message {
            Message::Response { result: Ok(_), .. } => "result",
            Message::Response { result: Err(_), .. } => "error",
            Message::Request { .. } | Message::Notification { .. } => "params",
        };
        let Some(place) = member(text, part) else { return Ok(edits) };
        let content = text.get(place.clone()).unwrap_or_default();
        if listed && part == "result" {
            edits.extend(self.without_hidden(content).into_iter().map(|cut| (cut, String::new())));
        }
        if message.method() == Some("notifications/progress") {
            edits.extend(self.renumbered(content));
        }
        // Of what has such changes, the masked text is made of their outcome.
        let Some(masker) = &self.masker else { return Ok(shift_all(edits, place.start)) };
        let changed = splice(content, &edits);
        let keeps = if part == "result" { &KEPT_OF_RESULT[..] } else { &KEPT_OF_PARAMS };
        let masked = masker.pass_on(&changed, keeps).ok_or(Unmasked)?;
        self.told.masked.extend(masked.spans);
        self.told.masked.truncate(MAX_TOLD);
        Ok(if masked.text == content { Vec::new() } else { vec![(place, masked.text)] })
    }

    /// Where a list of tools names some that are hidden.
    fn without_hidden(&mut self, result: &str) -> Vec<Range<usize>> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        let (Some(hides), Some(tools)) = (&self.hides, member(result, "tools")) else { return Vec::new() };
        let text = result.get(tools.clone()).unwrap_or_default();
        let Some(each) = elements(text) else { return Vec::new() };
        let name = |range: &Range<usize>| {
            serde_json::from_str::<Named>(text.get(range.clone())?).ok().map(|named| named.name)
        };
        let names: Vec<Option<String>> = each.iter().map(name).collect();
        let hidden = |at: usize| names.get(at).and_then(Option::as_ref).filter(|name| hides(name));
        let cut = cuts(&each, |at| hidden(at).is_none());
        let told = (0..each.len()).filter_map(hidden).cloned();
        self.told.hidden.extend(told);
        self.told.hidden.truncate(MAX_TOLD);
        cut.into_iter().map(|range| shifted(&range, tools.start)).collect()
    }

    fn renumbered(&mut self, params: &str) -> Option<(Range<usize>, String)> {
        let progress = self.progress.as_mut()?;
        let all = members(params)?;
        let place = |name: &str| all.iter().find(|member| member.name == name).map(|m| m.value.clone());
        let token: Value = serde_json::from_str(params.get(place("progressToken")?)?).ok()?;
        let value = place("progress")?;
        let new = progress.renumbered(&token, serde_json::from_str(params.get(value.clone())?).ok()?)?;
        self.told.renumbered += 1;
        Some((value, new))
    }
}

/// A message's content that is no JSON of its own.
struct Unmasked;

fn shifted(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start + by..range.end + by
}

fn shift_all(edits: Vec<(Range<usize>, String)>, by: usize) -> Vec<(Range<usize>, String)> {
    edits.into_iter().map(|(range, new)| (shifted(&range, by), new)).collect()
}
