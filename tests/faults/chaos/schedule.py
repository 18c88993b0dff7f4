"""A schedule: a world, and what goes wrong in it at which call. Everything follows from the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from tests.faults.chaos.others import COMPLETE, HALF, can_be_written
from tests.faults.chaos.shapes import Day, make_shape

#: The processes of a schedule. A fault belongs to the one that meets it.
DATES, GATE, BEAT, PRODUCER = "dates", "gate", "beat", "producer"
UNDO, CLEANUP = "undo", "cleanup"  #: commands that the user gives after the run
ROLES = (DATES, GATE, BEAT, PRODUCER, UNDO, CLEANUP)

#: The calls at which something goes wrong in each role, and how often, compared with the others, it is chosen.
#: `commit` is the end of a ledger's transaction, `sync` comes before a file gets its name, `process` is the job's code.
OF_DATES = (
    {"ledger.get_run": 1, "ledger.claim_dates": 2, "ledger.release_dates": 2, "ledger.move_dates": 1}
    | {"ledger.commit": 2, "warehouse.describe": 1, "warehouse.query": 1, "warehouse.read": 1}
    | {"warehouse.fingerprints": 1, "warehouse.column_fingerprints": 1}
    | {"staging.write": 2, "file.sync": 1, "job.process": 3}
)
OF_GATE = (
    {"ledger.get_run": 1, "ledger.list_dates": 1, "ledger.claim_window": 1, "ledger.renew_window": 1}
    | {"ledger.record_verdicts": 1, "ledger.move_date": 1, "ledger.move_dates": 1, "ledger.write": 2}
    | {"ledger.release_window": 2, "ledger.open_windows": 1, "ledger.finish_run": 1, "ledger.commit": 2}
    | {"ledger.requeue_dates": 1, "ledger.list_active_runs": 1, "ledger.claim_task": 1, "ledger.finish_task": 1}
    | {"ledger.mark_reported": 1}
    | {"warehouse.publish": 3, "warehouse.matching_dates": 1, "warehouse.query": 1, "warehouse.fingerprints": 1}
    | {"warehouse.exchange_prepared": 1, "loading.make": 2}
    | {"staging.open": 1, "staging.quarantine": 1, "staging.delete": 1}
    | {"broker.send_window": 1, "broker.broker_backlog": 1, "file.sync": 2}
)
OF_PRODUCER = {"ledger.open_run": 1, "ledger.move_run": 1, "ledger.open_windows": 1, "ledger.commit": 1} | {
    "warehouse.query": 1,
    "broker.send_window": 2,
}
OF_BEAT = {"beat.tick": 1}
#: The calls at which another program writes a date: of a gate above all, and there between its system calls.
OTHERS_AT_GATE = {
    "local": {"file.rename": 8, "file.link": 2, "file.sync": 2, "loading.make": 4, "warehouse.publish": 3},
    "bigquery": {"bigquery.query": 12, "warehouse.publish": 3},
}
OTHERS_AT = {
    GATE: {"ledger.record_verdicts": 1, "ledger.renew_window": 1, "ledger.move_dates": 1, "ledger.commit": 2}
    | {"warehouse.matching_dates": 1, "warehouse.fingerprints": 1, "staging.open": 1},
    DATES: {"warehouse.fingerprints": 2, "warehouse.read": 1, "job.process": 1, "staging.write": 1, "ledger.commit": 1},
    PRODUCER: {"warehouse.query": 1, "ledger.open_run": 1},
}
OF_FILES = {"local": {"file.rename": 4, "file.link": 1, "file.sync": 2}, "bigquery": {"bigquery.query": 5}}
OF_UNDO = (
    {"ledger.begin_undo": 1, "ledger.withdraw": 2, "ledger.reinstate": 2, "ledger.finish_undo": 2, "ledger.commit": 1}
    | {"warehouse.replaced_partitions": 1, "warehouse.check_restorable": 1, "warehouse.restore": 5}
    | {"warehouse.matching_dates": 1, "warehouse.fingerprints": 1}
)
OF_CLEANUP = (
    {"ledger.open_cleanup": 1, "ledger.move_cleanup": 3, "ledger.renew_cleanup": 2, "ledger.claim_cleanup": 1}
    | {"warehouse.back_up": 2, "warehouse.read_backup": 1, "warehouse.delete_backed_up": 4}
    | {"warehouse.restore_backup": 3, "warehouse.row_counts": 1, "warehouse.fingerprints": 1, "ledger.commit": 1}
)
#: What a SQL job calls where a Python job calls something else; the points of a schedule of a SQL job.
OF_SQL = {
    "local": {
        "job.process": "warehouse.query_in_order",
        "warehouse.read": "warehouse.query_in_order",
        "staging.write": "staging.write_parts",
    },
    "bigquery": {
        "job.process": "query_staging.stage_query",
        "warehouse.read": "bigquery.query",
        "staging.write": "query_staging.stage_query",
        "staging.open": "query_staging.read_staged_contents",
        "staging.quarantine": "query_staging.keep_staged",
    },
}
SPOILED_AT = {"ledger.claim_window": 1, "ledger.renew_window": 2, "ledger.record_verdicts": 1, "warehouse.publish": 1}
POINTS = tuple(
    sorted(
        {*SPOILED_AT, *OF_DATES, *OF_GATE, *OF_PRODUCER, *OF_BEAT, *OF_UNDO, *OF_CLEANUP}.union(
            *OTHERS_AT_GATE.values(),
            *OTHERS_AT.values(),
            *OF_FILES.values(),
            *(points.values() for points in OF_SQL.values()),
        )
    )
)
#: What is called several times for each date or window.
MANY = {"ledger.commit": 3, "file.sync": 3, "warehouse.describe": 3, "warehouse.query": 2, "warehouse.read": 2}
MANY_OF_OTHERS = {"file.rename": 4, "file.link": 4, "bigquery.query": 3}

ERROR = "error"  #: one of the tool's errors, or what a library raises where the tool translates it
KILL = "kill"  #: -9
FREEZE = "freeze"  #: SIGSTOP, and SIGCONT some seconds later
RESTART = "restart the broker"  #: killed with -9, and back after some seconds
LOSE = "lose messages"
DUPLICATE = "duplicate messages"
DELAY = "delay messages"
FILL = "fill the staging disk"
ORDER = "give an order"  #: a command of the user's about every run that is on
CLOCK = "shift the clock"  #: that this process sees, until its task ends
WRITE = "another program writes a date"  #: of the target
SPOIL = "another program changes the staged rows"  #: in every staging table
COPY = "copy the ledger"  #: to put the copy in its place later
TO_THE_END = "self, to the end"  #: of a freeze: until everything else was done
AT_HAND = -1.0  #: in place of the number of a date: the one that the call is about, if that is known

RUN = "run"
OPERATIONS = ("undo", "rebuild", "cleanup", "twice", "put_back", "a_month_later")  #: fields of a schedule
LEASE_SECONDS = {"local": 4.0, "bigquery": 25.0}  #: of a date; see `periods`
SQL_SHARE = {"local": 0.15, "bigquery": 0.6}  #: of the schedules, whose job is a query
LATER = "once a window is closed"  #: when copies of messages may arrive
LATER_SECONDS = 3.0  #: after which they arrive in any case
LONGER_SECONDS = 1.2  #: that something is frozen for than a lease lasts


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, once, at the n-th call of a point by any process of a role."""

    role: str
    point: str
    nth: int
    after: bool  #: after the call's effect, not before it
    action: str
    #: Of a kill, a freeze or a restart: who; of a loss: which messages; of copies: when; of an order: which; of another
    #: program's write: which entities.
    target: str = "self"
    times: int = 1  #: so many calls in a row meet it
    amount: float = 0.0  #: seconds, or copies of a message, or the number of a date that can be written

    def in_words(self) -> str:
        when = "after" if self.after else "before"
        which = f"call {self.nth}" if self.times == 1 else f"calls {self.nth} to {self.nth + self.times - 1}"
        detail = {
            ERROR: "error",
            KILL: f"kill -9 {self.target}",
            FREEZE: f"freeze {self.target}"
            if self.target == TO_THE_END
            else f"freeze {self.target} for {self.amount:g} s",
            RESTART: f"kill -9 the broker, back {self.target} after {self.amount:g} s",
            LOSE: f"lose {self.target} messages",
            DUPLICATE: f"deliver every message {self.amount:g} times more, {self.target}",
            DELAY: f"hold every message back for {self.amount:g} s",
            ORDER: f"backfill {self.target}",
            FILL: f"fill the staging disk for {self.amount:g} s",
            CLOCK: f"shift the clock by {self.amount:+g} s",
            COPY: "copy the ledger",
            SPOIL: "another program changes the rows in every staging table",
            WRITE: f"another program writes {self._date_in_words()} with {self.target}",
        }[self.action]
        return f"{self.role}, {when} {which} of {self.point}: {detail}"

    def _date_in_words(self) -> str:
        return "the date at hand" if self.amount == AT_HAND else f"date {self.amount + 1:g} of those that it builds"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    seed: int
    shape: tuple[Day, ...]
    ledger: str  #: sqlite or postgres
    warehouse: str  #: local or bigquery
    sql: bool = False  #: whether the job is a query
    window: int
    per_task: str  #: dates a task, as the command is told
    in_flight: int
    preflight: bool
    strangers: bool  #: every process believes itself on a host of its own: nobody is known to be dead
    rival: bool  #: a second run of some of the dates is launched at the same time
    undo: bool = False  #: the run is undone after its end
    rebuild: bool = False  #: and its dates are built again afterwards
    cleanup: bool = False  #: stale rows of another table are deleted, and put back
    twice: bool = False  #: undo and cleanup are begun by two processes at once
    put_back: str = ""  #: RUN or CLEANUP: after it, an older copy of the ledger is put in its place
    a_month_later: bool = False  #: retention runs with a clock that is set ahead
    faults: tuple[Fault, ...]

    @property
    def durable(self) -> bool:
        """Whether the broker has to write down what it holds, which costs time."""
        return any(fault.action == RESTART and fault.target != "empty" for fault in self.faults)

    @property
    def lease(self) -> float:
        """Seconds for which a worker has a date: several times what the slowest takes on a busy machine."""
        return LEASE_SECONDS[self.warehouse]

    def in_words(self) -> list[str]:
        kinds = ", ".join(f"{day.kind.value}{' slow' if day.slow else ''}" for day in self.shape)
        more = ["a SQL job"] if self.sql else []
        more += ["no pre-flight"] if not self.preflight else []
        more += ["every process on a host of its own"] if self.strangers else []
        more += ["a rival run"] if self.rival else []
        more += ["an older ledger after the run"] if self.put_back == RUN else []
        more += [f"undo{' and rebuild' if self.rebuild else ''}"] if self.undo else []
        more += ["cleanup"] if self.cleanup else []
        more += ["by two processes at once"] if self.twice else []
        more += ["an older ledger after the cleanup"] if self.put_back == CLEANUP else []
        more += ["retention with a clock set ahead"] if self.a_month_later else []
        size = f"windows of {self.window}, {self.in_flight} in flight, {self.per_task} a task"
        return [
            "; ".join([f"{self.ledger}, {self.warehouse}, {size}", *more]),
            f"dates: {kinds}",
            *(fault.in_words() for fault in self.faults or ()),
            *(() if self.faults else ("no fault",)),
        ]


