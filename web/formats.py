"""Times, spans and sizes in a reader's language and zone. Pure; everything inside is UTC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from babel.dates import format_datetime, format_timedelta
from babel.numbers import format_decimal
from babel.units import format_unit
from markupsafe import Markup, escape

from web.visible import Segment, segments

_KILO = 1000


@dataclass(frozen=True)
class Reader:
    """For whom something is written: language, zone, and what time it is."""

    language: str
    zone: tzinfo
    now: datetime

    def time(self, value: datetime) -> Markup:
        """Date and clock with offset; UTC in the title."""
        local = value.astimezone(self.zone)
        text = format_datetime(local, "d MMM y, HH:mm:ss", locale=self.language)
        return self._element(value, f"{text} {_offset(local)}", "time")

    def clock(self, value: datetime) -> Markup:
        """The time of day with offset; with the date when it is another day's."""
        local = value.astimezone(self.zone)
        same_day = local.date() == self.now.astimezone(self.zone).date()
        pattern = "HH:mm" if same_day else "d MMM, HH:mm"
        text = format_datetime(local, pattern, locale=self.language)
        return self._element(value, f"{text} {_offset(local)}", "time")

    def ago(self, value: datetime) -> Markup:
        """How long ago or ahead; kept current by script."""
        span = value - self.now
        text = format_timedelta(
            span, add_direction=True, locale=self.language, threshold=1.5, granularity="second"
        )
        return self._element(value, text, "ago")

    def duration(self, span: timedelta) -> str:
        """A span in its largest sensible unit, with one decimal below ten seconds."""
        seconds = span.total_seconds()
        if abs(seconds) < 10:
            return str(format_unit(round(seconds, 1), "second", "short", locale=self.language))
        return str(format_timedelta(span, format="short", threshold=1.5, locale=self.language))

    def size(self, octets: int) -> str:
        """Bytes below one KB, else KB or MB with one decimal."""
        for unit, scale in (("megabyte", _KILO**2), ("kilobyte", _KILO)):
            if octets >= scale:
                value = round(octets / scale, 1)
                return str(format_unit(value, f"digital-{unit}", "short", locale=self.language))
        return str(format_unit(octets, "digital-byte", "long", locale=self.language))

    def number(self, value: int) -> str:
        """A count with the language's grouping."""
        return str(format_decimal(value, locale=self.language))

    def _element(self, value: datetime, text: str, kind: str) -> Markup:
        utc = value.astimezone(UTC)
        return Markup('<time class="{}" datetime="{}" title="{} UTC">{}</time>').format(
            kind, utc.isoformat(), utc.strftime("%Y-%m-%d %H:%M:%S"), text
        )


def seen(text: str, *, spaces: bool = True) -> Markup:
    """Foreign text on one line, isolated from what surrounds it, with marks."""
    return Markup('<bdi class="seen">{}</bdi>').format(drawn(segments(text, spaces=spaces)))


def drawn(runs: Iterator[Segment] | tuple[Segment, ...]) -> Markup:
    """Runs and marks as HTML; a mark that stands for an end of line also ends the line."""
    return Markup("").join(_drawn(run) for run in runs)


def _drawn(run: Segment) -> Markup:
    if not run.marked:
        return escape(run.text)
    mark = Markup('<span class="mark" title="{}">{}</span>').format(run.name, run.text)
    return mark + Markup("<br>") if run.breaks else mark


def _offset(local: datetime) -> str:
    offset = local.utcoffset() or timedelta()
    if not offset:
        return "UTC"
    sign = "-" if offset < timedelta() else "+"
    hours, minutes = divmod(abs(int(offset.total_seconds())) // 60, 60)
    return f"UTC{sign}{hours:02}:{minutes:02}"
