"""What the scripted upstream answers by default, and how a check compares."""

import contextlib
import json

TEXT = "tick tick tick "
# As the clients report them.
TOKENS = {"input": 1200, "cached": 800, "output": 150, "reasoning": 50}
COUNTED = {"input_tokens": 1200, "cached_tokens": 800, "output_tokens": 150, "reasoning_tokens": 50}
WELL = {"status": 200, "end": "complete", "service_tier": "default", "unpriced_reason": None, **COUNTED}
# A row of a turn, and of a chat completion. Prices in USD per million tokens, input / cached / output: gpt-5.4 costs
# 2.50 / 0.25 / 15, gpt-4.1-mini 0.40 / 0.10 / 1.60; reasoning tokens are among those of the output.
TURN = {"model": "gpt-5.4", "cost_nanousd": 400 * 2_500 + 800 * 250 + 150 * 15_000, **WELL}
CHAT = {"model": "gpt-4.1-mini", "cost_nanousd": 400 * 400 + 800 * 100 + 150 * 1_600, **WELL}


def refused(status):
    """A row of a rejected request: no tokens, no price, and no reason for the missing price."""
    return {
        "status": status,
        "end": "failed",
        "input_tokens": None,
        "output_tokens": None,
        "cost_nanousd": None,
        "unpriced_reason": None,
    }


def equal(what, found, expected):
    if found != expected:
        raise AssertionError(f"{what}: expected {expected!r}, found {found!r}")


def includes(found, **expected):
    """Checks the expected fields of a result."""
    for name, value in expected.items():
        if found.get(name) != value:
            raise AssertionError(f"{name}: expected {value!r}, found {json.dumps(found)}")


@contextlib.contextmanager
def one_row(scene, **expected):
    """Checks that the context adds exactly one row, with the expected fields, and copies it into the dict.

    `attempts` is the list of credentials; `credential` may be one of several.
    """
    last = scene.last_row()
    row = {}
    yield row
    rows = scene.rows(last)
    if len(rows) != 1:
        outline = [{name: row[name] for name in ("user", "path", "status", "end")} for row in rows]
        raise AssertionError(f"expected one row in the ledger, found {len(rows)}: {outline}")
    row.update(rows[0])
    row["attempts"] = [attempt["credential"] for attempt in json.loads(row["attempts"])]
    for name, value in expected.items():
        fits = row[name] in value if isinstance(value, tuple) else row[name] == value
        if not fits:
            raise AssertionError(f"the row's {name}: expected {value!r}, found {row}")
