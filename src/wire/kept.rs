//! What the door keeps: of answers and of the headers for clients their heads (`wire::verdict`), of requests that it passes on their
//! callers (`wire::caller`). Each has a place.
//!
//! Invariant: a head is left out only where it is what the door was last told to keep at that place. So this is for verdicts
//! that the door acts on at once, in the order in which they were made: those of `warm` and `read`, and of nothing that waits.

use std::rc::Rc;

use super::caller::{Callers, Signer};
use super::verdict::{Headers, Place, Verdict};

/// What the door keeps.
pub struct Kept {
    heads: Vec<Option<Shared>>,
    /// Whose requests it passed on.
    pub callers: Callers,
}

#[derive(Clone, Debug)]
struct Shared {
    text: Rc<str>,
    /// Whether the door was told.
    told: bool,
}

impl Kept {
    /// Nothing yet; requests that are passed on will be signed by `signer`.
    #[must_use]
    pub fn new(signer: Signer) -> Self {
        Self { heads: vec![None; Place::COUNT], callers: Callers::new(signer) }
    }

    /// These headers as a head: one and the same for all whose headers are the same, while it is here. What many share is near, in
    /// the processor's caches, and the door makes one answer of it for all of them.
    pub fn share(&mut self, headers: Headers, last: [&str; 2]) -> Rc<str> {
        let head: Rc<str> = headers.head(last).into();
        match self.at_place_of(&head) {
            Some(Some(shared)) if shared.text == head => Rc::clone(&shared.text),
            Some(place) => {
                *place = Some(Shared { text: Rc::clone(&head), told: false });
                head
            }
            None => head,
        }
    }

    /// The shortest text that tells the door to give this answer; of other verdicts, the text.
    #[must_use]
    pub fn shorten(&mut self, verdict: Verdict) -> String {
        let Some(head) = verdict.head() else { return verdict.into_text() };
        let Some(place) = self.at_place_of(head) else { return verdict.into_text() };
        // Most often it is the very same one.
        let is_here = |shared: &Shared| Rc::ptr_eq(&shared.text, head) || shared.text == *head;
        if place.as_ref().is_some_and(|shared| shared.told && is_here(shared)) {
            return verdict.without_head();
        }
        *place = Some(Shared { text: Rc::clone(head), told: true });
        verdict.into_text()
    }

    fn at_place_of(&mut self, head: &str) -> Option<&mut Option<Shared>> {
        self.heads.get_mut(Place::before(head)?.number())
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Release;
    use super::*;
    use proptest::prelude::*;

    const LAST: [&str; 2] = ["tollgate", "ratelimit"];

    fn kept() -> Kept {
        Kept::new(Signer::new(&[7; 32]).unwrap())
    }

    fn headers(status: u16, quota: u32) -> Headers {
        let mut headers = Headers::of_status(status);
        headers.header("ratelimit-policy", &quota.to_string());
        headers
    }

    fn head(status: u16, quota: u32) -> Rc<str> {
        headers(status, quota).head(LAST).into()
    }

    fn answer(head: &Rc<str>, body: &str, value: &str) -> Verdict {
        let mut verdict = Verdict::at_once(String::new());
        verdict.begin_answer();
        verdict.go_on(&[body, "\n", value, "\n"]).with_head(Rc::clone(head))
    }

    #[test]
    fn what_is_kept_is_not_sent_again() {
        let mut kept = kept();
        let five = head(200, 5);
        let place = &five[..2];
        assert_eq!(kept.shorten(answer(&five, "{}", "id=1")), format!("answer\n{{}}\nid=1\n\n{five}"));
        assert_eq!(kept.shorten(answer(&five, "[]", "id=2")), format!("answer\n[]\nid=2\n\n{place}"));
        assert_eq!(
            kept.shorten(answer(&head(200, 5), "[]", "id=3")),
            format!("answer\n[]\nid=3\n\n{place}"),
            "written anew"
        );
        assert!(kept.shorten(answer(&head(429, 5), "[]", "id=4")).contains("\n429\n"), "another status");
        assert!(kept.shorten(answer(&head(200, 6), "[]", "id=5")).contains("\n200\n"), "another quota");
        let mut renewing = Verdict::at_once(String::new());
        renewing.renew("ten_x l--");
        renewing.begin_answer().push_str("{}\nid=6\n");
        assert_eq!(
            kept.shorten(renewing.with_head(five.clone())),
            format!("renew\nten_x l--\nanswer\n{{}}\nid=6\n\n{place}")
        );
        let mut forward = Verdict::at_once(String::new());
        forward.begin_forward("h", Release::Free).push_str("\nhttps://a/");
        assert_eq!(kept.shorten(forward), "forward\nh\nfree\n\nhttps://a/");
    }

    #[test]
    fn the_same_headers_are_one_head_and_told_once() {
        let mut kept = kept();
        let [one, same] = [kept.share(headers(200, 5), LAST), kept.share(headers(200, 5), LAST)];
        assert!(Rc::ptr_eq(&one, &same));
        assert!(kept.shorten(answer(&one, "{}", "id=1")).contains("\n200\n"), "nobody told the door yet");
        assert!(!kept.shorten(answer(&same, "{}", "id=2")).contains("\n200\n"));
        let again = kept.share(headers(200, 5), LAST);
        assert!(!kept.shorten(answer(&again, "{}", "id=3")).contains("\n200\n"));
    }

    proptest! {
        #[test]
        fn the_door_gives_the_answer_that_was_meant(
            answers in proptest::collection::vec((200..204_u16, "[a-z{}]{0,9}", 0..3000_u32, "[a-z=]{1,9}", any::<bool>()), 1..4000),
        ) {
            let (mut kept, mut door) = (kept(), std::collections::HashMap::new());
            for (status, body, quota, value, shared) in answers {
                let meant = head(status, quota);
                let head = if shared { kept.share(headers(status, quota), LAST) } else { Rc::clone(&meant) };
                let verdict = kept.shorten(answer(&head, &body, &value));
                // What the door does.
                let mut lines = verdict.splitn(6, '\n');
                prop_assert_eq!(lines.next(), Some("answer"));
                prop_assert_eq!((lines.next(), lines.next(), lines.next()), (Some(&*body), Some(&*value), Some("")));
                let place = lines.next().unwrap().to_owned();
                if let Some(rest) = lines.next() {
                    door.insert(place.clone(), format!("{place}\n{rest}"));
                }
                prop_assert_eq!(door.get(&place).map(String::as_str), Some(&*meant));
            }
        }
    }
}