def make_schedule(seed: int, *, emulated_one_in: int = 16) -> Schedule:
    random = Random(f"chaos {seed}")
    shape = make_shape(random)
    bigquery = random.randrange(emulated_one_in) == 0
    strangers = random.random() < 0.15
    schedule = Schedule(
        seed=seed,
        shape=shape,
        ledger="postgres" if random.random() < 0.4 else "sqlite",
        warehouse="bigquery" if bigquery else "local",
        window=random.choice([1, 2, 2, 3, 3, 4, 6]),
        per_task=random.choice(["1", "2", "3", "6", "auto"]),
        in_flight=random.randint(1, 3),
        preflight=random.random() < 0.8,
        strangers=strangers,
        rival=random.random() < 0.15,
        faults=(),
    )
    count = random.choices([0, 1, 2, 3, 4], weights=[1, 4, 4, 2, 1])[0]
    faults = [_fault(random, schedule) for _ in range(count)]
    faults += _writes(Random(f"chaos {seed}, others"), schedule)
    schedule, more = _operations(Random(f"chaos {seed}, operations"), schedule)
    return _in_sql(Random(f"chaos {seed}, SQL"), replace(schedule, faults=(*faults, *more)))


def _in_sql(random: Random, schedule: Schedule) -> Schedule:
    """The schedule, or in some cases the same one of a SQL job."""
    if random.random() >= SQL_SHARE[schedule.warehouse]:
        return schedule
    points = OF_SQL[schedule.warehouse]
    faults = [replace(fault, point=points.get(fault.point, fault.point)) for fault in schedule.faults]
    if schedule.warehouse == "bigquery":
        for _ in range(random.choice([0, 1, 1, 2])):
            spoil = _fault_at(random, schedule, GATE, SPOILED_AT, SPOIL)
            faults.append(replace(spoil, nth=random.randint(1, -(-len(schedule.shape) // schedule.window))))
    return replace(schedule, sql=True, faults=tuple(faults))


def _operations(random: Random, schedule: Schedule) -> tuple[Schedule, list[Fault]]:
    """What the user does after the run, and what goes wrong meanwhile."""
    undo, cleanup = random.random() < 0.4, random.random() < 0.3
    sqlite = schedule.ledger == "sqlite"
    put_back = random.choices(["", RUN, CLEANUP], weights=[5, 1 if sqlite else 0, 2 if sqlite and cleanup else 0])[0]
    schedule = replace(
        schedule,
        undo=undo,
        rebuild=undo and random.random() < 0.5,
        cleanup=cleanup,
        twice=(undo or cleanup) and random.random() < 0.2,
        put_back=put_back,
        a_month_later=random.random() < 0.15,
    )
    faults: list[Fault] = []
    if put_back == RUN:
        faults.append(_fault_at(random, schedule, GATE, {"ledger.commit": 1}, COPY))
    if put_back == CLEANUP:
        points = {"ledger.open_cleanup": 2, "ledger.move_cleanup": 1, "warehouse.delete_backed_up": 1}
        faults.append(replace(_fault_at(random, schedule, CLEANUP, points, COPY), nth=1, after=random.random() < 0.8))
    if undo and random.random() < 0.2:
        points = {"warehouse.publish": 2, "ledger.renew_window": 1, "ledger.record_verdicts": 1}
        if schedule.warehouse == "bigquery":  # within a publication; local files would stay locked
            points |= {"bigquery.query": 6}
        frozen = _fault_at(random, schedule, GATE, points, FREEZE)
        most = 16 if frozen.point == "bigquery.query" else 2
        faults.append(replace(frozen, after=False, nth=random.randint(1, most), target=TO_THE_END))
    for role, points in [(UNDO, OF_UNDO)] * undo + [(CLEANUP, OF_CLEANUP)] * cleanup:
        for _ in range(random.choices([0, 1, 2, 3], weights=[2, 4, 3, 1])[0]):
            action = random.choices([KILL, FREEZE, ERROR, WRITE], weights=[5, 3, 2, 4])[0]
            faults.append(_fault_at(random, schedule, role, points | OF_FILES[schedule.warehouse], action))
    return schedule, faults


def _fault_at(random: Random, schedule: Schedule, role: str, points: Mapping[str, int], action: str) -> Fault:
    point = random.choices(list(points), weights=list(points.values()))[0]
    many = len(schedule.shape) * 3 if point.partition(".")[0] in ("file", "bigquery") else 2
    fault = Fault(
        role=role,
        point=point,
        nth=random.randint(1, 10 if action == COPY else many),
        after=random.random() < 0.5,
        action=action,
    )
    if action == FREEZE:
        # While it is frozen to the end, it must not hold the lock of a table.
        to_the_end = random.random() < 0.5 and not point.startswith(("file.", "bigquery.")) and point != "ledger.commit"
        return replace(fault, target=TO_THE_END) if to_the_end else replace(fault, amount=_longer(schedule))
    if action == WRITE:
        number = random.choice([AT_HAND, AT_HAND, float(random.randrange(len(can_be_written(schedule.shape))))])
        return replace(fault, target=random.choice([COMPLETE, COMPLETE, HALF]), amount=number)
    return fault


def _longer(schedule: Schedule) -> float:
    """Seconds for which something is frozen: longer than its lease, where that is not too long to wait for."""
    return min(schedule.lease + LONGER_SECONDS, 8.0)


def _writes(random: Random, schedule: Schedule) -> list[Fault]:
    """What another program writes meanwhile, and what else goes wrong between the system calls of a publication."""
    faults: list[Fault] = []
    for _ in range(random.choices([0, 1, 2, 3], weights=[5, 4, 2, 1])[0]):
        role = random.choices([GATE, DATES, PRODUCER], weights=[8, 2, 0.5])[0]
        points = OTHERS_AT[role] | (OTHERS_AT_GATE[schedule.warehouse] if role == GATE else {})
        point = random.choices(list(points), weights=list(points.values()))[0]
        number = random.choice([AT_HAND, float(random.randrange(len(can_be_written(schedule.shape))))])
        write = Fault(
            role=role,
            point=point,
            nth=random.randint(1, len(schedule.shape) * MANY_OF_OTHERS.get(point, MANY.get(point, 1))),
            after=random.random() < 0.5,
            action=WRITE,
            target=COMPLETE if random.random() < 0.75 else HALF,
            amount=number,
        )
        faults.append(write)
        if random.random() < 0.25:
            action, target = random.choice([(KILL, "self"), (KILL, "its worker"), (FREEZE, "self"), (ERROR, "self")])
            amount = _longer(schedule) if action == FREEZE else 0.0
            later = {"nth": write.nth + random.choice([0, 0, 1]), "after": True}
            faults.append(replace(write, action=action, target=target, amount=amount, **later))
    return faults


def _fault(random: Random, schedule: Schedule) -> Fault:
    role = random.choices([DATES, GATE, BEAT, PRODUCER], weights=[10, 10, 0.7, 1.5])[0]
    point, nth = _where(random, role, schedule)
    return Fault(role=role, point=point, nth=nth, after=random.random() < 0.5, **_what(random, role, point, schedule))


def _where(random: Random, role: str, schedule: Schedule) -> tuple[str, int]:
    windows = -(-len(schedule.shape) // schedule.window)
    points, most = {
        DATES: (OF_DATES, len(schedule.shape)),
        GATE: (OF_GATE, windows),
        PRODUCER: (OF_PRODUCER, 2),
        BEAT: (OF_BEAT, 8),
    }[role]
    point = random.choices(list(points), weights=list(points.values()))[0]
    return point, random.randint(1, most * MANY.get(point, 1))


def _what(random: Random, role: str, point: str, schedule: Schedule) -> dict[str, object]:
    if role == BEAT:
        return {"action": KILL}
    actions: dict[tuple[str, str], float] = {
        (ERROR, ""): 5,
        (KILL, "self"): 4,
        (RESTART, "empty"): 1.2,
        (RESTART, "with its log"): 1,
    }
    if role in (DATES, GATE):
        actions |= {(KILL, "its worker"): 2, (KILL, "every worker"): 0.6, (KILL, "beat"): 0.4}
        actions |= {(KILL, "the gate"): 1, (KILL, "the producer"): 0.4}
        actions |= {(FREEZE, "self"): 1.2, (FREEZE, "its worker"): 0.6, (FREEZE, "the broker"): 0.5}
        actions |= {(LOSE, "unacknowledged"): 0.7, (LOSE, "all"): 1}
        actions |= {(DUPLICATE, "at once"): 1.5, (DUPLICATE, LATER): 2.5}
        actions |= {(DELAY, ""): 1, (CLOCK, ""): 1.5}
        actions |= {(ORDER, "pause"): 0.8, (ORDER, "cancel"): 0.4}
        actions |= {(ORDER, "cancel --now"): 0.5, (ORDER, "cancel --discard"): 0.4}
    if point in ("staging.write", "file.sync"):
        actions |= {(FILL, ""): 3}
    action, target = random.choices(list(actions), weights=list(actions.values()))[0]
    found: dict[str, object] = {"action": action, "target": target or "self"}
    if action == ERROR:
        found["times"] = random.choice([1, 1, 1, 2, 3])
    found["amount"] = {
        FREEZE: 1.5 if target == "the broker" else _longer(schedule),
        RESTART: random.choice([0.1, 0.1, 0.8]),
        DUPLICATE: random.choice([1, 1, 2, 3]),
        DELAY: random.choice([0.3, 1.5]),
        FILL: random.choice([0.3, 1.0]),
        CLOCK: random.choice([-600, -60, -5, 2, 5]),
    }.get(action, 0.0)
    return found


def command(seeds: Sequence[int]) -> str:
    """How a person runs these schedules again."""
    return f"make chaos SEED={seeds[0]} SCHEDULES={len(seeds)}"
