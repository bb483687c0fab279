"""The model, against sums done by hand, and against what must hold whatever it is given."""

import itertools
import math

import msgspec
import pytest

from crafely.bench import capacity_model as model
from crafely.bench.capacity_page import sections, size
from crafely.bench.capacity_picture import picture
from crafely.bench.capacity_terms import Capacity, Costs, Load, Machine, Point

# Round numbers, in the order of those that are measured.
COSTS = Costs(
    hit_worker=50e-6,
    read_worker=100e-6,
    cold_worker=4000e-6,
    read_server=20e-6,
    single_worker=100e-6,
    event_worker=10e-6,
    batch_worker=500e-6,
    single_server=100e-6,
    event_server=30e-6,
    batch_server=500e-6,
    touch_server=5e-6,
    single_wal=1500,
    event_wal=1200,
    batch_wal=800,
    touch_wal=200,
    key_disk=1000,
    usage_disk=700,
    ledger_disk=200,
    daily_disk=300,
    audit_disk=500,
    worker_memory=80e6,
    key_memory=2000,
    backend_memory=2.5e6,
    connections=13,
    verify_network=1000,
    single_network=1000,
    event_network=250,
    batch_network=750,
)
MACHINE = Machine()
# Few keys, each in everybody's memory, and nothing else.
WARM = Load(keys=1000, lookups=10_000, events=0, users=100, hit_rate=1.0)


def loads(**changes: float | None) -> Load:
    return msgspec.structs.replace(WARM, **changes)


def test_warm_lookups_take_what_they_cost() -> None:
    need = model.demand(WARM, COSTS, MACHINE)
    # 10,000 × 50 µs are half a processor, of which a worker is planned for six tenths.
    assert need.worker_cores == pytest.approx(0.5)
    assert need.workers == 1
    assert (need.read_cores, need.record_cores) == (0, 0)
    # There and back, in bits.
    assert need.network == pytest.approx(80e6)
    assert model.demand(loads(lookups=12_001), COSTS, MACHINE).workers == 2


def test_what_is_not_in_memory_is_read_and_hashed() -> None:
    need = model.demand(loads(hit_rate=0.9), COSTS, MACHINE)
    # 9,000 × 50 µs + 1,000 × 4 ms; 1,000 rows of 20 µs.
    assert need.worker_cores == pytest.approx(4.45)
    assert need.workers == math.ceil(4.45 / 0.6)
    assert need.read_cores == pytest.approx(0.02)


def test_events_alone_and_in_batches() -> None:
    alone = model.demand(loads(lookups=0, events=1000), COSTS, MACHINE)
    assert (alone.worker_cores, alone.record_cores) == pytest.approx((0.1, 0.1))
    assert alone.record_wal == pytest.approx(1.5e6)
    batches = model.demand(loads(lookups=0, events=100_000, event_batch=100), COSTS, MACHINE)
    # An event's own 10 and 30 µs, and 5 µs of its batch.
    assert (batches.worker_cores, batches.record_cores) == pytest.approx((1.5, 3.5))
    assert batches.record_wal == pytest.approx(100_000 * 1208)
    assert [model.per_event(batch, 7, 1, 10) for batch in (1, 2, 10)] == [7, 6, 2]
    assert batches.network == pytest.approx(8 * 100_000 * 257.5)


def test_bytes_on_disk() -> None:
    need = model.demand(loads(lookups=0, events=1, retention_months=12), COSTS, MACHINE)
    # A thousand keys, each made once and changed once in the year.
    assert need.key_disk == pytest.approx(1000 * 1000 + 2000 * 500)
    year = 365.25 * 86_400
    # Of a hundred users, for five years.
    sums = 100 * 4 * 365.25 * 5
    assert need.usage_disk == pytest.approx(year * 700 + 40 * 86_400 * 200 + sums * 300)
    few = model.demand(loads(lookups=0, events=0.001, retention_months=1), COSTS, MACHINE)
    kept = year / 12 / 1000
    assert few.usage_disk == pytest.approx(kept * (700 + 200) + 60 * kept * 300), "no more sums than records"
    long = model.demand(loads(lookups=0, events=1, retention_months=120), COSTS, MACHINE)
    assert long.usage_disk == pytest.approx(10 * year * 700 + 40 * 86_400 * 200 + 2 * sums * 300)


def test_memory_and_connections() -> None:
    need = model.demand(loads(lookups=20_000), COSTS, Machine(key_cache_size=500))
    assert need.workers == 2
    assert need.worker_memory == pytest.approx(2 * (80e6 + 500 * 2000))
    assert need.connections == 26
    assert need.database_memory == pytest.approx(26 * 2.5e6 + 1000 * 1000)


