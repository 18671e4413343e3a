"""What a leg meets while a backend is away, and on a server that lacks what the relay needs."""

from tests.behaviour.clients import closed, connect, pair
from tests.databases import Postgres
from tests.relays import COMMANDS, free_port, running
from tests.rows import booked


async def test_without_the_channel_layer_a_leg_is_told_to_try_again_later(server, session_id, tmp_path):
    with running(server, tmp_path, {"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}) as relay:
        async with connect(relay, session_id) as client:
            code, reason = await closed(client)
        assert code == 1013
        assert reason.startswith("unavailable: ")
        assert "a leg is refused: ConnectionError: " in relay.output()


async def test_no_database_is_needed_to_be_admitted_and_relayed(session_id, tmp_path):
    database = Postgres()
    database.start()
    try:
        with running("daphne spliced", tmp_path, {"DATABASE_URL": database.create("relay")}) as relay:
            database.stop()
            async with pair(relay, session_id) as (client, server):
                await client.send("no database")
                assert await server.recv() == "no database"
                await client.close()
                assert (await closed(server))[0] == 1000
            line = await relay.session_closed(session_id)
            assert line["total_bytes"] == 11
            database.start()
            await booked(relay, session_id, to_server=["no database"], to_client=[], close=(1000, ""))
    finally:
        database.remove()


async def test_a_server_without_flow_control_is_named_in_the_log(session_id, tmp_path, monkeypatch):
    command = ["daphne", "-v", "0", "-p", "{port}", "tests.behaviour.stock_asgi:application"]
    monkeypatch.setitem(COMMANDS, "plain daphne", command)
    with running("plain daphne", tmp_path) as relay:
        async with pair(relay, session_id) as (client, server):
            await client.send("hi")
            assert await server.recv() == "hi"
        await booked(relay, session_id, to_server=["hi"], to_client=[])
        assert relay.output().count("neither flow control nor faithful closes") == 1


async def test_our_own_servers_are_not(relay, session_id):
    async with pair(relay, session_id):
        assert "neither flow control" not in relay.output()
