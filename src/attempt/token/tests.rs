//! When tokens are made, on a paused clock; how they are made is tested over sockets in `exchange_tests`.

use std::collections::VecDeque;

use super::*;

/// What the next mints give, one after the other, each after its time; the last one repeats.
#[derive(Clone, Default)]
struct Script(Rc<RefCell<VecDeque<Step>>>, Rc<Cell<usize>>);

type Step = (Duration, Result<Minted, Failure>);

impl Script {
    fn then(self, takes: u64, result: Result<(&str, u64), FailureClass>) -> Self {
        let result = result
            .map(|(secret, life)| Minted { secret: Secret::new(secret), life: Duration::from_secs(life) })
            .map_err(|class| Failure::new(class, "scripted"));
        self.0.borrow_mut().push_back((Duration::from_secs(takes), result));
        self
    }

    fn minter(&self) -> Minter {
        tokio::time::pause();
        let script = self.clone();
        let mint = move || {
            let script = script.clone();
            async move {
                script.1.set(script.1.get() + 1);
                let next = match script.0.borrow_mut() {
                    mut steps if steps.len() > 1 => steps.pop_front(),
                    steps => steps.front().cloned(),
                };
                let (takes, result) = next.unwrap();
                tokio::time::sleep(takes).await;
                result
            }
        };
        Minter::new("b".into(), mint, None)
    }