@pytest.mark.parametrize(
    ("keys", "zipf"), [(1, 1.0), (50, 0.0), (10_000, 0.0), (10_000, 1.07), (10**9, 1.07), (10**9, 3)]
)
def test_all_keys_are_in_the_distribution(keys: int, zipf: float) -> None:
    bins = model.bins(keys, zipf)
    assert sum(count for count, _ in bins) == keys
    assert sum(count * share for count, share in bins) == pytest.approx(1)
    assert len(bins) < 250


def test_the_distribution_is_that_of_zipf() -> None:
    first, second = (share for _, share in model.bins(1_000_000, 1.07)[:2])
    assert first / second == pytest.approx(2**1.07)
    exact = 1 / sum(rank**-1.07 for rank in range(1, 1_000_001))
    assert first == pytest.approx(exact, rel=0.01)


def test_a_cache_of_a_tenth_of_equal_keys_remembers_a_tenth() -> None:
    machine = Machine(key_cache_size=1000, key_cache_seconds=3600)
    shares = model.shares(loads(keys=10_000, hit_rate=None, zipf=0.0, lookups=1e6), machine, 1)
    assert shares.cold == pytest.approx(0.9, abs=1e-6)
    assert shares.hit == pytest.approx(0.1, abs=1e-6)
    unequal = model.shares(loads(keys=10_000, hit_rate=None, zipf=1.07, lookups=1e6), machine, 1)
    # A cache that knew which keys are used most would have their share; one that learns it has less.
    best = sum(rank**-1.07 for rank in range(1, 1001)) / sum(rank**-1.07 for rank in range(1, 10_001))
    assert 0.8 * best < unequal.hit < best


def test_a_row_is_read_again_when_its_time_is_over() -> None:
    # Each of 100 keys comes 10 times a second and is believed for 0.1 s: one of 1 + 1 is read.
    load, machine = loads(keys=100, lookups=1000, hit_rate=None, zipf=0.0), Machine(key_cache_seconds=0.1)
    assert msgspec.structs.astuple(model.shares(load, machine, 1)) == pytest.approx((0.5, 0.5, 0.0))
    need = model.demand(load, COSTS, machine)
    assert need.read_cores == pytest.approx(500 * 20e-6)
    # Each of ten workers sees a tenth of that: one of 1 + 0.1.
    assert model.shares(load, machine, 10).read == pytest.approx(1 / 1.1)
    assert model.shares(load, Machine(key_cache_seconds=0), 1).read == 1


def test_uses_of_keys_are_noted_once_in_five_seconds_by_each_worker() -> None:
    # One key, used all the time: each of two workers notes it.
    busy = model.demand(loads(keys=1, users=1, lookups=20_000), COSTS, MACHINE)
    assert busy.workers == 2
    assert busy.touch_cores == pytest.approx(2 / 5 * 5e-6)
    assert busy.touch_wal == pytest.approx(2 / 5 * 200)
    # So many keys that hardly one comes twice, up to what a worker notes at all.
    many = model.demand(loads(keys=10**9, zipf=0.0, lookups=10_000), COSTS, MACHINE)
    assert many.touch_wal == pytest.approx(10_000 * 200, rel=0.001)
    # A worker notes a hundred thousand in five seconds: with rows from memory it sees more.
    most = model.demand(
        loads(keys=10**9, zipf=0.0, lookups=1_000_000), msgspec.structs.replace(COSTS, hit_worker=1e-6), MACHINE
    )
    assert most.workers == 2
    assert most.touch_wal == pytest.approx(2 * 20_000 * 200)


