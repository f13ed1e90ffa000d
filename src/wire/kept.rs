//! What the door keeps of answers and of the headers for clients: their heads (`wire::verdict`), by place.
//!
//! Invariant: a head is left out only where it is what the door was last told to keep at that place. So this is for verdicts
//! that the door acts on at once, in the order in which they were made: those of `warm` and `read`, and of nothing that waits.

use std::rc::Rc;

use super::verdict::{Place, Verdict};

/// What the door keeps, by place.
#[derive(Debug)]
pub struct Kept(Vec<Option<Rc<str>>>);

impl Default for Kept {
    fn default() -> Self {
        Self(vec![None; Place::COUNT])
    }
}

impl Kept {
    /// The shortest text that tells the door to give this answer; of other verdicts, the text.
    #[must_use]
    pub fn shorten(&mut self, verdict: Verdict) -> String {
        let Some((place, head)) = verdict.head() else { return verdict.into_text() };
        let Some(kept) = self.0.get_mut(place.number()) else { return verdict.into_text() };
        // Most often it is the very same one.
        if kept.as_ref().is_some_and(|kept| Rc::ptr_eq(kept, head) || kept == head) {
            return verdict.without_head();
        }
        *kept = Some(Rc::clone(head));
        verdict.into_text()
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::{Headers, Release};
    use super::*;
    use proptest::prelude::*;

    fn head(status: u16, quota: u32) -> Rc<str> {
        let mut headers = Headers::of_status(status);
        headers.header("ratelimit", &quota.to_string());
        headers.last("tollgate")
    }

    fn answer(head: &Rc<str>, body: &str, value: &str, group: u64) -> Verdict {
        let mut verdict = Verdict::at(Place::of(group));
        verdict.begin_answer().push_str(body);
        verdict.begin_value(Rc::clone(head)).push_str(value);
        verdict
    }

    #[test]
    fn what_is_kept_is_not_sent_again() {
        let mut kept = Kept::default();
        let five = head(200, 5);
        assert_eq!(kept.shorten(answer(&five, "{}", "id=1", 0)), "answer\n00\n{}\nid=1\n200\nratelimit\n5\ntollgate");
        assert_eq!(kept.shorten(answer(&five, "[]", "id=2", 0)), "answer\n00\n[]\nid=2");
        assert_eq!(kept.shorten(answer(&head(200, 5), "[]", "id=3", 0)), "answer\n00\n[]\nid=3", "written anew");
        assert!(kept.shorten(answer(&head(429, 5), "[]", "id=4", 0)).contains("\n429\n"), "another status");
        assert!(kept.shorten(answer(&head(429, 5), "[]", "id=5", 1)).contains("\n429\n"), "another place");
        let mut renewing = Verdict::at(Place::of(0));
        renewing.renew("ten_x l--");
        renewing.begin_answer().push_str("{}");
        renewing.begin_value(head(429, 5)).push_str("id=6");
        assert_eq!(kept.shorten(renewing), "renew\nten_x l--\nanswer\n00\n{}\nid=6");
        let mut forward = Verdict::at(Place::of(0));
        forward.begin_forward("h", Release::Free).push_str("\nhttps://a/");
        assert_eq!(kept.shorten(forward), "forward\nh\nfree\n\nhttps://a/");
    }

    proptest! {
        #[test]
        fn the_door_gives_the_answer_that_was_meant(
            answers in proptest::collection::vec((200..204_u16, "[a-z{}]{0,9}", 0..9_u32, "[a-z=]{1,9}", 0..3000_u64), 1..4000),
        ) {
            let (mut kept, mut door) = (Kept::default(), std::collections::HashMap::new());
            for (status, body, quota, value, like) in answers {
                let head = head(status, quota);
                let verdict = kept.shorten(answer(&head, &body, &value, like));
                // What the door does.
                let mut lines = verdict.splitn(5, '\n');
                prop_assert_eq!(lines.next(), Some("answer"));
                let place = lines.next().unwrap().to_owned();
                prop_assert_eq!((lines.next(), lines.next()), (Some(&*body), Some(&*value)));
                if let Some(head) = lines.next() {
                    door.insert(place.clone(), head.to_owned());
                }
                prop_assert_eq!(door.get(&place).map(String::as_str), Some(&*head));
            }
        }
    }
}
