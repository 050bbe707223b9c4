"""What only the Redis store promises: its keys, its patience while Redis is away, and several servers at once."""

import logging
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import quote

import numpy as np
import pytest

from mc_core.errors import ConfigError, StoreError
from mc_core.notes import Note
from mc_core.store import DamagedRecordError, FencedError, LeaseHeldError, StoreDownError
from redis_pair import Forwarder, Pair, Refusing
from redis_server import RedisServer
from server.stores import open_store
from store_harness import RedisHarness, begin, fill, lapse_soon, make_gists, make_record, some_ids
from support import free_port, wait_until


@pytest.fixture
def place():
    harness = RedisHarness()
    yield harness
    harness.cleanup()


@pytest.fixture
def server():
    """A server that the test may kill."""
    server = RedisServer(fsync="always")
    yield server
    server.stop()


def spans(number, count=1):
    return np.full((count, 4), number, np.int32)


def test_delete_leaves_no_key(place):
    """Law: after the last delete a SCAN finds the counters alone, and after close nothing of the server either."""
    store = place.open()
    for name, tenant in (("a", "alice"), ("b", "bob:*[x] /ü")):
        record = begin(store, name, tenant=tenant, implicit=True, prefixes=[("h", 0)])
        record = fill(store, record, some_ids(4 * 3000))
        fill(store, record, some_ids(4 * 3100), commit=False)
        fork = make_record(f"{name}2", tenant=tenant, tokens=4 * 1500)
        store.fork(name, tenant, fork).result()
        fill(store, store.open(fork.session_id, tenant, "me").result().record, some_ids(4 * 2000))
    assert any(quote("bob:*[x] /ü", safe="") in key for key in place.all_keys())
    for name, tenant in (("a", "alice"), ("b2", "bob:*[x] /ü"), ("b", "bob:*[x] /ü"), ("a2", "alice")):
        store.delete(name, tenant).result()
    assert [key for key in place.all_keys() if ":writer:" not in key] == [f"{place.namespace}meta"]
    store.close()
    assert place.all_keys() == [f"{place.namespace}meta"]


def test_a_password_is_never_shown(caplog):
    """Law: a wrong password is a clear error however long the patience; it shows neither this one nor the right one."""
    server = RedisServer(password="right-secret")
    try:
        open_store(server.url.replace("://", "://:right-secret@")).close()
        patient = server.url.replace("://", "://:wrong-secret@") + "?patience=3000"
        with caplog.at_level(logging.DEBUG), pytest.raises(StoreError, match=r"127\.0\.0\.1.*password") as refused:
            open_store(patient)
        with pytest.raises(StoreError, match=r"[Aa]uthentication"):
            open_store(server.url)
        told = f"{refused.value!r} {refused.value.__cause__!r} {caplog.text}"
        assert "wrong-secret" not in told
        assert "right-secret" not in told
    finally:
        server.stop()


def test_tls_with_a_ca_of_ones_own(tmp_path):
    """Law: rediss:// speaks TLS, trusts the CA file that the URL names, and refuses a server it doesn't know."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    port = free_port()
    server = RedisServer(tls_port=port, tls_cert_file=cert, tls_key_file=key, tls_auth_clients="no")
    url = f"rediss://127.0.0.1:{port}/3"
    try:
        store = open_store(f"{url}?ssl_ca_certs={quote(str(cert))}")
        begin(store)
        store.close()
        with server.client() as client:
            assert client.info("keyspace").keys() == {"db3"}
        with pytest.raises(StoreError, match=r"certificate"):
            open_store(f"{url}?patience=0.2")
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("deadline=no", "deadline"),
        ("patience=0", "patience"),
        ("namespace=", "namespace"),
        ("replicas=9", "replicas"),
        ("socket_timeout=x", "socket_timeout"),
        ("nonsense=1", "nonsense"),
    ],
)
def test_bad_options_are_named(query, words):
    """Law: an option that can't work is a ConfigError that names it and hides the password."""
    with pytest.raises(ConfigError, match=words) as refused:
        open_store(f"redis://:secret@127.0.0.1:1/0?{query}")
    assert "secret" not in str(refused.value)


