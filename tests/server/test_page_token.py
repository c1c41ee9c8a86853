"""How a person in front of a browser gives the token, and what becomes of it."""

from collections.abc import Iterator

import pytest
from browser import Seen, visiting
from playwright.sync_api import Browser, expect
from server.pages import TOKEN, enter, showing
from server.scripted import Served

REFUSED = "error: Failed to load resource: the server responded with a status of 401 (Unauthorized)"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    with showing(token=TOKEN) as served:
        yield served


def test_the_token_is_asked_for_kept_in_the_tab_and_forgotten(
    browser: Browser, guarded: Served
) -> None:
    with visiting(browser, guarded.url) as seen:
        page = seen.page
        expect(page.get_by_label("Token", exact=True)).to_be_focused()
        assert seen.requested == [f"{guarded.url}/"]
        enter(seen, "wrong")
        expect(page.get_by_role("alert")).to_have_text("The service does not take this token.")
        expect(page.locator("#board")).to_be_hidden()
        expect(page.locator("footer")).to_be_hidden()
        enter(seen, TOKEN)
        expect(page.locator("#link")).to_have_text("live")
        page.reload()
        expect(page.locator("#link")).to_have_text("live")
        page.get_by_role("button", name="Forget the token").click()
        expect(page.get_by_label("Token", exact=True)).to_be_focused()
        page.reload()
        expect(page.locator("#link")).to_have_text("locked")
        assert not [url for url in seen.requested if TOKEN in url or "wrong" in url]
        assert set(seen.errors) == {REFUSED}


def test_the_token_is_kept_on_the_device_only_when_told_to(
    browser: Browser, guarded: Served
) -> None:
    with visiting(browser, guarded.url) as seen:
        enter(seen, TOKEN)
        expect(seen.page.locator("#link")).to_have_text("live")
        other = seen.page.context.new_page()
        other.goto(guarded.url)
        expect(other.locator("#link")).to_have_text("locked")
        other.get_by_label("Keep it on this device").check()
        enter(Seen(other), TOKEN)
        expect(other.locator("#link")).to_have_text("live")
        third = seen.page.context.new_page()
        third.goto(guarded.url)
        expect(third.locator("#link")).to_have_text("live")


def test_pinning_works_behind_a_token_too(browser: Browser, guarded: Served) -> None:
    with visiting(browser, guarded.url) as seen:
        enter(seen, TOKEN)
        seen.page.get_by_role("button", name="Pin int4", exact=True).click()
        expect(seen.page.locator("#pin-words")).to_have_text("int4 is held by hand.")
        assert guarded.mailbox.status.pinned
        seen.page.get_by_role("button", name="Return to the policy").click()
        expect(seen.page.locator("#pin-words")).to_have_text("The policy decides.")
        assert not guarded.mailbox.status.pinned
