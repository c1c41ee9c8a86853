"""The mailbox hands over in order, wakes the worker, and never blocks it."""

import threading

from server.scripted import PATIENT_S, make_status

from adaptive_kv.engine.mailbox import BeginDrain, Cancel, Delta, Mail, Mailbox, Reply, UnpinMode

DELTA = Delta(request_id="a", text="x", token_ids=(1,))


def test_mail_is_collected_once_and_in_order() -> None:
    mailbox = Mailbox(make_status())
    posted: list[Mail] = [Cancel("a"), UnpinMode(), BeginDrain(), Cancel("b")]
    for mail in posted:
        mailbox.post(mail)
    assert mailbox.collect() == posted
    assert mailbox.collect() == []


def test_collecting_from_an_empty_mailbox_gives_up_in_time() -> None:
    assert Mailbox(make_status()).collect(timeout_s=0.001) == []


def test_mail_wakes_a_waiting_worker() -> None:
    mailbox = Mailbox(make_status())
    collected: list[object] = []
    worker = threading.Thread(target=lambda: collected.extend(mailbox.collect(PATIENT_S)))
    worker.start()
    mailbox.post(UnpinMode())
    worker.join(PATIENT_S)
    assert collected == [UnpinMode()]


def test_no_mail_of_many_threads_is_lost() -> None:
    mailbox = Mailbox(make_status())

    def post(name: str) -> None:
        for number in range(100):
            mailbox.post(Cancel(f"{name}{number}"))

    threads = [threading.Thread(target=post, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    collected: list[Mail] = []
    while any(thread.is_alive() for thread in threads) or len(collected) < 400:
        collected += mailbox.collect(0.001)
    ids = [mail.request_id for mail in collected if isinstance(mail, Cancel)]
    assert sorted(ids) == sorted(f"{name}{number}" for name in "abcd" for number in range(100))
    assert [id_ for id_ in ids if id_[0] == "a"] == [f"a{number}" for number in range(100)]


def test_replies_before_anyone_listens_are_dropped() -> None:
    mailbox = Mailbox(make_status())
    mailbox.reply([DELTA])
    heard: list[Reply] = []
    mailbox.on_replies(heard.extend)
    assert heard == []


def test_replies_of_a_step_arrive_together_and_none_means_no_call() -> None:
    mailbox = Mailbox(make_status())
    heard: list[list[Reply]] = []
    mailbox.on_replies(lambda replies: heard.append(list(replies)))
    mailbox.reply([])
    mailbox.reply([DELTA, DELTA])
    assert heard == [[DELTA, DELTA]]


def test_the_latest_status_is_what_is_read() -> None:
    mailbox = Mailbox(make_status(step=1))
    mailbox.status = make_status(step=2)
    assert mailbox.status.step == 2