def test_nobody_listens(server):
    """Law: a Redis that isn't there is a StoreError after the patience asked for, not a hang."""
    server.kill()
    with pytest.raises(StoreError, match="can't open"):
        open_store(f"{server.url}?patience=0.5")


def test_an_outage_is_waited_for_and_flushed_in_order(server):
    """Law: what was written while Redis was away is acknowledged in its order when it is back, not before; health
    tells since when it is away."""
    store = open_store(server.url)
    record = begin(store, gist_dim=0)
    assert store.commit(replace(record, state={"n": 0})).result() == 1
    server.kill()
    futures, order = [], []
    for number in range(1, 21):
        futures.append(store.write_spans("s", record.fence, number - 1, spans(number)))
        futures.append(store.commit(replace(record, tokens=4 * number, state={"n": number})))
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: order.append(number))
    wait_until(lambda: not store.healthy().result().ok)
    health = store.healthy().result()
    assert (health.ok, health.degraded) == (False, True)
    assert "down for" in health.detail
    assert health.pending_bytes > 20 * 16
    assert store.overloaded() is None
    assert not any(future.done() for future in futures)
    server.start()
    assert [future.result() for future in futures[1::2]] == list(range(2, 22))
    assert order == list(range(40))
    assert store.healthy().result().ok
    store.close()
    store = open_store(server.url)
    assert store.record("s", "alice").result().state == {"n": 20}
    assert store.read_span_range("s", 0, 20).result().ids[:, 0].tolist() == list(range(1, 21))
    store.close()


def test_a_commit_whose_reply_was_lost_is_made_once(server):
    """Law: a batch that Redis took in without an answer in time runs once, and not a second time when it is late."""
    store = open_store(f"{server.url}?socket_timeout=0.3")
    record = begin(store, gist_dim=0)
    writer = store._calls._writer
    for number in range(1, 4):
        server.hang()
        wanted = writer._number + 3
        store.write_spans("s", record.fence, number - 1, spans(number))
        commit = store.commit(replace(record, tokens=4 * number))
        while writer._number < wanted:  # each copy waits in a socket of its own
            time.sleep(0.01)
        server.hang(False)
        assert commit.result() == number
    with server.client() as client:
        # Redis runs what lies in a socket before it sees that nobody is at the other end.
        wait_until(lambda: len(client.client_list()) <= 3)
    assert store.record("s", "alice").result().sequence == 3
    assert store.read_span_range("s", 0, 3).result().ids[:, 0].tolist() == [1, 2, 3]
    store.close()


def test_whatever_is_sent_again_is_done_once(server):
    """Law: a Redis that stood still carries out each of the copies that were sent to it meanwhile; the second of them
    changes nothing and answers as the first did: a new session, a fork, a lease, a reshape, notes and deletions."""
    store = open_store(f"{server.url}?socket_timeout=0.2")
    writer = store._calls._writer

    def repeated(call):
        server.hang()
        wanted = writer._number + 3
        future = call()
        wait_until(lambda: writer._number >= wanted)  # each copy waits in a socket of its own
        server.hang(False)
        found = future.result()
        with server.client() as client:
            wait_until(lambda: len(client.client_list()) <= 3)
        return found

    repeated(lambda: store.create(make_record()))
    record = repeated(lambda: store.open("s", "alice", "me")).record
    record = fill(store, record, some_ids(16))
    assert repeated(lambda: store.commit(record, [Note("n", 8, b"1", indexed=True)])) == 2
    repeated(lambda: store.fork("s", "alice", make_record("f", tokens=8)))
    shape = {"gist_dim": 3, "gist_dtype": "float32", "gist_keys": 0, "key_dim": 0}
    repeated(lambda: store.reshape("s", record.fence, **shape))
    assert store.record("s", "alice").result().sequence == 3
    assert repeated(lambda: store.delete_note("s", "alice", "n")) is True
    repeated(lambda: store.delete("s", "alice"))
    listed = store.list("alice").result().sessions
    assert [(info.session_id, info.tokens) for info in listed] == [("f", 8)]
    assert np.array_equal(store.read_span_range("f", 0, 2).result().ids.ravel(), some_ids(16)[:8])
    store.close()


