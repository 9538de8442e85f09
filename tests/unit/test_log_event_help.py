"""The descriptions of log events cover the events that there are."""

from __future__ import annotations

from svcd.access.rules import RefusalReason
from svcd.connections import tracker
from svcd.log import events
from svcd.log.event_help import END_REASONS, EVENTS, FIELDS, REFUSE_REASONS
from svcd.log.events import Event

ALL = [each for each in vars(events).values() if isinstance(each, Event)]


def test_each_event_is_described() -> None:
    """Neither one more nor one less."""
    assert set(EVENTS) == {event.name for event in ALL}


def test_each_field_is_described() -> None:
    """In alphabetical order."""
    assert list(FIELDS) == sorted({field for event in ALL for field in event.fields})


def test_each_reason_of_a_refusal_is_described() -> None:
    """Neither one more nor one less."""
    assert set(REFUSE_REASONS) == {reason.value for reason in RefusalReason}


def test_each_reason_of_an_end_is_described() -> None:
    """Neither one more nor one less."""
    assert set(END_REASONS) == set(tracker._REASONS)