    fn mints(&self) -> usize {
        self.1.get()
    }
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

async fn secret(minter: &Minter) -> String {
    minter.token().await.unwrap().secret.expose().to_owned()
}

#[actix_rt::test]
async fn callers_who_come_at_once_share_one_mint() {
    let script = Script::default().then(1, Ok(("a", 3_600)));
    let minter = script.minter();
    let tokens = futures_util::future::join_all((0..20).map(|_| secret(&minter))).await;
    assert_eq!(tokens, vec!["a"; 20]);
    assert_eq!(secret(&minter).await, "a");
    assert_eq!(script.mints(), 1);
}

#[actix_rt::test]
async fn a_caller_that_leaves_does_not_end_the_mint_for_others() {
    let script = Script::default().then(5, Ok(("a", 3_600)));
    let minter = script.minter();
    let left = tokio::time::timeout(Duration::from_secs(1), minter.token()).await;
    assert!(left.is_err(), "it waited for one second of five");
    assert_eq!(secret(&minter).await, "a");
    assert_eq!(script.mints(), 1);
}

#[actix_rt::test]
async fn a_token_is_renewed_before_it_expires_while_requests_use_the_old_one() {
    let script = Script::default().then(0, Ok(("old", 3_600))).then(10, Ok(("new", 3_600)));
    let minter = script.minter();
    assert_eq!(secret(&minter).await, "old");
    seconds(3_600 - 225 - 1).await;
    assert_eq!(script.mints(), 1);
    seconds(2).await;
    assert_eq!(script.mints(), 2, "nobody asked, and it is renewed");
    let before = Instant::now();
    assert_eq!(secret(&minter).await, "old");
    assert_eq!(Instant::now(), before, "no request waits for the renewal");
    seconds(10).await;
    assert_eq!(secret(&minter).await, "new");
    seconds(3_600 * 10).await;
    assert_eq!(secret(&minter).await, "new");
    assert!((12..14).contains(&script.mints()), "once an hour: {}", script.mints());
}

#[actix_rt::test]
async fn a_short_lived_token_is_renewed_a_tenth_of_its_life_ahead() {
    let script = Script::default().then(0, Ok(("old", 100))).then(0, Ok(("new", 3_600)));
    let minter = script.minter();
    assert_eq!(secret(&minter).await, "old");
    seconds(89).await;
    assert_eq!(script.mints(), 1);
    seconds(2).await;
    assert_eq!(secret(&minter).await, "new");
    assert_eq!(script.mints(), 2);
}

#[actix_rt::test]
async fn a_failed_renewal_is_tried_again_and_fails_no_request_while_the_old_token_lives() {
    let failed = Err(FailureClass::Server);
    let script = Script::default().then(0, Ok(("old", 3_600))).then(0, failed).then(0, failed).then(0, Ok(("new", 3_600)));
    let minter = script.minter();
    assert_eq!(secret(&minter).await, "old");
    seconds(3_600 - 225).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(script.mints(), 2);
    assert_eq!(secret(&minter).await, "old");
    seconds(10).await;
    assert_eq!(script.mints(), 4, "after a short pause each");
    assert_eq!(secret(&minter).await, "new");
}

#[actix_rt::test]
async fn when_the_old_token_has_expired_requests_get_the_reason_and_the_next_one_tries_again() {
    let script = Script::default().then(0, Ok(("old", 100))).then(0, Err(FailureClass::Credential));
    let minter = script.minter();
    assert_eq!(secret(&minter).await, "old");
    seconds(200).await;
    let renewals = script.mints();
    seconds(3_600).await;
    assert_eq!(script.mints(), renewals, "renewals end with the token");
    assert_eq!(minter.token().await.unwrap_err().class, FailureClass::Credential);
    assert_eq!(script.mints(), renewals + 1);
    script.0.borrow_mut().clear();
    let script = script.then(0, Ok(("new", 100)));
    assert_eq!(secret(&minter).await, "new");
    assert_eq!(script.mints(), renewals + 2);
}

#[actix_rt::test]
async fn a_rejected_token_is_replaced_once_however_many_requests_it_was_rejected_for() {
    let script = Script::default().then(0, Ok(("a", 3_600))).then(1, Ok(("b", 3_600)));
    let minter = script.minter();
    let refused = minter.token().await.unwrap();
    minter.reject(&refused);
    minter.reject(&refused);
    let tokens = futures_util::future::join_all((0..5).map(|_| secret(&minter))).await;
    assert_eq!(tokens, vec!["b"; 5]);
    minter.reject(&refused);
    assert_eq!(secret(&minter).await, "b", "the one that was rejected is gone already");
    assert_eq!(script.mints(), 2);
}

#[actix_rt::test]
async fn a_mint_that_hangs_ends_in_time_and_one_that_panics_does_not_take_the_next_one_along() {
    let script = Script::default().then(1_000, Ok(("a", 3_600))).then(0, Ok(("b", 3_600)));
    let minter = script.minter();
    assert_eq!(minter.token().await.unwrap_err().class, FailureClass::Timeout(Phase::Head));
    assert_eq!(secret(&minter).await, "b");

    let calls = Rc::new(Cell::new(0));
    let count = Rc::clone(&calls);
    let mint = move || {
        count.set(count.get() + 1);
        let first = count.get() == 1;
        async move {
            assert!(!first, "scripted panic");
            Ok(Minted { secret: Secret::new("c"), life: Duration::from_secs(100) })
        }
    };
    let minter = Minter::new("b".into(), mint, None);
    assert_eq!(minter.token().await.unwrap_err().class, FailureClass::Crashed);
    assert_eq!(secret(&minter).await, "c");
}

#[actix_rt::test]
async fn nothing_is_renewed_for_a_generation_that_is_gone() {
    let script = Script::default().then(0, Ok(("a", 3_600)));
    let minter = script.minter();
    assert_eq!(secret(&minter).await, "a");
    drop(minter);
    seconds(3_600 * 24).await;
    assert_eq!(script.mints(), 1);
}

#[actix_rt::test]
async fn tokens_are_known_to_redaction_after_they_were_replaced() {
    let script = Script::default().then(0, Ok(("ya29.first", 3_600))).then(0, Ok(("ya29.second", 3_600)));
    let minter = script.minter();
    let first = minter.token().await.unwrap();
    minter.reject(&first);
    secret(&minter).await;
    let known: Vec<_> = minter.secrets().iter().map(|secret| secret.expose().to_owned()).collect();
    assert_eq!(known, ["ya29.first", "ya29.second"]);
    assert!(!format!("{first:?}").contains("ya29"), "{first:?}");
}

#[actix_rt::test]
async fn a_life_without_reason_neither_panics_nor_loops() {
    for life in [0, u64::MAX] {
        let script = Script::default().then(0, Ok(("a", life)));
        let minter = script.minter();
        assert_eq!(secret(&minter).await, "a");
        seconds(3_600).await;
        assert_eq!(script.mints(), 1, "{life}");
        tokio::time::resume();
    }
}