def test_a_commit_past_its_deadline_fails_and_its_lease_writes_no_more(server):
    """Law: a write that was given up is never made later, and nothing is written behind the gap that it leaves; a read
    behind it waits for as long as reads do, not for as long as the write."""
    store = open_store(f"{server.url}?deadline=0.8&patience=0.2")
    record = begin(store, gist_dim=0)
    server.kill()
    write = store.write_spans("s", record.fence, 0, spans(1))
    commit, ended = store.commit(replace(record, tokens=4)), list[str]()
    read, rows = store.record("s", "alice"), store.read_span_range("s", 0, 1)
    for name, future in (("commit", commit), ("read", read), ("rows", rows)):
        future.add_done_callback(lambda _, name=name: ended.append(name))
    for future in (write, commit, read, rows, store.open("s", "alice", "me")):
        with pytest.raises(StoreDownError, match="can't be reached"):
            future.result()
    assert ended.index("commit") == 2
    assert store.release("s", record.fence).done(), "nobody waits for a Redis that is away"
    server.start()
    with pytest.raises(FencedError):
        store.write_spans("s", record.fence, 0, spans(2)).result()
    with pytest.raises(FencedError):
        store.commit(record).result()
    again = store.open("s", "alice", "me").result().record
    assert (again.tokens, again.sequence) == (0, 0)
    store.write_spans("s", again.fence, 0, spans(3))
    assert store.commit(replace(again, tokens=4)).result() == 1
    assert store.read_span_range("s", 0, 1).result().ids.tolist() == [[3, 3, 3, 3]]
    store.close()


def test_the_buffer_is_bounded(server):
    """Law: writes beyond the buffer are refused at once, new work is turned away before that, and all is well later."""
    store = open_store(server.url, max_pending=100_000)
    record, other = begin(store, gist_dim=0), begin(store, "t", gist_dim=0)
    server.kill()
    kept = store.write_spans("t", other.fence, 0, spans(9))
    writes = [store.write_spans("s", record.fence, 400 * n, spans(n, 400)) for n in range(20)]
    refused = [write for write in writes if write.done()]
    assert refused
    assert all(isinstance(write.exception(), StoreDownError) for write in refused)
    wait_until(lambda: store.overloaded() is not None)
    assert store.healthy().result().pending_bytes <= 100_000
    assert not store.healthy().result().degraded
    server.start()
    with pytest.raises(FencedError):
        store.commit(replace(record, tokens=4)).result()
    assert kept.result() is None
    assert store.commit(replace(other, tokens=4)).result() == 1
    assert store.overloaded() is None
    assert store.healthy().result().pending_bytes == 0
    store.close()


def test_two_servers_share_a_store_and_one_takes_over(place):
    """Law: a second server reads what the first committed, waits for its lease, takes over when that lapses; what the
    first still writes changes nothing."""
    first, second = place.open(), place.open()
    ids = some_ids(400)
    record = fill(first, begin(first, owner="one"), ids[:200])
    fill(first, record, ids[:300], commit=False)
    assert second.record("s", "alice").result().tokens == 200
    assert second.read_span_range("s", 0, 75).result().missing.tolist() == list(range(50, 75))
    with pytest.raises(LeaseHeldError):
        second.open("s", "alice", "two").result()
    lapse_soon(first, record)
    wait_until(lambda: second.open("s", "alice", "two").exception() is None)
    taken = second.record("s", "alice").result()
    fence = second.open("s", "alice", "two").result().fence
    late = [
        first.write_spans("s", record.fence, 50, spans(1)),
        first.write_gists("s", record.fence, 1, 50, np.ones((1, 2), np.float32)),
        first.commit(replace(record, state={"late": True})),
    ]
    assert [type(future.exception()) for future in late] == [FencedError] * 3
    assert first.renew({"s": record.fence}).result() == ("s",)
    fill(second, replace(taken, fence=fence), ids)
    assert first.read_span_range("s", 0, 100).result().ids.ravel().tolist() == ids.tolist()
    assert np.array_equal(first.read_gist_range("s", 2, 0, 25).result().gists, make_gists(ids, 4, 2, 0))
    first.delete("s", "alice").result()
    with pytest.raises(FencedError, match="deleted"):
        second.commit(replace(taken, fence=fence)).result()
    first.close()
    second.close()


