"""Cursors and pages."""

import base64
from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crafely.api.pages import ListQuery, Page, decode_cursor, encode_cursor, page, position
from crafely.api.problems import Problem

MOMENTS = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]))
IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=255)


class Row(NamedTuple):
    id: str
    created_at: datetime


@given(MOMENTS, IDS)
def test_a_cursor_comes_back_to_the_microsecond(moment: datetime, id_: str) -> None:
    cursor = encode_cursor(moment, id_)
    assert decode_cursor(cursor) == (moment, id_)
    assert decode_cursor(cursor)[0].tzinfo is UTC


@given(MOMENTS, IDS, st.data())
def test_one_changed_character_is_noticed(moment: datetime, id_: str, data: st.DataObject) -> None:
    cursor = encode_cursor(moment, id_)
    at = data.draw(st.integers(0, len(cursor) - 1))
    letter = data.draw(st.characters(codec="ascii").filter(lambda one: one != cursor[at]))
    changed = cursor[:at] + letter + cursor[at + 1 :]
    with pytest.raises(Problem):
        decode_cursor(changed)


@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_no_text_raises_anything_but_a_problem(text: str) -> None:
    with pytest.raises(Problem) as caught:
        decode_cursor(text)
    assert (caught.value.status, caught.value.errors[0].parameter) == (422, "cursor")


def test_the_first_page_starts_after_everything() -> None:
    assert position(ListQuery()) == (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "")


def test_the_extra_row_makes_the_next_cursor() -> None:
    start = datetime(2025, 1, 31, tzinfo=ZoneInfo("UTC"))
    rows = [Row(f"id_{n}", start - timedelta(days=n)) for n in range(4)]
    first = page(rows[:3], ListQuery(take=2))
    assert first.data == rows[:2]
    assert first.next_cursor is not None
    assert position(ListQuery(cursor=first.next_cursor)) == (rows[1].created_at, "id_1")
    assert page(rows[2:4], ListQuery(take=2)) == Page(data=rows[2:4], next_cursor=None)
    assert page([], ListQuery()) == Page(data=[], next_cursor=None)


def test_cursor_and_skip_exclude_each_other() -> None:
    with pytest.raises(Problem) as caught:
        ListQuery(cursor="x", skip=0)
    assert caught.value.errors[0].parameter == "skip"