def test_from_one_machine_to_many() -> None:
    assert model.plan(WARM, COSTS, MACHINE).tier == "one machine"
    assert model.plan(WARM, COSTS, MACHINE).machines == 1
    # 300,000 × 50 µs are 15 processors of the 9.6 that are planned for.
    apart = model.plan(loads(lookups=300_000), COSTS, MACHINE)
    assert (apart.tier, apart.worker_machines, apart.databases, apart.machines) == ("primary", 2, 1, 4)
    assert apart.workers == 25
    assert not apart.pooler
    # 1,000,000 rows a second of 20 µs are 20 processors, which are three primaries of 9.6, each with its standby.
    reading = model.plan(loads(lookups=1_000_000, hit_rate=0.0), COSTS, Machine(wal=1e18))
    assert (reading.tier, reading.databases, reading.replicas, reading.shards) == ("primary", 3, 3, 0)
    assert reading.pooler
    assert reading.machines == reading.worker_machines + 3 + 3
    # 500,000 × 35 µs are 17.5 processors; by the log, 604 MB/s of the 120 planned for, it is six shards.
    usage = model.plan(loads(lookups=0, events=500_000, event_batch=100, retention_months=1), COSTS, MACHINE)
    assert usage.tier == "Citus"
    assert usage.shards_for == "disk"
    assert usage.shards == math.ceil(usage.demand.usage_disk / (16e12 * 0.6)) > math.ceil(604 / 120)
    assert usage.machines == usage.worker_machines + usage.databases + usage.replicas + usage.shards
    quick = model.plan(loads(lookups=0, events=500_000, event_batch=100, retention_months=1), COSTS, Machine(disk=1e18))
    assert (quick.shards, quick.shards_for) == (math.ceil(604 / 120), "log")
    # What stays on the coordinator, 0.25 × 17.5, fits one.
    assert quick.databases == 1
    small = Machine(cores=4, disk=1e18)
    assert model.plan(loads(lookups=0, events=500_000, event_batch=100), COSTS, small).databases == math.ceil(
        4.375 / 2.4
    )


def test_what_does_not_fit_together_is_apart() -> None:
    large = Machine(disk=1e18)
    # 5 processors of workers and 5 of PostgreSQL, of 9.6: each fits, both do not.
    assert model.plan(loads(lookups=0, events=50_000), COSTS, large).tier == "primary"
    # 7.5 of usage and 2.4 of rows of keys: usage goes, the rows and a quarter of it stay.
    both = model.plan(loads(lookups=120_000, hit_rate=0.0, events=75_000), COSTS, Machine(disk=1e18, wal=1e18))
    assert (both.tier, both.databases, both.replicas, both.shards) == ("Citus", 1, 3, 2)
    # 9.5 processors of usage, and 0.4 to note 80,000 keys a second: two shards, though one would hold usage.
    wide = loads(keys=10**9, lookups=80_000, zipf=0.0, events=95_000)
    assert model.plan(wide, COSTS, Machine(disk=1e18, wal=1e18)).shards == 2
    # Little to do, and more bytes than a disk has.
    assert model.plan(loads(lookups=1, events=1000), COSTS, Machine(disk=1e9)).tier == "Citus"
    # A million keys noted in a second are 200 MB of log, of the 120 that one primary is planned for.
    noted = model.plan(loads(keys=10**9, lookups=1_000_000, zipf=0.0), COSTS, large)
    assert (noted.databases, noted.shards) == (2, 0)
    # Half of them, and as much of records: each fits, both do not.
    both_logs = loads(keys=10**9, lookups=500_000, zipf=0.0, events=40_000, event_batch=100)
    assert both_logs.events * 1208 < 120e6
    assert model.plan(both_logs, COSTS, large).tier == "Citus"
    # So are a thousand million keys of 1.6 kB, their trail included, too much for a disk of a terabyte.
    assert model.plan(loads(keys=10**9), COSTS, Machine(disk=1e12)).databases == math.ceil(1.625e12 / 0.6e12)


def test_what_ends_first() -> None:
    found = {limit.what.partition(",")[0]: limit for limit in model.limits(WARM, COSTS, MACHINE)}
    # A worker is full at 20,000 verifications; a machine of 16 processors at sixteen times that, and its database.
    assert found["one worker"].lookups == pytest.approx(20_000, rel=1e-4)
    assert found["one worker"].factor == pytest.approx(2, rel=1e-4)
    factors = [limit.factor for limit in model.limits(WARM, COSTS, MACHINE)]
    assert factors == sorted(factors)
    assert model.limits(WARM, COSTS, MACHINE)[0].what == "one worker"
    # Whose rows are never read brings replicas nothing: a use of a thousand keys is all that PostgreSQL hears of.
    assert found["the primary's connections"].lookups == pytest.approx(38 * 12_000, rel=1e-3)
    events = model.limits(loads(lookups=0, events=1000, retention_months=1), COSTS, Machine(disk=1e18))
    log = next(limit for limit in events if limit.what == "the primary's log")
    assert log.events == pytest.approx(200e6 / 1500, rel=1e-4)
    assert log.lookups == 0
    # 100 µs of PostgreSQL for each, of 16 processors; and a quarter of it, where the rest is on shards.
    busy = {limit.what: limit.events for limit in events}
    assert busy["the primary's processors"] == pytest.approx(160_000, rel=1e-4)
    assert busy["the coordinator's processors"] == pytest.approx(640_000, rel=1e-4)