def test_the_newest_life_of_a_name_has_it(place):
    """Law: a server learns when another one began under its name, and not when its own silence was long."""
    store = place.open(lease_seconds=0.05)
    assert store.announce("one", "a", True).result()
    time.sleep(0.1)
    assert store.announce("one", "a", False).result()
    store.lease_seconds = 60
    assert store.announce("one", "b", True).result()
    assert [store.announce("one", life, False).result() for life in "abab"] == [False, True, False, True]
    assert store.announce("two", "a", False).result()
    store.close()


def test_a_redis_that_lost_acknowledged_turns_is_noticed(place):
    """Law: if Redis comes back with less than it acknowledged, the lease is over and the session is opened anew."""
    store = place.open()
    record = fill(store, begin(store), some_ids(40))
    key = next(key for key in place.all_keys() if ":session:" in key)
    with place.server.client() as client:
        before = client.dump(key)
        fill(store, record, some_ids(60))
        client.restore(key, 0, before, replace=True)
    with pytest.raises(FencedError, match="lost acknowledged commits"):
        store.commit(replace(record, tokens=60)).result()
    assert store.open("s", "alice", "me").result().record.tokens == 40
    store.close()


def test_a_fence_that_redis_counts_twice_is_two_leases(place):
    """Law: after a failover to a copy from before a take-over the same fence is given out again, to another owner; who
    had it first writes no more."""
    first, second = place.open(lease_seconds=0.2), place.open()
    begin(first, owner="zero")
    with place.server.client() as client:
        kept = {key: client.dump(key) for key in place.all_keys() if key.endswith((":session:s", ":meta"))}
        old = first.open("s", "alice", "zero").result().record
        for key, data in kept.items():
            client.restore(key, 0, data, replace=True)
    taken = []
    wait_until(
        lambda: not (opened := second.open("s", "alice", "two")).exception() and not taken.append(opened.result())
    )
    assert taken[0].fence == old.fence
    with pytest.raises(FencedError):
        first.commit(replace(old, state={"late": True})).result()
    assert second.commit(replace(taken[0].record, state={"mine": True})).result() == 1
    assert second.record("s", "alice").result().state == {"mine": True}
    first.close()
    second.close()


def test_a_redis_that_lost_a_reshape_is_noticed(place):
    """Law: after a failover to a copy from before a reshape no gist of the new shape is written among the old ones."""
    store, ids = place.open(), some_ids(40)
    record = fill(store, begin(store), ids)
    key = next(key for key in place.all_keys() if ":session:" in key)
    with place.server.client() as client:
        before = client.dump(key)
        store.reshape("s", record.fence, gist_dim=2, gist_dtype="float32", gist_keys=0, key_dim=0).result()
        client.restore(key, 0, before, replace=True)
    with pytest.raises(FencedError, match="lost acknowledged commits"):
        store.write_gists("s", record.fence, 1, 0, np.ones((1, 2), np.float32)).result()
    assert np.array_equal(store.read_span_range("s", 0, 10).result().ids.ravel(), ids)
    store.close()


