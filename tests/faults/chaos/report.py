"""What is printed of schedules and mutants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.faults.chaos.run import Result
from tests.faults.chaos.schedule import OPERATIONS, Schedule, command, make_schedule


def failure(result: Result) -> str:
    """A schedule that failed: what it was, what does not hold, and how to see it again."""
    schedule = make_schedule(result.seed)
    lines = [f"seed {result.seed} failed", *(f"  {line}" for line in _marked(schedule, result))]
    lines += [f"  VIOLATED  {one['invariant']}: {one['facts']}" for one in result.violations]
    if result.trouble:
        lines.append(f"  the harness itself: {result.trouble}")
    lines += [f"  run {run}: {state}" for run, state in result.ends.items()]
    if result.folder:
        lines.append(f"  logs and data are kept in {result.folder}")
    return "\n".join([*lines, f"  again: {command([result.seed])}"])


def _marked(schedule: Schedule, result: Result) -> list[str]:
    """The schedule in words, with the faults that happened told from those whose call never came."""
    world, dates, *rest = schedule.in_words()
    faults = [f"{'happened' if n in result.fired else 'not met '}  {line}" for n, line in enumerate(rest)]
    return [world, dates, *(faults if schedule.faults else rest)]


def summary(results: Sequence[Result], seconds: float) -> str:
    """Tables by fault, ledger and warehouse."""
    ran, failed, happened = Counter[str](), Counter[str](), Counter[str]()
    for result in results:
        schedule = make_schedule(result.seed)
        bad = bool(result.violations or result.trouble)
        kinds = {f"fault: {schedule.faults[n].action}" for n in result.fired} or {"fault: none"}
        kinds |= {f"afterwards: {name}" for name in OPERATIONS if getattr(schedule, name)}
        for key in (*kinds, f"ledger: {schedule.ledger}", f"warehouse: {schedule.warehouse}", "all"):
            ran[key] += 1
            failed[key] += bad
        for number in result.fired:
            happened[f"fault: {schedule.faults[number].action}"] += 1
    lines = [f"{'':34} {'schedules':>9} {'faults':>7} {'failed':>7}"]
    for key in sorted(ran, key=lambda key: (key == "all", key)):
        lines.append(f"{key:34} {ran[key]:9} {happened[key] or '':>7} {failed[key]:7}")
    again = sum(result.again for result in results)
    each = seconds / max(len(results), 1)
    lines.append(
        f"{len(results)} schedules in {seconds:.0f} s, {each:.1f} s each; "
        f"in {again} the same command had to be given again, as the tool said"
    )
    return "\n".join(lines)


def mutant_line(name: str, results: Sequence[Result]) -> str:
    """How a mutant was caught, or that it was not."""
    for count, result in enumerate(results, 1):
        if result.violations:
            first = result.violations[0]
            return f"{name:26} caught at seed {result.seed}, schedule {count}: {first['invariant']} ({first['facts']})"
    return f"{name:26} SURVIVED {len(results)} schedules"
