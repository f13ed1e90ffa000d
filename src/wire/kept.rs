//! What the door keeps of answers: status and headers, which hardly ever change, but for the value of the last one.
//!
//! Invariant: an answer is shortened only to what the door was told to keep, text for text. So this is for verdicts that the
//! door acts on at once, in the order in which they were made: those of `warm`, and of nothing that waits.
//!
//! ```text
//! keep  PP           an answer follows (wire::verdict); the door keeps its status and headers at this place
//! again PP           body, value of the last header; all else is what is kept at this place
//! ```

use super::verdict::{Parts, Verdict};

/// How many places there are. A place is two characters, of six bits each.
const PLACES: usize = 1 << 12;

/// What the door keeps, by place.
#[derive(Debug)]
pub struct Kept {
    places: Vec<String>,
    /// Room for the next verdict: that of the one before.
    room: String,
}

impl Default for Kept {
    fn default() -> Self {
        Self { places: vec![String::new(); PLACES], room: String::new() }
    }
}

impl Kept {
    /// A verdict to write, for [`Self::shorten`].
    #[must_use]
    pub fn verdict(&mut self) -> Verdict {
        Verdict::within(std::mem::take(&mut self.room))
    }

    /// The shortest text that tells the door to give this answer; of other verdicts, the text. Answers of one `group`
    /// are kept at one place, where the last one stays: that others meet there costs time, and nothing else.
    #[must_use]
    pub fn shorten(&mut self, verdict: Verdict, group: u64) -> String {
        // The upper bits of a product are mixed best (Fibonacci hashing): twelve of them.
        let place = usize::try_from(group.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52).unwrap_or_default();
        let (Some(Parts { before, status, body, headers, value }), Some(kept)) =
            (verdict.parts(), self.places.get_mut(place))
        else {
            return verdict.into_text();
        };
        let known = kept.strip_prefix(status) == Some(headers);
        let mut text =
            String::with_capacity(before.len() + body.len() + value.len() + 16 + if known { 0 } else { 256 });
        text.push_str(before);
        text.push_str(if known { "again\n" } else { "keep\n" });
        for six_bits in [place >> 6, place & 63] {
            text.push(char::from(b'0' + u8::try_from(six_bits).unwrap_or_default()));
        }
        text.push('\n');
        if known {
            text.push_str(body);
            text.push('\n');
            text.push_str(value);
        } else {
            kept.clear();
            kept.push_str(status);
            kept.push_str(headers);
            for part in ["answer\n", status, body, headers, value] {
                text.push_str(part);
            }
        }
        self.room = verdict.into_text();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(status: u16, body: &str, quota: u32, value: &str) -> Verdict {
        write(Verdict::default(), status, body, quota, value)
    }

    fn write(mut verdict: Verdict, status: u16, body: &str, quota: u32, value: &str) -> Verdict {
        verdict.answer(status, body).header("ratelimit", &quota.to_string()).header("tollgate", value);
        verdict
    }

    /// What the door does.
    #[derive(Default)]
    struct Door(std::collections::HashMap<String, (String, String)>);

    impl Door {
        fn answer(&mut self, verdict: &str) -> String {
            if let Some(rest) = verdict.strip_prefix("again\n") {
                let (place, rest) = rest.split_once('\n').unwrap();
                let (body, value) = rest.rsplit_once('\n').unwrap();
                let (status, headers) = &self.0[place];
                return format!("answer\n{status}\n{body}\n{headers}\n{value}");
            }
            let (place, answer) = verdict.strip_prefix("keep\n").and_then(|rest| rest.split_once('\n')).unwrap();
            let mut lines = answer.splitn(4, '\n').skip(1);
            let (status, _, headers) = (lines.next().unwrap(), lines.next(), lines.next().unwrap());
            let (headers, _) = headers.rsplit_once('\n').unwrap();
            self.0.insert(place.to_owned(), (status.to_owned(), headers.to_owned()));
            answer.to_owned()
        }
    }

    #[test]
    fn what_is_kept_is_not_sent_again() {
        let mut kept = Kept::default();
        let first = kept.shorten(answer(200, "{}", 5, "id=1"), 0);
        assert_eq!(first, "keep\n00\nanswer\n200\n{}\nratelimit\n5\ntollgate\nid=1");
        assert_eq!(kept.shorten(answer(200, "[]", 5, "id=2"), 0), "again\n00\n[]\nid=2");
        assert!(kept.shorten(answer(429, "[]", 5, "id=3"), 0).starts_with("keep"), "another status");
        assert!(kept.shorten(answer(429, "[]", 5, "id=4"), 1).starts_with("keep"), "another place");
        let mut renewing = Verdict::default();
        renewing.renew("ten_x l--");
        renewing.answer(429, "{}").header("ratelimit", "5").header("tollgate", "id=5");
        assert_eq!(kept.shorten(renewing, 0), "renew\nten_x l--\nagain\n00\n{}\nid=5");
        let mut forward = Verdict::default();
        forward.forward("h", "", super::super::verdict::Release::Free, "https://a/");
        assert_eq!(kept.shorten(forward, 0), "forward\nh\n\nfree\nhttps://a/");
    }

    proptest! {
        #[test]
        fn the_door_gives_the_answer_that_was_meant(
            answers in proptest::collection::vec((200..204_u16, "[a-z{}]{0,9}", 0..9_u32, "[a-z=]{1,9}", 0..3000_u64), 1..4000),
        ) {
            let (mut kept, mut door) = (Kept::default(), Door::default());
            for (status, body, quota, value, like) in answers {
                let meant = answer(status, &body, quota, &value).into_text();
                let verdict = write(kept.verdict(), status, &body, quota, &value);
                prop_assert_eq!(door.answer(&kept.shorten(verdict, like)), meant);
            }
        }
    }
}