def test_servers_that_share_a_store_expire_sessions_together(place):
    """Law: each unused session is deleted, and counted, once; one that the other server has open stays."""
    first, second = place.open(), place.open()
    for number in range(30):
        first.create(make_record(f"s{number}", implicit=True)).result()
    kept = [second.open(f"s{number}", "alice", "two").result() for number in (0, 7, 29)]
    gone = [store.expire(8, implicit=0) for _ in range(4) for store in (first, second)]
    assert sum(future.result() for future in gone) == 27
    assert [second.commit(stored.record).result() for stored in kept] == [1, 1, 1]
    first.close()
    second.close()


def test_a_redis_that_forgot_its_scripts_or_is_full_loses_nothing(server):
    """Law: scripts are given to Redis again; out of memory is a StoreFullError, and the lease writes no more."""
    store = open_store(server.url)
    record = begin(store, gist_dim=0)
    with server.client() as client:
        client.script_flush()
        store.write_spans("s", record.fence, 0, spans(1)).result()
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match="full"):
            store.commit(replace(record, tokens=4)).result()
        assert not store.healthy().result().ok
        client.config_set("maxmemory", 0)
    with pytest.raises(FencedError):
        store.commit(replace(record, tokens=4)).result()
    assert store.open("s", "alice", "me").result().record.tokens == 0
    store.close()


def test_keys_of_format_1_are_upgraded(place):
    """Law: sessions of an older server are listed by kind and expire, once a new server has opened the store."""
    store = place.open()
    for number in range(5):
        store.create(make_record(f"s{number}", implicit=number > 1)).result()
    store.close()
    with place.server.client() as client:
        for key in place.all_keys():
            if key.endswith(("implicit", "explicit")):
                client.delete(key)
            elif ":session:" in key:
                client.hdel(key, "lineage_sum", "gist_blocks")
                client.hset(key, "reshaped", "1" if key.endswith("s4") else "")
        client.hset(f"{place.namespace}meta", "format", 1)
        # Deleted by an old server that goes on beside the new one.
        client.zadd(f"{place.namespace}alice:sessions:implicit", {"gone": 2e9})
    store = place.open()
    first = store.list("alice", 1, implicit=True).result()
    assert ([info.session_id for info in first.sessions], first.next is None) == (["s4"], False)
    pages = [store.list("alice", implicit=implicit).result().sessions for implicit in (False, True)]
    assert [[info.session_id for info in page] for page in pages] == [["s1", "s0"], ["s4", "s3", "s2"]]
    assert store.expire(2, implicit=0).result() == 2
    assert store.expire(9, explicit=0).result() == 2
    store.close()
    with place.server.client() as client:
        assert client.hget(f"{place.namespace}meta", "format") == b"6"
        assert client.hmget(f"{place.namespace}alice:session:s4", "reshaped", "gist_blocks") == [None, b"0"]


def test_newer_formats_are_refused(place):
    """Law: keys of a newer server are left alone."""
    place.open().close()
    with place.server.client() as client:
        client.hset(f"{place.namespace}meta", "format", 7)
    with pytest.raises(StoreError, match="format 7"):
        place.open()


def test_a_page_that_is_gone_is_missing_and_a_cut_one_corrupt_at_its_end(place):
    """Law: lost pages are reported row by row, never filled in, and can be healed."""
    store, ids = place.open(), some_ids(4 * 2500)
    fill(store, begin(store, gist_dim=0), ids)
    with place.server.client() as client:
        first, second, third = (
            next(k for k in place.all_keys() if k.endswith(f":rows:1:0:{page}")) for page in range(3)
        )
        client.delete(second)
        client.set(third, client.getrange(third, 0, 40 * 10 + 7))
        assert client.strlen(first) == 1024 * 40
    batch = store.read_span_range("s", 0, 2500).result()
    assert batch.corrupt.tolist() == [2058]
    assert batch.missing.tolist() == [*range(1024, 2048), *range(2059, 2500)]
    lease = store.open("s", "alice", "me").result()
    store.write_spans("s", lease.fence, 0, ids.reshape(-1, 4)).result()
    assert np.array_equal(store.read_span_range("s", 0, 2500).result().ids.ravel(), ids)
    store.close()


