"""The databases that are measured: made once, filled up, and nobody else's."""

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rich.progress import Progress

from crafely.auth import keys
from crafely.bench import BenchError, seed
from crafely.bench.place import Place
from crafely.bench.place import place as place_at
from crafely.config import Settings


def test_what_an_interrupted_run_has_seeded_is_kept(
    place: Place, settings: Settings, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seed, "CHUNK", 100)
    url = place.database("seeds")
    first = seed.seed(url, settings, progress, keys=250)
    assert first.keys == 250
    settle = seed._settle

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(seed, "_settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        seed.seed(url, settings, progress, keys=400)
    monkeypatch.setattr(seed, "_settle", settle)
    last = seed.seed(place.database("seeds"), settings, progress, keys=400, usage_records=2300)
    assert (last.keys, last.usage_records) == (400, 2300)
    assert last.secret == first.secret
    with pytest.raises(BenchError, match="another cost of argon2"):
        seed.seed(url, Settings(argon2_memory_kib=8), progress, keys=400)
    with psycopg.connect(url) as connection:
        rows = connection.execute("select key_id, id, user_id, active from api_keys order by id").fetchall()
        assert rows == [(seed.key_id(n), seed.row_id(n), seed.user_id(n), True) for n in range(1, 401)]
        assert len({key_id for key_id, *_ in rows} | {"0" * 16}) == 401
        assert all(len(key_id) == keys.KEY_ID_LENGTH for key_id, *_ in rows)
        # Whose usage it is, and that its sums are its sums.
        check = """
            select count(*), count(k.id), sum(u.cost) = (select sum(cost) from usage_daily),
                count(*) = (select sum(records) from usage_daily) from usage u
            left join api_keys k on k.id = u.api_key_id and k.user_id = u.user_id
        """
        assert connection.execute(check).fetchone() == (2300, 2300, True, True)
    parsed = keys.parse(last.token(17))
    assert parsed is not None
    assert (parsed.key_id, parsed.secret) == (seed.key_id(17), last.secret)


def test_more_than_was_asked_for_would_be_another_measurement(
    place: Place, settings: Settings, progress: Progress
) -> None:
    url = place.database("full")
    seed.seed(url, settings, progress, keys=20)
    with pytest.raises(BenchError, match="holds 20 keys"):
        seed.seed(url, settings, progress, keys=10)


def test_what_another_release_has_seeded_is_not_measured(place: Place, settings: Settings, progress: Progress) -> None:
    url = place.database("old")
    seed.seed(url, settings, progress, keys=2)
    with psycopg.connect(url) as connection:
        connection.execute("update api_keys set key_id = '0000000000000001' where id = %s", [seed.row_id(1)])
    with pytest.raises(BenchError, match="_old was seeded by another release"):
        seed.seed(url, settings, progress, keys=2)


def test_a_database_of_somebody_else_is_left_alone(place: Place, database_url: str) -> None:
    name = str(conninfo_to_dict(database_url)["dbname"])
    prefix, _, rest = name.partition("_")
    with pytest.raises(BenchError, match="left alone"):
        Place(place.url, None, prefix).database(rest)
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select to_regnamespace('crafely_bench')").fetchone() == (None,)


def test_it_takes_a_superuser(settings: Settings, database_url: str) -> None:
    with place_at(settings, database_url) as found:
        assert found.url == database_url
    with (
        pytest.raises(BenchError, match="needs a superuser"),
        place_at(settings, make_conninfo(database_url, options="-c role=crafely_app")),
    ):
        pass
