"""One user of a mixed load: does something by chance, and compares the answer with what it must be."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any

from tests.api.conftest import Answer
from tests.soak.answers import Answers, Busy
from tests.soak.mirror import AGENT, THREAD, Body, Key, Mirror, Rows, steady, summary

PROVIDERS, MODELS = ("openai", "anthropic", None), ("gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-flash")
PERMISSIONS = ("documents:read", "documents:write", "agents:read", "threads:read", "usage:write")
# So many live ones; then some are deleted.
MAX_AGENTS, MAX_THREADS = 40, 80
# Verified are the newest keys of a user: many are made, and few are in use.
KEYS_IN_USE = 20
# Before a change is asked for again of which nobody knows whether it has happened.
PAUSE_SECONDS = 1.0


class Tenant:
    """A user with a key that may do all of it, and a mirror of what is theirs."""

    def __init__(self, answers: Answers, token: str, number: int) -> None:
        self._answers = answers
        self._faults = answers.faults
        self._token = token
        self._number = number
        self._dice = random.Random(number)  # noqa: S311 - a load, no secret
        self._count = 0
        # How often a change was asked for again.
        self._repeated = 0
        self.mirror = Mirror()
        # Where others find an agent that is not theirs.
        self.others: list[Tenant] = []
        self.operations: dict[Callable[[], Awaitable[None]], int] = {
            self.verify: 36,
            self.verify_nonsense: 4,
            self.make_key: 2,
            self.patch_key: 2,
            self.revoke_key: 2,
            self.read_keys: 3,
            self.make_agent: 3,
            self.read_agents: 6,
            self.patch_agent: 2,
            self.delete_or_restore_agent: 2,
            self.make_thread: 4,
            self.read_threads: 6,
            self.patch_thread: 3,
            self.delete_or_restore_thread: 2,
            self.look_at_others: 1,
            self.record_one: 12,
            self.record_again: 2,
            self.record_many: 2,
            self.read_usage: 3,
            self.read_sums: 3,
        }

    async def begin(self) -> None:
        """Learns what there is: the key that this user came with."""
        for body in (await self._ask("GET", "/v1/api-keys"))["data"]:
            self.mirror.keys[body["id"]] = Key({**body, "key": self._token})
            self._own = body["id"]

    async def something(self) -> None:
        """One operation, by chance."""
        (operation,) = self._dice.choices(list(self.operations), weights=list(self.operations.values()))
        await operation()

    async def _ask(self, method: str, path: str, *, expect: int = 200, name: str = "", **options: Any) -> Answer:
        return await self._answers.ask(self._token, method, path, expect, f"{method} {name or path}", **options)

    async def _change(
        self,
        method: str,
        path: str,
        *,
        expect: int,
        again: int | None = None,
        name: str = "",
        keyed: bool = True,
        audited: bool = True,
        **options: Any,
    ) -> Answer:
        """A change. Among faults it is asked for again until it is known to have happened, once.

        ``again`` is what a repetition may be answered where the first time had been enough. A POST is repeated with its
        Idempotency-Key, so the answer is that of the first time; usage may come without (not ``keyed``). What changes
        nothing, and usage, is not ``audited``.
        """
        if method == "POST" and keyed:
            options["headers"] = {"Idempotency-Key": self._text("change")}
        expected, repeated = {expect}, False
        while True:
            try:
                answer = await self._answers.ask(
                    self._token, method, path, expected, f"{method} {name or path}", **options
                )
            except Busy:
                if not self._faults:
                    raise
                self._repeated += 1
                repeated = True
                # 409: the first one is still under way.
                expected = {expect, again or expect, 409 if method == "POST" else expect}
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if answer.status == 409:
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if not repeated and audited:
                self._answers.changes.add(answer.headers["X-Request-Id"])
            return answer

    async def _list(self, path: str, expected: list[Body], take: int, **params: str) -> None:
        """The first page of a list; what is expected is newest first."""
        answer = await self._ask("GET", path, params={"take": str(take), **params})
        assert answer["data"] == expected[:take], path
        assert (answer["nextCursor"] is None) == (len(expected) <= take), path

    def _text(self, what: str) -> str:
        self._count += 1
        return f"{what} {self._number}-{self._count}"

    # Keys.

    async def verify(self) -> None:
        key = self._dice.choice([key for key in self.mirror.keys.values() if key.token][-KEYS_IN_USE:])
        wanted = self._dice.sample(PERMISSIONS, self._dice.choice([0, 0, 1]))
        asked = time.monotonic()
        body = {"key": key.token, "permissions": wanted}
        answer = await self._ask("POST", "/v1/api-keys/verify", json=body)
        allowed = [(_code(code, held, wanted), held) for code, held in key.states(asked)]
        assert (answer["code"], tuple(answer["permissions"])) in allowed, (answer.body, allowed)
        assert answer["valid"] == (answer["code"] == "VALID")
        assert (answer["id"], answer["keyId"]) == (key.body["id"], key.body["keyId"])

    async def verify_nonsense(self) -> None:
        token, code = self._token[:-1] + ("a" if self._token[-1] != "a" else "b"), "MALFORMED"
        answer = await self._ask("POST", "/v1/api-keys/verify", json={"key": token})
        assert (answer["valid"], answer["code"], answer["id"]) == (False, code, None)

    async def make_key(self) -> None:
        body: Body = {"name": self._text("key"), "permissions": self._dice.sample(PERMISSIONS, 2)}
        record = self._record()
        if self._dice.random() < 0.5:
            body["usage"] = record
        made = (await self._change("POST", "/v1/api-keys", expect=201, json=body)).body
        assert (made["name"], made["permissions"], made["active"]) == (body["name"], body["permissions"], True)
        if "usage" in body:
            self.mirror.record(record, made["usageId"])
        self.mirror.keys[made["id"]] = Key(made)

    def _some_key(self) -> Key | None:
        """An active one that is not the one with which everything is done."""
        active = [key for id_, key in self.mirror.keys.items() if id_ != self._own and key.body["active"]]
        return self._dice.choice(active) if active else None

    async def patch_key(self) -> None:
        if key := self._some_key():
            changes: Body = self._dice.choice(
                [
                    {"name": self._text("key")},
                    {"permissions": self._dice.sample(PERMISSIONS, 3)},
                    {"rateLimit": self._dice.randrange(500_000, 1_000_000)},
                ]
            )
            path = f"/v1/api-keys/{key.body['id']}"
            new = any(key.body[column] != value for column, value in changes.items())
            name = "/v1/api-keys/{id}"
            answer = await self._change("PATCH", path, expect=200, name=name, audited=new, json=changes)
            key.change(**changes)
            assert steady(answer.body) == steady(key.body)

    async def revoke_key(self) -> None:
        if key := self._some_key():
            path = f"/v1/api-keys/{key.body['id']}"
            await self._change("DELETE", path, expect=204, name="/v1/api-keys/{id}")
            key.change(active=False)

    async def read_keys(self) -> None:
        key = self._dice.choice(list(self.mirror.keys.values()))
        answer = await self._ask("GET", f"/v1/api-keys/{key.body['id']}", name="/v1/api-keys/{id}")
        assert steady(answer.body) == steady(key.body)
        active = self._dice.choice([True, None])
        keys = [steady(key.body) for key in reversed(self.mirror.keys.values()) if not active or key.body["active"]]
        params = {"take": "10"} | ({"active": "true"} if active else {})
        answer = await self._ask("GET", "/v1/api-keys", params=params)
        assert [steady(body) for body in answer["data"]] == keys[:10]

    # Agents.

    async def make_agent(self) -> None:
        if len(self.mirror.agents.live) < MAX_AGENTS:
            body = {"name": self._text("agent"), "instructions": "Stay. " * self._dice.randrange(1, 200)}
            made = (await self._change("POST", "/v1/agents", expect=201, json=body)).body
            assert {**made, **body} == made
            self.mirror.agents.bodies[made["id"]] = made

    async def read_agents(self) -> None:
        agents = self.mirror.agents
        match self._dice.randrange(3):
            case 0:
                await self._list("/v1/agents", [summary(body, AGENT) for body in agents.live], 10)
            case 1:
                start = f"agent {self._number}-{self._dice.randrange(1, 10)}"
                named = [summary(body, AGENT) for body in agents.live if body["name"].startswith(start)]
                await self._list("/v1/agents", named, 20, name=start.upper())
            case _:
                await self._read_agent()

    async def _read_agent(self) -> None:
        id_ = self._any(self.mirror.agents)
        if id_ in self.mirror.agents.deleted:
            await self._ask("GET", f"/v1/agents/{id_}", expect=404, name="/v1/agents/{id}")
        elif id_:
            params = {"include": "threads"}
            found = (await self._ask("GET", f"/v1/agents/{id_}", name="/v1/agents/{id}", params=params)).body
            threads = [summary(body, THREAD) for body in self.mirror.threads.live if body["agentId"] == id_]
            assert found == {**self.mirror.agents.bodies[id_], "threads": threads}

    async def patch_agent(self) -> None:
        changes: Body = self._dice.choice([{"name": self._text("agent")}, {"context": None}, {"context": "Be brief."}])
        await self._patch("/v1/agents", self.mirror.agents, changes)

    async def delete_or_restore_agent(self) -> None:
        await self._delete_or_restore("/v1/agents", self.mirror.agents)

    # What agents and threads have in common.

    def _any(self, rows: Rows) -> str:
        """One of the rows, deleted or not; none: an empty text."""
        return self._dice.choice(list(rows.bodies)) if rows.bodies else ""

    async def _patch(self, path: str, rows: Rows, changes: Body) -> None:
        id_ = self._any(rows)
        if not id_:
            return
        one, name = f"{path}/{id_}", f"{path}/{{id}}"
        if id_ in rows.deleted:
            await self._ask("PATCH", one, expect=404, name=name, json=changes)
            return
        before = rows.bodies[id_]
        options: dict[str, Any] = {"json": changes}
        match self._dice.randrange(10):
            case 0:
                # Somebody else's version.
                await self._ask("PATCH", one, expect=412, name=name, headers={"If-Match": '"1"'}, **options)
                return
            case 1 | 2:
                found = await self._ask("GET", one, name=name)
                options["headers"] = {"If-Match": found.headers["ETag"]}
        new = any(before[column] != value for column, value in changes.items())
        answer = await self._change("PATCH", one, expect=200, again=412, name=name, audited=new, **options)
        if answer.status == 412:
            # It had happened the first time.
            answer = await self._surely("GET", one, name=name)
        found = answer.body
        assert found == {**before, **changes, "updatedAt": found["updatedAt"]}
        rows.bodies[id_] = found

    async def _surely(self, method: str, path: str, *, name: str) -> Answer:
        while True:
            try:
                return await self._ask(method, path, name=name)
            except Busy:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _delete_or_restore(self, path: str, rows: Rows) -> None:
        id_ = self._any(rows)
        if not id_:
            return
        if id_ in rows.deleted:
            name = f"{path}/{{id}}/restore"
            found = (await self._change("POST", f"{path}/{id_}/restore", expect=200, name=name)).body
            assert found == {**rows.bodies[id_], "updatedAt": found["updatedAt"]}
            rows.bodies[id_] = found
            rows.deleted.remove(id_)
        else:
            await self._change("DELETE", f"{path}/{id_}", expect=204, again=404, name=f"{path}/{{id}}")
            rows.deleted.add(id_)

    # Threads.

    async def make_thread(self) -> None:
        if len(self.mirror.threads.live) >= MAX_THREADS:
            return
        body: Body = {"name": self._text("thread"), "model": self._dice.choice(MODELS)}
        if agents := self.mirror.agents.live:
            body["agentId"] = self._dice.choice(agents)["id"]
        made = (await self._change("POST", "/v1/threads", expect=201, json=body)).body
        assert {**made, **body} == made
        self.mirror.threads.bodies[made["id"]] = made

    async def read_threads(self) -> None:
        threads = self.mirror.threads
        match self._dice.randrange(3):
            case 0:
                await self._list("/v1/threads", [summary(body, THREAD) for body in threads.live], 20)
            case 1 if agents := self.mirror.agents.bodies:
                id_ = self._dice.choice(list(agents))
                under = [summary(body, THREAD) for body in threads.live if body["agentId"] == id_]
                await self._list("/v1/threads", under, 5, agentId=id_)
            case _ if id_ := self._any(threads):
                expect = 404 if id_ in threads.deleted else 200
                answer = await self._ask("GET", f"/v1/threads/{id_}", expect=expect, name="/v1/threads/{id}")
                assert expect == 404 or answer.body == threads.bodies[id_]

    async def patch_thread(self) -> None:
        changes: Body = self._dice.choice(
            [{"name": self._text("thread")}, {"agentId": None}, {"instructions": "Go on."}]
        )
        await self._patch("/v1/threads", self.mirror.threads, changes)

    async def delete_or_restore_thread(self) -> None:
        await self._delete_or_restore("/v1/threads", self.mirror.threads)

    async def look_at_others(self) -> None:
        """What is somebody else's does not exist."""
        if id_ := self._any(self._dice.choice(self.others).mirror.agents):
            await self._ask("GET", f"/v1/agents/{id_}", expect=404, name="/v1/agents/{id}")
            body = {"name": "mine?", "agentId": id_}
            await self._ask("POST", "/v1/threads", expect=422, json=body)

    # Usage.

    def _record(self) -> Body:
        record: Body = {
            "provider": self._dice.choice(PROVIDERS),
            "model": self._dice.choice(MODELS),
            "tokensIn": self._dice.randrange(2000),
            "tokensOut": self._dice.randrange(500),
            "cost": f"{Decimal(self._dice.randrange(10**9)) / 10**12:f}",
        }
        # Among faults each has one: without, nobody could ask again.
        return {**record, "eventId": self._text("event")} if self._faults or self._dice.random() < 0.7 else record

    async def _record_all(self, records: list[Body], name: str = "") -> list[tuple[Body, Body]]:
        """Each with its outcome. Sent alone it is no list. Now and then with an Idempotency-Key, mostly without."""
        body = records[0] if len(records) == 1 else records
        while True:
            keyed = self._dice.random() < 0.1
            answer = await self._change(
                "POST", "/v1/usage", expect=201, name=name, keyed=keyed, audited=False, json=body
            )
            outcomes = answer["data"]
            # null: the first of the same event was being stored in that very moment, which had no answer.
            if all(outcome["id"] for outcome in outcomes):
                return list(zip(records, outcomes, strict=True))
            assert self._faults

    async def _record_new(self, records: list[Body], name: str = "") -> None:
        refused = self._repeated
        for record, outcome in await self._record_all(records, name):
            # Asked for again it may have been stored before.
            assert outcome["status"] in {"recorded", "duplicate" if self._repeated > refused else "recorded"}
            self.mirror.record(record, outcome["id"])

    async def record_one(self) -> None:
        await self._record_new([self._record()])

    async def record_again(self) -> None:
        if self.mirror.events:
            record, id_ = self._dice.choice(self.mirror.events)
            ((_, outcome),) = await self._record_all([record])
            assert (outcome["status"], outcome["id"]) == ("duplicate", id_)

    async def record_many(self) -> None:
        await self._record_new([self._record() for _ in range(self._dice.randrange(5, 50))], "/v1/usage (batch)")

    async def read_usage(self) -> None:
        rows = (await self._ask("GET", "/v1/usage", params={"take": "20"}))["data"]
        assert [row["id"] for row in rows] == list(self.mirror.newest)[:-21:-1]

    async def read_sums(self) -> None:
        if self._dice.random() < 0.5:
            params = {"groupBy": "provider,model"}
            self.mirror.sums.check((await self._ask("GET", "/v1/usage/stats", params=params))["data"])
        else:
            self.mirror.sums.check_days((await self._ask("GET", "/v1/usage/daily"))["data"])

    # In the end.

    async def read_everything_back(self) -> None:
        """Whatever was acknowledged, once more: nothing is lost, and nothing is there that was not asked for."""
        assert await self._all("/v1/agents") == [summary(body, AGENT) for body in self.mirror.agents.live]
        assert await self._all("/v1/threads") == [summary(body, THREAD) for body in self.mirror.threads.live]
        keys = await self._all("/v1/api-keys")
        assert [steady(body) for body in keys] == [steady(key.body) for key in reversed(self.mirror.keys.values())]
        for path, rows in (("/v1/agents", self.mirror.agents), ("/v1/threads", self.mirror.threads)):
            for id_, body in rows.bodies.items():
                expect = 404 if id_ in rows.deleted else 200
                answer = await self._ask("GET", f"{path}/{id_}", expect=expect, name=f"{path}/{{id}}")
                assert expect == 404 or answer.body == body
        self.mirror.sums.check((await self._ask("GET", "/v1/usage/stats"))["data"])
        self.mirror.sums.check_days((await self._ask("GET", "/v1/usage/daily"))["data"])

    async def _all(self, path: str) -> list[Body]:
        rows: list[Body] = []
        params = {"take": "100"}
        while True:
            answer = await self._ask("GET", path, params=params)
            rows += answer["data"]
            if answer["nextCursor"] is None:
                return rows
            params["cursor"] = answer["nextCursor"]


def _code(code: str, held: Sequence[str], wanted: Sequence[str]) -> str:
    """What verifying a key says that is worth so much and holds this, when more may be wanted."""
    enough = "*" in held or set(wanted) <= set(held)
    return code if code != "VALID" or enough else "INSUFFICIENT_PERMISSIONS"