def test_nothing_is_read_from_a_replica():
    """Law: a Redis that is no primary is as one that is away, for reads too: what it has may be of the past."""
    pair = Pair()
    store = open_store(f"{pair.url}?patience=0.3")
    try:
        begin(store)
        pair.replicated()
        pair.address.target = pair.new.port
        pair.old.kill()
        with pytest.raises(StoreDownError, match="slave"):
            store.record("s", "alice").result()
        with pytest.raises(StoreError, match="slave"):
            open_store(f"{pair.url}?patience=0.3")
        pair.promote()
        assert store.record("s", "alice").result().session_id == "s"
    finally:
        store.close()
        pair.stop()


def test_nothing_is_acknowledged_before_its_replicas_have_it():
    """Law: with replicas=1 a commit that the replica did not get is no success; it is one when the replica has it."""
    pair = Pair()
    store = open_store(f"{pair.url}?replicas=1&deadline=0.5")
    try:
        record = begin(store, gist_dim=0)
        assert store.commit(record).result() == 1
        pair.new.hang()
        with pytest.raises(StoreDownError, match="of 1 replicas that must have a write, 0 do"):
            store.commit(record).result()
        pair.new.hang(False)
        record = store.open("s", "alice", "me").result().record
        sequence = store.commit(record).result()
        assert sequence == record.sequence + 1
        pair.old.kill()
        pair.promote()
        pair.address.target = pair.new.port
        assert store.record("s", "alice").result().sequence == sequence
    finally:
        store.close()
        pair.stop()


@pytest.mark.parametrize(
    "error",
    [
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "READONLY You can't write against a read only replica.",
        "NOREPLICAS Not enough good replicas to write.",
        "CLUSTERDOWN The cluster is down",
        "MOVED 7 127.0.0.1:1",
    ],
    ids=lambda error: error.split()[0],
)
def test_a_redis_that_can_not_serve_is_left_for_the_one_that_can(place, error):
    """Law: after an error of a Redis that is not, or not yet, the right one its connections are dropped, so that calls
    that wait end well as soon as the address leads to the right one."""
    wrong = Refusing(error)
    address = Forwarder(wrong.port)
    try:
        with ThreadPoolExecutor() as pool:
            url = f"redis://127.0.0.1:{address.port}/0?namespace={place.namespace}&patience=20"
            opening = pool.submit(open_store, url)
            wait_until(lambda: wrong.refused > 6)
            assert not opening.done()
            address.target = place.server.port
            store = opening.result(5)
        begin(store)
        store.close()
    finally:
        address.close()
        wrong.close()


def test_a_ttl_that_only_looks_like_its_number_is_damage(place):
    """Law: what stands for the same number, but is not what was written, is told to be damaged."""
    store = place.open()
    record = begin(store, "s")
    store.commit(replace(record, ttl=5.0)).result()
    key = next(key for key in place.all_keys() if key.endswith(":session:s"))
    with place.server.client() as client:
        assert client.hget(key, "ttl") == b"5.0"
        client.hset(key, "ttl", b"5. ")
    with pytest.raises(DamagedRecordError):
        store.record("s", "alice").result()
    store.close()


def test_a_full_page_of_rows_leaves_no_room(place):
    """Law: a page that is full takes little more of Redis than its rows, though it grew row by row."""
    store = place.open()
    record = begin(store, gist_dim=0)
    writes = [store.write_spans("s", record.fence, at, spans(at, 32)) for at in range(0, 1024 + 32, 32)]
    assert [write.result() for write in writes] == [None] * 33
    (page,) = (key for key in place.all_keys() if key.endswith(":rows:1:0:0"))
    with place.server.client() as client:
        assert client.memory_usage(page, samples=0) < 1.3 * client.strlen(page)
    assert store.commit(replace(record, tokens=4 * 1056)).result() == 1
    assert store.read_span_range("s", 1023, 2).result().ids[:, 0].tolist() == [992, 1024]
    store.close()