def test_keys_that_no_disk_holds_end_it_at_once() -> None:
    found = model.limits(loads(events=1, keys=10**9), COSTS, Machine(disk=1e9))
    assert found[0].what == "the primary's disk"
    assert found[0].factor < 1e-8


SIZES = ("workers", "machines", "databases", "worker_machines")
NEEDS = ("worker_cores", "server_cores", "worker_memory", "database_memory", "connections", "network")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("lookups", [0, 1, 1_000, 30_000, 100_000, 300_000, 1_000_000, 10_000_000]),
        ("events", [0, 1, 1_000, 30_000, 100_000, 300_000, 1_000_000, 10_000_000]),
        ("keys", [100, 10_000, 99_999, 100_001, 1_000_000, 100_000_000, 1_000_000_000]),
        ("retention_months", [1, 3, 12, 120, 1200]),
        ("users", [1, 1000, 100_000, 10_000_000]),
    ],
)
@pytest.mark.parametrize("zipf", [0.0, 1.07, 2.0])
@pytest.mark.parametrize("batch", [1, 1000])
def test_more_never_needs_less(field: str, values: list[int], zipf: float, batch: int) -> None:
    base = Load(keys=100_000, lookups=20_000, events=5_000, event_batch=batch, zipf=zipf, users=100)
    plans = [model.plan(msgspec.structs.replace(base, **{field: value}), COSTS, MACHINE) for value in values]
    for less, more in itertools.pairwise(plans):
        for name in SIZES:
            assert getattr(less, name) <= getattr(more, name), name
        for name in (*NEEDS, "key_disk", "usage_disk"):
            assert getattr(less.demand, name) <= getattr(more.demand, name) * (1 + 1e-9), name


def test_a_better_machine_needs_no_more_of_them() -> None:
    load = Load(lookups=500_000, events=200_000, event_batch=100)
    better: dict[str, list[float]] = {"cores": [4, 64], "utilization": [0.2, 0.9], "key_cache_size": [10, 10**6]}
    for name, values in better.items():
        machines = [msgspec.structs.replace(MACHINE, **{name: value}) for value in values]
        counts = [model.plan(load, COSTS, machine).machines for machine in machines]
        assert counts == sorted(counts, reverse=True), name


def test_a_million_a_second_is_answered() -> None:
    lines = model.loads(Load(), COSTS, MACHINE)
    assert {line.load.lookups for line in lines} | {line.load.events for line in lines} == {0, *model.RATES}
    assert len(lines) == 16
    assert all(line.answer.machines >= 1 for line in lines)
    # Alone, and with a hundred thousand of the keys in each worker: no more processors than every row read would take.
    most = next(line for line in lines if line.load.lookups == 1_000_000)
    assert 50 < most.answer.demand.worker_cores <= 4000


def test_how_far_off_a_prediction_is() -> None:
    assert Point("", "bytes", 2.0, 1.0).factor == Point("", "bytes", 1.0, 2.0).factor == 2.0
    assert Point("", "bytes", 0.0, 1.0).factor == Point("", "bytes", 1.0, 0.0).factor == 1e6
    assert Point("", "bytes", 3.0, 3.0).factor == Point("", "bytes", 0.0, 0.0).factor == 1.0
    assert Point("", "bytes", 1, 1).counted
    assert not Point("", "processors", 1, 1).counted


@pytest.fixture
def found() -> Capacity:
    return model.answered(Load(), COSTS, MACHINE, [Point("two <workers>", "processors", 1.0, 1.25)])


def test_the_tables_have_every_cost_and_every_prediction(found: Capacity) -> None:
    made = {section.title: section for section in sections(found)}
    assert len(made["Measured, for one"].rows) == len(Costs.__struct_fields__)
    assert ["two <workers>", "1", "1.25", "processors", "1.25 ×"] in [
        list(row) for s in made.values() for row in s.rows
    ]
    for section in made.values():
        assert all(len(row) == len(section.head) for row in section.rows), section.title
    assert len(made["From a thousand to a million a second"].rows) == 16


def test_the_picture_shows_what_ends_where(found: Capacity) -> None:
    drawn = picture(found)
    assert drawn.count("<polyline") == 4
    assert drawn.count('class="mark"') >= 4
    assert "one worker: " in drawn


def test_sizes_for_people() -> None:
    assert [size(count) for count in (5, 1500, 2.5e6, 1e9, 3.2e12, 4e15)] == [
        "5 B",
        "1.5 kB",
        "2.5 MB",
        "1 GB",
        "3.2 TB",
        "4 PB",
    ]
